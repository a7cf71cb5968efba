"""The transfer of a prompt's KV cache from a prefill replica to a decode replica.

>>> Transfer(bandwidth=50e9, latency=4e-4).per
'replica'
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from sim.cost.kv_transfer import kv_layers
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.inputs.values import Value
from sim.serving.limits import SchedulerLimits
from sim.serving.prompt_chunks import add_chunk
from sim.serving.replica_config import ReplicaConfig
from sim.units import Bytes, BytesPerSecond, JoulesPerByte, Seconds


class Transfer(Value):
    """The links between a prefill pool and a decode pool, and the time to hand a request over.

    A transfer takes `latency + bytes / bandwidth`, and waits until both replicas' links are free.
    Links serve transfers first come, first served.
    """

    bandwidth: BytesPerSecond = Field(
        description="Bandwidth of a link in each direction [B/s]; `per` says whose link it is."
    )
    latency: Seconds = Field(
        default=0.0, description="Fixed time of a transfer [s]; it does not occupy the link."
    )
    handover: Seconds | None = Field(
        default=None,
        description="Time from a transfer to the first decode step [s]; default: that of the "
        "engine that decodes.",
    )
    overlap: Literal["none", "layers", "chunks"] = Field(
        default="none",
        description="Parts that leave during the prefill: none, each layer, or each chunk of the "
        "prompt.",
    )
    energy: JoulesPerByte | None = Field(
        default=None, description="Energy to transfer a byte [J/B]; default: not counted."
    )
    per: Literal["flow", "replica", "chip"] = Field(
        default="replica",
        description="Owner of a link: each transfer, each replica, or each chip of a replica.",
    )


@dataclass(frozen=True)
class PoolConfig:
    """The pools of a run: the first `prefill` replicas are the prefill pool, the others decode."""

    prefill: int
    transfer: Transfer


Interval = tuple[Seconds, Seconds]  # start and end [s]


class EarlyParts(NamedTuple):
    """The parts of a KV cache that travel by themselves: layers, or chunks of the prompt.

    window: time before the end of the prefill at which the first one may leave [s].
    """

    number: int
    window: Seconds


UNDIVIDED = EarlyParts(1, 0.0)


class KVLinks:
    """The links of all replicas, first come, first served.

    rates: B/s, by replica. booked: times in use of each link, ascending [s]. busy: their sum [s].
    horizon: how long before its prompt is computed a transfer may begin [s].
    A transfer uses the links of both replicas at the lower rate.
    Left out: a later transfer that overtakes an earlier one whose other link is not free. Parts
    that leave during the prefill take what time earlier prompts left, whenever each is computed.
    """

    def __init__(
        self, transfer: Transfer, configs: Sequence[ReplicaConfig], horizon: Seconds = 0.0
    ) -> None:
        self.shared, self.horizon = transfer.per != "flow", horizon
        sizes = [config.costs.layout.plan.replica_size for config in configs]
        self.rates = [link_rate(transfer, size) for size in sizes]
        self.booked: list[list[Interval]] = [[] for _ in configs]
        self.busy = [0.0] * len(configs)

    def rate(self, source: int, target: int) -> BytesPerSecond:
        """Return the bandwidth between two replicas."""
        return min(self.rates[source], self.rates[target])

    def send(
        self, now: Seconds, ends: tuple[int, int], nbytes: Bytes, parts: EarlyParts = UNDIVIDED
    ) -> list[Interval]:
        """Return when a transfer uses the links of two replicas, and keep them busy then.

        The last part leaves `now` or later, and the others in free time of both links before it.
        """
        seconds = nbytes / self.rate(*ends)
        if parts.window and seconds:
            used = self._early(now, ends, seconds, parts)
        else:
            free_at = [self.booked[end][-1][1] for end in ends if self.booked[end]]
            start = max([now, *free_at]) if self.shared else now
            used = [(start, start + seconds)]
        for end in ends:
            self.busy[end] += seconds
            if self.shared:
                kept = [one for one in self.booked[end] if one[1] > now - self.horizon]
                self.booked[end] = sorted([*(kept or self.booked[end][-1:]), *used])
        return used

    def _early(
        self, now: Seconds, ends: tuple[int, int], seconds: Seconds, parts: EarlyParts
    ) -> list[Interval]:
        """Return the latest free times with which a transfer ends as soon as it can."""
        booked = [*self.booked[ends[0]], *self.booked[ends[1]]] if self.shared else []
        free, clock = list[Interval](), now - parts.window
        for start, end in sorted(booked):
            if start > clock:
                free.append((clock, start))
            clock = max(clock, end)
        free.append((clock, math.inf))
        # The last part leaves at `now` or later.
        last = max(_end_of(free, now, seconds / parts.number), _end_of(free, -math.inf, seconds))
        used: list[Interval] = []
        left = seconds
        for start, end in reversed(free):
            if (end := min(end, last)) > start and left > 0:
                used.append((max(start, end - left), end))
                left -= end - used[-1][0]
        return used[::-1] or [(last, last)]

    def break_off(self, now: Seconds, ends: tuple[int, int], sent: Sequence[Interval]) -> None:
        """Free the links of a transfer from `now` on. Those booked behind it begin no earlier.

        sent: its times of use, as `send` returned them [s].
        """
        for end in ends:
            for start, stop in sent:
                if stop > now:
                    self.busy[end] -= stop - max(now, start)
                    if self.shared:
                        self.booked[end].remove((start, stop))
                        self.booked[end] += [(start, now)] if start < now else []
            self.booked[end].sort()


def _end_of(free: Sequence[Interval], since: Seconds, seconds: Seconds) -> Seconds:
    """Return when so many seconds of free time since a time are over."""
    for start, end in free:
        begin = max(start, since)
        if seconds <= end - begin:
            return begin + seconds
        seconds -= max(0.0, end - begin)
    return math.inf


def link_rate(transfer: Transfer, chips: int) -> BytesPerSecond:
    """Return the bandwidth of a replica's link, or of its links together. chips: of the replica."""
    return transfer.bandwidth * (chips if transfer.per == "chip" else 1)


def early_parts(
    transfer: Transfer, costs: Costs, limits: SchedulerLimits, tokens: int, before: Seconds
) -> EarlyParts:
    """Return the parts that leave during a prefill.

    tokens: those that the prefill computes.
    before: time before the end of the prefill at which the receiver had room [s].
    The first of n parts is computed after 1/n of the prefill's time, which is that of an otherwise
    idle replica.
    """
    if transfer.overlap == "none" or before <= 0:
        return UNDIVIDED
    chunked = transfer.overlap == "chunks"
    count = math.ceil(tokens / limits.prompt_budget) if chunked else kv_layers(costs.layout)
    prefill = prefill_seconds(costs, limits, tokens)
    return EarlyParts(count, min(before, (count - 1) / count * prefill))


def share_left(parts: EarlyParts, whole: Seconds) -> float:
    """Return the share of a prompt's KV cache that has not left when its prefill ends.

    whole: time to send all of it, over links that no other transfer uses [s].
    """
    return max(1 / parts.number, 1 - parts.window / whole) if whole else 1.0


def prefill_seconds(costs: Costs, limits: SchedulerLimits, tokens: int) -> Seconds:
    """Return the time of a prompt's chunks, one after the other, through all stages."""
    seconds = 0.0
    budget = limits.prompt_budget
    for start in range(0, tokens, budget):
        work = Work()
        add_chunk(work, start, min(budget, tokens - start), limits.window)
        seconds += float(costs.step(work).time.sum() + costs.hops(work.tokens).sum())
    return seconds
