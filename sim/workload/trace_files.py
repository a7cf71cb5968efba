"""Files of recorded requests, in formats that are recognised by content, as columns.

Rows may be in any order. They are sorted by time, and equal times keep their order.
Times count from the first request that is kept.
"""

import gzip
import json
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np

from sim.inputs.errors import ScenarioError
from sim.inputs.files import decoded, load_bytes, shorten
from sim.units import brief
from sim.workload.trace_columns import SECONDS, Columns, TimeUnit
from sim.workload.trace_lines import AIPERF, LINE_FORMATS, REQUEST, read_lines
from sim.workload.trace_results import VLLM, read_result
from sim.workload.trace_tables import TABLES, read_table

MAX_TRACE = 1_000_000_000  # bytes; a week of Azure's requests is a few hundred MB
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and Zstandard files begin
KNOWN = (
    f"CSV of {', '.join(map(str, TABLES))}; "
    f"JSON lines of {' or '.join(known.name for known in LINE_FORMATS)} ({', '.join(REQUEST)}) "
    f"or of AIPerf ({', '.join(AIPERF)}); "
    f"a result of vLLM's benchmark with --save-detailed ({', '.join(VLLM)}) or of guidellm"
)
# Times since 1970 are this large, and times since a trace began are not. 1e9 s is the year 2001,
# but 1e9 ms since the beginning would be 11 days.
EPOCH: tuple[tuple[float, TimeUnit], ...] = ((1e18, "ns"), (1e15, "us"), (1e12, "ms"), (1e9, "s"))
# Assumed: published traces have 0.01 to 10 request/s. A day of seconds that is read as milliseconds
# takes 86 s, and two minutes of milliseconds that are read as seconds take more than a day.
HIGH_RATE, SHORT = 10.0, 600.0  # request/s, s
LOW_RATE, LONG = 0.01, 86_400.0  # request/s, s
LONGEST_TRACE = 1e9  # s, 32 years; one mistyped time would make a run without end
# A burst of a few requests may be that fast, unless its times have fractions of a millisecond.
BURST = 20  # requests, assumed


def read_trace(path: Path, unit: TimeUnit | None = None, block: int | None = None) -> Columns:
    """Return the requests of a trace, with times in s since the first one.

    unit: of the file's times; None for the format's, or for that of times since 1970.
    block: tokens of a block of `hash_ids`; None for the format's.

    Raises: ScenarioError with the line, if the format is unknown or a row is malformed.
    Raises: ScenarioError if the load is implausible in the format's unit, or `unit` or `block`
    has no effect.
    """
    shown = shorten(path)
    text = _text(path, shown)
    if not text.strip():
        raise ScenarioError(
            f"{shown}:1: got an empty file; expected a trace with requests; try another path"
        )
    columns = _columns(text, shown, block)
    if not len(columns.arrival):
        raise ScenarioError(
            f"{shown}:1: got a trace without answered requests; expected output tokens;"
            " try a trace with answers"
        )
    if block and not columns.hash_ids:
        raise ScenarioError(
            f"{shown}:1: hash_block: got {block} token; expected none, since the file has no"
            " hash_ids; try leaving hash_block out"
        )
    columns = replace(columns, unit=_unit(columns, unit, shown))
    order = np.argsort(columns.arrival, kind="stable")
    begin, second = columns.arrival[order[0]], SECONDS[columns.unit or "s"]
    span = float(columns.arrival[order[-1]] - begin) * second
    if span > LONGEST_TRACE:
        raise ScenarioError(
            f"{shown}:1: got times over {span:.3g} s; expected {LONGEST_TRACE:.3g} s (32 years) at"
            " most; try to correct the last time, or another time_unit"
        )
    ids, answered = columns.hash_ids, columns.answered
    return replace(
        columns,
        arrival=(columns.arrival[order] - begin) * second,
        prompt=columns.prompt[order],
        output=columns.output[order],
        hash_ids=[ids[i] for i in order.tolist()] if ids else None,
        turns=columns.turns.part(order, second) if columns.turns else None,
        answered=(
            ((answered[0][order] - begin) * second, (answered[1][order] - begin) * second)
            if answered
            else None
        ),
    )


def _text(path: Path, shown: str) -> str:
    """Return the text of a file, which may be compressed by gzip or Zstandard.

    Raises: ScenarioError if it is missing, too large, damaged or not UTF-8.
    """
    content = load_bytes(path, shown, MAX_TRACE)
    if not content.startswith(COMPRESSED):
        return decoded(content, shown).removeprefix("\ufeff")
    import polars as pl

    try:
        # Separators that no text has make the whole file one cell of a table.
        cells = pl.read_csv(
            BytesIO(content),
            has_header=False,
            separator="\x1f",
            eol_char="\x1e",
            quote_char=None,
            schema={"text": pl.String},
        )
    except (OSError, pl.exceptions.PolarsError):
        got = "a compressed file that is damaged, or holds no text"
        if _is_compressed_twice(content):
            got = "a file that is compressed twice"
        raise ScenarioError(
            f"{shown}:1: got {got}; expected a text, compressed once; try decompressing it"
        ) from None
    return str(cells.item()).removeprefix("\ufeff") if len(cells) else ""


def _is_compressed_twice(content: bytes) -> bool:
    """Return whether a file compressed by gzip holds another compressed file."""
    try:
        with gzip.open(BytesIO(content)) as inner:
            return inner.read(4).startswith(COMPRESSED)
    except (OSError, EOFError, zlib.error):  # damaged, or Zstandard
        return False


def _columns(text: str, shown: str, block: int | None) -> Columns:
    """Return the requests of the format that has the file's first row or document."""
    columns: Columns | None = None
    if text.lstrip().startswith(("{", "[")):
        columns = _result(text, shown) or read_lines(text, shown, block)
    else:
        columns = read_table(text, shown)
    if columns is None:
        first = text.lstrip().split("\n", 1)[0]
        raise ScenarioError(
            f"{shown}:1: got {brief(first.strip())!r}; expected one of {KNOWN}; try one of these"
        )
    return columns


def _result(text: str, shown: str) -> Columns | None:
    """Return the requests of a benchmark's result; None for JSON of another kind."""
    plain = text.lstrip()
    try:
        document, end = json.JSONDecoder().raw_decode(plain)
    except (ValueError, RecursionError):
        return None  # `read_lines` names the broken line
    alone = not plain[end:].strip()
    if isinstance(document, list):  # InferenceX lists its summaries
        alone, document = alone and len(document) == 1, document[0] if document else None
    return read_result(document, text, shown, alone) if isinstance(document, dict) else None


def _unit(columns: Columns, unit: TimeUnit | None, shown: str) -> TimeUnit | None:
    """Return the unit of a file's times: `unit`, that of times since 1970, or the format's.

    Raises: ScenarioError if the file states another one, or its load is implausible in this one.
    """
    if columns.unit is None or columns.fixed_unit:
        if unit and unit != columns.unit:
            stated = f"times in {columns.unit}" if columns.unit else "dates"
            raise ScenarioError(
                f"{shown}:1: time_unit: got {unit}; expected none, since the file has {stated};"
                " try leaving time_unit out"
            )
        return columns.unit
    if unit:
        return unit
    times = columns.arrival
    if columns.turns:  # a turn with a pause has no time of its own
        times = times[np.isnan(columns.turns.pause)]
    if epoch := next((name for least, name in EPOCH if times.min() >= least), None):
        return epoch
    gaps, span = len(times) - 1, float(np.ptp(times)) * SECONDS[columns.unit]
    if gaps < 2 or not span:
        return columns.unit
    other: TimeUnit | None = None
    telling = gaps >= BURST or (times % 1).any()
    if columns.unit == "ms" and telling and gaps / span > HIGH_RATE and span < SHORT:
        other = "s"
    elif gaps / span < LOW_RATE and span > LONG:
        other = "ms" if columns.unit == "s" else "us"
    if other:
        seconds = span * SECONDS[other] / SECONDS[columns.unit]
        raise ScenarioError(
            f"{shown}:1: got {gaps + 1} requests in {span:.4g} s, as {columns.source} counts time"
            f" in {columns.unit}; expected {LOW_RATE:g} to {HIGH_RATE:g} request/s; try the"
            f" workload's time_unit: {other} ({seconds:.4g} s), or time_unit: {columns.unit} to"
            " keep this"
        )
    return columns.unit
