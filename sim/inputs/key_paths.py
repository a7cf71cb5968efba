"""Plain data by paths of keys: the value at 'chip.memory.sram.capacity', and how to replace it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

MAX_DEPTH = 100  # of nested mappings and lists
# Keys whose text names an entry of the catalogue, or a file.
REFERENCE_KEYS = ("chip", "engine", "model", "cluster", "like")
POOL_KEYS = ("prefill", "decode")  # of a system: a name of another system, or one in place
KeyPath = tuple[str, ...]
Scalar: TypeAlias = bool | int | float | str | None
# The content of a JSON or YAML document.
JsonValue: TypeAlias = Scalar | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
JsonObject: TypeAlias = dict[str, JsonValue]


class PathError(ValueError):
    """A path that leads through a value without keys."""


def dots(path: Iterable[str | int]) -> str:
    """Return a path of keys as --set writes it."""
    return ".".join(map(str, path))


def dotted_values(
    data: JsonValue, above: str = "", into_lists: bool = False
) -> Iterator[tuple[str, JsonValue]]:
    """Yield each value of nested mappings with its key: ('plan.tensor', 8).

    into_lists: whether items of lists are values too, with their number as key. Otherwise a list
    is one value.
    Empty mappings and empty lists are values.
    """
    pairs: Iterable[tuple[str | int, JsonValue]] = ()
    if isinstance(data, Mapping):
        pairs = data.items()
    elif into_lists and isinstance(data, list | tuple):
        pairs = enumerate(data)
    if not pairs:
        yield above, data
    for key, value in pairs:
        yield from dotted_values(value, f"{above}.{key}" if above else str(key), into_lists)


def scalar_values(data: JsonValue) -> dict[str, Scalar]:
    """Return the numbers, texts and truth values of nested mappings by dotted key.

    Left out: lists and empty mappings.
    """
    return {
        key: value
        for key, value in dotted_values(data)
        if value is None or isinstance(value, bool | int | float | str)
    }


def child(data: object, key: str) -> Any:
    """Return the value at a key of a mapping or an index of a list; None without one."""
    if isinstance(data, tuple):
        return data[int(key)] if key in map(str, range(len(data))) else None
    return data.get(key) if isinstance(data, Mapping) else None


def value_at(data: object, path: Sequence[str]) -> Any:
    """Return the value at a path; None without one."""
    for key in path:
        data = child(data, key)
    return data


def replaced(data: object, path: Sequence[str], value: object, depth: int = 0) -> Any:
    """Return the data with another value at a path.

    Missing mappings are made. A number is the index of a list.
    The name of a catalogue entry on the way becomes `{like: name}`, which can hold the change.

    Raises: PathError if the path leads through any other value without keys, or out of a list.
    """
    if depth == len(path):
        return value
    key = path[depth]
    if isinstance(data, str) and depth and path[depth - 1] in REFERENCE_KEYS:
        data = {"like": data}
    if isinstance(data, tuple) and key in map(str, range(len(data))):
        index = int(key)
        return (*data[:index], replaced(data[index], path, value, depth + 1), *data[index + 1 :])
    if isinstance(data, tuple):
        raise PathError(
            f"'{dots(path[:depth])}' is a list of {len(data)}, and has no {key!r}; the first is 0"
        )
    if not isinstance(data, Mapping):
        reason = "not a mapping"
        if isinstance(data, str) and path[depth - 1] in POOL_KEYS:
            reason = f"the name of a system; try {dots((*path[: depth - 2], data, *path[depth:]))}"
        raise PathError(f"'{dots(path[:depth])}' is {reason}")
    if depth > MAX_DEPTH:
        raise PathError("nested too deep")
    return {**data, key: replaced(data.get(key, {}), path, value, depth + 1)}


def changed_leaves(
    changes: Mapping[str, JsonValue], base: object, above: KeyPath = ()
) -> Iterator[tuple[KeyPath, JsonValue]]:
    """Yield the path and the value of each change of `base`.

    A mapping changes only the keys that it has.
    A mapping of another `kind`, or with `like`, replaces the value as a whole.
    """
    for key, value in changes.items():
        path, was = (*above, key), child(base, key)
        if (
            isinstance(value, Mapping)
            and value
            and "like" not in value
            and value.get("kind") in (None, child(was, "kind"))
        ):
            yield from changed_leaves(value, was, path)
        else:
            yield path, value
