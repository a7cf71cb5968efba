"""Changed values of a scenario that is not yet validated: `--set systems.lpu.chips=640`."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from sim.inputs.document import Document, assigned_place
from sim.inputs.errors import ScenarioError
from sim.inputs.key_paths import KeyPath, dots, value_at
from sim.inputs.overrides import base_name
from sim.inputs.suggestions import spelling_hint
from sim.scenario.pools import POOLS
from sim.scenario.system import MOST_LABEL

HARDWARE = ("chip", "chips", "cluster")  # keys whose values a label may repeat in words


def assign_all(document: Document, assignments: Sequence[str], in_python: bool = False) -> None:
    """Apply several assignments, and add changed hardware to labels, as in '1 H100 (now b200)'.

    in_python: whether errors name arguments of a function, and not `--set`.
    Raises: ScenarioError as `assign`.
    """
    before = document.data
    for assignment in assignments:
        dotted = assignment.partition("=")[0]
        assign(document, assignment, assigned_place(dotted, in_python))
    paths = [tuple(assignment.partition("=")[0].split(".")) for assignment in assignments]
    for owner, texts in _hardware_changes(before, document.data, paths).items():
        if texts and (*owner, "label") not in paths:
            label = _with_suffix(document.data, owner, texts)
            document.set(f"{dots(owner)}.label={json.dumps(label)}")


def _hardware_changes(
    before: object, after: object, paths: Sequence[KeyPath]
) -> dict[KeyPath, list[str]]:
    """Return the new hardware in words, by path of the labelled part of a system that has it."""
    changes = defaultdict[KeyPath, list[str]](list)
    for path in paths:
        new, was = (base_name(value_at(data, path)) for data in (after, before))
        owner, key = _labelled(after, path), path[-1]
        if not owner or key not in HARDWARE or new in (None, was):
            continue
        if key == "chips" and "{chips}" in str(value_at(after, (*owner, "label"))):
            continue  # the label shows the new number by itself
        text = f"{new} chips" if key == "chips" else PurePath(str(new)).stem
        pool = path[len(owner)] if len(path) > len(owner) + 1 else ""
        changes[owner].append(f"{pool} {text}".strip())
    return changes


def _with_suffix(data: object, owner: KeyPath, texts: Sequence[str]) -> str:
    """Return a label with the changes of its hardware, cut to the longest that is allowed."""
    label = str(value_at(data, (*owner, "label")))
    suffix = f" (now {', '.join(texts)})"[: MOST_LABEL - 2]
    room = MOST_LABEL - len(suffix)
    return (label if len(label) <= room else f"{label[: room - 1].rstrip()}…") + suffix


def _labelled(data: object, path: KeyPath) -> KeyPath:
    """Return the path of the innermost part of a system around a key that has a label, or ()."""
    if path[0] != "systems":
        return ()
    above = (path[:depth] for depth in range(len(path) - 1, 1, -1))
    return next((part for part in above if isinstance(value_at(data, (*part, "label")), str)), ())


def assign(document: Document, assignment: str, place: str) -> None:
    """Apply 'a.b.c=value' to the document of a scenario.

    place: what errors name, as in `Document.set`.
    Raises: ScenarioError as `Document.set`, and for a part of a system that is not there.
    """
    if problem := _problem(document.data, assignment.partition("=")[0].split(".")):
        raise ScenarioError(f"{place}: {problem}")
    document.set(assignment, place)


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
        return f"{reason}try systems.{named}.{'.'.join(path[3:])}"
    return ""
