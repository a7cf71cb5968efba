"""Prompts that wait until every attention rank has one.

In a step, ranks without a prompt wait for the rank that computes one. With `rank_wait`, the
prompts of all ranks start in one step, so that ranks wait less often. TensorRT-LLM calls this
the balance of attention data parallelism.
"""

from collections.abc import Iterable, Sequence

from sim.serving.admission import Admission
from sim.serving.micro_batch import MicroBatch
from sim.serving.request import Request


def steps_until_prompts(admission: Admission, batch: MicroBatch) -> int:
    """Return the steps until a micro-batch may compute the waiting prompts; 0: now.

    `receive_every` and `rank_wait` of the policies may both delay prompts. Then the timeout is the
    largest multiple of `receive_every` within it, and at least `receive_every`. A micro-batch
    without sequences does not wait, because it makes no steps that end the wait.
    """
    policies = admission.policies
    every, steps = policies.receive_every, batch.steps_unseen(policies.receive_every)
    if not (policies.rank_wait and batch.running):
        return steps
    sequences = admission.kv_cache.rank_sequences
    times = (batch.step - batch.received + steps) // every  # the scheduler has seen new requests
    timeout = max(1, policies.rank_wait // every)
    return steps + every * steps_until_together(admission.prefilling, sequences, times, timeout)


def steps_until_together(
    prefilling: Iterable[Request], sequences: Sequence[int], passed: int, timeout: int
) -> int:
    """Return the steps with decodes until `rank_wait` lets waiting prompts start; 0: now.

    Prompts start if each rank has one, or if a rank has no decoding sequence. Otherwise they start
    with every `timeout`-th step after the last prompts, even if none has waited for so long.

    prefilling: the waiting prompts. sequences: those of each rank, waiting prompts included.
    passed: steps with decodes since the one with the last prompts.
    Left out: with TensorRT-LLM, no prompt starts while a rank has as many sequences as it may hold.
    Source: TensorRT-LLM, enable_balance and timeout_iters of attention_dp_config, and
    https://github.com/NVIDIA/TensorRT-LLM/blob/main/docs/source/blogs/tech_blog/blog10_ADP_Balance_Strategy.md
    """
    prompts = [0] * len(sequences)
    for request in prefilling:
        prompts[request.rank] += 1
    decoding = [held - waiting for held, waiting in zip(sequences, prompts, strict=True)]
    if all(prompts) or not all(decoding):
        return 0
    return timeout - 1 - passed % timeout
