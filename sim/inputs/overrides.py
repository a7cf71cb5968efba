"""Entries that are like another: `{like: groq-lpu-v1, memory.sram.capacity: 512 MB}`.

A changed number loses the source and the range of the number that it replaces.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from sim.inputs.document import read_document, read_value
from sim.inputs.errors import error_at_key, quoted_value
from sim.inputs.key_paths import (
    JsonObject,
    JsonValue,
    KeyPath,
    PathError,
    changed_leaves,
    dots,
    replaced,
    value_at,
)
from sim.inputs.names import catalogue_names, find_entry
from sim.inputs.values import Change, Entry, Sourced, source_of
from sim.units import brief

# Keys that describe an entry; no result uses them.
ABOUT = ("id", "name", "vendor", "aliases", "note", "source", "range", "fit")

E = TypeVar("E", bound=Entry)


def overridden(
    override: Mapping[str, JsonValue], kind: str, cls: type[E], validate: Callable[[JsonObject], E]
) -> tuple[JsonObject, E]:
    """Return the data and the value of an entry that is like another.

    Raises: PydanticCustomError if the change is wrong.
    Raises: ScenarioError if the other entry is missing or wrong.
    """
    name = override["like"]
    if not isinstance(name, str):
        expected = f"a name among the catalogue's {kind}, or a file's path"
        raise error_at_key(("like",), f"like: got {quoted_value(name)}; expected {expected}")
    document = read_document(find_entry(name, kind))
    read_value(document.path, cls)  # so that its own errors name its own lines
    changes = {key: value for key, value in override.items() if key != "like"}
    for key in changes:
        if key not in cls.model_fields:  # a model's class ignores the keys that it does not know
            raise cls.unknown(key)
    base = cls.spelled({"id": document.path.stem, **document.data})
    label = "catalogue" if document.path in catalogue_names(kind).values() else document.shown
    data: JsonObject = base
    changed: dict[str, Change] = {}
    # Descriptions come first. A new `source` would otherwise replace the sources that
    # `_with_source` writes for the changed numbers.
    for path, new in sorted(
        changed_leaves(changes, base), key=lambda leaf: leaf[0][0] not in ABOUT
    ):
        was = value_at(base, path)
        try:
            data = replaced(data, path, new)
        except PathError as error:
            raise error_at_key(path, str(error)) from None
        in_part = any(
            isinstance(value_at(base, path[:depth]), str) for depth in range(1, len(path))
        )
        if path[0] in ABOUT or in_part or base_name(new) == base_name(was):
            continue  # a part, such as the chip of a cluster, records its own changes
        changed[dots(path)] = (
            None if was is None else _value_text(was),
            _value_text(base_name(new)),
        )
        # A cluster may hold its chip in place, with sources of its own.
        for depth in range(len(path)):
            own_sources = value_at(base, (*path[:depth], "source"))
            if (depth == 0 and issubclass(cls, Sourced)) or own_sources:
                source = _new_source(changes, base, path, depth, label)
                data = _with_source(data, path, depth, source, changes)
    value = validate(data)
    value._changed = changed
    return data, value


def _new_source(changes: object, base: object, path: KeyPath, depth: int, label: str) -> str:
    """Return the source of a changed value: the change's own, and the value that it replaces."""
    above, key = path[:depth], dots(path[depth:])
    own = value_at(changes, (*above, "source", key)) or "set by the scenario"
    sources = value_at(base, (*above, "source")) or {}
    was = ", ".join(filter(None, (_value_text(value_at(base, path)), source_of(sources, key))))
    return f"changed: {own} ({label}: {was})"


def _with_source(
    data: JsonObject, path: KeyPath, depth: int, source: str, changes: object
) -> JsonObject:
    """Return the data with a source for the value at a path, and without its range.

    `depth` is the depth of the entry that has the source. A range in the change is kept.
    """
    above, key = path[:depth], dots(path[depth:])
    new = {"source": source, "range": value_at(changes, (*above, "range", key))}
    for name, value in new.items():
        known = value_at(data, (*above, name)) or {}
        if isinstance(known, Mapping):  # else the class refuses it
            others = {
                other: known[other]
                for other in known
                if other != key and not other.startswith(f"{key}.")
            }
            data = replaced(data, (*above, name), others | ({key: value} if value else {}))
    return data


def base_name(value: object) -> object:
    """Return the name that a value is `like`, or else the value."""
    return value.get("like", value) if isinstance(value, Mapping) else value


def _value_text(value: object) -> str:
    """Return a value as the file writes it, lists and mappings on one line."""
    match value:
        case Mapping():
            pairs = (f"{key}: {_value_text(part)}" for key, part in value.items())
            return brief("{" + ", ".join(pairs) + "}")
        case tuple():
            return brief("[" + ", ".join(map(_value_text, value)) + "]")
        case None:
            return "none"
        case bool():
            return str(value).lower()
    return brief(str(value))
