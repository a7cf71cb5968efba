"""Differences between runs, for `sramsim compare`: of their inputs and of their metrics.

>>> value_change(2.0, 1.5)
ValueChange(was=2.0, now=1.5, difference=-0.5, percent=-25.0)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from sim.inputs.key_paths import JsonValue, dotted_values
from sim.results.encoding import SPLICED, Key, encode_summary
from sim.results.saving import load_result
from sim.results.sources import EntrySources
from sim.results.summary import RunSummary


class ChangedInput(NamedTuple):
    """An input of two runs. None: a run does not have it."""

    was: JsonValue
    now: JsonValue


@dataclass(frozen=True)
class ValueChange:
    """A value of two runs; of numbers the difference too, and in percent of the first.

    percent: None if the first is zero.
    """

    was: Annotated[JsonValue, Key("base")]
    now: Annotated[JsonValue, Key("is")]
    difference: Annotated[float | None, Key("change")] = None
    percent: Annotated[float | None, Key("change_pct")] = None


@dataclass(frozen=True, kw_only=True)
class SummaryChanges:
    """The differences of a run to the base.

    inputs: by dotted key. systems: metrics by system and dotted key, of systems of both runs.
    """

    inputs: Mapping[str, ChangedInput]
    only_in_base: tuple[str, ...]
    only_here: tuple[str, ...]
    systems: Mapping[str, Mapping[str, ValueChange]]


@dataclass(frozen=True)
class ComparedRun:
    """The differences of the run in a folder to the base."""

    folder: str
    changes: Annotated[SummaryChanges, SPLICED]


@dataclass(frozen=True)
class RunComparison:
    """The differences of several runs to the first one: the contract of `compare --json`."""

    base: str
    runs: tuple[ComparedRun, ...]


def compare_runs(folders: Sequence[Path]) -> RunComparison:
    """Return the differences of each folder of `run --out` to the first one.

    Raises: UserError if a folder holds no result.
    """
    base, *others = [load_result(folder).summary for folder in folders]
    return RunComparison(
        str(folders[0]),
        tuple(
            ComparedRun(str(folder), compare_summaries(base, other))
            for folder, other in zip(folders[1:], others, strict=True)
        ),
    )


def compare_summaries(base: RunSummary, other: RunSummary) -> SummaryChanges:
    """Return the differences of a run to the base: inputs, and metrics of common systems."""
    was, now = base.systems, other.systems
    return SummaryChanges(
        inputs=differing_values(run_inputs(base, other), run_inputs(other, base)),
        only_in_base=tuple(name for name in was if name not in now),
        only_here=tuple(name for name in now if name not in was),
        systems={
            name: {
                key: value_change(*pair)
                for key, pair in differing_values(
                    by_dotted_key(encode_summary(was[name])),
                    by_dotted_key(encode_summary(now[name])),
                ).items()
            }
            for name in was
            if name in now
        },
    )


def run_inputs(summary: RunSummary, other: RunSummary) -> dict[str, JsonValue]:
    """Return the inputs of a run by dotted key.

    Entries of the catalogue that both runs name add their numbers, because their files may differ.
    """
    origin = summary.origin
    values: dict[str, JsonValue] = {
        "scenario": summary.scenario,
        "version": origin.version if origin else None,
        "seed": summary.seed,
    }
    # The seed that was used is above. The one of the file may differ.
    inputs = by_dotted_key(origin.inputs if origin else {})
    values |= {key: value for key, value in inputs.items() if key != "seed"}
    for entry, source in _sources(summary).items():
        if entry in _sources(other):
            values |= {f"{entry}: {key}": value for key, value, _ in source.facts}
    return values


def by_dotted_key(data: JsonValue) -> dict[str, JsonValue]:
    """Return the values of a result, also the items of its lists, by dotted key."""
    return dict(dotted_values(data, into_lists=True))


def _sources(summary: RunSummary) -> Mapping[str, EntrySources]:
    return (summary.origin.sources if summary.origin else None) or {}


def differing_values(
    was: Mapping[str, JsonValue], now: Mapping[str, JsonValue]
) -> dict[str, ChangedInput]:
    """Return both values of each key whose values differ; None for a missing value."""
    return {
        key: ChangedInput(was.get(key), now.get(key))
        for key in dict.fromkeys([*was, *now])
        if was.get(key) != now.get(key)
    }


def value_change(was: JsonValue, now: JsonValue) -> ValueChange:
    """Return two values; for numbers also their difference, and in percent of the first."""
    if isinstance(was, bool) or isinstance(now, bool):
        return ValueChange(was, now)
    if not (isinstance(was, int | float) and isinstance(now, int | float)):
        return ValueChange(was, now)
    by = now - was
    return ValueChange(was, now, by, 100 * by / abs(was) if was else None)
