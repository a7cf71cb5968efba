"""Measures a card with PyTorch and writes an engine file of its own: `sramsim measure` (extra `measure`, needs a CUDA GPU).

Weights are multiplied at the layer shapes of a model, each from a pool larger than the caches, inside a CUDA graph, so that the
host takes no part.  What is measured is what kernels reach of the chip file's peaks; an engine's own overheads are not.
"""

import datetime
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from sim.hardware.chip import Chip
from sim.inputs.errors import UserError
from sim.model.transformer import Model
from sim.units import format_quantity

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
PREFILL = 2048  # tokens of the multiply that shows what computing reaches
POOL = 1 << 30  # bytes of weights that are cycled through: more than any cache holds
REPEATS = 20
SMALL_KERNELS = 8  # of a layer beside its multiplies and attention: norms, rotary embedding, activation, residuals.  Assumed.
CONTEXT, SEQUENCES = 4096, 16  # of the attention that is timed


class Reached(NamedTuple):
    """What a multiply of so many tokens reached, over all the matrices of a layer."""

    bits: int
    tokens: int
    seconds: float
    bandwidth: float  # B/s of weights
    rate: float  # FLOP/s


class Measured(NamedTuple):
    """Everything `sramsim measure` found on one card."""

    card: str
    software: str
    multiplies: list[Reached]
    attention_bandwidth: float  # B/s of K and V
    kernel: float  # s, of a small kernel in a graph
    all_reduce: dict[int, float]  # bytes -> s; empty with one card


def torch_with_cuda() -> Any:
    """PyTorch.  Raises: UserError where it is not installed or sees no CUDA GPU."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "measure: needs PyTorch; install it with: pip install 'sramsim[measure]'"
        ) from None
    if not torch.cuda.is_available():
        raise UserError("measure: PyTorch sees no CUDA GPU on this machine")
    return torch


def measure(model: Model, progress: Callable[[str], None] = lambda line: None) -> Measured:
    """Times the card that PyTorch calls cuda:0, and all-reduces where there are several."""
    torch = torch_with_cuda()
    shapes = [
        shape
        for block in dict.fromkeys(model.blocks[1:-1])
        for shape in (matrix.share(1) for matrix in block.matrices)
    ]
    found = []
    for bits in (16, 8) if torch.cuda.get_device_capability() >= (8, 9) else (16,):
        for tokens in (*TOKENS, PREFILL):
            seconds = sum(multiply(torch, rows, columns, tokens, bits) for rows, columns in shapes)
            nbytes = sum(rows * columns for rows, columns in shapes) * bits / 8
            found.append(
                Reached(
                    bits,
                    tokens,
                    seconds,
                    nbytes / seconds,
                    2 * tokens * nbytes / (bits / 8) / seconds,
                )
            )
            progress(
                f"{bits} bits, {tokens} tokens: {format_quantity(found[-1].bandwidth, 'B/s')}, "
                f"{format_quantity(found[-1].rate, 'FLOP/s')}"
            )
    attention = attend(torch, model)
    kernel = small_kernel(torch)
    reduced = all_reduces(torch) if torch.cuda.device_count() > 1 else {}
    software = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    return Measured(torch.cuda.get_device_name(0), software, found, attention, kernel, reduced)


def timed(torch: Any, once: Callable[[int], object], times: int) -> float:
    """Seconds of one of `times` calls, each given its number, in a CUDA graph: the median of repeats."""
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


def multiply(torch: Any, rows: int, columns: int, tokens: int, bits: int) -> float:
    """Seconds of tokens x rows times rows x columns, with another copy of the weights each time."""
    copies = max(2, min(64, POOL // (rows * columns * bits // 8)))
    if bits == 16:
        weights = [
            torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") for _ in range(copies)
        ]
        inputs = torch.randn(tokens, rows, dtype=torch.bfloat16, device="cuda")
        return timed(torch, lambda n: inputs @ weights[n], copies)
    one = torch.ones((), device="cuda")
    eight = torch.float8_e4m3fn
    weights = [torch.randn(columns, rows, device="cuda").to(eight).t() for _ in range(copies)]
    inputs = torch.randn(max(16, tokens), rows, device="cuda").to(
        eight
    )  # the kernel takes 16 rows or more
    return timed(
        torch,
        lambda n: torch._scaled_mm(inputs, weights[n], one, one, out_dtype=torch.bfloat16),
        copies,
    )


def attend(torch: Any, model: Model) -> float:
    """B/s at which decode attention reads K and V."""
    shape = next(block.attention for block in model.blocks if block.attention)
    size = (SEQUENCES, shape.kv_heads, CONTEXT, shape.head_size)
    pool = [
        [torch.randn(size, dtype=torch.bfloat16, device="cuda") for _ in range(2)] for _ in range(4)
    ]
    query = torch.randn(
        SEQUENCES, shape.heads, 1, shape.head_size, dtype=torch.bfloat16, device="cuda"
    )
    attention = torch.nn.functional.scaled_dot_product_attention
    seconds = timed(torch, lambda n: attention(query, *pool[n], enable_gqa=True), len(pool))
    nbytes: int = 2 * pool[0][0].numel() * 2
    return nbytes / seconds


def small_kernel(torch: Any) -> float:
    """Seconds from one small kernel to the next in a graph."""
    vector = torch.zeros(8192, dtype=torch.bfloat16, device="cuda")
    return timed(torch, lambda n: vector.add_(1), 1000)


def all_reduces(torch: Any) -> dict[int, float]:
    """Seconds of NCCL's all-reduce over all the cards of the machine, from one process."""
    cards = list(range(torch.cuda.device_count()))
    found = {}
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
        found[nbytes] = begin.elapsed_time(end) / 1000 / REPEATS
    return found


def engine_file(found: Measured, chip: Chip, model: Model) -> str:
    """An engine file for the card: what kernels reach of the chip file's numbers."""
    day = datetime.date.today().isoformat()
    where = f"measured: {found.card}, {found.software}, {day}; sramsim measure, layer shapes of {model.id}"
    memory = next(iter(chip.memory.values()))
    reading, computing = {}, {}
    for bits, precision in ((16, "bf16"), (8, "fp8")):
        of_bits = [each for each in found.multiplies if each.bits == bits]
        if of_bits:
            reading[bits] = min(
                1.0, max(e.bandwidth for e in of_bits if e.tokens in TOKENS) / memory.bandwidth
            )
            computing[bits] = min(1.0, of_bits[-1].rate / chip.compute.peak(precision, precision))
    rates = {bits: [e for e in found.multiplies if e.bits == bits] for bits in reading}
    told = {
        bits: ", ".join(f"{e.tokens}: {format_quantity(e.bandwidth, 'B/s')}" for e in each)
        for bits, each in rates.items()
    }
    lines = [
        f"# What kernels reach on one {found.card}, measured on {day}; the overheads of a serving engine are not in it.",
        f"name: {found.card}, {found.software}",
        f"memory_efficiency: {{{', '.join(f'{bits}: {value:.3f}' for bits, value in reading.items())}}}",
        f"compute_efficiency: {{{', '.join(f'{bits}: {value:.3f}' for bits, value in computing.items())}}}",
        f"attention_memory_efficiency: {min(1.0, found.attention_bandwidth / memory.bandwidth):.3f}",
        "attention_compute_efficiency: 0.4",
        f"layer_overhead: {1e6 * SMALL_KERNELS * found.kernel:.1f} us",
        "step_overhead: 0 us",
        "sequence_overhead: 0 us",
        f"collective_latency: {1e6 * min(found.all_reduce.values(), default=0.0):.1f} us",
        "collective_latency_per_chip: 0 us",
        "collective_efficiency: 0.8",
        "memory_fraction: 0.9",
        "reserve: 2 GB",
        "source:",
        *(
            f'  memory_efficiency.{bits}: "{where}; B/s of weights by tokens: {text}"'
            for bits, text in told.items()
        ),
        *(f'  compute_efficiency.{bits}: "{where}; {PREFILL} tokens"' for bits in computing),
        f'  attention_memory_efficiency: "{where}; {SEQUENCES} sequences of {CONTEXT} tokens"',
        '  attention_compute_efficiency: "assumed: as other engines"',
        f'  layer_overhead: "{where}; {SMALL_KERNELS} small kernels (their number is assumed) of {1e6 * found.kernel:.2f} us"',
        '  step_overhead: "assumed: none; no engine was measured"',
        '  sequence_overhead: "assumed: none; no engine was measured"',
        f'  collective_latency: "{where if found.all_reduce else "assumed: none; one card"}"',
        '  collective_latency_per_chip: "assumed: none"',
        '  collective_efficiency: "assumed: 366 of 450 GB/s, as NCCL on H100"',
        '  memory_fraction: "assumed: as vllm"',
        '  reserve: "assumed: as vllm"',
    ]
    return "\n".join(lines) + "\n"
