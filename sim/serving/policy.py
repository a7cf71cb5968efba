"""Policies: the decisions of a replica's scheduler and of the router before it.

A policy is called when something has changed: a request arrives, a prompt or a request ends, or
the KV cache is full. Its decision holds until the next change. Each policy is a plain function. A
scenario names one of ours, or a user's as module:function.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

from sim.inputs.fields import Named
from sim.serving.batch_wait import BatchWait
from sim.serving.kv_cache import KVCache
from sim.serving.limits import SchedulerLimits
from sim.serving.request import Request
from sim.units import Seconds

# The next step of a micro-batch.


class Queue(Protocol):
    """The queue of a replica and one of its micro-batches, computed when a policy reads it."""

    @property
    def kv_free(self) -> int:
        """Tokens of the KV cache that no sequence holds or has reserved."""

    @property
    def age(self) -> Seconds:
        """Time since the arrival of the oldest request that waits or prefills; 0 if none does."""

    @property
    def slack(self) -> Seconds:
        """Time until the first deadline of the queue and of the micro-batch; inf without one."""


class BatchState(NamedTuple):
    """A micro-batch and its queue, as a batching policy sees them.

    running: sequences that it decodes. begun: whether it has decoded since it was last empty.
    prompts: admitted requests whose prompts are not computed to their end.
    budget: tokens of a step. size: sequences that it may hold.
    """

    running: int
    begun: bool
    prompts: int
    budget: int
    size: int
    queue: Queue


class BatchDecision(NamedTuple):
    """The next step of a micro-batch.

    decodes: whether each of its sequences gets a token.
    prompt_tokens: the most tokens of prompts that are computed with them.
    sequences: the most prompts that may end with the step and join the micro-batch.
    """

    decodes: bool
    prompt_tokens: int
    sequences: int


Batching = Callable[[BatchState], BatchDecision]


def steady(policy: Batching) -> Batching:
    """Declare that a batching policy is steady, as a decorator. Runs are then many times faster.

    A steady policy always decides as `continuous` does: every sequence decodes, and the oldest
    prompts fill the budget. So the serving loop need not call it at every step. A decision that
    breaks the declaration is a user error.
    """
    policy.steady = True  # type: ignore[attr-defined]
    return policy


def is_steady(policy: Batching) -> bool:
    """Return whether a batching policy declares that it is steady."""
    return bool(getattr(policy, "steady", False))


@steady
def continuous(state: BatchState) -> BatchDecision:
    """Decode every sequence, and fill the budget with chunks of prompts.

    Source: Sarathi-Serve, OSDI 2024.
    """
    return BatchDecision(True, state.budget - state.running, state.budget)


def prefill_first(state: BatchState) -> BatchDecision:
    """Compute prompts alone while there are any; otherwise decode every sequence.

    Source: Orca, OSDI 2022; vLLM before chunked prefill.
    """
    if state.prompts:
        return BatchDecision(False, state.budget, state.budget)
    return BatchDecision(True, 0, 0)


def static(state: BatchState) -> BatchDecision:
    """Fill the micro-batch, and decode until all its requests have ended.

    A program that is compiled for one batch size works like this.
    """
    if state.begun or state.running >= state.size or not state.prompts:
        return BatchDecision(True, 0, 0)
    return BatchDecision(False, state.budget, state.size - state.running)


def ring(state: BatchState) -> BatchDecision:
    """Let sequences keep their beats, and prompts take the free ones, as a `RingReplica` does.

    A ring has no micro-batches, so nothing calls this function.
    """
    raise NotImplementedError("a ring of beats has no micro-batches")


# The order of the queue.

# A key of a request, taken once when it arrives. The smallest is next; equal keys in order of id.
Order = Callable[[Request], float]


def first_come_first_served(request: Request) -> float:
    """Return the same key for every request."""
    return 0.0


def shortest_first(request: Request) -> float:
    """Return the tokens of a request, prompt and output, as if the output were known."""
    return float(request.tokens)


def by_priority(request: Request) -> float:
    """Return the priority of a request."""
    return float(request.priority)


# The replica of a request.


class RoutedReplica(Protocol):
    """A replica as a router sees it. A user's router may read no more.

    system: the system of the scenario that it is a copy of.
    """

    system: str
    limits: SchedulerLimits

    @property
    def kv_cache(self) -> KVCache:
        """Its KV cache. `cached_tokens` returns the tokens of a prompt that need no computing."""

    @property
    def unfinished(self) -> int:
        """Requests that were routed to it and have not ended."""


# The place of a replica among those that are up.
Router = Callable[[Sequence[RoutedReplica], Request], int]


def relative_load(replica: RoutedReplica, request: Request) -> float:
    """Return unfinished requests / requests of this length that the replica holds at one time.

    The result is inf for a replica that holds none. Equal replicas are ordered by their unfinished
    requests.
    """
    held = replica.limits.max_concurrent(request.tokens)
    return replica.unfinished / held if held else math.inf


def least_loaded(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """Return the replica of the smallest `relative_load`; the first of equals.

    So a replica with room for few sequences gets few requests.
    """
    return min(range(len(replicas)), key=lambda number: relative_load(replicas[number], request))


def round_robin(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """Return the replicas in turn, by the request's number."""
    return request.id % len(replicas)


# The router balances load while the most loaded replica has so many more requests than the least
# loaded one, and so many times as many. Source: sglang-gateway 0.3.1 and vllm-router 0.1.15,
# defaults of balance-abs-threshold and balance-rel-threshold.
MOST_MORE, MOST_TIMES = 64, 1.5


def prefix_aware(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """Return the replica with the most of the prompt in its cache; the least loaded of equals.

    While loads are too unequal, it is the least loaded replica. Without this, all requests with
    one system prompt would go to one replica.
    """
    loads = [replica.unfinished for replica in replicas]
    least, most = min(loads), max(loads)
    if most - least > MOST_MORE and most > MOST_TIMES * least:
        return least_loaded(replicas, request)
    return min(
        range(len(replicas)),
        key=lambda number: (
            -replicas[number].kv_cache.cached_tokens(request),
            relative_load(replicas[number], request),
        ),
    )


BATCHINGS: dict[str, Callable[..., Any]] = {
    "continuous": continuous,
    "prefill-first": prefill_first,
    "static": static,
    "ring": ring,
}
ORDERS: dict[str, Callable[..., Any]] = {
    "first-come-first-served": first_come_first_served,
    "shortest-first": shortest_first,
    "priority": by_priority,
}
ROUTERS: dict[str, Callable[..., Any]] = {
    "least-loaded": least_loaded,
    "round-robin": round_robin,
    "prefix-aware": prefix_aware,
}
BatchingField = Annotated[Batching, Named(BATCHINGS, "a batching policy")]
OrderField = Annotated[Order, Named(ORDERS, "an order")]
RouterField = Annotated[Router, Named(ROUTERS, "a router")]


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of a replica.

    reserve: whether a request is admitted only if its prompt and whole output fit in the KV cache.
        Otherwise its prompt must fit. When the cache is full, the youngest sequence of a
        micro-batch is preempted and computed again later.
    max_waiting: requests in the queue; more are refused. None is no limit.
    deadline: from its arrival, after which a request is cancelled [s]; None is no limit.
    wait: how prompts wait for others; None if they do not.
    receive_every: steps with decodes after which the scheduler sees new requests.
    rank_wait: the most steps with decodes that prompts wait until each attention rank has one;
        None if they do not.
    ahead: whether each step is chosen when the one before it begins, so that chips never wait for
        the scheduler. A request that comes during a step waits for the next step, too.
        Source: vLLM, --async-scheduling; TensorRT-LLM, overlap scheduler.
    size: the most sequences of a micro-batch; None is no limit.
    """

    batching: Batching = continuous
    order: Order = first_come_first_served
    router: Router = least_loaded
    reserve: bool = True
    prefix_caching: bool = False
    max_waiting: int | None = None
    deadline: Seconds | None = None
    size: int | None = None
    wait: BatchWait | None = None
    receive_every: int = 1
    rank_wait: int | None = None
    ahead: bool = False


DEFAULT = Policies()
