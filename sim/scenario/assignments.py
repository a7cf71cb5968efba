"""Changed values of a scenario that is not yet validated: `--set systems.lpu.chips=640`."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from sim.inputs.document import Document
from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import KeyPath, dots, value_at
from sim.inputs.overrides import base_name
from sim.inputs.suggestions import spelling_hint
from sim.scenario.pools import POOLS
from sim.scenario.system import MOST_LABEL

HARDWARE = ("chip", "chips", "cluster")  # keys that a label may repeat in words


def assign_all(document: Document, assignments: Sequence[str]) -> None:
    """Apply several assignments. The labels of systems with other hardware say so.

    Raises: ScenarioError as `assign`.
    """
    before = document.data
    for assignment in assignments:
        assign(document, assignment)
    paths = [tuple(assignment.partition("=")[0].split(".")) for assignment in assignments]
    changes = defaultdict[KeyPath, list[str]](list)
    for path in paths:
        new, was = (base_name(value_at(data, path)) for data in (document.data, before))
        holder = _labelled(document.data, path)
        if holder and path[-1] in HARDWARE and new not in (None, was):
            shown = f"{new} chips" if path[-1] == "chips" else PurePath(str(new)).stem
            pool = path[len(holder)] if len(path) > len(holder) + 1 else ""
            changes[holder].append(f"{pool} {shown}".strip())
    for holder, texts in changes.items():
        label = str(value_at(document.data, (*holder, "label")))
        if "{chips}" in label:
            texts = [text for text in texts if not text.endswith(" chips")]
        if texts and (*holder, "label") not in paths:
            suffix = f" (now {', '.join(texts)})"[: MOST_LABEL - 2]
            room = MOST_LABEL - len(suffix)
            label = label if len(label) <= room else f"{label[: room - 1].rstrip()}…"
            document.set(f"{dots(holder)}.label={json.dumps(label + suffix)}")


def _labelled(data: object, path: KeyPath) -> KeyPath:
    """Return the path of the innermost part of a system around a key that has a label, or ()."""
    if path[0] != "systems":
        return ()
    above = (path[:depth] for depth in range(len(path) - 1, 1, -1))
    return next((part for part in above if isinstance(value_at(data, (*part, "label")), str)), ())


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
