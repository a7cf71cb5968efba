"""Decisions of a replica's scheduler and of the router before it, without actions.  The serving loop asks and acts.

A policy is called when something has changed (an arrival, the end of a prompt, a finished request, the limit of the KV cache), and
what it returns stands until the next time.  Each is a plain function; a scenario names one of ours, or a user's as module:function.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple, Protocol

from sim.inputs.errors import UserError
from sim.inputs.fields import Named
from sim.units import Seconds
from sim.workload.requests import HASH_BLOCK


@dataclass(eq=False, slots=True)
class Request:
    """A request being served.  Identity, not content: two requests of equal lengths are two jobs.

    A preempted job comes back with what it had generated as a part of its prompt.
    """

    id: int
    arrival: Seconds
    prompt: int
    output: int
    kv: int  # what it holds of the KV cache, or would at its end, in tokens
    prefilled: int = 0
    priority: int = 0  # smaller goes first
    hash_ids: tuple[int, ...] = ()
    answered: Seconds = math.nan  # when its last token before a preemption was ready
    joined: Seconds = math.nan  # when its prompt was done
    queued: bool = True  # waits to be admitted
    cancelled: bool = False
    ended: bool = False
    kept: bool = False  # its prompt's blocks are held for others

    @property
    def tokens(self) -> int:
        """Prompt and output together: the last token sampled is never attended to, but engines reserve it."""
        return self.prompt + self.output


# How a micro-batch goes on.


class Queue(Protocol):
    """The queue of a replica beside one of its micro-batches, computed when a policy reads it."""

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
    """A micro-batch and its queue, as a batching policy sees them."""

    running: int  # sequences that it decodes
    begun: bool  # it has decoded since it was last empty
    prompts: int  # admitted, and not yet prefilled to their end
    budget: int  # tokens of a step
    size: int  # sequences that it may hold
    queue: Queue


class BatchDecision(NamedTuple):
    """The next step of a micro-batch.

    decodes: whether each of its sequences gets a token.
    prompt_tokens: at most so many tokens of prompts are computed beside them.
    sequences: at most so many prompts may end with the step and join the micro-batch.
    """

    decodes: bool
    prompt_tokens: int
    sequences: int


Batching = Callable[[BatchState], BatchDecision]


def continuous(state: BatchState) -> BatchDecision:
    """Continuous batching with chunked prefill: everyone decodes, and prompts fill the budget (Sarathi-Serve, OSDI 2024)."""
    return BatchDecision(True, state.budget - state.running, state.budget)


def prefill_first(state: BatchState) -> BatchDecision:
    """Prompts alone while there are any; else everyone decodes (Orca, OSDI 2022, as vLLM began)."""
    return (
        BatchDecision(False, state.budget, state.budget)
        if state.prompts
        else BatchDecision(True, 0, 0)
    )


def static(state: BatchState) -> BatchDecision:
    """Static batching, as a program compiled for one size: it fills up, decodes until all have ended, then takes others."""
    if state.begun or state.running >= state.size or not state.prompts:
        return BatchDecision(True, 0, 0)
    return BatchDecision(False, state.budget, state.size - state.running)


def ring(state: BatchState) -> BatchDecision:
    """Sequences keep their beats, and prompts take the free ones: a `RingReplica` computes both.

    It has no micro-batches, so that nothing calls this function.
    """
    raise NotImplementedError("a ring of beats has no micro-batches")


# Who is next.

Order = Callable[
    [Request], float
]  # a key, taken once for each arrival: the smallest is next, of equals the first that came


def first_come_first_served(request: Request) -> float:
    return 0.0


def shortest_first(request: Request) -> float:
    """By all its tokens, as if the output were known."""
    return float(request.tokens)


def by_priority(request: Request) -> float:
    return float(request.priority)


# Who is admitted.


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a replica may do: micro-batches in flight, tokens of a step, sequences, KV cache, the model's context.

    `fill` is the number of micro-batches that keep every stage busy.  More of them only queue at the first stage, so prompts
    take no more than that beside the sequences that decode; None is no limit.
    `windowed_share` is the part of a token's KV cache that lies in layers with a window, on the stage where it is smallest.
    """

    micro_batches: int
    token_budget: int
    sequences: int
    kv_tokens: int
    context: int
    window: int | None = None
    windowed_share: float = 0.0
    fill: int | None = None

    def kv_tokens_needed(self, tokens: int) -> int:
        """KV cache that a sequence of so many tokens needs, in tokens that no window shortens: on the stage that saves least."""
        saved = self.windowed_share * max(0, tokens - self.window) if self.window else 0.0
        return tokens - int(saved)

    def max_concurrent(self, tokens: int) -> int:
        """How many sequences of so many tokens it holds at once."""
        return min(self.sequences, self.kv_tokens // max(1, self.kv_tokens_needed(tokens)))


@dataclass(eq=False, slots=True)
class KVCache:
    """What a replica has to give: KV cache in tokens, and places for sequences."""

    kv_tokens: int
    sequences: int
    kv_used: int = 0
    sequences_used: int = 0
    kv_peak: int = 0

    @property
    def kv_free(self) -> int:
        return self.kv_tokens - self.kv_used

    def holds(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens fits beside what is there."""
        return self.kv_used + tokens <= self.kv_tokens and self.sequences_used < self.sequences

    def take(self, request: Request) -> None:
        self.sequences_used += 1
        self.grow(request.kv)

    def grow(self, tokens: int) -> None:
        self.kv_used += tokens
        if self.kv_used > self.kv_peak:
            self.kv_peak = self.kv_used

    def give_back(self, request: Request) -> None:
        self.kv_used -= request.kv
        self.sequences_used -= 1


class PrefixCache:
    """The blocks of prompts whose K and V a replica has kept: those in use, and the others until their room is needed.

    Blocks in use are counted with their requests, each whole: what two share is counted twice.
    """

    def __init__(self) -> None:
        self.used: dict[int, int] = {}
        self.kept: OrderedDict[int, None] = OrderedDict()  # the longest unused first

    def cached(self, ids: tuple[int, ...]) -> int:
        """How many blocks of a prompt are there, from its beginning."""
        for place, block in enumerate(ids):
            if block not in self.used and block not in self.kept:
                return place
        return len(ids)

    def hold(self, ids: tuple[int, ...]) -> None:
        for block in ids:
            self.used[block] = self.used.get(block, 0) + 1
            self.kept.pop(block, None)

    def release(self, ids: tuple[int, ...]) -> None:
        """The last block first, so that of a prompt its beginning is kept longest."""
        for block in reversed(ids):
            self.used[block] -= 1
            if not self.used[block]:
                del self.used[block]
                self.kept[block] = None

    def shrink(self, tokens: int) -> None:
        """Drops the blocks that were not used for longest, until the kept ones take no more than so many tokens."""
        while len(self.kept) * HASH_BLOCK > max(0, tokens):
            self.kept.popitem(last=False)


# Where a request goes.


class RoutedReplica(Protocol):
    """A replica as a router sees it: all that a function of a user's may read of it."""

    system: str  # the one of the scenario that it is a copy of
    limits: SchedulerLimits
    unfinished: int  # requests dealt to it that have not ended
    prefixes: PrefixCache | None  # where it caches them


Router = Callable[[Sequence[RoutedReplica], Request], int]  # the number of a replica


def relative_load(replica: RoutedReplica, request: Request) -> float:
    """Unfinished requests over those of this one's length that the replica holds at once; infinite where it holds none.

    Among replicas that are alike it orders as the unfinished requests do.
    """
    held = replica.limits.max_concurrent(request.tokens)
    return replica.unfinished / held if held else math.inf


def least_loaded(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """The replica with the fewest unfinished requests for what it can hold (see `relative_load`); of equals, the first.

    So a replica with room for few sequences is dealt few, and a request goes where it fits.
    """
    return min(range(len(replicas)), key=lambda number: relative_load(replicas[number], request))


def round_robin(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """In turn, by the request's number."""
    return request.id % len(replicas)


def prefix_aware(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """The replica that has most of its prompt; of equals, the least loaded."""

    def cached(replica: RoutedReplica) -> int:
        return replica.prefixes.cached(request.hash_ids) if replica.prefixes else 0

    return min(
        range(len(replicas)),
        key=lambda number: (-cached(replicas[number]), relative_load(replicas[number], request)),
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
    """How a replica schedules.

    `reserve`: a request is admitted when its prompt and its whole output have room in the KV cache; else when its prompt has, and
    where the room runs out the youngest sequence of a micro-batch is preempted, to be computed again later.
    """

    batching: Batching = continuous
    order: Order = first_come_first_served
    router: Router = least_loaded
    reserve: bool = True
    prefix_caching: bool = False
    max_waiting: int | None = None  # requests; more are refused
    deadline: Seconds | None = None  # from its arrival, after which a request is cancelled
    size: int | None = None  # sequences of a micro-batch at most


def checked_batching(policy: Batching) -> Batching:
    """Return a user's batching policy with a check of every decision.

    Raises: UserError from the returned policy, when its answer is not a BatchDecision.
    """

    def decide(state: BatchState) -> BatchDecision:
        decision = policy(state)
        if not _is_decision(decision):
            raise UserError(
                f"policy {_name_of(policy)}: got {decision!r} for {state}; expected a BatchDecision "
                "of true or false and two whole numbers, at least 0; "
                "try BatchDecision(True, state.budget - state.running, state.budget)"
            )
        return decision

    return decide


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))


def _is_decision(decision: object) -> bool:
    if not isinstance(decision, tuple) or len(decision) != 3:
        return False
    decodes, *counts = decision
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 0 for n in counts)
    return decodes in (True, False) and whole


def checked_order(order: Order) -> Order:
    """Return a user's order with a check of every key.

    Raises: UserError from the returned order, when its answer is not a number.
    """

    def key_of(request: Request) -> float:
        key = order(request)
        if not isinstance(key, Real) or math.isnan(key):
            raise UserError(
                f"order {_name_of(order)}: got {key!r} for request {request.id}; "
                "expected a number, the smallest first; try request.arrival"
            )
        return float(key)

    return key_of


def checked_router(router: Router) -> Router:
    """Return a user's router with a check of every choice.

    Raises: UserError from the returned router, when its answer is not the number of a replica.
    """

    def choose(replicas: Sequence[RoutedReplica], request: Request) -> int:
        number = router(replicas, request)
        if not isinstance(number, Integral) or not 0 <= int(number) < len(replicas):
            raise UserError(
                f"router {_name_of(router)}: got {number!r} for request {request.id}; "
                f"expected the place of a replica, 0 to {len(replicas) - 1}; "
                "try range(len(replicas))"
            )
        return int(number)

    return choose


DEFAULT = Policies()
