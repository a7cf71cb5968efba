"""Points of a sweep: a scenario with values put in, and a digest that names its result.

[point.values for point in sweep_points(document, scenario)]  # by dotted key
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sim import __version__
from sim.inputs.document import Document
from sim.inputs.errors import ScenarioError, UserError
from sim.inputs.fields import own_file
from sim.inputs.key_paths import JsonValue
from sim.scenario.scenario import Scenario, scenario_from
from sim.scenario.sweep_field import PointSources, point_document, point_sources
from sim.studies.provenance import package_digest, users_digest


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """A scenario with values put in.

    values: by dotted key.
    digest: name of the point's file; it covers inputs, version and code.
    error: why the scenario cannot be read; '' if it can.
    """

    values: dict[str, JsonValue]
    document: Document
    digest: str
    error: str = ""


def sweep_points(document: Document, scenario: Scenario) -> list[SweepPoint]:
    """Return the points of a scenario's sweep; in a grid, the last key varies first.

    Raises: UserError if it has no sweep; ScenarioError if not one point can be read.
    """
    swept = scenario.sweep
    if swept is None:
        raise UserError(
            f"{document.shown}: sweep: got none; expected keys with their values;"
            " try sweep: {workload.rate: [1 request/s, 2 request/s]}"
        )
    points = [_sweep_point(document, sources) for sources in point_sources(swept)]
    if all(point.error for point in points):
        raise ScenarioError(points[0].error)
    return points


def _sweep_point(document: Document, sources: PointSources) -> SweepPoint:
    """Return the document with values put in that stand elsewhere in it."""
    changed, values, error = point_document(document, sources)
    try:
        inputs = None if error else _inputs(changed)
    except ScenarioError as wrong:
        inputs, error = None, str(wrong)
    whole_input = json.dumps(
        [__version__, package_digest(), [changed.data, values] if inputs is None else inputs],
        sort_keys=True,
    )
    digest = hashlib.sha256(whole_input.encode()).hexdigest()[:32]
    return SweepPoint(values, changed, digest, error)


def _inputs(document: Document) -> list[Any]:
    """Return what a point's result depends on, as plain data.

    Raises: ScenarioError if the document cannot be read.
    """
    return [_canonical(scenario_from(document)), sorted(_own_names(document.data))]


def _canonical(value: object) -> Any:
    """Return plain data that is equal for equal inputs, in whatever order a file names them.

    Mappings of names keep their order, because it can mean something: the memories of a chip, the
    members of a fleet.  The systems of a scenario are sorted.  For files that are read, and for
    code of a user, the content counts.
    """
    match value:
        case BaseModel():
            fields = {name: _canonical(getattr(value, name)) for name in type(value).model_fields}
            if isinstance(value, Scenario):
                fields["systems"].sort()
            return [_code_identity(type(value)), fields]
        case Mapping():
            return [[key, _canonical(entry)] for key, entry in value.items()]
        case tuple() | list():
            return [_canonical(entry) for entry in value]
        case Path():
            return hashlib.sha256(value.read_bytes()).hexdigest()
        case None | bool() | int() | float() | str():
            return value
    return _code_identity(value)


def _own_names(data: object, key: str = "") -> Iterator[list[str]]:
    """Yield key, text and module's digest of each text in a document that names a user's code.

    The names count, because functions of one factory have the same code: `mine = make(2)`.
    """
    match data:
        case Mapping():
            for name, part in data.items():
                yield from _own_names(part, f"{key}.{name}")
        case tuple() | list():
            for place, part in enumerate(data):
                yield from _own_names(part, f"{key}.{place}")
        case str() if (file := own_file(data)) is not None:
            yield [key, data, users_digest(file)]


def _code_identity(thing: Any) -> list[str]:
    """Return the name of a class or function, and a digest of its code if it is a user's.

    The digest covers its file and the user's files that this imports. An object with `__call__`
    has the name of its class.
    """
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    module = sys.modules.get(thing.__module__)
    path = getattr(module, "__file__", None)
    users = path is not None and not thing.__module__.startswith("sim.")
    return [thing.__qualname__, users_digest(Path(path)) if path and users else ""]
