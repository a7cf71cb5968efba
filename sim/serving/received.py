"""Sequences that a replica receives: another replica has computed their prompts."""

from collections.abc import Callable

from sim.serving.admission import Admission
from sim.serving.micro_batch import MicroBatch


def add_received(
    admission: Admission, batch: MicroBatch, places: Callable[[MicroBatch], int]
) -> int:
    """Add received sequences to a micro-batch, as far as it has places; return their number.

    Cancelled prompts that are next are ended. The gap before the next token of each sequence began
    with its first token, on the other replica.
    """
    admission.drop_cancelled_prompts()
    before, prefilling, transfers = batch.running, admission.prefilling, admission.rows.transfers
    while prefilling and prefilling[0].is_prefilled and places(batch) > 0:
        request = prefilling.popleft()
        assert transfers
        transfers.decode_start[request.id] = admission.env.now
        if batch.running == before:
            batch.skip()  # the others' gaps differ from those of the sequences that join
        noted = bool(batch.skipped_since)
        batch.join(request, request.joined)
        if not noted:  # else `join` has noted the gap
            batch.skipped_since.append((1, request.joined))
        admission.drop_cancelled_prompts()
    return batch.running - before
