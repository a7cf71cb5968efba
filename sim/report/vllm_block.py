"""The block that `vllm bench serve` prints, for scripts that read it.

>>> block_row("Successful requests:", 50)
'Successful requests:                     50        '
"""

from sim.results.labels import system_labels
from sim.results.statistics import Metrics
from sim.results.summary import RunSummary

BLOCK_WIDTH = 50  # columns of a block
SECTIONS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
}


def vllm_blocks(summary: RunSummary) -> str:
    """Return the block of each system, below a line with its label."""
    labels = system_labels(summary.identities)
    blocks = (f"{labels[name]}\n{serving_block(s.metrics)}" for name, s in summary.systems.items())
    return "\n\n".join(blocks)


def serving_block(metrics: Metrics) -> str:
    """Return the block of one system.

    The rows are those that all versions have. Newer ones write `Total token throughput` with a
    small t, and add rows, such as peaks.
    Source: vllm-project/vllm, vllm/benchmarks/serve.py.
    """
    lines = [f"{' Serving Benchmark Result ':=^{BLOCK_WIDTH}}"]
    lines += [
        block_row("Successful requests:", metrics.completed),
        block_row("Benchmark duration (s):", metrics.duration),
        block_row("Total input tokens:", metrics.total_input_tokens),
        block_row("Total generated tokens:", metrics.total_output_tokens),
        block_row("Request throughput (req/s):", metrics.request_throughput or 0.0),
    ]
    if metrics.goodput:
        lines.append(block_row("Request goodput (req/s):", metrics.request_goodput or 0.0))
    lines += [
        block_row("Output token throughput (tok/s):", metrics.output_throughput or 0.0),
        block_row("Total Token throughput (tok/s):", metrics.total_token_throughput or 0.0),
    ]
    for name, (short, title) in SECTIONS.items():
        lines.append(f"{title:-^{BLOCK_WIDTH}}")
        statistics = metrics.latency(name)
        for word, statistic in (("Mean", "mean"), ("Median", "median"), ("P99", "p99")):
            lines.append(block_row(f"{word} {short} (ms):", statistics[statistic] or 0.0))
    return "\n".join([*lines, "=" * BLOCK_WIDTH])


def block_row(name: str, value: float) -> str:
    """Return a row: counts as they are, other numbers with two decimals."""
    return f"{name:<40} {value:<10}" if isinstance(value, int) else f"{name:<40} {value:<10.2f}"
