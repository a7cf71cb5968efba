"""Traces as CSV tables: of Azure, BurstGPT, Vidur, and replays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.inputs.errors import ScenarioError
from sim.units import MAX_COUNT, MAX_SIZE, brief
from sim.workload.trace_columns import EXPECTED_TOKENS, Columns

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, slots=True)
class Table:
    """A format: its name, and its columns of times, prompts and outputs.

    stated: whether the name of the time's column states its unit.
    """

    name: str
    keys: tuple[str, str, str]
    stated: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.keys)})"


# Sources: Azure/AzurePublicDataset; HPMLL/BurstGPT; microsoft/vidur; LLMServingSim's replays of
# vLLM, which also have the times of the answers.
AZURE = Table("Azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
REPLAY = Table("replay", ("arrived_at_s", "input_tokens", "output_tokens"), stated=True)
TABLES = (
    AZURE,
    Table("BurstGPT", ("Timestamp", "Request tokens", "Response tokens")),
    Table("Vidur", ("arrived_at", "num_prefill_tokens", "num_decode_tokens")),
    REPLAY,
)
ANSWERED = ("first_token_s", "last_token_s")


def read_table(text: str, shown: str) -> Columns | None:
    """Return the requests of a CSV table; None if its header is of no known format.

    Left out: commas within quotes, which none of these formats has.
    Raises: ScenarioError for the first row that is malformed.
    """
    import polars as pl

    blank = text[: len(text) - len(text.lstrip())].count("\n")  # lines above the header
    header, *lines = text.split("\n")[blank:]
    names = [name.strip(' \r"') for name in header.split(",")]
    known = next((table for table in TABLES if set(table.keys) <= set(names)), None)
    if known is None:
        return None
    table = pl.DataFrame(
        {"line": np.arange(2, len(lines) + 2) + blank, "text": pl.Series(lines, dtype=pl.String)}
    ).filter(pl.col("text").str.contains(r"\S"))
    values = table["text"].str.count_matches(",", literal=True) + 1
    _refuse(
        table,
        values != len(names),
        shown,
        lambda i: f"got {values[i]} values; expected {len(names)}, as in the header",
    )
    timed = known is REPLAY and set(ANSWERED) <= set(names)
    columns = (*known.keys, *ANSWERED) if timed else known.keys
    fields = table["text"].str.split_exact(",", len(names) - 1).struct
    table = table.select(
        "line",
        *(fields[names.index(name)].str.strip_chars(' \r\t"').alias(name) for name in columns),
    )
    time, prompt, output = known.keys
    with_output = table[output].cast(pl.Float64, strict=False).fill_null(-1) != 0
    without_output = len(table) - int(with_output.sum())
    table = table.filter(with_output)
    dates = known is AZURE and not table[time].str.contains(r"^[\d.]+$").any()
    times = (_dates if dates else _numbers)(table, time, shown)
    return Columns(
        known.name,
        times,
        _tokens(table, prompt, shown),
        _tokens(table, output, shown),
        unit=None if dates else "s",
        fixed_unit=dates or known.stated,
        without_output=without_output,
        answered=_answered(table, times, shown) if timed else None,
        unread=tuple(name for name in names if name and name not in columns),
    )


def _answered(
    table: "polars.DataFrame", times: NDArray[np.float64], shown: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the times of first and last tokens.

    Raises: ScenarioError for the first row whose times are in no order.
    """
    import polars as pl

    first, last = (_numbers(table, name, shown) for name in ANSWERED)
    _refuse(
        table,
        pl.Series((first < times) | (last < first)),
        shown,
        lambda i: (
            f"got arrival {times[i]:g} s, first token {first[i]:g} s and last token {last[i]:g} s;"
            " expected them in this order"
        ),
    )
    return first, last


def _refuse(
    table: "polars.DataFrame", bad: "polars.Series", shown: str, reason: Callable[[int], str]
) -> None:
    """Raise ScenarioError for the first row that is bad; do nothing without one."""
    bad = bad.fill_null(True)
    if bad.any():
        first = int(bad.arg_max() or 0)
        raise ScenarioError(f"{shown}:{table['line'][first]}: {reason(first)}")


def _dates(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.float64]:
    """Return float[row], s since the first of Azure's dates.

    These have seven digits of a second; those of 2024 also have a zone. A table that pandas wrote
    has T before the time of day. Zones may differ between rows.
    Raises: ScenarioError for the first row that has none, or has a zone unlike the first row.
    """
    import polars as pl

    parts = table[name].str.extract_groups(
        r"^(?<day>20\S{8})[ T](?<time>[\d:.]+)\s*(?<zone>Z|(?<sign>[+-])(?<h>\d\d):?(?<m>\d\d)?)?$"
    )
    part = parts.struct.field
    plain = pl.DataFrame([part("day"), part("time")]).select(pl.concat_str("day", "time"))
    ticks = (
        plain.to_series()
        .str.to_datetime("%Y-%m-%d%H:%M:%S%.f", time_unit="ns", strict=False)
        .cast(pl.Int64)
    )
    zoned = part("zone").is_not_null()
    bad = ticks.is_null() | (zoned != zoned[:1].any())
    expected = "a time, such as 2023-11-16 18:15:46.6805900, in all rows with a zone or in none"
    _refuse(
        table, bad, shown, lambda i: f"{name}: got {brief(table[name][i])!r}; expected {expected}"
    )
    hours, minutes = (part(key).cast(pl.Int64).fill_null(0) for key in ("h", "m"))
    sign = (part("sign") == "-").fill_null(False).cast(pl.Int64) * 2 - 1
    whole: NDArray[np.int64] = (ticks + sign * (hours * 60 + minutes) * 60 * 10**9).to_numpy()
    # Subtract as integers, because floats of nanoseconds since 1970 would lose digits.
    seconds: NDArray[np.float64] = (whole - whole[:1].sum()) / 1e9
    return seconds


def _numbers(table: "polars.DataFrame", name: str, shown: str) -> NDArray[np.float64]:
    """Return float[row], times as the file has them.

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
