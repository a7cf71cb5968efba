"""The transfer of a prompt's KV cache from a prefill replica to a decode replica.

>>> Transfer(bandwidth=50e9, latency=4e-4).per
'replica'
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


class KVLinks:
    """The links of all replicas, first come, first served.

    rates: B/s, by replica. free_at: when each link is free [s]. busy: time in use [s].
    A transfer uses the links of both replicas at the lower rate.
    Left out: a later transfer that overtakes an earlier one whose other link is not free.
    """

    def __init__(self, transfer: Transfer, configs: Sequence[ReplicaConfig]) -> None:
        self.shared = transfer.per != "flow"
        sizes = [config.costs.layout.plan.replica_size for config in configs]
        self.rates = [link_rate(transfer, size) for size in sizes]
        self.free_at = [0.0] * len(configs)
        self.busy = [0.0] * len(configs)

    def rate(self, source: int, target: int) -> BytesPerSecond:
        """Return the bandwidth between two replicas."""
        return min(self.rates[source], self.rates[target])

    def send(self, now: Seconds, ends: tuple[int, int], nbytes: Bytes) -> tuple[Seconds, Seconds]:
        """Return start and end of a transfer between two replicas, and keep their links busy."""
        seconds = nbytes / self.rate(*ends)
        start = max(now, *(self.free_at[end] for end in ends)) if self.shared else now
        for end in ends:
            self.free_at[end] = start + seconds
            self.busy[end] += seconds
        return start, start + seconds

    def break_off(self, now: Seconds, ends: tuple[int, int], sent: tuple[Seconds, Seconds]) -> None:
        """Free the links of a transfer before its end, where no other one is booked behind it.

        sent: its start and end, as `send` returned them [s].
        """
        for end in ends:
            if self.free_at[end] == sent[1]:
                self.free_at[end] = free = min(max(now, sent[0]), sent[1])
                self.busy[end] -= sent[1] - free


def link_rate(transfer: Transfer, chips: int) -> BytesPerSecond:
    """Return the bandwidth of a replica's link, or of its links together. chips: of the replica."""
    return transfer.bandwidth * (chips if transfer.per == "chip" else 1)


def share_left(
    transfer: Transfer,
    costs: Costs,
    limits: SchedulerLimits,
    tokens: int,
    whole: Seconds,
    before: Seconds,
) -> float:
    """Return the share of a prompt's KV cache that has not left when its prefill ends.

    tokens: those that the prefill computed. whole: time to send all of it [s].
    before: time before the end of the prefill at which the receiver had room [s].
    With n parts, each of which takes x, and a prefill of time T, the last part leaves
    `max(x, n x - min(before, (n - 1) / n * T))` after the prefill ends. Parts are layers or chunks.
    T is that of an otherwise idle replica.
    Left out: transfers of other prompts that delay the parts before the last one.
    """
    if transfer.overlap == "none" or whole == 0:
        return 1.0
    chunked = transfer.overlap == "chunks"
    parts = math.ceil(tokens / limits.prompt_budget) if chunked else kv_layers(costs.layout)
    prefill = prefill_seconds(costs, limits, tokens)
    early = min(before, (parts - 1) / parts * prefill)
    return max(1 / parts, 1 - early / whole)


def prefill_seconds(costs: Costs, limits: SchedulerLimits, tokens: int) -> Seconds:
    """Return the time of a prompt's chunks, one after the other, through all stages."""
    seconds = 0.0
    budget = limits.prompt_budget
    for start in range(0, tokens, budget):
        work = Work()
        add_chunk(work, start, min(budget, tokens - start), limits.window)
        seconds += float(costs.step(work).time.sum() + costs.hops(work.tokens).sum())
    return seconds
