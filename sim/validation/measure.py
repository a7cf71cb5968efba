"""Measurements of a GPU with PyTorch, as an engine file: `sramsim measure`.

    measured_engine_file(measure(model), chip, model)  # the text of the file

Needs the extra `measure` and a CUDA GPU.  Weights are multiplied at the layer shapes of a model.
Each multiply takes them from a pool larger than the caches, in a CUDA graph, so that the host
takes no part.  The result is the share of the chip file's peaks that kernels reach.
Left out: the overheads of a serving engine.
"""

import datetime
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from sim.hardware.chip import Chip
from sim.inputs.errors import UserError
from sim.model.blocks import Attention
from sim.model.transformer import Model
from sim.units import Seconds, format_quantity

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
PREFILL_TOKENS = 2048  # of the multiply that is bound by compute
POOL = 1 << 30  # bytes of weights to cycle through: more than any cache holds
REPEATS = 20
# Kernels of a layer other than its multiplies and attention: norms, rotary embedding, activation,
# residuals.  Assumed.
SMALL_KERNELS = 8
CONTEXT, SEQUENCES = 4096, 16  # tokens and sequences of the attention that is timed


class MultiplyRate(NamedTuple):
    """A rate of multiplies of some tokens with all matrices of a layer."""

    bits: int
    tokens: int
    seconds: float
    bandwidth: float  # B/s of weights
    rate: float  # FLOP/s


class CardMeasurements(NamedTuple):
    """A record of everything that `sramsim measure` timed on one card."""

    card: str
    software: str
    multiplies: list[MultiplyRate]
    attention_bandwidth: float  # B/s of K and V
    kernel: float  # of a small kernel in a graph [s]
    all_reduce: dict[int, float]  # [s] by bytes; empty with one card


def torch_with_cuda() -> Any:
    """Return PyTorch.  Raises: UserError if it is not installed or sees no CUDA GPU."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "measure: got no PyTorch; expected it; try pip install 'sramsim[measure]'"
        ) from None
    if not torch.cuda.is_available():
        raise UserError(
            "measure: got no CUDA GPU from PyTorch; expected one; try a machine with one"
        )
    return torch


def measure(model: Model, progress: Callable[[str], None] = lambda line: None) -> CardMeasurements:
    """Return the measurements of the card cuda:0, and of all-reduces if there are several cards.

    Raises: UserError if PyTorch is not installed or sees no CUDA GPU.
    """
    torch = torch_with_cuda()
    shapes = [
        shape
        for block in dict.fromkeys(model.blocks[1:-1])
        for shape in (matrix.share(1) for matrix in block.matrices)
    ]
    weights = sum(rows * columns for rows, columns in shapes)
    rates = []
    for bits in (16, 8) if torch.cuda.get_device_capability() >= (8, 9) else (16,):
        for tokens in (*TOKENS, PREFILL_TOKENS):
            seconds = sum(_multiply(torch, shape, tokens, bits) for shape in shapes)
            bandwidth = weights * bits / 8 / seconds
            rate = MultiplyRate(bits, tokens, seconds, bandwidth, 2 * tokens * weights / seconds)
            rates.append(rate)
            progress(
                f"{bits} bits, {tokens} tokens: {format_quantity(rate.bandwidth, 'B/s')}, "
                f"{format_quantity(rate.rate, 'FLOP/s')}"
            )
    attention = _attention_bandwidth(torch, model)
    kernel = _small_kernel_time(torch)
    all_reduce = _all_reduce_times(torch) if torch.cuda.device_count() > 1 else {}
    software = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    card = torch.cuda.get_device_name(0)
    return CardMeasurements(card, software, rates, attention, kernel, all_reduce)


def _graph_time(torch: Any, once: Callable[[int], object], times: int) -> Seconds:
    """Return the time of one of `times` calls in a CUDA graph, the median of repeats.

    once: called with the number of the call.
    """
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for number in range(min(3, times)):
            once(number)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(times):
            once(number)
    seconds = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(float(begin.elapsed_time(end)) / 1000 / times)
    return median(seconds)


def _multiply(torch: Any, shape: tuple[int, int], tokens: int, bits: int) -> Seconds:
    """Return the time to multiply tokens x rows by a matrix of rows x columns.

    Every multiply uses another copy of the matrix, so that no cache holds it.
    """
    rows, columns = shape
    copies = max(2, min(64, POOL // (rows * columns * bits // 8)))
    if bits == 16:
        weights = [
            torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") for _ in range(copies)
        ]
        inputs = torch.randn(tokens, rows, dtype=torch.bfloat16, device="cuda")
        return _graph_time(torch, lambda n: inputs @ weights[n], copies)
    one = torch.ones((), device="cuda")
    eight = torch.float8_e4m3fn
    weights = [torch.randn(columns, rows, device="cuda").to(eight).t() for _ in range(copies)]
    # The kernel needs at least 16 rows.
    inputs = torch.randn(max(16, tokens), rows, device="cuda").to(eight)
    return _graph_time(
        torch,
        lambda n: torch._scaled_mm(inputs, weights[n], one, one, out_dtype=torch.bfloat16),
        copies,
    )


def _attention_bandwidth(torch: Any, model: Model) -> float:
    """Return the bandwidth at which decode attention reads K and V [B/s]."""
    shape = next(m for b in model.blocks for m in b.mixers if isinstance(m, Attention))
    size = (SEQUENCES, shape.kv_heads, CONTEXT, shape.head_size)
    pool = [
        [torch.randn(size, dtype=torch.bfloat16, device="cuda") for _ in range(2)] for _ in range(4)
    ]
    query = torch.randn(
        SEQUENCES, shape.heads, 1, shape.head_size, dtype=torch.bfloat16, device="cuda"
    )
    attention = torch.nn.functional.scaled_dot_product_attention
    seconds = _graph_time(torch, lambda n: attention(query, *pool[n], enable_gqa=True), len(pool))
    nbytes: int = 2 * pool[0][0].numel() * 2
    return nbytes / seconds


def _small_kernel_time(torch: Any) -> Seconds:
    """Return the time from one small kernel to the next in a graph."""
    vector = torch.zeros(8192, dtype=torch.bfloat16, device="cuda")
    return _graph_time(torch, lambda n: vector.add_(1), 1000)


def _all_reduce_times(torch: Any) -> dict[int, Seconds]:
    """Return the time of NCCL's all-reduce over all cards, by bytes, from one process."""
    cards = list(range(torch.cuda.device_count()))
    times = {}
    for nbytes in (16 << 10, 256 << 10, 4 << 20, 64 << 20):
        tensors = [
            torch.zeros(nbytes // 2, dtype=torch.bfloat16, device=f"cuda:{card}") for card in cards
        ]
        torch.cuda.nccl.all_reduce(tensors)
        for card in cards:
            torch.cuda.synchronize(card)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPEATS):
            torch.cuda.nccl.all_reduce(tensors)
        end.record()
        torch.cuda.synchronize()
        times[nbytes] = begin.elapsed_time(end) / 1000 / REPEATS
    return times


def measured_engine_file(card: CardMeasurements, chip: Chip, model: Model) -> str:
    """Return an engine file for a card: efficiencies relative to the chip file's peaks."""
    day = datetime.date.today().isoformat()
    where = (
        f"measured: {card.card}, {card.software}, {day}; "
        f"sramsim measure, layer shapes of {model.id}"
    )
    memory = next(iter(chip.memory.values()))
    reading, computing, by_tokens = {}, {}, {}
    for bits, precision in ((16, "bf16"), (8, "fp8")):
        rates = [rate for rate in card.multiplies if rate.bits == bits]
        if rates:
            best = max(rate.bandwidth for rate in rates if rate.tokens in TOKENS)
            reading[bits] = min(1.0, best / memory.bandwidth)
            computing[bits] = min(1.0, rates[-1].rate / chip.compute.peak(precision, precision))
            by_tokens[bits] = ", ".join(
                f"{rate.tokens}: {format_quantity(rate.bandwidth, 'B/s')}" for rate in rates
            )
    attention = min(1.0, card.attention_bandwidth / memory.bandwidth)
    collective = 1e6 * min(card.all_reduce.values(), default=0.0)
    kernels = (
        f"{SMALL_KERNELS} small kernels (their number is assumed) of {1e6 * card.kernel:.2f} us"
    )
    lines = [
        f"# Efficiencies of kernels on one {card.card}, measured on {day}."
        " Left out: overheads of a serving engine.",
        f"name: {card.card}, {card.software}",
        f"memory_efficiency: {_by_bits(reading)}",
        f"compute_efficiency: {_by_bits(computing)}",
        f"attention_memory_efficiency: {attention:.3f}",
        "attention_compute_efficiency: 0.4",
        f"layer_overhead: {1e6 * SMALL_KERNELS * card.kernel:.1f} us",
        "step_overhead: 0 us",
        "sequence_overhead: 0 us",
        f"collective_latency: {collective:.1f} us",
        "collective_latency_per_chip: 0 us",
        "collective_efficiency: 0.8",
        "memory_fraction: 0.9",
        "reserve: 2 GB",
        "source:",
        *(
            f'  memory_efficiency.{bits}: "{where}; B/s of weights by tokens: {text}"'
            for bits, text in by_tokens.items()
        ),
        *(f'  compute_efficiency.{bits}: "{where}; {PREFILL_TOKENS} tokens"' for bits in computing),
        f'  attention_memory_efficiency: "{where}; {SEQUENCES} sequences of {CONTEXT} tokens"',
        '  attention_compute_efficiency: "assumed: as other engines"',
        f'  layer_overhead: "{where}; {kernels}"',
        '  step_overhead: "assumed: none; no engine was measured"',
        '  sequence_overhead: "assumed: none; no engine was measured"',
        f'  collective_latency: "{where if card.all_reduce else "assumed: none; one card"}"',
        '  collective_latency_per_chip: "assumed: none"',
        '  collective_efficiency: "assumed: 366 of 450 GB/s, as NCCL on H100"',
        '  memory_fraction: "assumed: as vllm"',
        '  reserve: "assumed: as vllm"',
    ]
    return "\n".join(lines) + "\n"


def _by_bits(efficiencies: dict[int, float]) -> str:
    """Return efficiencies by bits as YAML."""
    return f"{{{', '.join(f'{bits}: {value:.3f}' for bits, value in efficiencies.items())}}}"
