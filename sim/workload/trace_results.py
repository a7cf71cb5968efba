"""Results of benchmarks as traces: of vLLM's and guidellm's, which save the times of requests."""

import itertools
import json
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.workload.trace_columns import (
    Columns,
    answer_arrays,
    has_no_output,
    optional_time,
    request_arrays,
    time_number,
    token_numbers,
)

# Source: vllm/benchmarks/serve.py with --save-detailed.
TIMES, VLLM_LENGTHS = "start_times", ("input_lens", "output_lens")
VLLM = (TIMES, *VLLM_LENGTHS)
# Source: vllm-project/guidellm, schemas/request_stats.py; older versions have start_time.
GUIDELLM_TIMES = ("request_start_time", "start_time")
GUIDELLM_LENGTHS = ("prompt_tokens", "output_tokens")
GUIDELLM_WAITS = ("time_to_first_token_ms", "inter_token_latency_ms")
# Sources: sglang/bench_serving.py; SemiAnalysisAI/InferenceX, utils/process_result.py; AIPerf.
SUMMARY = {"request_throughput", "output_throughput", "mean_ttft_ms", "mean_ttft", "tput_per_gpu"}


def read_result(document: JsonObject, text: str, shown: str, alone: bool) -> Columns | None:
    """Return the requests of a benchmark's result; None if the document is none.

    alone: whether the file has no second document.
    Raises: ScenarioError if it lacks times or lengths of requests, or is malformed.
    """
    keys = document.keys()
    if set(VLLM) & keys:
        lists = _lists(document, shown)
        _require_one(alone, shown)
        return _vllm(document, lists, text, shown)
    if isinstance(benchmarks := document.get("benchmarks"), list):
        _require_one(alone, shown)
        return _guidellm(benchmarks, shown)
    if SUMMARY & keys:
        raise ScenarioError(f"{shown}:1: got a summary without requests; {_remedy(keys)}")
    return None


def _remedy(keys: Collection[str]) -> str:
    """Return what to save in place of a result without requests."""
    if "dataset_name" in keys:
        return f"expected times of sending; {_SGLANG}"
    if "input_config" in keys:
        return "expected AIPerf's records; try profile_export.jsonl"
    return (
        "expected a time and lengths for each request;"
        " try the result of vLLM's benchmark with --save-detailed"
    )


_SGLANG = (
    "sglang.bench_serving saves no times of sending; try vLLM's benchmark with --save-detailed"
)


def _require_one(alone: bool, shown: str) -> None:
    """Raise ScenarioError if a file has several results."""
    if not alone:
        raise ScenarioError(
            f"{shown}:1: got several results in one file, as --append-result writes them;"
            " expected one; try a file with a single one"
        )


def _lists(document: JsonObject, shown: str) -> list[list[JsonValue]]:
    """Return the lists of times sent (s on the client's clock), of prompts and of outputs.

    Raises: ScenarioError if one is missing, or their lengths differ.
    """
    lists: list[list[JsonValue]] = []
    for key in VLLM:
        column = document.get(key)
        if not isinstance(column, list):
            hint = "try the benchmark with --save-detailed"
            if key == TIMES:
                hint = _SGLANG if "dataset_name" in document else "older vLLM saves none"
            got = "nothing" if column is None else "no list"
            raise ScenarioError(f"{shown}:1: {key}: got {got}; expected a list; {hint}")
        lists.append(column)
    lengths = [len(column) for column in lists]
    if len(set(lengths)) > 1:
        raise ScenarioError(
            f"{shown}:1: {', '.join(VLLM)}: got lists of {', '.join(map(str, lengths))};"
            " expected equal lengths"
        )
    return lists


def _vllm(document: JsonObject, lists: list[list[JsonValue]], text: str, shown: str) -> Columns:
    """Return the requests of a result with --save-detailed."""
    # The line of the first list.
    line = text.count("\n", 0, min(text.find(f'"{key}"') for key in VLLM)) + 1
    rows: list[tuple[float, int, int]] = []
    kept: list[int] = []
    for number, values in enumerate(zip(*lists, strict=True)):
        row: JsonObject = dict(zip(VLLM, values, strict=True))
        if has_no_output(row[VLLM_LENGTHS[1]]):
            continue
        where = f"{shown}:{line}: request {number + 1}"
        time = time_number(row[TIMES], f"{where}: {TIMES}", "s")
        rows.append((time, *token_numbers(row, VLLM_LENGTHS, where)))
        kept.append(number)
    times, prompts, outputs = request_arrays(rows)
    return Columns(
        "vLLM's benchmark",
        times,
        prompts,
        outputs,
        unit="s",
        fixed_unit=True,
        without_output=len(lists[0]) - len(rows),
        answered=_answered(document, times, kept, f"{shown}:{line}"),
    )


def _answered(
    document: JsonObject, sent: NDArray[np.float64], kept: list[int], where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return when vLLM's requests got their first and last tokens [s]; None without these times.

    The result has TTFTs, and the gaps between tokens (ITLs).
    """
    ttfts, itls = document.get("ttfts"), document.get("itls")
    if ttfts is None or itls is None:
        return None
    try:
        if not isinstance(ttfts, list) or not isinstance(itls, list):
            raise TypeError
        # numpy would take a text or a truth value for a number.
        if {type(time) for time in itertools.chain(ttfts, *itls)} - {int, float}:
            raise TypeError
        waited = np.array(
            [(ttfts[i], sum(itls[i]), min(itls[i], default=0.0)) for i in kept], float
        ).reshape(-1, 3)
        if not (np.isfinite(waited) & (waited >= 0)).all():
            raise ValueError
        first = sent + waited[:, 0]
        return first, first + waited[:, 1]
    except (IndexError, TypeError, ValueError):
        raise ScenarioError(
            f"{where}: ttfts and itls: got other values; expected a number and a list of numbers"
            " for each request"
        ) from None


def _guidellm(benchmarks: list[Any], shown: str) -> Columns:
    """Return the requests that one of guidellm's benchmarks completed."""
    if len(benchmarks) != 1:
        raise ScenarioError(
            f"{shown}:1: benchmarks: got {len(benchmarks)}; expected one;"
            " try a run of guidellm at a single rate"
        )
    requests = benchmarks[0].get("requests") if isinstance(benchmarks[0], dict) else None
    groups = {
        name: list(group)
        for name, group in (requests.items() if isinstance(requests, dict) else ())
        if isinstance(group, list)
    }
    if "successful" not in groups:
        raise ScenarioError(
            f"{shown}:1: benchmarks.0.requests.successful: got nothing; expected a list of requests"
        )
    rows: list[tuple[float, int, int]] = []
    answers: list[tuple[float, float] | None] = []
    for number, row in enumerate(groups["successful"], 1):
        where = f"{shown}:1: request {number}"
        if not isinstance(row, dict):
            raise ScenarioError(f"{where}: got {json.dumps(row)[:40]}; expected a mapping")
        if has_no_output(row.get("output_tokens")):
            continue
        key = next((key for key in GUIDELLM_TIMES if key in row), GUIDELLM_TIMES[0])
        time = time_number(row.get(key), f"{where}: {key}", "s")
        lengths = token_numbers(row, GUIDELLM_LENGTHS, where)
        rows.append((time, *lengths))
        answers.append(_guidellm_answer(row, time, lengths[1], where))
    return Columns(
        "guidellm",
        *request_arrays(rows),
        unit="s",
        fixed_unit=True,
        without_output=sum(map(len, groups.values())) - len(rows),
        answered=answer_arrays(answers),
    )


def _guidellm_answer(
    row: JsonObject, sent: float, output: int, where: str
) -> tuple[float, float] | None:
    """Return the times of the first and the last token [s]; None without them."""
    waited, gap = (optional_time(row.get(key), f"{where}: {key}", "ms") for key in GUIDELLM_WAITS)
    if waited is None:
        return None
    first = sent + waited / 1e3
    if output == 1:
        return first, first
    return None if gap is None else (first, first + gap / 1e3 * (output - 1))
