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
    """Return why a path leads to a part of no system; empty otherwise.

    Missing mappings are made, so such a part would be a new system without all other keys.
    """
    systems = data.get("systems")
    if path[0] != "systems" or len(path) < 3 or not isinstance(systems, Mapping):
        return ""
    if path[1] not in systems:
        hint = spelling_hint(path[1], systems, "try one of these")
        return f"got system {path[1]!r}; expected {' or '.join(systems)}; {hint}"
    named = value_at(systems, path[1:3])
    if path[2] in POOLS and len(path) > 3 and isinstance(named, str):
        reason = f"got a key of system {str(named)!r}, which is the pool by its name"
        return f"{reason}; expected its own key; try --set systems.{named}.{'.'.join(path[3:])}"
    return ""
