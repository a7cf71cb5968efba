"""What `sramsim compare` tells: what changed between runs, in what went in and in what came out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.results.encoding import encode_summary
from sim.results.saving import load_result


def changes(folders: Sequence[Path]) -> dict[str, Any]:
    """Each folder of `run --out` against the first.  Raises: UserError where one holds no result."""
    base, *others = [encode_summary(load_result(folder).summary) for folder in folders]
    runs = [
        {"folder": str(folder), **against(base, other)}
        for folder, other in zip(folders[1:], others, strict=True)
    ]
    return {"base": str(folders[0]), "runs": runs}


def against(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What another run was given otherwise, and what its systems did otherwise."""
    was, now = base["systems"], other["systems"]
    return {
        "inputs": different(inputs(base, other), inputs(other, base)),
        "only_in_base": [name for name in was if name not in now],
        "only_here": [name for name in now if name not in was],
        "systems": {
            name: {
                key: change(*pair)
                for key, pair in different(
                    dict(dotted_values(was[name])), dict(dotted_values(now[name]))
                ).items()
            }
            for name in was
            if name in now
        },
    }


def inputs(summary: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was made from, by dotted key; of parts that both name also the numbers, which files may change."""
    given = {key: summary.get(key) for key in ("scenario", "version", "seed")}
    given |= {
        key: value for key, value in dotted_values(summary.get("inputs", {})) if key != "seed"
    }  # the one that was used is above
    common = {
        entry: told
        for entry, told in summary.get("sources", {}).items()
        if entry in other.get("sources", {})
    }
    return given | {
        f"{entry}: {key}": value
        for entry, told in common.items()
        for key, value, _ in told["facts"]
    }


def dotted_values(data: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """'systems.lpu.chips', 576 and so on; lists by number, empty ones as they are."""
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


def different(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Both values of each key where they are not the same; None where there is none."""
    return {
        key: [was.get(key), now.get(key)]
        for key in dict.fromkeys([*was, *now])
        if was.get(key) != now.get(key)
    }


def change(was: Any, now: Any) -> dict[str, Any]:
    """Two values; of numbers also the difference, and what part of the first one it is, in percent."""
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
