"""The `sweep` of a scenario: a grid or a list of points.

point_sources({"seed": (1, 2)})  # [{"seed": ("sweep", "seed", 0)}, {"seed": ("sweep", "seed", 1)}]
"""

import copy
import itertools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from sim.inputs.document import Document
from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import JsonValue
from sim.units import brief, value_error

MOST_POINTS = 100_000  # of a sweep


def _checked_sweep(sweep: object) -> object:
    """Return the sweep.  Raises: PydanticCustomError if it is no grid and no list of points."""
    points = sweep if isinstance(sweep, tuple) else (sweep,)
    if not points or not all(isinstance(point, Mapping) and point for point in points):
        raise value_error(
            "got no keys; expected a mapping of keys to lists, or a list of mappings; "
            "try {workload.rate: [1 request/s, 2 request/s]}"
        )
    for key in (key for point in points for key in point):
        names = key.split(".")
        if not all(names) or names[0] in ("id", "sweep"):
            raise value_error(f"got {brief(key)!r}; expected a key with dots; try workload.rate")
    if isinstance(sweep, Mapping) and (reason := _grid_problem(sweep)):
        raise value_error(reason)
    return sweep


def _grid_problem(grid: Mapping[str, object]) -> str:
    """Return what is wrong with a grid; empty if nothing is."""
    count = 1
    for key, values in grid.items():
        if not (isinstance(values, tuple) and values):
            value = brief(str(values))
            return f"{key}: got {value!r}; expected a list of values; try [1, 2]"
        count *= len(values)
    if count > MOST_POINTS:
        return f"got {count:,} points; expected at most {MOST_POINTS:,}; try fewer values"
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

PointSources = Mapping[str, tuple[str | int, ...]]  # by key: the place of its value in the file


def point_sources(sweep: Mapping[str, tuple[object, ...]] | tuple[Any, ...]) -> list[PointSources]:
    """Return the places of the values of each point; in a grid, the last key varies first."""
    if isinstance(sweep, Mapping):
        choices = itertools.product(*(range(len(values)) for values in sweep.values()))
        return [
            {key: ("sweep", key, i) for key, i in zip(sweep, choice, strict=True)}
            for choice in choices
        ]
    return [{key: ("sweep", i, key) for key in values} for i, values in enumerate(sweep)]


def point_document(
    document: Document, sources: PointSources
) -> tuple[Document, dict[str, JsonValue], str]:
    """Return the document of a point, its values by dotted key, and an error or ''."""
    changed, values, error = copy.deepcopy(document), dict[str, JsonValue](), ""
    for key, source in sources.items():
        value: Any = document.data
        for step in source:
            value = value[step]
        values[key] = value
        try:
            changed.put(key, value, source)
        except ScenarioError as wrong:
            error = error or str(wrong)
    del changed.data["sweep"]
    return changed, values, error
