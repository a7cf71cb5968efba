"""Sequences that a replica receives: another replica has computed their prompts."""

from typing import TYPE_CHECKING

from sim.serving.micro_batch import MicroBatch

if TYPE_CHECKING:
    from sim.serving.scheduler import Scheduler


def clear_first_prompts(scheduler: "Scheduler", batch: MicroBatch) -> None:
    """Remove the first prompts that need no computing: cancelled or received ones."""
    drop_cancelled(scheduler)
    if scheduler.prefilling and scheduler.prefilling[0].is_prefilled:
        join_received(scheduler, batch)


def drop_cancelled(scheduler: "Scheduler") -> None:
    """End cancelled requests whose prompts are next, and admit others."""
    if scheduler.prefilling and scheduler.prefilling[0].cancelled:
        scheduler.admission.drop_cancelled_prompts()
        scheduler.admission.admit()


def join_received(scheduler: "Scheduler", batch: MicroBatch) -> None:
    """Add received sequences to a micro-batch, as far as it has places.

    The gap before the next token of each began with its first token, on the other replica.
    """
    before, prefilling = batch.running, scheduler.prefilling
    transfers = scheduler.rows.transfers
    assert transfers
    while prefilling and prefilling[0].is_prefilled and scheduler.places(batch) > 0:
        request = prefilling.popleft()
        transfers.decode_start[request.id] = scheduler.admission.env.now
        if batch.running == before:
            batch.skip()  # the others' gaps differ from those of the sequences that join
        noted = bool(batch.skipped_since)
        batch.join(request, request.joined)
        if not noted:  # else `join` has noted the gap
            batch.skipped_since.append((1, request.joined))
        drop_cancelled(scheduler)
    if batch.running != before:
        scheduler.update_allowed(batch, before)
