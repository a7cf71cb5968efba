"""Prompts that wait until every attention rank has one, so that no rank waits for another's prompt.

In a step, ranks without a prompt wait for the rank that computes one. With `rank_wait`, prompts
start together, as with TensorRT-LLM's balance of attention data parallelism.
"""

from collections.abc import Iterable, Sequence

from sim.serving.admission import Admission
from sim.serving.micro_batch import MicroBatch
from sim.serving.request import Request


def steps_held(admission: Admission, batch: MicroBatch) -> int:
    """Return the steps until a micro-batch may compute the prompts that wait; 0: now."""
    policies = admission.policies
    unseen = batch.steps_unseen(policies.receive_every)  # 0 after a step with prompts, which go on
    if not policies.rank_wait:
        return unseen
    sequences, passed = admission.kv_cache.rank_sequences, batch.step - batch.received
    waiting = steps_until_start(admission.prefilling, sequences, passed, policies.rank_wait)
    return max(unseen, waiting)


def steps_until_start(
    prefilling: Iterable[Request], sequences: Sequence[int], passed: int, timeout: int
) -> int:
    """Return the steps with decodes until waiting prompts start; 0: now.

    They start if each rank has one, or if a rank decodes nothing. Else they start with every
    `timeout`-th step, counted from the last prompts, also if none has waited for so long.

    prefilling: the waiting prompts. sequences: those of each rank, waiting prompts included.
    passed: steps with decodes since the one with the last prompts.
    Left out: a rank with as many sequences as it may hold, with which none starts.
    Source: TensorRT-LLM, enable_balance and timeout_iters of attention_dp_config, and
    https://github.com/NVIDIA/TensorRT-LLM/blob/main/docs/source/blogs/tech_blog/blog10_ADP_Balance_Strategy.md
    """
    prompts = [0] * len(sequences)
    for request in prefilling:
        prompts[request.rank] += 1
    if all(prompts) or any(map(int.__eq__, prompts, sequences)):
        return 0
    return -(passed + 1) % timeout
