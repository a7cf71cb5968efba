"""What a run's FLOPs and bytes are, and the joules that they and idling chips take.

A replica tallies passages, pieces of prompts and ends of requests, and no tokens: all else is linear in these sums, or follows from
how many passages had how many tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.cost.step import TOKEN_BYTES, Costs, Exchange, Work, expected_shard
from sim.hardware.chip import Chip, Precision
from sim.units import Bytes, Flop, Joules, Seconds, Watts

CAUSES = ("idle", "compute", "memory", "links", "server", "pue")


@dataclass(eq=False, slots=True)
class Tally:
    """What passed through the stages of a replica: steps by their number of tokens, how many of them sampled nothing, positions of
    the output head, and sums over decoded tokens of the positions they attended to, and over pieces of prompts of those attended to
    and read, as `Work` has them.

    Of a step that an outage interrupts, the part that was made counts, so that steps may be fractions.
    """

    batch_steps: defaultdict[int, float] = field(default_factory=lambda: defaultdict(int))
    steps_without_sampling: float = 0
    logits: float = 0
    context: float = 0
    attended: float = 0
    cached: float = 0
    windowed_context: float = 0
    windowed_attended: float = 0
    windowed_cached: float = 0

    def add(self, work: Work, steps: int) -> None:
        """So many steps of a passage; what they decode is told when a request ends."""
        self.batch_steps[work.tokens] += steps
        if work.prompt_tokens:
            self.pieces(work)

    def times(self, share: float) -> "Tally":
        """Return a part of it; numbers of steps need not be whole then."""
        batch_steps = defaultdict[int, float](
            float, {tokens: steps * share for tokens, steps in self.batch_steps.items()}
        )
        return Tally(
            batch_steps,
            *(getattr(self, name) * share for name in Tally.__slots__ if name != "batch_steps"),
        )

    def since(self, before: "Tally") -> "Tally":
        """Return what was added after `before`, an earlier state of it."""
        return summed([self, before.times(-1)])

    def pieces(self, work: Work, times: float = 1) -> None:
        """The prompts' part of one step."""
        self.attended += times * work.attended
        self.cached += times * work.cached
        self.windowed_attended += times * work.windowed_attended
        self.windowed_cached += times * work.windowed_cached
        self.logits += times * (work.logits - work.decodes)
        if not work.logits:
            self.steps_without_sampling += times

    def take_back(self, work: Work, part: float) -> None:
        """Subtract the part of a step that an outage kept from being made."""
        self.batch_steps[work.tokens] -= part
        if work.prompt_tokens:
            self.pieces(work, -part)


def summed(tallies: Iterable[Tally]) -> Tally:
    """The sum of replicas that are alike."""
    total = Tally()
    for tally in tallies:
        for tokens, steps in tally.batch_steps.items():
            total.batch_steps[tokens] += steps
        for name in Tally.__slots__:
            if name != "batch_steps":
                setattr(total, name, getattr(total, name) + getattr(tally, name))
    return total


class Usage(NamedTuple):
    """FLOPs by the precisions of their operands, bytes by the memory that they are read from, bytes times the cables that they
    crossed: over all chips of a replica."""

    flops: dict[tuple[str, str], Flop]
    nbytes: dict[str, Bytes]
    link_bytes: Bytes


def usage(costs: Costs, tally: Tally) -> Usage:
    """Weights are read once a passage, each chip of a stage as the fullest one; experts as many as are reached in expectation.

    Left out: padding to tiles; writing K and V; norms and biases; additions of a collective.
    """
    layout, plan = costs.layout, costs.layout.plan
    flops: defaultdict[tuple[str, str], Flop] = defaultdict(float)
    weights = activations = kv = 0.0
    batch_steps = sum(tally.batch_steps.values())
    tokens = sum(number * steps for number, steps in tally.batch_steps.items())
    for block, by_stage in costs.counts.items():
        blocks, width = float(by_stage.sum()), Precision(plan.precision(block)).bytes
        if block.kind == "embedding":
            weights += blocks * tokens * layout.model.hidden_size * width
            continue
        precisions = plan.precision(block), plan.given("activations")
        read, entered = (
            (batch_steps - tally.steps_without_sampling, tally.logits)
            if block.kind == "head"
            else (batch_steps, tokens)
        )
        parts = [(block.matrices, plan.tensor, float(plan.attention_data * read), float(entered))]
        if experts := block.experts:
            skew = layout.engine.moe_skew or 0.0
            reached = sum(
                steps * expected_shard(experts, skew, n, 1)[0]
                for n, steps in tally.batch_steps.items()
            )
            parts.append(
                (experts.matrices, plan.expert_tensor, reached, float(entered * experts.per_token))
            )
        for matrices, shares, times, through in parts:
            for rows, columns in (matrix.share(shares) for matrix in matrices):
                flops[precisions] += blocks * 2.0 * rows * columns * shares * through
                weights += blocks * times * rows * columns * shares * width
                activations += (
                    blocks * through * (rows + columns) * shares * plan.width("activations")
                )
        if shape := block.attention:
            attended, cached, context = tally.attended, tally.cached, tally.context
            if shape.window is not None:
                attended, cached, context = (
                    tally.windowed_attended,
                    tally.windowed_cached,
                    tally.windowed_context,
                )
            for looks, reads, decode in ((attended, cached, False), (context, context, True)):
                each, nbytes = costs.position(shape, decode)
                flops["fp16", "fp16"] += blocks * looks * each * plan.tensor
                kv += blocks * reads * nbytes * plan.tensor * costs.reads(shape, decode)
    assert plan.weights_in
    assert plan.kv_in
    nbytes_of: defaultdict[str, Bytes] = defaultdict(float)
    nbytes_of[plan.weights_in] += weights
    nbytes_of[plan.kv_in] += kv + activations
    return Usage(dict(flops), dict(nbytes_of), link_bytes(costs, tally.batch_steps))


def link_bytes(costs: Costs, batch_steps: Mapping[int, float]) -> Bytes:
    """Bytes times cables of passages, by their numbers of tokens."""
    return sum(steps * step_link_bytes(costs, tokens) for tokens, steps in batch_steps.items())


def step_link_bytes(costs: Costs, tokens: int) -> Bytes:
    """The same of a step: the collectives, what goes from stage to stage, and the sampled token's way back.  Remembered."""
    if tokens in costs.link_bytes:
        return costs.link_bytes[tokens]
    topology, n, cables = costs.layout.topology, costs.layout.plan.stage_size, costs.cables

    def carried(exchanges: tuple[Exchange, ...]) -> Bytes:
        total = 0.0
        for exchange in exchanges:
            for group, way in zip(exchange.groups, exchange.ways, strict=True):
                key = exchange.operation, group, way
                if key not in cables:
                    messages = (message for phase in topology.messages(*key) for message in phase)
                    cables[key] = sum(
                        message.share * topology.hops(message.source, message.target)
                        for message in messages
                    )
                total += exchange.nbytes * cables[key]
        return total

    onward = sum(topology.hops(chip, chip + n) for chip in range((costs.stages - 1) * n))
    back = TOKEN_BYTES * topology.hops(costs.last, 0) if costs.last else 0.0
    gathered = {stage: carried(costs.gathered(tokens, stage)) for stage in set(costs.like)}
    step = onward * costs.slice_bytes(tokens) + back + sum(gathered[stage] for stage in costs.like)
    for block, by_stage in costs.counts.items():
        of_block = {stage: carried(costs.exchanges(block, tokens, stage)) for stage in gathered}
        step += sum(
            count * of_block[stage]
            for count, stage in zip(by_stage.tolist(), costs.like, strict=True)
        )
    costs.link_bytes[tokens] = step
    return step


def spent(chip: Chip, used: Usage) -> dict[str, Joules] | None:
    """Joules of computing, reading and sending, beside what chips draw idle; None where the chip's file lacks one of the numbers.

    flop   = power.flop at the fastest precision; a slower one takes more in proportion: full tilt draws the same in each
    read   = the memory's energy for each byte
    sent   = power.link for each byte and cable
    """
    power = chip.power
    read = {name: chip.memory[name].energy for name, nbytes in used.nbytes.items() if nbytes}
    if (
        power is None
        or power.flop is None
        or (used.link_bytes and power.link is None)
        or None in read.values()
    ):
        return None
    compute, fastest = 0.0, chip.compute.fastest
    for operands, flops in used.flops.items():
        compute += flops * power.flop * fastest / chip.compute.peak(*operands)
    memory = sum(used.nbytes[name] * (energy or 0.0) for name, energy in read.items())
    return {"compute": compute, "memory": memory, "links": used.link_bytes * (power.link or 0.0)}


class EnergyPart(NamedTuple):
    """Chips of a system that are alike, what their replicas did together, and what stands around each chip."""

    costs: Costs
    chips: float
    tally: Tally
    server: Watts


def energy(parts: Iterable[EnergyPart], elapsed: Seconds, pue: float) -> dict[str, Joules] | None:
    """Joules of a system by cause.

    idle     = chips * idle power * elapsed
    server   = the same of what stands around them: a chip pays for its place, whatever stands beside it
    pue      = (PUE - 1) * all of it: cooling, and what the supply loses

    None where a number is not known.
    """
    total = dict.fromkeys(CAUSES, 0.0)
    for costs, chips, tally, server in parts:
        chip = costs.layout.chip
        dynamic = spent(chip, usage(costs, tally))
        if dynamic is None or chip.power is None or chip.power.idle is None:
            return None
        for cause, joules in dynamic.items():
            total[cause] += joules
        total["idle"] += chips * chip.power.idle * elapsed
        total["server"] += chips * server * elapsed
    total["pue"] = (pue - 1) * sum(total.values())
    return total


def around(chip: Chip) -> Watts:
    """What a chip's share of its server draws."""
    return chip.server.power / chip.server.chips if chip.server else 0.0
