"""The `sweep` of a scenario: a grid or a list of points."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from sim.units import brief, value_error

MOST_POINTS = 100_000  # of a sweep


def _checked_sweep(sweep: object) -> object:
    """Return the sweep.  Raises: PydanticCustomError if it is no grid and no list of points."""
    points = sweep if isinstance(sweep, tuple) else (sweep,)
    reason = ""
    if not points or not all(isinstance(point, Mapping) and point for point in points):
        reason = (
            "a sweep is a mapping of keys to lists, "
            "{workload.rate: [1 request/s, 2 request/s]}, or a list of mappings"
        )
    for key in () if reason else dict.fromkeys(key for point in points for key in point):
        if not all(key.split(".")) or key.split(".")[0] in ("id", "sweep"):
            reason = reason or (
                f"{brief(key)!r} is no key to vary; write it with dots, such as workload.rate"
            )
    if isinstance(sweep, Mapping) and not reason:
        reason = _grid_problem(sweep)
    if reason:
        raise value_error(reason)
    return sweep


def _grid_problem(grid: Mapping[str, object]) -> str:
    """Return what is wrong with a grid; empty if nothing is."""
    count = 1
    for key, values in grid.items():
        if not (isinstance(values, tuple) and values):
            value = brief(str(values))
            return f"{key}: {value!r} is not a list of values, such as [1, 2]"
        count *= len(values)
    if count > MOST_POINTS:
        return f"{count:,} points, and {MOST_POINTS:,} are the most"
    return ""


_POINT = {"type": "object", "minProperties": 1}
_GRID = {
    **_POINT,
    "additionalProperties": {"type": "array", "minItems": 1},
    "description": "a mapping of dotted keys to lists of values (all combinations)",
}
_LIST = {
    "type": "array",
    "minItems": 1,
    "items": _POINT,
    "description": "a list of mappings of dotted keys to values",
}
_SWEEP = {"anyOf": [_GRID, _LIST, {"type": "null"}]}
SweepField = Annotated[
    dict[str, tuple[object, ...]] | tuple[dict[str, object], ...] | None,
    BeforeValidator(_checked_sweep),
    WithJsonSchema(_SWEEP),
]
