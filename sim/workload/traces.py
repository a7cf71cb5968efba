"""Traces of real requests: files of six formats, recognised by their content, as columns.

Rows may stand in any order: they are sorted by time, ties as they stand.  Times count from the first request that is kept.
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
from sim.units import MAX_COUNT, MAX_SIZE, brief

if TYPE_CHECKING:
    import polars

MAX_TRACE = 1_000_000_000  # bytes; a week of Azure's requests is a few hundred MB
BLOCK = 512  # tokens of a block that one of Mooncake's hash ids stands for
# Time, prompt and output by format.  Sources: Azure/AzurePublicDataset; HPMLL/BurstGPT; microsoft/vidur.
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
VIDUR = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
# With when each request was answered.  Source: LLMServingSim's replays of vLLM.
REPLAY = ("arrived_at_s", "input_tokens", "output_tokens")
ANSWERED = ("first_token_s", "last_token_s")
# Sources: kvcache-ai/Mooncake, FAST25-release; vllm/benchmarks/serve.py with --save-detailed.
MOONCAKE = ("timestamp", "input_length", "output_length")
VLLM = ("start_times", "input_lens", "output_lens")
KNOWN = (
    f"CSV of Azure ({', '.join(AZURE)}), of BurstGPT ({', '.join(BURSTGPT)}), of Vidur ({', '.join(VIDUR)}) or of a "
    f"replay ({', '.join(REPLAY)}); JSON lines of "
    f"Mooncake ({', '.join(MOONCAKE)}); a result of vLLM's benchmark with --save-detailed ({', '.join(VLLM)})"
)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Requests of a trace by column: arrival in s from the first one, prompt and output in tokens, Mooncake's block ids.

    `failed` counts requests that got no answer where the trace was taken: BurstGPT and vLLM note them with an output of 0.  They
    are left out.  `answered` are the measured times of the first and the last token, on the clock of the arrivals, where the trace
    has them: a replay, or vLLM's result.
    """

    arrival: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    hash_ids: list[tuple[int, ...]] | None = None
    failed: int = 0
    answered: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


def read_trace(path: Path) -> Columns:
    """The requests of a trace.  Raises: ScenarioError with the line, where the format is unknown or a row is malformed."""
    shown = shorten(path)
    text = load_text(path, shown, MAX_TRACE).removeprefix("\ufeff")
    if not text.strip():
        raise ScenarioError(f"{shown}:1: the file is empty")
    columns = (_json if text.lstrip().startswith("{") else _csv)(text, shown)
    if not len(columns.arrival):
        raise ScenarioError(f"{shown}:1: holds no request that was answered")
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
    """Azure's, BurstGPT's, Vidur's and replays.  Left out: commas within quotes, which none of them has."""
    import polars as pl

    header, *lines = text.split("\n")
    names = [name.strip(' \r"') for name in header.split(",")]
    keys = next(
        (each for each in (AZURE, BURSTGPT, VIDUR, REPLAY) if set(each) <= set(names)), None
    )
    if keys is None:
        raise ScenarioError(
            f"{shown}:1: {brief(header.strip())!r} is not a trace that is known; those are {KNOWN}"
        )
    table = pl.DataFrame(
        {"line": np.arange(2, len(lines) + 2), "text": pl.Series(lines, dtype=pl.String)}
    ).filter(pl.col("text").str.contains(r"\S"))
    values = table["text"].str.count_matches(",", literal=True) + 1
    _refuse(
        table,
        values != len(names),
        shown,
        lambda i: f"{values[i]} values, and the header names {len(names)}",
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
        lambda i: "its first token must come after the request, and its last not before that",
    )
    return Columns(*columns_read, failed=failed, answered=(first, last))


def _refuse(
    table: "polars.DataFrame", bad: "polars.Series", shown: str, reason: Callable[[int], str]
) -> None:
    """Raises: ScenarioError for the first row that is bad."""
    bad = bad.fill_null(True)
    if bad.any():
        first = int(bad.arg_max() or 0)
        raise ScenarioError(f"{shown}:{table['line'][first]}: {reason(first)}")


def _moments(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.float64]:
    """Seconds since the first of Azure's times, which have seven digits of a second, and in 2024 the zone +00:00."""
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
    seconds: NDArray[np.float64] = (
        whole - whole[:1].sum()
    ) / 1e9  # less the first, before floats would lose digits
    return seconds


def _seconds(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.float64]:
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
    import polars as pl

    numbers = table[name].cast(pl.Float64, strict=False)
    bad = ~(numbers.is_between(1, MAX_COUNT) & (numbers == numbers.floor()))
    _refuse(
        table, bad, shown, lambda i: f"{name}: got {brief(table[name][i])!r}; expected {DUE_TOKENS}"
    )
    return numbers.cast(pl.Int64).to_numpy()


DUE_TOKENS = "a whole number of tokens, at least 1"


def _json(text: str, shown: str) -> Columns:
    """Mooncake's lines, or one result of vLLM's benchmark: a single JSON document, on one line or several."""
    try:
        document = json.loads(text)
    except (
        ValueError,
        RecursionError,
    ):  # several documents, or a broken one: their lines say which
        return _mooncake(text, shown)
    if set(VLLM) & document.keys():
        return _vllm(document, text, shown)
    if set(MOONCAKE) & document.keys():
        return _mooncake(text, shown)
    raise ScenarioError(
        f"{shown}:1: {brief(text.strip())!r} is not a trace that is known; those are {KNOWN}"
    )


def _mooncake(text: str, shown: str) -> Columns:
    rows: list[tuple[float, int, int]] = []
    ids: list[tuple[int, ...] | None] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{shown}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ScenarioError(f"{where}: JSON: {error}") from None
        if not isinstance(row, dict):
            raise ScenarioError(
                f"{where}: {brief(line)!r}: a mapping with {', '.join(MOONCAKE)} is due"
            )
        if not rows and not set(MOONCAKE) & row.keys():
            raise ScenarioError(
                f"{where}: {brief(line.strip())!r} is not a trace that is known; those are {KNOWN}"
            )
        if missing := [key for key in MOONCAKE if key not in row]:
            raise ScenarioError(f"{where}: '{missing[0]}' is missing")
        time, prompt, output = (row[key] for key in MOONCAKE)
        rows.append(
            (
                _time(time, f"{where}: timestamp", "milliseconds") / 1e3,
                *_lengths(where, MOONCAKE, prompt, output),
            )
        )
        ids.append(_blocks(row.get("hash_ids"), prompt, where))
        if (ids[-1] is None) != (ids[0] is None):
            raise ScenarioError(
                f"{where}: 'hash_ids' is missing here and given elsewhere: all requests have them or none"
            )
    arrival, prompts, outputs = zip(*rows, strict=True)
    blocks = [each for each in ids if each is not None] or None
    return Columns(
        np.array(arrival, float), np.array(prompts, np.int64), np.array(outputs, np.int64), blocks
    )


def _blocks(given: Any, prompt: int, where: str) -> tuple[int, ...] | None:
    """Mooncake's ids, one for each 512 tokens begun.  (Traces with smaller blocks also count time otherwise: refused.)"""
    if given is None:
        return None
    if not isinstance(given, list) or not all(
        isinstance(each, int) and not isinstance(each, bool) for each in given
    ):
        raise ScenarioError(f"{where}: hash_ids: it must be a list of whole numbers")
    due = -(-prompt // BLOCK)
    if len(given) != due:
        raise ScenarioError(
            f"{where}: hash_ids: {len(given)} ids, and {prompt} tokens need {due}: one for each {BLOCK} begun"
        )
    return tuple(given)


def _vllm(document: dict[str, Any], text: str, shown: str) -> Columns:
    """What --save-detailed saves: a list each of times sent (s, of the client's clock), prompts and outputs.

    A request that failed has an output of 0 tokens, and is left out.
    """
    lists: list[list[Any]] = []
    for key in VLLM:
        if not isinstance(document.get(key), list):
            hint = (
                "older vLLM saves none"
                if key == VLLM[0]
                else "save the benchmark's result with --save-detailed"
            )
            raise ScenarioError(f"{shown}:1: '{key}' is missing: {hint}")
        lists.append(document[key])
    if len({len(each) for each in lists}) > 1:
        raise ScenarioError(
            f"{shown}:1: {', '.join(VLLM)} have {', '.join(str(len(each)) for each in lists)} entries"
        )
    line = (
        text.count("\n", 0, min(text.find(f'"{key}"') for key in VLLM)) + 1
    )  # of the first of the lists
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
    document: dict[str, Any], sent: NDArray[np.float64], kept: list[int], where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """When vLLM's requests got their first and last tokens: TTFTs, and the gaps after them; none where the result has none."""
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
            f"{where}: ttfts and itls: a number and a list of numbers for each request are due"
        ) from None


def _time(given: Any, where: str, unit: str) -> float:
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= MAX_SIZE:
        raise ScenarioError(
            f"{where}: got {brief(json.dumps(given))}; expected a number of {unit}, at least 0"
        )
    return float(given)


def _lengths(where: str, keys: tuple[str, str, str], *given: Any) -> tuple[int, int]:
    for key, each in zip(keys[1:], given, strict=True):
        if not isinstance(each, int) or isinstance(each, bool) or not 1 <= each <= MAX_COUNT:
            raise ScenarioError(
                f"{where}: {key}: got {brief(json.dumps(each))}; expected {DUE_TOKENS}"
            )
    prompt, output = given
    return prompt, output
