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
from sim.cost.plan import ResolvedPlan
from sim.cost.system_costs import SystemCosts
from sim.cost.work import Work
from sim.inputs.values import Value
from sim.serving.limits import SchedulerLimits
from sim.serving.prompt_chunks import add_chunk
from sim.serving.replica_config import ReplicaConfig
from sim.units import Bytes, BytesPerSecond, JoulesPerByte, Seconds


class Transfer(Value):
    """The links between a prefill pool and a decode pool, and the time to hand a request over.

    A transfer takes `latency + bytes / bandwidth`, and waits for a free link of both replicas.
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
        description="Owner of a link: each transfer, replica or chip; the chips of one attention "
        "rank send a request.",
    )


@dataclass(frozen=True)
class PoolConfig:
    """The pools of a run: the first `prefill` replicas are the prefill pool, the others decode."""

    prefill: int
    transfer: Transfer


Interval = tuple[Seconds, Seconds]  # start and end [s]


class EarlyParts(NamedTuple):
    """The parts in which a prompt's KV cache leaves its prefill replica: layers, or chunks.

    number: the parts. All but the last one may leave during the prefill.
    window: how long before the end of the prefill the first part may leave [s].
    """

    number: int
    window: Seconds


UNDIVIDED = EarlyParts(1, 0.0)  # the whole KV cache leaves after the prefill


class KVLinks:
    """The links of all replicas, first come, first served.

    A transfer uses one link of each of its two replicas, at the lower rate: the link that is free
    first. It is booked when its prompt is computed. Parts that left during the prefill are booked
    then, too, in time that was still free.
    With `per: chip`, the links of an attention rank's chips count as one, because one rank has the
    KV cache of a request.
    rates: B/s of a link, by replica. booked: times in use of each link, ascending [s], by replica.
    busy: time for which links were in use, as a mean over those of a replica [s].
    longest_prefill: of any prompt [s]. Bookings that ended earlier are forgotten.
    Left out: a later transfer that overtakes an earlier one whose other link is not free. Also
    which rank has a request, and when each early part is computed: the parts may share out their
    window in any way.
    """

    def __init__(
        self, transfer: Transfer, configs: Sequence[ReplicaConfig], longest_prefill: Seconds = 0.0
    ) -> None:
        self.shared, self.longest_prefill = transfer.per != "flow", longest_prefill
        plans = [config.costs.layout.plan for config in configs]
        self.rates = [link_rate(transfer, plan) for plan in plans]
        self.booked: list[list[list[Interval]]] = [
            [[] for _ in range(link_count(transfer, plan))] for plan in plans
        ]
        self.busy = [0.0] * len(configs)

    def rate(self, source: int, target: int) -> BytesPerSecond:
        """Return the bandwidth between two replicas."""
        return min(self.rates[source], self.rates[target])

    def send(
        self, now: Seconds, ends: tuple[int, int], nbytes: Bytes, parts: EarlyParts = UNDIVIDED
    ) -> list[Interval]:
        """Book the links of two replicas for a transfer, and return when it uses them.

        now: when the prompt is computed, and both replicas have room [s].
        The last part leaves `now` or later, and the others in free time of both links before it.
        """
        seconds = nbytes / self.rate(*ends)
        links = [min(self.booked[end], key=_free_at) for end in ends]
        if parts.window and seconds:
            used = self._early_times(now, links, seconds, parts)
        else:
            start = max([now, *map(_free_at, links)]) if self.shared else now
            used = [(start, start + seconds)]
        for end, link in zip(ends, links, strict=True):
            self.busy[end] += seconds / len(self.booked[end])
            if self.shared:
                earliest = now - self.longest_prefill
                kept = [(start, stop) for start, stop in link if stop > earliest]
                link[:] = sorted([*(kept or link[-1:]), *used])
        return used

    def _early_times(
        self, now: Seconds, links: Sequence[list[Interval]], seconds: Seconds, parts: EarlyParts
    ) -> list[Interval]:
        """Return when a transfer whose parts leave early uses both links.

        It ends as soon as it can. It uses the latest free times before its end, because the later
        a part leaves, the more likely it has been computed.
        """
        booked = [*links[0], *links[1]] if self.shared else []
        free, clock = list[Interval](), now - parts.window  # free time of both links
        for start, stop in sorted(booked):
            if start > clock:
                free.append((clock, start))
            clock = max(clock, stop)
        free.append((clock, math.inf))
        all_sent = _time_after(free, -math.inf, seconds)
        last_sent = _time_after(free, now, seconds / parts.number)  # it leaves at `now` or later
        finish = max(all_sent, last_sent)
        used: list[Interval] = []
        left = seconds
        for start, stop in reversed(free):
            stop = min(stop, finish)
            if stop > start and left > 0:
                begin = max(start, stop - left)
                used.append((begin, stop))
                left -= stop - begin
        return used[::-1] or [(finish, finish)]

    def break_off(self, now: Seconds, ends: tuple[int, int], sent: Sequence[Interval]) -> None:
        """Free the links of a transfer from `now` on. Transfers booked after it keep their times.

        sent: its times of use, as `send` returned them [s].
        """
        for end in ends:
            for start, stop in sent:
                if stop <= now:
                    continue
                self.busy[end] -= (stop - max(now, start)) / len(self.booked[end])
                if self.shared:
                    link = next(link for link in self.booked[end] if (start, stop) in link)
                    link.remove((start, stop))
                    if start < now:
                        link.append((start, now))
                    link.sort()


def _free_at(link: Sequence[Interval]) -> Seconds:
    """Return when the last booking of a link ends; -inf if it has none."""
    return link[-1][1] if link else -math.inf


def _time_after(free: Sequence[Interval], since: Seconds, seconds: Seconds) -> Seconds:
    """Return the time by which `seconds` of free time have passed since a time."""
    for start, stop in free:
        begin = max(start, since)
        if seconds <= stop - begin:
            return begin + seconds
        seconds -= max(0.0, stop - begin)
    return math.inf


def link_rate(transfer: Transfer, plan: ResolvedPlan) -> BytesPerSecond:
    """Return the bandwidth of a link of a replica: with `per: chip`, of a rank's chips together."""
    chips = plan.replica_size // plan.attention_data
    return transfer.bandwidth * (chips if transfer.per == "chip" else 1)


def link_count(transfer: Transfer, plan: ResolvedPlan) -> int:
    """Return the links of a replica: with `per: chip`, one for each attention rank."""
    return plan.attention_data if transfer.per == "chip" else 1


def early_parts(
    transfer: Transfer, costs: SystemCosts, limits: SchedulerLimits, tokens: int, before: Seconds
) -> EarlyParts:
    """Return the parts in which a prompt's KV cache leaves, some of them during the prefill.

    The first part leaves when it is computed, but not before the receiver has room. With n layers
    and a prefill of time T, the window is min(before, (n - 1) / n * T).
    tokens: those that the prefill computes.
    before: how long before the end of the prefill the receiver had room [s].
    Left out: other work of the prefill replica, which makes T longer.
    """
    if transfer.overlap == "none" or before <= 0:
        return UNDIVIDED
    leaves = chunk_times(costs, limits, tokens)
    if transfer.overlap == "chunks":
        return EarlyParts(len(leaves), min(before, leaves[-1] - leaves[0]))
    count = kv_layers(costs.layout)
    return EarlyParts(count, min(before, (count - 1) / count * leaves[-1]))


def share_left(parts: EarlyParts, whole: Seconds) -> float:
    """Return the share of a prompt's KV cache that has not left when its prefill ends.

    It is max(1/n, 1 - window / whole), with n parts.
    whole: time to send all of it [s].
    Left out: other transfers on the same links.
    """
    return max(1 / parts.number, 1 - parts.window / whole) if whole else 1.0


def chunk_times(costs: SystemCosts, limits: SchedulerLimits, tokens: int) -> list[Seconds]:
    """Return when each chunk of a prompt leaves the last stage, after it alone has begun [s].

    Each stage serves the chunks in order, and in a pipeline several stages compute one prompt.
    costs: those that take no draws, `expected_costs`.
    """
    free, leaves = [0.0] * costs.stages, list[Seconds]()
    for start in range(0, tokens, limits.prompt_budget):
        work = Work()
        add_chunk(work, start, min(limits.prompt_budget, tokens - start), limits.window)
        work.rank_prompt = work.prompt_tokens  # of one rank
        clock, hops = 0.0, costs.hops(costs.layout.ranked(work))
        for stage, seconds in enumerate(costs.step(work).time):
            clock = free[stage] = max(clock + float(hops[stage]), free[stage]) + float(seconds)
        leaves.append(clock)
    return leaves
