"""Changed values of a scenario that is not yet validated: `--set systems.lpu.chips=640`."""

from collections.abc import Mapping

from sim.inputs.document import Document
from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import value_at
from sim.inputs.suggestions import spelling_hint
from sim.scenario.pools import POOLS


def assign(document: Document, assignment: str) -> None:
    """Apply 'a.b.c=value' to the document of a scenario.

    Raises: ScenarioError as `Document.set`, and for a part of a system that is not there.
    """
    dotted = assignment.partition("=")[0]
    if problem := _problem(document.data, dotted.split(".")):
        raise ScenarioError(f"--set {dotted}: {problem}")
    document.set(assignment)


def _problem(data: Mapping[str, object], path: list[str]) -> str:
    """Return why a path leads to no part of a system; empty if it does.

    `Document.set` makes missing mappings. So it would make a system that has this key alone.
    """
    systems = data.get("systems")
    if path[0] != "systems" or len(path) < 3 or not isinstance(systems, Mapping):
        return ""
    if path[1] not in systems:
        hint = spelling_hint(path[1], systems, "try one of these")
        return f"got system {path[1]!r}; expected {' or '.join(systems)}; {hint}"
    named = value_at(systems, path[1:3])
    if path[2] in POOLS and len(path) > 3 and isinstance(named, str):
        reason = f"got a key of {path[2]}, which names system {str(named)!r}; "
        reason += "expected a key of that system; "
        return f"{reason}try --set systems.{named}.{'.'.join(path[3:])}"
    return ""
