"""A run beside a measured result of vLLM's benchmark, for `sramsim compare out bench.json`.

>>> measured_metric(8.0, 10.0)
MeasuredMetric(measured=8.0, simulated=10.0, error_pct=25.0)

`vllm bench serve --save-result` writes the result.  Metrics of a run have the same names.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.inputs.errors import UserError
from sim.inputs.files import load_text
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.results.encoding import json_object
from sim.results.saving import load_result

# Keys of a result that say what was measured, in the order in which they are shown.
SETTINGS = (
    "backend", "endpoint_type", "model_id", "date", "num_prompts", "request_rate", "burstiness",
    "max_concurrency",
)  # fmt: skip
REQUIRED = ("duration", "completed", "request_throughput")  # every result has these
# Counts that are equal if both served the same requests.
REQUEST_COUNTS = ("completed", "total_input_tokens", "total_output_tokens")
MAX_BENCHMARK = 1_000_000_000  # bytes; with --save-detailed a result has every token's time
SAME = 0.01  # relative difference of a count that is called the same


@dataclass(frozen=True)
class MeasuredMetric:
    """A metric of a benchmark, and the simulated one.

    error_pct: 100 (simulated / measured - 1); None if the measured value is 0.
    """

    measured: float
    simulated: float
    error_pct: float | None


@dataclass(frozen=True)
class BenchmarkComparison:
    """The systems of a run beside a measured benchmark: the contract of `compare --json` for both.

    settings: what the benchmark's file says of itself.
    systems: metrics by system and key, in the order of the benchmark's file.
    unlike: counts of requests and tokens that differ, by system. Their errors are not the model's.
    """

    run: str
    benchmark: str
    settings: Mapping[str, JsonValue]
    systems: Mapping[str, Mapping[str, MeasuredMetric]]
    unlike: Mapping[str, tuple[str, ...]]


def compare_benchmark(paths: Sequence[Path]) -> BenchmarkComparison:
    """Return the comparison of a folder of `run --out` and a benchmark's file, in any order.

    Raises: UserError unless there is one of each, and both can be read.
    """
    files, folders = ([path for path in paths if path.is_file() == kind] for kind in (True, False))
    if len(files) != 1 or len(folders) != 1:
        raise UserError(
            f"compare: got {', '.join(map(str, paths))}; expected one folder and one benchmark"
            " result; try sramsim compare DIR bench.json"
        )
    measured = read_benchmark(files[0])
    summary = load_result(folders[0]).summary
    systems = {
        name: _common_metrics(measured, json_object(system))
        for name, system in summary.systems.items()
    }
    return BenchmarkComparison(
        str(folders[0]),
        str(files[0]),
        {key: measured[key] for key in SETTINGS if measured.get(key) is not None},
        systems,
        {name: unlike for name, metrics in systems.items() if (unlike := _unlike(metrics))},
    )


def read_benchmark(path: Path) -> JsonObject:
    """Return the content of a result of vLLM's benchmark.  Raises: UserError if it is none."""
    try:
        data = json.loads(load_text(path, str(path), MAX_BENCHMARK))
    except ValueError as error:
        raise UserError(
            f"{path}: got no JSON document: {error}; expected one result of vLLM's benchmark;"
            " try vllm bench serve --save-result"
        ) from None
    missing = [key for key in REQUIRED if not isinstance(data, dict) or key not in data]
    if missing:
        raise UserError(
            f"{path}: got no {missing[0]}; expected a result of vLLM's benchmark;"
            " try vllm bench serve --save-result"
        )
    result: JsonObject = data
    return result


def measured_metric(measured: float, simulated: float) -> MeasuredMetric:
    """Return both values and the error of the simulated one."""
    error = 100 * (simulated / measured - 1) if measured else None
    return MeasuredMetric(measured, simulated, error)


def _common_metrics(
    measured: Mapping[str, JsonValue], simulated: Mapping[str, JsonValue]
) -> dict[str, MeasuredMetric]:
    """Return the numbers that both have."""
    pairs = ((key, was, simulated.get(key)) for key, was in measured.items())
    return {
        key: measured_metric(was, now)
        for key, was, now in pairs
        if isinstance(was, int | float) and isinstance(now, int | float) and math.isfinite(was)
    }


def _unlike(metrics: Mapping[str, MeasuredMetric]) -> tuple[str, ...]:
    """Return the counts that differ."""
    return tuple(
        key
        for key in REQUEST_COUNTS
        if key in metrics
        and abs(metrics[key].simulated - metrics[key].measured) > SAME * metrics[key].measured
    )
