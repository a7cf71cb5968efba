"""FLOPs and bytes of a run, and the joules that they and idle chips take.

A replica tallies steps, prompt chunks and ended requests, because a tally of each token would be
slow. FLOPs and bytes are linear in these sums, or follow from the number of steps of each size.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from sim.cost.attention import (
    SIXTEEN_BITS,
    cache_reads,
    position_bytes,
    position_flops,
    state_flops,
    state_traffic,
)
from sim.cost.experts import expected_shard
from sim.cost.layout import Layout
from sim.cost.multiplies import Multiply
from sim.cost.rows import StepRows
from sim.cost.work import Work, verified_positions
from sim.hardware.chip import Chip
from sim.model.blocks import Block, Mixer
from sim.units import Bytes, Flop, Joules, JoulesPerByte, Seconds, Watts

CAUSES = ("idle", "compute", "memory", "links", "server", "pue")


@dataclass(eq=False, slots=True)
class Tally:
    """Sums over the steps of a replica, from which FLOPs, bytes and joules follow.

    batch_steps: steps by their number of tokens.
    logits: positions of the output head, of which a decode has one.
    prompt_tokens, prompt_steps: tokens of prompts, and the steps that have some.
    context, attended, cached, windowed_*: as in `Work`, over decodes and prompt chunks.
    decode_steps: steps with decodes, counted with speculation. decodes: their sequences.
    sent: bytes of KV caches that left for another pool.
    between: bytes between the chips of one system: hidden states in both directions, and drafts.
    A step that an outage interrupts counts in part, so that steps may be fractions.
    """

    batch_steps: defaultdict[int, float] = field(default_factory=lambda: defaultdict(int))
    steps_without_sampling: float = 0
    logits: float = 0
    prompt_tokens: float = 0
    prompt_steps: float = 0
    context: float = 0
    attended: float = 0
    cached: float = 0
    windowed_context: float = 0
    windowed_attended: float = 0
    windowed_cached: float = 0
    decode_steps: float = 0
    decodes: float = 0
    sent: float = 0
    between: float = 0

    def add(self, work: Work, steps: float) -> None:
        """Count equal steps, or a part of one. The scheduler counts their decodes."""
        self.batch_steps[work.tokens] += steps
        if work.prompt_tokens:
            self.add_chunks(work, steps)

    def scaled(self, share: float) -> "Tally":
        """Return the tally multiplied by `share`; its steps may become fractions."""
        batch_steps = defaultdict[int, float](
            float, {tokens: steps * share for tokens, steps in self.batch_steps.items()}
        )
        return Tally(batch_steps, *(getattr(self, name) * share for name in _SUMS))

    def since(self, before: "Tally") -> "Tally":
        """Return the difference from `before`, an earlier state of the tally."""
        return summed([self, before.scaled(-1)])

    def add_chunks(self, work: Work, times: float) -> None:
        """Count the prompt chunks of a step."""
        self.prompt_tokens += times * work.prompt_tokens
        self.prompt_steps += times
        self.attended += times * work.attended
        self.cached += times * work.cached
        self.windowed_attended += times * work.windowed_attended
        self.windowed_cached += times * work.windowed_cached
        self.logits += times * (work.logits - work.decodes * work.width)
        if not work.logits:
            self.steps_without_sampling += times


_SUMS = tuple(name for name in Tally.__slots__ if name != "batch_steps")


def summed(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of the tallies of equal replicas."""
    total = Tally()
    for tally in tallies:
        if total.batch_steps:
            for tokens, steps in tally.batch_steps.items():
                total.batch_steps[tokens] += steps
        else:  # faster, and enough for the first tally, which is often the only one
            total.batch_steps.update(tally.batch_steps)
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    return total


def cut_steps(tally: Tally, parts_of: Callable[[int], int]) -> Tally:
    """Return a tally whose steps are cut into parts. Outputs are still sampled once a step.

    parts_of: returns the parts of a step with so many tokens.
    """
    steps: defaultdict[int, float] = defaultdict(float)
    for tokens, count in tally.batch_steps.items():
        parts = max(1, parts_of(tokens))
        share, rest = divmod(tokens, parts)
        steps[share] += (parts - rest) * count
        if rest:
            steps[share + 1] += rest * count
    more = sum(steps.values()) - sum(tally.batch_steps.values())
    without = tally.steps_without_sampling + more
    return replace(tally, batch_steps=steps, steps_without_sampling=without)


class Usage(NamedTuple):
    """FLOPs and bytes over all chips of a replica.

    flops: by the precisions of the operands.
    nbytes: bytes read, by memory.
    link_bytes: each byte counted on every cable that it crosses.
    """

    flops: dict[tuple[str, str], Flop]
    nbytes: dict[str, Bytes]
    link_bytes: Bytes


class _Part(NamedTuple):
    """FLOPs and bytes of one kind of work; `others` are activations, or K and V."""

    precisions: tuple[str, str]
    flops: Flop
    weights: Bytes
    others: Bytes


def usage(costs: StepRows, tally: Tally, whole: Tally | None = None) -> Usage:
    """Return the FLOPs and bytes of a tally.

    whole: the tally of whole steps, as a drafter makes them, if `tally` counts the micro-batches of
    a step as steps; None: `tally`.

    Each chip reads its weights once a step. All chips of a stage count as the fullest one.
    Experts are read as far as the step's tokens reach them, in expectation.
    With speculation, the passes of the drafter are added.

    Left out: padding to tiles; writing K and V; norms and biases; additions of a collective.
    """
    plan = costs.layout.plan
    flops: defaultdict[tuple[str, str], Flop] = defaultdict(float)
    nbytes: defaultdict[str, Bytes] = defaultdict(float)
    assert plan.weights_in
    assert plan.kv_in
    for block, cost in costs.blocks.items():
        for part in _parts(costs, block, tally):
            blocks = float(cost.repeats.sum())
            if part.flops:
                flops[part.precisions] += blocks * part.flops
            nbytes[plan.weights_in] += blocks * part.weights
            nbytes[plan.kv_in] += blocks * part.others
    links = sum(
        steps * costs.collectives.link_bytes(tokens) for tokens, steps in tally.batch_steps.items()
    )
    used = Usage(dict(flops), dict(nbytes), links)
    if drafter := costs.drafter:
        used = _both(used, usage(drafter, draft_tally(whole or tally, len(drafter.widths))))
    return used


def _both(first: Usage, second: Usage) -> Usage:
    """Return the sum of two usages."""
    flops, nbytes = dict(first.flops), dict(first.nbytes)
    for operands, flop in second.flops.items():
        flops[operands] = flops.get(operands, 0.0) + flop
    for memory, read in second.nbytes.items():
        nbytes[memory] = nbytes.get(memory, 0.0) + read
    return Usage(flops, nbytes, first.link_bytes + second.link_bytes)


def draft_tally(tally: Tally, passes: int) -> Tally:
    """Return the tally of the drafter's passes.

    The first pass of a step takes its tokens. The further ones take a token of each sequence, and
    all passes sample a draft. The further ones have the mean number of sequences, or the two whole
    numbers around it.
    """
    steps, batch_steps = tally.decode_steps, tally.batch_steps.copy()
    if steps:
        mean, further = tally.decodes / steps, (passes - 1) * steps
        fewer = max(1, int(mean))
        batch_steps[fewer] += (1 - (mean - fewer)) * further
        batch_steps[fewer + 1] += (mean - fewer) * further
    return replace(
        tally,
        batch_steps=batch_steps,
        steps_without_sampling=sum(batch_steps.values()) - passes * steps,
        logits=0.0,  # `_parts` adds the drafts
    )


def _parts(costs: StepRows, block: Block, tally: Tally) -> Iterator[_Part]:
    """Yield the parts of one block."""
    layout, plan, cost = costs.layout, costs.layout.plan, costs.blocks[block]
    steps = sum(tally.batch_steps.values())
    tokens = sum(number * count for number, count in tally.batch_steps.items())
    if block.kind == "embedding":
        width = plan.stored(block, block.matrices[0]).bytes
        yield _Part(SIXTEEN_BITS, 0.0, tokens * layout.model.hidden_size * width, 0.0)
        return
    if block.kind == "head":  # beside a decode's token, its drafts are verified, or made
        steps -= tally.steps_without_sampling
        tokens = tally.logits + tally.decodes * (costs.widths[0] - 1)
    for multiply in cost.dense:
        yield _multiply_part(multiply, plan.attention_data * steps, tokens)
    if experts := block.experts:
        skew = layout.engine.moe_skew or 0.0
        numbers = np.array(list(tally.batch_steps))
        counts = np.array(list(tally.batch_steps.values()))
        reached = float(expected_shard(experts, skew, numbers, 1)[0] @ counts)
        for multiply in cost.routed:
            yield _multiply_part(multiply, reached, tokens * experts.per_token)
    for mixer in block.mixers:
        yield _attention_part(costs, mixer, tally, decode=False)
        yield _attention_part(costs, mixer, tally, decode=True)
        yield _state_part(costs, mixer, tally, tokens)


def _multiply_part(multiply: Multiply, reads: float, tokens: float) -> _Part:
    return _Part(
        multiply.precisions,
        multiply.chips * multiply.flops * tokens,
        multiply.chips * multiply.weights * reads,
        multiply.chips * (multiply.activations + sum(multiply.moved)) * tokens,
    )


def _attention_part(costs: StepRows, shape: Mixer, tally: Tally, decode: bool) -> _Part:
    """Return the work of attention.

    Left out: that chunks of prompts unpack cached latents again, or attend to them as they are.
    """
    layout, chips = costs.layout, costs.layout.plan.tensor
    attended, cached, context = tally.attended, tally.cached, tally.context
    if shape.window is not None:
        attended, cached = tally.windowed_attended, tally.windowed_cached
        context = tally.windowed_context
    if decode:
        passes = [verified_positions(context, tally.decodes, width) for width in costs.widths]
        attended, cached = map(sum, zip(*passes, strict=True))
    return _Part(
        SIXTEEN_BITS,
        chips * attended * position_flops(layout, shape, decode),
        0.0,
        chips * cached * position_bytes(layout, shape) * cache_reads(layout, shape, decode),
    )


def _state_part(costs: StepRows, shape: Mixer, tally: Tally, tokens: float) -> _Part:
    """Return the work of a recurrence, with prompts in equal parts for each of their steps."""
    layout, chips = costs.layout, costs.layout.plan.tensor
    decoded, steps = tokens - tally.prompt_tokens, tally.prompt_steps
    chunk = tally.prompt_tokens / steps if steps else 0.0

    def total(amount: Callable[[Layout, Mixer, float, bool], float]) -> float:
        of_decode, of_chunk = amount(layout, shape, 1.0, True), amount(layout, shape, chunk, False)
        return chips * (decoded * of_decode + steps * of_chunk)

    return _Part(SIXTEEN_BITS, total(state_flops), 0.0, total(state_traffic))


def spent(chip: Chip, used: Usage) -> dict[str, Joules] | None:
    """Return the joules of computing, reading and sending, without the idle power.

    Computing: `power.flop` at the fastest precision. At others a FLOP takes more, in proportion,
    because a chip at full rate draws the same power in each.
    Reading: the memory's `energy` for each byte.
    Sending: `power.link` for each byte and cable.
    None: the chip's file lacks one of these numbers.
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
    """Equal chips of a system, the tally of all their replicas, and the server's power per chip.

    link: energy of a byte of a KV cache that leaves for another pool [J/B]. A byte to other chips
        of the same system takes that of the chip's links.
    whole: as in `usage`.
    """

    costs: StepRows
    chips: float
    tally: Tally
    server: Watts
    link: JoulesPerByte = 0.0
    whole: Tally | None = None


def energy(parts: Iterable[EnergyPart], elapsed: Seconds, pue: float) -> dict[str, Joules] | None:
    """Return the joules of a system by cause.

    idle = chips * idle power * elapsed
    server = chips * the server's power for each chip * elapsed
    pue = (PUE - 1) * the sum of all others: cooling, and losses of the supply

    None: a number is not known.
    """
    total = dict.fromkeys(CAUSES, 0.0)
    for costs, chips, tally, server, link, whole in parts:
        chip = costs.layout.chip
        dynamic = spent(chip, usage(costs, tally, whole))
        power = chip.power
        if dynamic is None or power is None or power.idle is None:
            return None
        if tally.between and power.link is None:
            return None
        for cause, joules in dynamic.items():
            total[cause] += joules
        total["links"] += tally.sent * link + tally.between * (power.link or 0.0)
        total["idle"] += chips * power.idle * elapsed
        total["server"] += chips * server * elapsed
    total["pue"] = (pue - 1) * sum(total.values())
    return total


def server_watts(chip: Chip) -> Watts:
    """Return the power of a chip's share of its server [W]."""
    return chip.server.power / chip.server.chips if chip.server else 0.0
