"""Traces as JSON lines: of Mooncake, of Bailian, and AIPerf's records of requests."""

import json
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import JsonObject
from sim.units import brief
from sim.workload.trace_columns import (
    Columns,
    TimeUnit,
    answer_arrays,
    has_no_output,
    optional_time,
    request_arrays,
    time_number,
    token_numbers,
)
from sim.workload.trace_turns import RecordedTurns, turns_before

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
SESSION, DELAY = "session_id", "delay"  # of AIPerf's conversations in Mooncake's format
NO_PARENT = (None, -1)  # of Bailian's first turns
TURN_KEYS = ("chat_id", "parent_chat_id", SESSION, DELAY)
AIPERF_LENGTHS = ("input_sequence_length", "output_sequence_length")
AIPERF_WAITS = ("time_to_first_token", "request_latency")
AIPERF_SESSION = ("x_correlation_id", "conversation_id")  # the second: older versions
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
        got = f"got {brief(line)!r}, which is no JSON: {error}"
        raise ScenarioError(f"{where}: {got}; expected a mapping; try one in each line") from None
    if not isinstance(row, dict):
        keys = ", ".join(REQUEST)
        raise ScenarioError(f"{where}: got {brief(line)!r}; expected a mapping with {keys}")
    return row


def _trace(rows: list[tuple[str, JsonObject]], known: Lines, block: int | None) -> Columns:
    """Return the requests of Mooncake's or Bailian's lines."""
    size = block or known.block
    requests: list[tuple[float, int, int]] = []
    ids: list[tuple[int, ...] | None] = []
    kept: list[JsonObject] = []
    starts: dict[Hashable, float] = {}  # by session
    answered: set[Hashable] = set()  # sessions
    skipped: dict[Hashable, float] = {}  # by session, the pause before turns without an answer
    for where, row in rows:
        _require(row, starts, where)
        session, empty = row.get(SESSION), has_no_output(row[LENGTHS[1]])
        if empty and session is None:
            continue
        time = starts.get(session, 0.0)  # of a turn that has a pause instead
        if row.get(TIME) is not None or session not in starts:
            time = time_number(row.get(TIME), f"{where}: {TIME}", known.unit)
        else:  # the next turn also waits for the pauses of turns without an answer
            pause = skipped.pop(session, 0.0) + _pause(row, where)
            row = {**row, DELAY: pause} if pause else row
            if session not in answered:
                time += pause
            elif empty:
                skipped[session] = pause
        if session is not None:
            starts[session] = time
        if empty:
            continue
        answered.add(session)
        lengths = token_numbers(row, LENGTHS, where)
        requests.append((time, *lengths))
        kept.append(row)
        ids.append(_blocks(row.get("hash_ids"), lengths[0], size, where))
        if (ids[-1] is None) != (ids[0] is None):
            raise ScenarioError(
                f"{where}: hash_ids: got them for some requests; expected them for all or none"
            )
    blocks = [prompt_ids for prompt_ids in ids if prompt_ids is not None] or None
    arrays = request_arrays(requests)
    turns = _turns(kept, arrays[0].tolist(), blocks)
    read = {*REQUEST, "hash_ids", *(TURN_KEYS if turns else ())}
    return Columns(
        known.name,
        *arrays,
        unit=known.unit,
        hash_ids=blocks,
        hash_block=size if blocks else 0,
        without_output=len(rows) - len(requests),
        unread=tuple(key for key in rows[0][1] if key not in read),
        turns=turns,
    )


def _turns(
    rows: list[JsonObject], times: list[float], blocks: list[tuple[int, ...]] | None
) -> RecordedTurns | None:
    """Return the turns of Bailian's chats, or of sessions in Mooncake's format; None without any.

    A row of Bailian has the whole prompt. A row of a session has the new text only, unless its
    blocks begin as those of the turn before it.
    """
    pauses = [row.get(DELAY) for row in rows]
    added = any(row.get(SESSION) is not None for row in rows)
    own, parent = (SESSION, SESSION) if added else ("chat_id", "parent_chat_id")
    ids = [row.get(own) for row in rows]
    parents = [row.get(parent) for row in rows]
    before = turns_before(ids, parents, times)
    follows = np.flatnonzero(before >= 0).tolist()
    if not follows:
        return None
    if added and blocks:
        added = any(blocks[number][0] != blocks[before[number]][0] for number in follows)
    pause = np.array([np.nan if value is None else value for value in pauses], float)
    for number in follows:
        # A turn without a time and without a pause follows its answer immediately.
        if rows[number].get(TIME) is None and np.isnan(pause[number]):
            pause[number] = 0.0
    timed = all(row.get(TIME) is not None for row in rows)
    alone = sum(
        first < 0 and parent not in NO_PARENT for first, parent in zip(before, parents, strict=True)
    )
    return RecordedTurns(before, pause, added, timed, 0 if added else alone)


def _require(row: JsonObject, starts: Collection[Hashable], where: str) -> None:
    """Raise ScenarioError if a key is missing, or the pause of a turn is no time.

    starts: sessions of which a turn has come. Their next turns may have a pause in place of a time.
    """
    for key in (SESSION, "chat_id", "parent_chat_id"):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
            expected = "expected a whole number or a text"
            raise ScenarioError(f"{where}: {key}: got {brief(json.dumps(value))}; {expected}")
    later = row.get(SESSION) is not None and row[SESSION] in starts
    missing = [key for key in REQUEST if key not in row and not (later and key == TIME)]
    if missing:
        hint = "; try the first turn of a session with one" if missing[0] == TIME else ""
        expected = f"{', '.join(REQUEST)} in each line"
        raise ScenarioError(f"{where}: {missing[0]}: got nothing; expected {expected}{hint}")
    _pause(row, where)


def _pause(row: JsonObject, where: str) -> float:
    """Return the pause before a turn; 0 without one.  Raises: ScenarioError if it is no time."""
    return optional_time(row.get(DELAY), f"{where}: {DELAY}", "ms") or 0.0


def _blocks(ids: Any, prompt: int, size: int, where: str) -> tuple[int, ...] | None:
    """Return the ids of a prompt's blocks; None without ids.

    Raises: ScenarioError if they are not one for each `size` tokens.
    """
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(
        isinstance(number, int) and not isinstance(number, bool) for number in ids
    ):
        got = brief(json.dumps(ids))
        raise ScenarioError(f"{where}: hash_ids: got {got}; expected a list of whole numbers")
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
    sessions: list[Hashable] = []
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
        sessions.append(_aiperf_session(metadata, where))
        waits = [
            optional_time(_value(metrics, key), f"{where}: {key}", "ms") for key in AIPERF_WAITS
        ]
        times = [sent + wait * 1e6 for wait in waits if wait is not None]
        answers.append((times[0], times[1]) if len(times) == len(waits) else None)
    arrays = request_arrays(requests)
    ends = [answer[1] if answer else np.nan for answer in answers]
    before = turns_before(sessions, sessions, arrays[0].tolist())
    pause = np.maximum(0.0, arrays[0] - np.array(ends, float)[before]) if answers else arrays[0]
    turns = RecordedTurns(before, np.where(before >= 0, pause, np.nan))
    return Columns(
        "AIPerf",
        *arrays,
        unit="ns",
        fixed_unit=True,
        without_output=len(rows) - len(requests),
        answered=answer_arrays(answers),
        turns=turns if (before >= 0).any() else None,
    )


def _aiperf_session(metadata: JsonObject, where: str) -> Hashable:
    """Return the conversation of a record; records without one have conversations of their own."""
    for key in AIPERF_SESSION:
        value = metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return key, value
        if value is not None:
            raise ScenarioError(
                f"{where}: metadata.{key}: got {brief(json.dumps(value))}; expected a name"
            )
    return where


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
