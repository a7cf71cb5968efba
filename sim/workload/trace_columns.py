"""The requests of a trace by column, and the checks that all formats share."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import JsonObject
from sim.units import MAX_COUNT, MAX_SIZE, brief
from sim.workload.trace_turns import RecordedTurns

TimeUnit = Literal["s", "ms", "us", "ns"]
SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
UNIT_WORDS: dict[TimeUnit, str] = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
EXPECTED_TOKENS = "a whole number of tokens, at least 1"
NAMED_COLUMNS = 8  # columns that a note names; a table of measurements may have a hundred


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The requests of a trace, by column.

    source: the name of the format.
    arrival: float[request], in `unit` as the file has it; `read_trace` returns s since the first.
    prompt, output: int[request], tokens.
    unit: of the times; None for dates, which are in s.
    fixed_unit: whether the file states the unit, as dates and the names of some keys do.
    hash_ids: ids of the blocks of each prompt.
    hash_block: tokens of a block; 0 without ids.
    without_output: how many requests got no token, because they failed or were empty. They are left
    out.
    answered: float[request] each, on the clock of the arrivals: measured times of the first and the
    last token. Replays and results of benchmarks have them.
    unread: names of columns that are not read.
    turns: of conversations; None if the file tells of none.
    """

    source: str
    arrival: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    unit: TimeUnit | None
    fixed_unit: bool = False
    hash_ids: list[tuple[int, ...]] | None = None
    hash_block: int = 0
    without_output: int = 0
    answered: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    unread: tuple[str, ...] = ()
    turns: RecordedTurns | None = None

    @property
    def notes(self) -> list[str]:
        """The format and its units, and what is left out."""
        source = f"{self.source}, times {f'in {self.unit}' if self.unit else 'as dates'}"
        notes = [f"{source}, blocks of {self.hash_block} token" if self.hash_ids else source]
        if self.without_output:
            notes.append(f"requests without output left out: {self.without_output}")
        if self.unread:
            more = len(self.unread) - NAMED_COLUMNS
            names = ", ".join(self.unread[:NAMED_COLUMNS])
            notes.append(f"columns not read: {names}{f' and {more} more' if more > 0 else ''}")
        return notes


def request_arrays(
    rows: Sequence[tuple[float, int, int]],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the columns of (time, prompt, output)."""
    time, prompt, output = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(time, float), np.array(prompt, np.int64), np.array(output, np.int64)


def answer_arrays(
    times: Iterable[tuple[float, float] | None],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the times of first and last tokens; None if a request has none."""
    pairs = list(times)
    if not pairs or None in pairs:
        return None
    first, last = np.array(pairs, float).T
    return first, last


def has_no_output(tokens: Any) -> bool:
    """Return whether a request got no token, which all formats leave out."""
    return tokens == 0 and isinstance(tokens, int | float) and not isinstance(tokens, bool)


def time_number(value: Any, where: str, unit: TimeUnit) -> float:
    """Return a time as the file has it.

    Raises: ScenarioError if it is no time.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SIZE:
        raise ScenarioError(
            f"{where}: got {brief(json.dumps(value))};"
            f" expected a number of {UNIT_WORDS[unit]}, at least 0"
        )
    return float(value)


def optional_time(value: Any, where: str, unit: TimeUnit) -> float | None:
    """Return a time as the file has it; None if it is absent or null.

    Raises: ScenarioError if it is no time.
    """
    return None if value is None else time_number(value, where, unit)


def token_numbers(row: JsonObject, keys: tuple[str, str], where: str) -> tuple[int, int]:
    """Return prompt and output [tokens].

    Raises: ScenarioError if one is no length.
    """
    lengths = []
    for key in keys:
        value = row.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise ScenarioError(
                f"{where}: {key}: got {brief(json.dumps(value))}; expected {EXPECTED_TOKENS}"
            )
        lengths.append(value)
    prompt, output = lengths
    return prompt, output
