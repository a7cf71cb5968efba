"""Files of recorded requests, in six formats that are recognised by content, as columns.

Rows may be in any order. They are sorted by time, and equal times keep their order.
Times count from the first request that is kept.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.inputs.errors import ScenarioError
from sim.inputs.files import load_text, shorten
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.units import MAX_COUNT, MAX_SIZE, brief
from sim.workload.requests import HASH_BLOCK

if TYPE_CHECKING:
    import polars

MAX_TRACE = 1_000_000_000  # bytes; a week of Azure's requests is a few hundred MB
# Time, prompt and output of each format.
# Sources: Azure/AzurePublicDataset; HPMLL/BurstGPT; microsoft/vidur.
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
VIDUR = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
# A replay also has the times of the answers. Source: LLMServingSim's replays of vLLM.
REPLAY = ("arrived_at_s", "input_tokens", "output_tokens")
ANSWERED = ("first_token_s", "last_token_s")
# Sources: kvcache-ai/Mooncake, FAST25-release; vllm/benchmarks/serve.py with --save-detailed.
MOONCAKE = ("timestamp", "input_length", "output_length")
VLLM = ("start_times", "input_lens", "output_lens")
KNOWN = (
    f"CSV of Azure ({', '.join(AZURE)}), of BurstGPT ({', '.join(BURSTGPT)}), "
    f"of Vidur ({', '.join(VIDUR)}) or of a replay ({', '.join(REPLAY)}); "
    f"JSON lines of Mooncake ({', '.join(MOONCAKE)}); "
    f"a result of vLLM's benchmark with --save-detailed ({', '.join(VLLM)})"
)
EXPECTED_TOKENS = "a whole number of tokens, at least 1"


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The requests of a trace, by column.

    arrival: float[request], s since the first request.
    prompt, output: int[request], tokens.
    hash_ids: Mooncake's ids of the blocks of each prompt.
    failed: how many requests got no answer. BurstGPT and vLLM record these with an output of 0.
    They are left out.
    answered: float[request] each, s on the clock of the arrivals: measured times of the first and
    the last token. Replays and vLLM's results have them.
    """

    arrival: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    hash_ids: list[tuple[int, ...]] | None = None
    failed: int = 0
    answered: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


def read_trace(path: Path) -> Columns:
    """Return the requests of a trace.

    Raises: ScenarioError with the line, if the format is unknown or a row is malformed.
    """
    shown = shorten(path)
    text = load_text(path, shown, MAX_TRACE).removeprefix("\ufeff")
    if not text.strip():
        raise ScenarioError(f"{shown}:1: the file is empty")
    columns = (_json if text.lstrip().startswith("{") else _csv)(text, shown)
    if not len(columns.arrival):
        raise ScenarioError(f"{shown}:1: no request of the trace was answered")
    order = np.argsort(columns.arrival, kind="stable")
    arrival, ids = columns.arrival[order], columns.hash_ids
    ids = [ids[i] for i in order.tolist()] if ids else None
    begin = arrival[0]
    answered = (
        (columns.answered[0][order] - begin, columns.answered[1][order] - begin)
        if columns.answered
        else None
    )
    return Columns(
        arrival - begin, columns.prompt[order], columns.output[order], ids, columns.failed, answered
    )


def _csv(text: str, shown: str) -> Columns:
    """Return the requests of Azure's, BurstGPT's, Vidur's files, and of replays.

    Left out: commas within quotes, which none of these formats has.
    """
    import polars as pl

    header, *lines = text.split("\n")
    names = [name.strip(' \r"') for name in header.split(",")]
    formats = (AZURE, BURSTGPT, VIDUR, REPLAY)
    keys = next((columns for columns in formats if set(columns) <= set(names)), None)
    if keys is None:
        raise _unknown_format(f"{shown}:1", header)
    table = pl.DataFrame(
        {"line": np.arange(2, len(lines) + 2), "text": pl.Series(lines, dtype=pl.String)}
    ).filter(pl.col("text").str.contains(r"\S"))
    values = table["text"].str.count_matches(",", literal=True) + 1
    _refuse(
        table,
        values != len(names),
        shown,
        lambda i: f"got {values[i]} values; expected {len(names)}, as in the header",
    )
    timed = keys is REPLAY and set(ANSWERED) <= set(names)
    columns = (*keys, *ANSWERED) if timed else keys
    fields = table["text"].str.split_exact(",", len(names) - 1).struct
    table = table.select(
        "line",
        *(fields[names.index(name)].str.strip_chars(' \r\t"').alias(name) for name in columns),
    )
    time, prompt, output = keys
    failed = 0
    if keys is BURSTGPT:
        answered = table[output].cast(pl.Float64, strict=False).fill_null(-1) != 0
        failed = len(table) - int(answered.sum())
        table = table.filter(answered)
    times = _moments(table, time, shown) if keys is AZURE else _seconds(table, time, shown)
    columns_read = times, _tokens(table, prompt, shown), _tokens(table, output, shown)
    if not timed:
        return Columns(*columns_read, failed=failed)
    first, last = (_seconds(table, name, shown) for name in ANSWERED)
    wrong = pl.Series((first < times) | (last < first))
    _refuse(
        table,
        wrong,
        shown,
        lambda i: "expected arrival, first token and last token in this order",
    )
    return Columns(*columns_read, failed=failed, answered=(first, last))


def _unknown_format(where: str, text: str) -> ScenarioError:
    """Return the error for a file of another format."""
    return ScenarioError(
        f"{where}: {brief(text.strip())!r} is not a known trace; expected one of {KNOWN}"
    )


def _refuse(
    table: "polars.DataFrame", bad: "polars.Series", shown: str, reason: Callable[[int], str]
) -> None:
    """Raise ScenarioError for the first row that is bad; do nothing without one."""
    bad = bad.fill_null(True)
    if bad.any():
        first = int(bad.arg_max() or 0)
        raise ScenarioError(f"{shown}:{table['line'][first]}: {reason(first)}")


def _moments(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.float64]:
    """Return float[row], s since the first of Azure's times.

    These have seven digits of a second; those of 2024 also have the zone +00:00.
    """
    import polars as pl

    plain = table[name].str.replace(r"(\+00:00|Z)$", "")
    ticks = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False).cast(
        pl.Int64
    )
    expected = "a time, such as 2023-11-16 18:15:46.6805900"
    bad = ticks.is_null() | ~plain.str.starts_with("20")  # nanoseconds of far years overflow
    _refuse(
        table, bad, shown, lambda i: f"{name}: got {brief(table[name][i])!r}; expected {expected}"
    )
    whole: NDArray[np.int64] = ticks.to_numpy()
    # Subtract as integers, because floats of nanoseconds since 1970 would lose digits.
    seconds: NDArray[np.float64] = (whole - whole[:1].sum()) / 1e9
    return seconds


def _seconds(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.float64]:
    """Return float[row], s.

    Raises: ScenarioError for the first row that has none.
    """
    import polars as pl

    numbers = table[name].cast(pl.Float64, strict=False)
    bad = ~numbers.is_between(0, MAX_SIZE)
    _refuse(
        table,
        bad,
        shown,
        lambda i: (
            f"{name}: got {brief(table[name][i])!r}; expected a number of seconds, at least 0"
        ),
    )
    return numbers.to_numpy()


def _tokens(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.int64]:
    """Return int[row], tokens.

    Raises: ScenarioError for the first row that has none.
    """
    import polars as pl

    numbers = table[name].cast(pl.Float64, strict=False)
    bad = ~(numbers.is_between(1, MAX_COUNT) & (numbers == numbers.floor()))
    _refuse(
        table,
        bad,
        shown,
        lambda i: f"{name}: got {brief(table[name][i])!r}; expected {EXPECTED_TOKENS}",
    )
    return numbers.cast(pl.Int64).to_numpy()


def _json(text: str, shown: str) -> Columns:
    """Return the requests of Mooncake's lines, or of one result of vLLM's benchmark.

    vLLM's result is a single JSON document, on one line or several.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        # Several documents, or a broken one; `_mooncake` names the broken line.
        return _mooncake(text, shown)
    if set(VLLM) & document.keys():
        return _vllm(document, text, shown)
    if set(MOONCAKE) & document.keys():
        return _mooncake(text, shown)
    raise _unknown_format(f"{shown}:1", text)


def _mooncake(text: str, shown: str) -> Columns:
    """Return the requests of Mooncake's JSON lines."""
    rows: list[tuple[float, int, int]] = []
    ids: list[tuple[int, ...] | None] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{shown}:{number}"
        row = _mooncake_row(line, where, first=not rows)
        time, prompt, output = (row[key] for key in MOONCAKE)
        seconds = _time(time, f"{where}: timestamp", "milliseconds") / 1e3
        lengths = _lengths(where, MOONCAKE, prompt, output)
        rows.append((seconds, *lengths))
        ids.append(_blocks(row.get("hash_ids"), lengths[0], where))
        if (ids[-1] is None) != (ids[0] is None):
            raise ScenarioError(
                f"{where}: got hash_ids for some requests; expected them for all or none"
            )
    arrival, prompts, outputs = zip(*rows, strict=True)
    blocks = [prompt_ids for prompt_ids in ids if prompt_ids is not None] or None
    return Columns(
        np.array(arrival, float), np.array(prompts, np.int64), np.array(outputs, np.int64), blocks
    )


def _mooncake_row(line: str, where: str, first: bool) -> JsonObject:
    """Return the mapping of one line, with all keys that are needed.

    Raises: ScenarioError otherwise.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where}: JSON: {error}") from None
    if not isinstance(row, dict):
        keys = ", ".join(MOONCAKE)
        raise ScenarioError(f"{where}: got {brief(line)!r}; expected a mapping with {keys}")
    if first and not set(MOONCAKE) & row.keys():
        raise _unknown_format(where, line)
    if missing := [key for key in MOONCAKE if key not in row]:
        raise ScenarioError(f"{where}: '{missing[0]}' is missing")
    return row


def _blocks(ids: Any, prompt: int, where: str) -> tuple[int, ...] | None:
    """Return Mooncake's ids, one for each 512 tokens; None without ids.

    Traces with smaller blocks are refused, because they also count time differently.
    """
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(
        isinstance(number, int) and not isinstance(number, bool) for number in ids
    ):
        raise ScenarioError(f"{where}: hash_ids: expected a list of whole numbers")
    expected = -(-prompt // HASH_BLOCK)
    if len(ids) != expected:
        raise ScenarioError(
            f"{where}: hash_ids: got {len(ids)} ids; expected {expected} for {prompt} tokens,"
            f" one for each {HASH_BLOCK}"
        )
    return tuple(ids)


def _vllm(document: JsonObject, text: str, shown: str) -> Columns:
    """Return the requests of a result with --save-detailed.

    It has a list of the times sent (s on the client's clock), of the prompts and of the outputs.
    A request that failed has an output of 0 tokens, and is left out.
    """
    lists: list[list[JsonValue]] = []
    for key in VLLM:
        column = document.get(key)
        if not isinstance(column, list):
            hint = (
                "older vLLM saves none"
                if key == VLLM[0]
                else "save the benchmark's result with --save-detailed"
            )
            raise ScenarioError(f"{shown}:1: '{key}' is missing: {hint}")
        lists.append(column)
    lengths = [len(column) for column in lists]
    if len(set(lengths)) > 1:
        raise ScenarioError(
            f"{shown}:1: {', '.join(VLLM)} have {', '.join(map(str, lengths))} entries"
        )
    # The line of the first list.
    line = text.count("\n", 0, min(text.find(f'"{key}"') for key in VLLM)) + 1
    rows: list[tuple[float, int, int]] = []
    kept: list[int] = []
    for number, (time, prompt, output) in enumerate(zip(*lists, strict=True), 1):
        if output == 0 and isinstance(output, int):
            continue
        where = f"{shown}:{line}: request {number}"
        rows.append(
            (_time(time, f"{where}: {VLLM[0]}", "seconds"), *_lengths(where, VLLM, prompt, output))
        )
        kept.append(number - 1)
    arrival, prompts, outputs = zip(*rows, strict=True) if rows else ((), (), ())
    failed = len(lists[0]) - len(rows)
    times = np.array(arrival, float)
    answered = _answered(document, times, kept, f"{shown}:{line}")
    return Columns(
        times,
        np.array(prompts, np.int64),
        np.array(outputs, np.int64),
        failed=failed,
        answered=answered,
    )


def _answered(
    document: JsonObject, sent: NDArray[np.float64], kept: list[int], where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return when vLLM's requests got their first and last tokens [s]; None without these times.

    The result has TTFTs, and the gaps between tokens (ITLs).
    """
    ttfts, itls = document.get("ttfts"), document.get("itls")
    if not (isinstance(ttfts, list) and isinstance(itls, list)):
        return None
    try:
        waited = np.array(
            [(ttfts[i], sum(itls[i]), min(itls[i], default=0.0)) for i in kept], float
        ).reshape(-1, 3)
        if not (np.isfinite(waited) & (waited >= 0)).all():
            raise ValueError
        first = sent + waited[:, 0]
        return first, first + waited[:, 1]
    except (IndexError, TypeError, ValueError):
        raise ScenarioError(
            f"{where}: ttfts and itls: expected a number and a list of numbers for each request"
        ) from None


def _time(value: Any, where: str, unit: str) -> float:
    """Return a time as the file has it.

    Raises: ScenarioError if it is no time.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SIZE:
        raise ScenarioError(
            f"{where}: got {brief(json.dumps(value))}; expected a number of {unit}, at least 0"
        )
    return float(value)


def _lengths(where: str, keys: tuple[str, str, str], *values: Any) -> tuple[int, int]:
    """Return prompt and output [tokens].

    Raises: ScenarioError if one is no length.
    """
    for key, value in zip(keys[1:], values, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise ScenarioError(
                f"{where}: {key}: got {brief(json.dumps(value))}; expected {EXPECTED_TOKENS}"
            )
    prompt, output = values
    return prompt, output
