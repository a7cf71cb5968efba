"""Traces as JSON lines: of Mooncake, of Bailian, and AIPerf's records of requests."""

import json
from dataclasses import dataclass
from typing import Any

from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import JsonObject
from sim.units import brief
from sim.workload.trace_columns import (
    Columns,
    TimeUnit,
    answer_arrays,
    has_no_output,
    request_arrays,
    time_number,
    token_numbers,
)

TIME, LENGTHS = "timestamp", ("input_length", "output_length")
REQUEST = (TIME, *LENGTHS)


@dataclass(frozen=True, slots=True)
class Lines:
    """A format with a request a line: its name, unit of time, tokens of a block, and key."""

    name: str
    unit: TimeUnit
    block: int
    key: str


# Bailian's lines have all keys of Mooncake's, so they come first.
# Sources: alibaba-edu/qwen-bailian-usagetraces-anon; kvcache-ai/Mooncake, FAST25-release.
LINE_FORMATS = (Lines("Bailian", "s", 16, "chat_id"), Lines("Mooncake", "ms", 512, TIME))
# Source: ai-dynamo/aiperf, docs/tutorials/working-with-profile-exports.md.
AIPERF = ("metadata", "metrics")
AIPERF_LENGTHS = ("input_sequence_length", "output_sequence_length")
BLOCKS = tuple(2**i for i in range(3, 13))  # sizes that an error may suggest


def read_lines(text: str, shown: str, block: int | None) -> Columns | None:
    """Return the requests of JSON lines; None if the first one is of no known format.

    block: tokens of a block instead of the format's.
    Raises: ScenarioError for the first line that is malformed.
    """
    rows: list[tuple[str, JsonObject]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{shown}:{number}"
            rows.append((where, _mapping(line, where)))
    first = rows[0][1].keys()
    if set(AIPERF) <= first:
        return _aiperf(rows)
    if not set(REQUEST) & first:
        return None
    return _trace(
        rows, next((known for known in LINE_FORMATS if known.key in first), LINE_FORMATS[-1]), block
    )


def _mapping(line: str, where: str) -> JsonObject:
    """Return the mapping of one line.  Raises: ScenarioError otherwise."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where}: JSON: {error}") from None
    if not isinstance(row, dict):
        keys = ", ".join(REQUEST)
        raise ScenarioError(f"{where}: got {brief(line)!r}; expected a mapping with {keys}")
    return row


def _trace(rows: list[tuple[str, JsonObject]], known: Lines, block: int | None) -> Columns:
    """Return the requests of Mooncake's or Bailian's lines."""
    size = block or known.block
    requests: list[tuple[float, int, int]] = []
    ids: list[tuple[int, ...] | None] = []
    for where, row in rows:
        _require(row, where)
        if has_no_output(row[LENGTHS[1]]):
            continue
        time = time_number(row[TIME], f"{where}: {TIME}", known.unit)
        lengths = token_numbers(row, LENGTHS, where)
        requests.append((time, *lengths))
        ids.append(_blocks(row.get("hash_ids"), lengths[0], size, where))
        if (ids[-1] is None) != (ids[0] is None):
            raise ScenarioError(
                f"{where}: got hash_ids for some requests; expected them for all or none"
            )
    blocks = [prompt_ids for prompt_ids in ids if prompt_ids is not None] or None
    return Columns(
        known.name,
        *request_arrays(requests),
        unit=known.unit,
        hash_ids=blocks,
        hash_block=size if blocks else 0,
        without_output=len(rows) - len(requests),
        unread=tuple(key for key in rows[0][1] if key not in (*REQUEST, "hash_ids")),
    )


def _require(row: JsonObject, where: str) -> None:
    """Raise ScenarioError if a key is missing."""
    missing = [key for key in REQUEST if key not in row]
    if not missing:
        return
    # AIPerf's sessions have a delay in place of a time.
    hint = (
        "; turns that follow an answer after a delay are not replayed; try a workload of sessions"
        if missing[0] == TIME and "delay" in row
        else ""
    )
    raise ScenarioError(f"{where}: '{missing[0]}' is missing{hint}")


def _blocks(ids: Any, prompt: int, size: int, where: str) -> tuple[int, ...] | None:
    """Return the ids of a prompt's blocks; None without ids.

    Raises: ScenarioError if they are not one for each `size` tokens.
    """
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(
        isinstance(number, int) and not isinstance(number, bool) for number in ids
    ):
        raise ScenarioError(f"{where}: hash_ids: expected a list of whole numbers")
    expected = -(-prompt // size)
    if len(ids) != expected:
        fitting = [block for block in BLOCKS if -(-prompt // block) == len(ids)]
        hint = f"; try the workload's hash_block: {fitting[0]} token" if fitting else ""
        raise ScenarioError(
            f"{where}: hash_ids: got {len(ids)} ids; expected {expected} for {prompt} tokens,"
            f" one for each {size}{hint}"
        )
    return tuple(ids)


def _aiperf(rows: list[tuple[str, JsonObject]]) -> Columns:
    """Return the requests of AIPerf's records, with their first and last tokens."""
    requests: list[tuple[float, int, int]] = []
    answers: list[tuple[float, float] | None] = []
    begin: int | None = None
    for where, row in rows:
        metadata, metrics = (_part(row, key, where) for key in AIPERF)
        lengths = {key: _value(metrics, key) for key in AIPERF_LENGTHS}
        if row.get("error") or has_no_output(lengths[AIPERF_LENGTHS[1]]):
            continue
        start = metadata.get("request_start_ns")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ScenarioError(
                f"{where}: metadata.request_start_ns: got {brief(json.dumps(start))};"
                " expected a whole number of nanoseconds"
            )
        # Subtract as integers, because floats of nanoseconds since 1970 would lose digits.
        begin = start if begin is None else begin
        sent = float(start - begin)
        requests.append((sent, *token_numbers(lengths, AIPERF_LENGTHS, where)))
        waits = [_value(metrics, key) for key in ("time_to_first_token", "request_latency")]
        times = [sent + wait * 1e6 for wait in waits if isinstance(wait, int | float)]  # from ms
        answers.append((times[0], times[1]) if len(times) == len(waits) else None)
    return Columns(
        "AIPerf",
        *request_arrays(requests),
        unit="ns",
        fixed_unit=True,
        without_output=len(rows) - len(requests),
        answered=answer_arrays(answers),
    )


def _part(row: JsonObject, key: str, where: str) -> JsonObject:
    """Return a mapping within a record; an empty one in place of null.

    Raises: ScenarioError if it is neither.
    """
    part = row.get(key)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise ScenarioError(f"{where}: {key}: got {brief(json.dumps(part))}; expected a mapping")
    return part


def _value(metrics: JsonObject, key: str) -> Any:
    """Return the value of one of AIPerf's metrics; None without it."""
    metric = metrics.get(key)
    return metric.get("value") if isinstance(metric, dict) else metric
