"""Entries that are like another: `{like: groq-lpu-v1, memory.sram.capacity: 512 MB}`.

A changed number keeps neither the source nor the range of the number that it replaces.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic_core import PydanticCustomError

from sim.inputs.files import (
    Change,
    Document,
    Entry,
    Sourced,
    catalogue_names,
    find_entry,
    source_of,
    written,
)
from sim.inputs.key_paths import Path, PathError, dots, leaves, replaced, value_at
from sim.units import brief

ABOUT = (
    "id",
    "name",
    "vendor",
    "aliases",
    "note",
    "source",
    "range",
    "fit",
)  # keys that describe an entry; no result uses them

E = TypeVar("E", bound=Entry)


def overridden(
    given: Mapping[str, Any], kind: str, cls: type[E], validate: Callable[[dict[str, Any]], E]
) -> tuple[dict[str, Any], E]:
    """Return an entry that is like another, with its data.

    Raises: PydanticCustomError where the change is wrong, ScenarioError where the other entry is missing or wrong.
    """
    name = given["like"]
    if not isinstance(name, str):
        raise misplaced(
            ("like",),
            f"like: {written(name)}: it must be a name among the catalogue's {kind}, or a file's path",
        )
    document = Document(find_entry(name, kind))
    document.value(cls)  # so that its own errors name its own lines
    changes = {key: value for key, value in given.items() if key != "like"}
    for key in changes:
        if key not in cls.model_fields:  # a model's class ignores the keys that it does not know
            raise cls.unknown(key)
    base = cls.spelled({"id": document.path.stem, **document.data})
    label = "catalogue" if document.path in catalogue_names(kind).values() else document.shown
    data: dict[str, Any] = base
    changed: dict[str, Change] = {}
    # What describes the entry comes first: `restated` replaces the source of a changed number, which would else replace it.
    for path, value in sorted(leaves(changes, base), key=lambda leaf: leaf[0][0] not in ABOUT):
        was = value_at(base, path)
        try:
            data = replaced(data, path, value)
        except PathError as error:
            raise misplaced(path, str(error)) from None
        of_a_part = any(
            isinstance(value_at(base, path[:depth]), str) for depth in range(1, len(path))
        )
        if path[0] in ABOUT or of_a_part or named(value) == named(was):
            continue  # a part, such as the chip of a cluster, records its own changes
        changed[dots(path)] = (None if was is None else shown(was), shown(named(value)))
        for depth in range(
            len(path)
        ):  # a cluster may hold its chip in place, with sources of its own
            if (depth == 0 and issubclass(cls, Sourced)) or value_at(
                base, (*path[:depth], "source")
            ):
                data = restated(data, base, path, depth, label, changes)
    value = validate(data)
    value._changed = changed
    return data, value


def restated(
    data: dict[str, Any], base: object, path: Path, depth: int, label: str, changes: object
) -> dict[str, Any]:
    """Return the data in which the value at a path has a source that calls it changed, and no range.

    `depth` is that of the entry in the data that has the source.  A source or a range that comes with the change is kept.
    """
    above, key = path[:depth], dots(path[depth:])
    before, own = (
        value_at(base, (*above, "source")) or {},
        value_at(changes, (*above, "source", key)),
    )
    was = ", ".join(filter(None, (shown(value_at(base, path)), source_of(before, key))))
    new = {
        "source": f"changed: {own or 'set by the scenario'} ({label}: {was})",
        "range": value_at(changes, (*above, "range", key)),
    }
    for name, value in new.items():
        known = value_at(data, (*above, name)) or {}
        if isinstance(known, Mapping):  # else the class refuses it
            others = {
                each: known[each]
                for each in known
                if each != key and not each.startswith(f"{key}.")
            }
            data = replaced(data, (*above, name), others | ({key: value} if value else {}))
    return data


def misplaced(path: Path, reason: str) -> PydanticCustomError:
    """Return the error that `files` reports at the line of a key of the change."""
    return PydanticCustomError("key", "{reason}", {"key": path, "reason": reason})


def named(value: object) -> object:
    """Return a value, or the name of what it is like."""
    return value.get("like", value) if isinstance(value, Mapping) else value


def shown(value: object) -> str:
    """Return a value as a result names it: as the file writes it, lists and mappings on one line."""
    match value:
        case Mapping():
            return brief(
                "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
            )
        case tuple():
            return brief("[" + ", ".join(map(shown, value)) + "]")
        case None:
            return "none"
        case bool():
            return str(value).lower()
    return brief(str(value))
