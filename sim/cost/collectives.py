"""Communication of a step: collectives inside stages, and messages from stage to stage."""

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from sim.cost.layout import Layout
from sim.cost.terms import Array
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.hardware.topology import Algorithm, Copies, Operation, Topology
from sim.model.blocks import Block, Experts
from sim.units import Bytes, Seconds, longest, shortest

TOKEN_BYTES = 4.0  # of a sampled token's number, on its way back to the first stage


def software_latency(engine: Engine, chip: Chip, chips: int, routes: bool = False) -> Seconds:
    """Return the software's latency of each phase of a collective over `chips` chips.

    routes: whether it takes tokens to their experts or back. Such collectives may have kernels of
    their own (`dispatch_kernels`).
    """
    fixed, per_chip = engine.collective_latency, engine.collective_latency_per_chip
    kernels = engine.dispatch_kernels if routes else None
    if kernels or fixed is None or per_chip is None:
        kernels = kernels or engine.kernels
        assert kernels  # the engine's file has one or the other
        kernel = kernels.collectives[kernels.on(kernels.collectives, chip.generation)]
        fixed, per_chip = kernel.latency, kernel.latency_per_chip
    return fixed + chips * per_chip


def software_losses(layout: Layout, chips: int, routes: bool) -> tuple[Seconds, float, float]:
    """Return the software's latency, and its efficiency and the best one, over `chips` chips.

    The best efficiency is what any software can reach on these links.
    """
    engine, of_links = layout.engine, layout.topology.collectives_reach(chips)
    latency = software_latency(engine, layout.chip, chips, routes)
    return latency, of_links or engine.collective_efficiency, of_links or 1.0


class Exchange(NamedTuple):
    """A collective that the ranks of a stage run at the same time.

    nbytes: bytes in each rank.
    algorithms: of each rank's all-reduce; for an all-to-all the copies at each level.
    latency: the software's, before each phase [s].
    efficiency: share of the bandwidth that the software reaches.
    time, ideal: time of the slowest rank, with and without the engine's losses [s].
    adds: whether an all-gather goes the other way, a reduce-scatter, whose phases all add.
    """

    operation: Operation
    groups: tuple[range, ...]
    nbytes: Bytes
    algorithms: tuple[Algorithm | Copies, ...]
    latency: Seconds
    efficiency: float
    time: Seconds
    ideal: Seconds
    adds: bool = False

    @property
    def name(self) -> str:
        """The name of the collective."""
        return "reduce_scatter" if self.adds else self.operation


class Collectives:
    """The communication of one layout: exchanges, their times, and the bytes on links.

    Results are kept, because they depend on few numbers: tokens, bytes and the stage.
    The fullest attention rank sets all times, so `ranked` is the number of its tokens.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.stages = layout, len(layout.stages)
        # For each stage, the first stage whose collectives take equal times. It stands for all.
        first: dict[object, int] = {}
        self.representatives = [
            first.setdefault(self._equivalence(stage), stage) for stage in range(self.stages)
        ]
        self.last = (self.stages - 1) * layout.plan.stage_size  # the chip that samples
        self.back = layout.topology.send(self.last, 0, TOKEN_BYTES) if self.last else 0.0
        self._hops: dict[int, Array] = {}
        self._exchanges: dict[tuple[Operation, int, bytes, Copies, bool], tuple[Exchange, ...]] = {}
        self._softwares: dict[tuple[int, bool], tuple[Seconds, float, float]] = {}
        self._copied: dict[tuple[Experts, tuple[int, ...]], tuple[float, Copies]] = {}
        self._link_bytes: dict[int, Bytes] = {}

    def _equivalence(self, stage: int) -> object:
        """Return what the times of a stage's collectives depend on."""
        n, tensor = self.layout.plan.stage_size, self.layout.plan.tensor
        key = self.layout.topology.equivalence_key
        chips = range(stage * n, (stage + 1) * n)
        ranks = (chips[start : start + tensor] for start in range(0, n, tensor))
        return (stage == 0, key(chips), *map(key, ranks))  # only stage 0 begins without a gather

    def of_block(self, block: Block, ranked: int, stage: int) -> tuple[Exchange, ...]:
        """Return the exchanges of a block on a stage, in order.

        The results are summed over the chips of each rank. With attention data parallelism, tokens
        are first sent to the chips of their experts and back.
        """
        plan = self.layout.plan
        if block.kind == "head":
            return ()
        hidden = self._hidden_bytes(ranked)
        exchanges = self._exchange("all_reduce", stage, hidden)
        if any(self.layout.kv_parts(mixer) > 1 for mixer in block.mixers):
            exchanges *= 2  # the parts' results are summed before the output projection
        if block.experts and plan.attention_data > 1:
            chips, copies = self._expert_copies(block.experts, stage)
            combined = hidden * chips / plan.tensor  # each chip of a rank sends its share
            dispatched = combined * plan.dispatch.bytes / plan.hidden.bytes
            dispatch = self._exchange("all_to_all", stage, dispatched, copies)
            combine = self._exchange("all_to_all", stage, combined, copies)
            exchanges = (*dispatch, *combine, *exchanges)
        return exchanges

    def gather(self, ranked: int, stage: int) -> tuple[Exchange, ...]:
        """Return the all-gather with which every stage but the first begins.

        Each chip was sent a slice of the hidden states, and needs all of them.
        """
        return self._exchange("all_gather", stage, self._hidden_bytes(ranked)) if stage else ()

    def routes(self, exchange: Exchange) -> bool:
        """Return whether an exchange is a dispatch or a combine, which may be hidden."""
        return exchange.operation == "all_to_all"

    def hidden(self, exchanges: tuple[Exchange, ...], ranked: int, computing: Seconds) -> Seconds:
        """Return the seconds of dispatch and combine that a second micro-batch hides.

        They are hidden behind the computing of the block.
        """
        routed = sum(e.time for e in exchanges if self.routes(e))
        return self._overlapped(self.layout.engine.overlap * routed, ranked, computing)

    def exposed(
        self, exchanges: tuple[Exchange, ...], ranked: int, computing: Seconds, ideal: Seconds
    ) -> tuple[Seconds, Seconds]:
        """Return the seconds of exchanges that are not hidden, and those without losses.

        Slower computing hides more, so the time without losses may be the longer one.
        """
        time, lossless = sum(e.time for e in exchanges), sum(e.ideal for e in exchanges)
        if routed := [e.ideal for e in exchanges if self.routes(e)]:
            time -= self.hidden(exchanges, ranked, computing)
            lossless -= self._overlapped(sum(routed), ranked, ideal)
        return time, lossless

    def _overlapped(self, routed: Seconds, ranked: int, computing: Seconds) -> Seconds:
        """Return the seconds that computing hides.

        A single token for each rank cannot be split into two micro-batches, so nothing hides it.
        """
        return shortest((routed, computing)) * (ranked > 1)

    def latency(self, exchange: Exchange) -> Seconds:
        """Return the time of an exchange without bytes: latencies, and additions of its phases."""
        software = exchange.latency, exchange.efficiency
        topology, times = self.layout.topology, list[Seconds]()
        for group, algorithm in zip(exchange.groups, exchange.algorithms, strict=True):
            if exchange.operation == "all_reduce":
                offered = topology.all_reduces(group, 0.0, *software)
                added = topology.with_additions(group, offered)
                times += [time for way, time in added.items() if way == algorithm]
            else:
                work = exchange.operation, (), exchange.adds
                times.append(self._timed(work, group, 0.0, software)[0])
        return max(times)

    def hops(self, ranked: int) -> Array:
        """Return float[stage]: seconds from each stage's predecessor to it; 0 for the first."""
        if ranked not in self._hops:
            n, shift = self.layout.plan.stage_size, self.layout.topology.shift
            nbytes = self.slice_bytes(ranked)
            self._hops[ranked] = np.array(
                [0.0, *(shift(range((s - 1) * n, s * n), nbytes) for s in range(1, self.stages))]
            )
        return self._hops[ranked]

    def slice_bytes(self, ranked: float) -> Bytes:
        """Return the bytes that each chip of a rank sends to its place in the next stage."""
        return self._hidden_bytes(ranked) / self.layout.plan.tensor

    def link_bytes(self, tokens: int) -> Bytes:
        """Return the bytes of a step, each counted on every cable that it crosses.

        These are the collectives, the messages from stage to stage, and the sampled token's way
        back. The tokens are spread evenly over the ranks, because only the sum counts.
        """
        if tokens not in self._link_bytes:
            blocks, plan = self.layout.model.blocks, self.layout.plan
            total = self._onward_cables * self.slice_bytes(tokens / plan.attention_data)
            ranked = plan.ranked(tokens)
            if self.last:
                total += TOKEN_BYTES * self.layout.topology.hops(self.last, 0)
            of_block: dict[tuple[Block, int], Bytes] = {}
            for stage, number in zip(self.layout.stages, self.representatives, strict=True):
                total += self._cable_bytes(self.gather(ranked, number))
                for block in blocks[stage.first : stage.last + 1]:
                    if (block, number) not in of_block:
                        exchanges = self.of_block(block, ranked, number)
                        of_block[block, number] = self._cable_bytes(exchanges)
                    total += of_block[block, number]
            self._link_bytes[tokens] = total
        return self._link_bytes[tokens]

    def _hidden_bytes(self, tokens: float) -> Bytes:
        return tokens * self.layout.model.hidden_size * self.layout.plan.hidden.bytes

    def _exchange(
        self,
        operation: Operation,
        stage: int,
        nbytes: Bytes,
        copies: Copies = (),
        adds: bool = False,
    ) -> tuple[Exchange, ...]:
        """Return one exchange in each rank of a stage, or for all-to-all in the whole stage."""
        key = operation, stage, np.asarray(nbytes).tobytes(), copies, adds  # arrays are no keys
        if key not in self._exchanges:
            plan = self.layout.plan
            n = plan.stage_size if operation == "all_to_all" else plan.tensor
            if n == 1:
                return ()
            first = stage * plan.stage_size
            starts = range(first, first + plan.stage_size, n)
            groups = tuple(range(start, start + n) for start in starts)
            software = n, operation == "all_to_all"
            if software not in self._softwares:
                self._softwares[software] = software_losses(self.layout, *software)
            latency, efficiency, reachable = self._softwares[software]

            def timed(losses: tuple[Seconds, float]) -> list[tuple[Seconds, Algorithm | Copies]]:
                work = operation, copies, adds
                return [self._timed(work, group, nbytes, losses) for group in groups]

            real = timed((latency, efficiency))
            ideal = timed((0.0, reachable)) if latency or efficiency != reachable else real
            algorithms = tuple(algorithm for _, algorithm in real)
            slowest, lossless = (longest(time for time, _ in times) for times in (real, ideal))
            self._exchanges[key] = (
                Exchange(
                    operation,
                    groups,
                    nbytes,
                    algorithms,
                    latency,
                    efficiency,
                    slowest,
                    lossless,
                    adds,
                ),
            )
        return self._exchanges[key]

    def _timed(
        self,
        work: tuple[Operation, Copies, bool],
        group: range,
        nbytes: Bytes,
        software: tuple[Seconds, float],
    ) -> tuple[Seconds, Algorithm | Copies]:
        """Return the time of a collective, and the algorithm or the copies that it is for.

        work: the operation, the copies of an all-to-all, and `adds` of `Exchange`.
        software: latency before each phase [s], and efficiency.
        """
        operation, copies, adds = work
        topology = self.layout.topology
        match operation:
            case "all_reduce":
                allowed = self.layout.engine.collectives
                return topology.fastest(group, nbytes, *software, allowed)
            case "all_to_all":
                return topology.all_to_all(group, nbytes, *software, copies), copies
            case "all_gather":
                timed = topology.reduce_scatter if adds else topology.all_gather
                return timed(group, nbytes, *software), copies

    def _expert_copies(self, experts: Experts, stage: int) -> tuple[float, Copies]:
        """Return the chips that a token goes to, and the copies that each level carries for each.

        A node, or a rack, is sent one copy of a token, however many of its chips need it.
        """
        n, shards = self.layout.plan.stage_size, self.layout.plan.expert
        blocks = self.layout.topology.blocks(range(stage * n, (stage + 1) * n))
        if (experts, blocks) not in self._copied:
            reached = [experts.reached(min(k, shards)) * max(1.0, k / shards) for k in blocks]
            copies = tuple(part / reached[0] for part in reached)
            self._copied[experts, blocks] = reached[0], copies
        return self._copied[experts, blocks]

    @cached_property
    def _onward_cables(self) -> int:
        """Cables from every chip of all stages but the last to its place in the next stage."""
        n, hops = self.layout.plan.stage_size, self.layout.topology.hops
        return sum(hops(chip, chip + n) for chip in range(self.last))

    def _cable_bytes(self, exchanges: Iterable[Exchange]) -> Bytes:
        """Return the bytes of exchanges, each counted on every cable that it crosses."""
        return sum(
            exchange.nbytes * cables_crossed(self._cabling, exchange.operation, group, algorithm)
            for exchange in exchanges
            for group, algorithm in zip(exchange.groups, exchange.algorithms, strict=True)
        )

    @cached_property
    def _cabling(self) -> Topology:
        """The topology without its losses, which change no cable and may not be hashable."""
        return self.layout.topology.model_copy(update={"collective_efficiency": None})


@lru_cache(maxsize=10_000)  # studies deploy one system many times
def cables_crossed(
    topology: Topology, operation: Operation, group: range, algorithm: Algorithm | Copies
) -> float:
    """Return `Topology.cables_crossed`, kept."""
    return topology.cables_crossed(operation, group, algorithm)
