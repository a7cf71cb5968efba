"""The mixer of one layer: its time is linear in positions attended and positions read.

A state of fixed size takes a time that depends on tokens alone.
"""

import math
from typing import NamedTuple, cast

import numpy as np

from sim.cost.layout import Layout
from sim.cost.plan import ResolvedPlan
from sim.cost.terms import Array, Sides
from sim.cost.work import Work, verified_positions
from sim.hardware.chip import Op
from sim.hardware.kernels import AttentionKernels
from sim.model.blocks import Attention, Block, Mixer
from sim.units import Bytes, Flop, Seconds

FOREVER = 1 << 62
POSITIONS = 2.0**20  # of a probe of the chip's times, which are linear in positions
SIXTEEN_BITS = ("fp16", "fp16")  # operands of attention, whatever the precision of K and V

# A time: fixed seconds, seconds for each position attended, seconds for each position read.
LinearTime = tuple[float, float, float]


class AttentionCore(NamedTuple):
    """The time of one layer's mixer for a number of new tokens: both sides of the roofline.

    windowed: whether the layer sees positions through a window.
    ideal_*: without the engine's losses.
    Positions are counted over all ranks. Slopes contain the share of the fullest rank.
    """

    windowed: bool
    compute: LinearTime
    memory: LinearTime
    ideal_compute: LinearTime
    ideal_memory: LinearTime

    def sides(self, attended: float, cached: float) -> Sides:
        """Return the times to compute and to read, with losses and without.

        attended, cached: positions that tokens attend to, and positions that are read.
        """
        return Sides(*(seconds_at(time, attended, cached) for time in self[1:]))

    def prompt_seconds(self, work: Work) -> Seconds:
        """Return the time of prompt chunks: the longer side. Unlike `sides` it omits ideal times.

        The serving loop calls it for each step with prompts.
        """
        attended, cached = self.prompt_positions(work)
        computing = seconds_at(self.compute, attended, cached)
        reading = seconds_at(self.memory, attended, cached)
        return computing if computing > reading else reading

    def decode_positions(self, work: Work, width: int) -> tuple[float, float]:
        """Return the positions that decodes attend to, and those that they read.

        width: tokens of each sequence.
        """
        context = work.windowed_context if self.windowed else work.context
        return verified_positions(context, work.decodes, width)

    def prompt_positions(self, work: Work) -> tuple[float, float]:
        """Return the positions that prompt chunks attend to, and those that they read."""
        if self.windowed:
            return work.windowed_attended, work.windowed_cached
        return work.attended, work.cached


class DecodeLine(NamedTuple):
    """The attention of decodes, linear in their context: both sides of the roofline."""

    windowed: bool
    compute: Seconds
    compute_slope: float
    memory: Seconds
    memory_slope: float

    def at(self, work: Work) -> tuple[Seconds, Seconds, int]:
        """Return the seconds now, the growth of each step, and the steps until sides cross."""
        windowed, compute, compute_slope, memory, memory_slope = self
        if windowed:
            context, more = work.windowed_context, work.growing
        else:
            context, added = work.context, work.added
            more = work.decodes if added is None else added
        compute += compute_slope * context
        memory += memory_slope * context
        if memory > compute and memory_slope >= compute_slope:  # reading binds for ever
            return memory, more * memory_slope, FOREVER
        lead, gain = memory - compute, more * (memory_slope - compute_slope)
        holds = FOREVER if lead * gain >= 0 else 1 + int(abs(lead / gain))
        if lead > 0 or (lead == 0 and gain >= 0):
            return memory, more * memory_slope, holds
        return compute, more * compute_slope, holds


def seconds_at(time: LinearTime, attended: float, cached: float) -> Seconds:
    """Return a linear time for positions attended, and positions read."""
    return time[0] + time[1] * attended + time[2] * cached


class AttentionLosses(NamedTuple):
    """The losses of the software in a mixer.

    compute, memory: shares of the peak rates.
    more_positions: positions counted for a new token as well as those that it attends to.
    fixed_key, compute_key, memory_key: of their files.
    """

    fixed: Seconds
    compute: float
    memory: float
    more_positions: float
    fixed_key: str
    compute_key: str
    memory_key: str


class AttentionKind:
    """Layers with equal mixers, and the times of one. Times are kept by number of tokens.

    layers: float[stage], how many each stage has.
    part: the part of the model to which the rows of a step belong.
    width: tokens of each decoding sequence. prompts: whether chunks of prompts pass the layers.
    """

    def __init__(
        self,
        layout: Layout,
        shape: Mixer,
        layers: Array,
        part: Mixer | Block,
        width: int,
        prompts: bool = True,
    ) -> None:
        self.layout, self.shape, self.layers, self.part = layout, shape, layers, part
        self.width, self.prompts = width, prompts
        self._decodes: dict[int, AttentionCore] = {}
        self._chunks: dict[tuple[int, int], AttentionCore] = {}
        # Lines of `together` consecutive numbers of sequences, computed at once: whether they are
        # windowed, and float[field, number].
        self._lines: dict[int, tuple[bool, Array]] = {}

    def of_decodes(self, decodes: int) -> AttentionCore:
        """Return the attention of a layer for the tokens of so many sequences."""
        if decodes not in self._decodes:
            self._decodes[decodes] = self._decode_core(decodes)
        return self._decodes[decodes]

    def _decode_core(self, decodes: int) -> AttentionCore:
        ranked = self.width * self.layout.plan.ranked(decodes), self.width * decodes
        return attention_core(self.layout, self.shape, ranked, True)

    def of_chunks(self, ranked: int, tokens: int) -> AttentionCore:
        """Return the attention of a layer for chunks of prompts.

        ranked: tokens of the fullest rank.
        """
        key = ranked, tokens
        if key not in self._chunks:
            core = attention_core(self.layout, self.shape, key, False)
            if not self.prompts:
                nothing = (0.0, 0.0, 0.0)
                core = AttentionCore(core.windowed, nothing, nothing, nothing, nothing)
            self._chunks[key] = core
        return self._chunks[key]

    def line(self, decodes: int, together: int) -> DecodeLine:
        """Return the attention of one layer over the context, for a number of sequences.

        together: how many consecutive numbers are computed at once (`Costs.together`).
        """
        if together == 1:
            return decode_line(self.of_decodes(decodes), decodes, self.width)
        block, place = divmod(decodes - 1, together)
        if block not in self._lines:
            numbers = cast("int", block * together + np.arange(1, together + 1))
            windowed, *times = decode_line(self._decode_core(numbers), numbers, self.width)
            self._lines[block] = windowed, np.stack(np.broadcast_arrays(*times))
        windowed, table = self._lines[block]
        return DecodeLine(windowed, *table[:, place].tolist())


def attention_core(
    layout: Layout, shape: Mixer, tokens: tuple[int, int], decode: bool
) -> AttentionCore:
    """Return the mixer of a layer for the new tokens of the fullest rank, and of all ranks.

    Positions are dealt to the ranks as the tokens are.
    tokens: of decodes they may be arrays; then the times are, too.
    States of recurrent layers are assumed to have the losses of attention.
    Left out: products with states in more bits.
    """
    ranked, share = tokens[0], tokens[0] / tokens[1]
    compute, memory = _linear_times(layout, shape, ranked, decode, 1.0)
    reads = cache_reads(layout, shape, decode)
    real = _linear_times(layout, shape, ranked, decode, reads) if reads > 1 else (compute, memory)
    losses = attention_losses(layout, shape, decode)
    more = losses.more_positions * ranked * compute[1]

    def slowed(time: LinearTime, efficiency: float, fixed: Seconds = 0.0) -> LinearTime:
        start, attended, read = (seconds / efficiency for seconds in time)
        return fixed + start, share * attended, share * read

    (begun, attending, reading), fixed = real[0], losses.fixed
    return AttentionCore(
        shape.window is not None,
        slowed((begun + more, attending, reading), losses.compute, fixed),
        slowed(real[1], losses.memory, fixed),
        slowed(compute, 1.0),
        slowed(memory, 1.0),
    )


def attention_losses(layout: Layout, shape: Mixer, decode: bool) -> AttentionLosses:
    """Return what the software loses in a mixer: the engine's numbers, or those of its kernels.

    An engine with numbers of its own takes kernels of latent attention only on a generation that
    they were timed on: their starts differ tenfold from one generation to another.
    Prompts have 8-bit products where activations and KV cache have 8 bits or fewer, and the
    kernels' file has such products.
    """
    engine, generation = layout.engine, layout.chip.generation
    latent = isinstance(shape, Attention) and shape.latent is not None
    key, file = engine.kernels_of("latent_attention") if latent else ("kernels", engine.kernels)
    computing, reading = engine.attention_compute_efficiency, engine.attention_memory_efficiency
    if computing is not None and reading is not None:
        timed = file and latent and generation in file.latent_attention
        if not timed:
            keys = (f"engine.attention_{side}_efficiency" for side in ("compute", "memory"))
            return AttentionLosses(0.0, computing, reading, 0.0, "", *keys)
    named = file and file.attending(generation, latent)
    assert named  # the engine's file has one or the other
    return _kernel_losses(f"engine.{key}.{named[0]}", named[1], layout.plan, decode)


def _kernel_losses(
    key: str, kernels: AttentionKernels, plan: ResolvedPlan, decode: bool
) -> AttentionLosses:
    """Return the losses of attention kernels that were timed alone.

    Decodes without a compute efficiency of their own have that of prompts.
    key: path of the kernels, which begins with `engine`.
    """
    narrow = plan.kv.bytes < 2
    cached = "fp8" if narrow and "fp8" in kernels.decode else "bf16"
    products = "fp8_products" if plan.activations.bytes < 2 else "fp8"
    names = [name for name in (products, "fp8") if narrow and name in kernels.prefill]
    prompts = names[0] if names else "bf16"
    decoding, prefill = kernels.decode[cached], kernels.prefill[prompts]
    of_decode, of_prefill = f"{key}.decode.{cached}", f"{key}.prefill.{prompts}"
    started, of_started, more = decoding.fixed, of_decode, 0.0
    if not decode:
        started, of_started, more = prefill.fixed, of_prefill, prefill.more_positions
    computing, of_computing = prefill.compute_efficiency, of_prefill
    if decode and decoding.compute_efficiency:
        computing, of_computing = decoding.compute_efficiency, of_decode
    return AttentionLosses(
        fixed=started,
        compute=computing,
        memory=decoding.memory_efficiency,
        more_positions=more,
        fixed_key=f"{of_started}.fixed",
        compute_key=f"{of_computing}.compute_efficiency",
        memory_key=f"{of_decode}.memory_efficiency",
    )


def decode_line(core: AttentionCore, decodes: int, width: int) -> DecodeLine:
    """Return the attention of decodes as a line for each side, over their context.

    Positions attended and positions read are linear in the context (`verified_positions`).
    decodes: may be an array, with the core of as many numbers; then the times are arrays, too.
    """
    attended, read = verified_positions(0.0, decodes, width)

    def line(time: LinearTime) -> tuple[Seconds, float]:
        return seconds_at(time, attended, read), width * time[1] + time[2]

    return DecodeLine(core.windowed, *line(core.compute), *line(core.memory))


def cache_reads(layout: Layout, shape: Mixer, decode: bool) -> float:
    """Return how often the engine reads what is cached.

    With `kv_reads: query-heads` each query head reads its KV head, or the latent, again.
    """
    if not decode or layout.engine.kv_reads == "kv-heads":
        return 1.0
    return shape.reads(layout.plan.tensor)


def position_flops(layout: Layout, shape: Mixer, decode: bool) -> Flop:
    """Return the FLOPs of one position that a token attends to, on the fullest chip."""
    return shape.flops(layout.plan.tensor, decode)


def unpacking_flops(layout: Layout, shape: Mixer) -> Flop:
    """Return the FLOPs of unpacking one cached latent to heads, on the fullest chip.

    The multiply of `kv_b_proj` does it for new tokens. Sparse attention never unpacks.
    Left out: writing what was unpacked, and reading it.
    """
    if not isinstance(shape, Attention) or shape.latent is None or shape.sparse:
        return 0.0
    heads, latent = math.ceil(shape.heads / layout.plan.tensor), shape.latent
    return 2.0 * heads * latent.rank * (latent.nope + latent.value)


def is_absorbed(layout: Layout, shape: Mixer, tokens: float, decode: bool) -> bool:
    """Return whether new tokens attend to latents as they are cached.

    Decodes do, and so do prompts of so few tokens that unpacking would cost more FLOPs.
    Left out: that a step may have several chunks.
    """
    if decode:
        return True
    absorbed, unpacked = (position_flops(layout, shape, form) for form in (True, False))
    return tokens * (absorbed - unpacked) < unpacking_flops(layout, shape)


class MixerFlops(NamedTuple):
    """The FLOPs of a mixer on the fullest chip: of positions, of unpacking, and of a recurrence.

    position: for each position attended. unpacking: for each position cached before the new
    tokens. state: of all new tokens.
    """

    position: Flop
    unpacking: Flop
    state: Flop

    def total(self, attended: float, earlier: float) -> Flop:
        """Return the FLOPs for positions attended, and positions cached before the new tokens."""
        return attended * self.position + earlier * self.unpacking + self.state


def mixer_flops(layout: Layout, shape: Mixer, tokens: float, decode: bool) -> MixerFlops:
    """Return the FLOPs of a mixer for `tokens` new tokens of a rank, on the fullest chip."""
    absorbed = is_absorbed(layout, shape, tokens, decode)
    return MixerFlops(
        position_flops(layout, shape, absorbed),
        0.0 if absorbed else unpacking_flops(layout, shape),
        state_flops(layout, shape, tokens, decode),
    )


def position_bytes(layout: Layout, shape: Mixer) -> Bytes:
    """Return the bytes of one position that is read, on the fullest chip."""
    return layout.kv_width(shape) * layout.plan.kv.bytes


def state_flops(layout: Layout, shape: Mixer, tokens: float, decode: bool) -> Flop:
    """Return the FLOPs of a recurrence for `tokens` tokens of a step, on the fullest chip."""
    return tokens * shape.token_flops(layout.plan.tensor, 1.0 if decode else tokens)


def state_traffic(layout: Layout, shape: Mixer, tokens: float, decode: bool) -> Bytes:
    """Return the bytes of states that a step reads and writes, on the fullest chip.

    Writing takes as long as reading.
    """
    return 2 * shape.state_reads(tokens, decode) * shape.state_bytes(layout.plan.tensor)


def _linear_times(
    layout: Layout, shape: Mixer, tokens: int, decode: bool, reads: float
) -> tuple[LinearTime, LinearTime]:
    """Return the time to compute, and the time to read the cache `reads` times.

    Three probes of the chip give them, because its times are linear in FLOPs and bytes.
    """
    nbytes = position_bytes(layout, shape)
    traffic = state_traffic(layout, shape, tokens, decode)
    flops, memory = mixer_flops(layout, shape, tokens, decode), layout.kv_memory

    def times(attended: float, earlier: float, cached: float) -> tuple[Seconds, Seconds]:
        kv = reads * cached * nbytes + traffic
        op = Op(tokens, flops.total(attended, earlier), 0.0, kv, 0.0, SIXTEEN_BITS)
        return layout.chip.compute.times(op, memory)

    start = times(0.0, 0.0, 0.0)
    attending, reading = times(POSITIONS, 0.0, 0.0), times(0.0, POSITIONS, POSITIONS)
    (begun, attended, cached), to_read = (
        (nothing, (attend - nothing) / POSITIONS, (read - nothing) / POSITIONS)
        for nothing, attend, read in zip(start, attending, reading, strict=True)
    )
    if flops.unpacking:
        begun = begun - tokens * cached  # new tokens are cached, too, but need no unpacking here
    return (begun, attended, cached), to_read
