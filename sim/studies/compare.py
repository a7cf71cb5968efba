"""Differences between runs, for `sramsim compare`: of their inputs and of their metrics.

>>> value_change(2.0, 1.5)
{'base': 2.0, 'is': 1.5, 'change': -0.5, 'change_pct': -25.0}
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.results.encoding import encode_summary
from sim.results.saving import load_result


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the differences of each folder of `run --out` to the first one.

    Raises: UserError if a folder holds no result.
    """
    base, *others = [encode_summary(load_result(folder).summary) for folder in folders]
    runs = [
        {"folder": str(folder), **compare_summaries(base, other)}
        for folder, other in zip(folders[1:], others, strict=True)
    ]
    return {"base": str(folders[0]), "runs": runs}


def compare_summaries(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences of a run to the base: inputs, and metrics of common systems."""
    was, now = base["systems"], other["systems"]
    return {
        "inputs": differing_values(run_inputs(base, other), run_inputs(other, base)),
        "only_in_base": [name for name in was if name not in now],
        "only_here": [name for name in now if name not in was],
        "systems": {
            name: {
                key: value_change(*pair)
                for key, pair in differing_values(
                    dict(dotted_values(was[name])), dict(dotted_values(now[name]))
                ).items()
            }
            for name in was
            if name in now
        },
    }


def run_inputs(summary: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a run by dotted key.

    Entries of the catalogue that both runs name add their numbers, because their files may differ.
    """
    values = {key: summary.get(key) for key in ("scenario", "version", "seed")}
    # The seed that was used is above. The one of the file may differ.
    values |= {
        key: value for key, value in dotted_values(summary.get("inputs", {})) if key != "seed"
    }
    common = {
        entry: source
        for entry, source in summary.get("sources", {}).items()
        if entry in other.get("sources", {})
    }
    return values | {
        f"{entry}: {key}": value
        for entry, source in common.items()
        for key, value, _ in source["facts"]
    }


def dotted_values(data: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield pairs such as ('systems.lpu.chips', 576).

    Items of lists have their number as key. Empty lists and mappings are values.
    """
    pairs = (
        data.items()
        if isinstance(data, Mapping)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    if not pairs:
        yield prefix, data
    for key, value in pairs:
        yield from dotted_values(value, f"{prefix}.{key}" if prefix else str(key))


def differing_values(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return both values of each key whose values differ; None for a missing value."""
    return {
        key: [was.get(key), now.get(key)]
        for key in dict.fromkeys([*was, *now])
        if was.get(key) != now.get(key)
    }


def value_change(was: Any, now: Any) -> dict[str, Any]:
    """Return two values; for numbers also their difference, and in percent of the first."""
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (was, now)
    )
    by = now - was if numbers else None
    return {
        "base": was,
        "is": now,
        "change": by,
        "change_pct": 100 * by / abs(was) if by is not None and was else None,
    }
