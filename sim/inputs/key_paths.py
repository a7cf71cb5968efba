"""Plain data by paths of keys: what stands at 'chip.memory.sram.capacity', and the data with another value there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

MAX_DEPTH = 100  # of mappings and lists in each other
PARTS = (
    "chip",
    "engine",
    "model",
    "cluster",
    "like",
)  # keys whose text names an entry of the catalogue, or a file
Path = tuple[str, ...]


class PathError(ValueError):
    """A path that leads through a value without keys."""


def dots(path: Iterable[str | int]) -> str:
    """Return a path of keys as --set writes it."""
    return ".".join(map(str, path))


def child(data: object, key: str) -> Any:
    """Return the value at one key of a mapping, or at one place of a list; None where there is none."""
    if isinstance(data, tuple):
        return data[int(key)] if key in map(str, range(len(data))) else None
    return data.get(key) if isinstance(data, Mapping) else None


def value_at(data: object, path: Sequence[str]) -> Any:
    """Return the value at a path, None where there is none."""
    for key in path:
        data = child(data, key)
    return data


def replaced(data: object, path: Sequence[str], value: object, depth: int = 0) -> Any:
    """Return the data with a value at a path; missing mappings are made, and a number indexes a list.

    The name of a catalogue entry on the way becomes `{like: name}`, which has room for the change.

    Raises: PathError where the path leads through another value without keys, or out of a list.
    """
    if depth == len(path):
        return value
    key = path[depth]
    if isinstance(data, str) and depth and path[depth - 1] in PARTS:
        data = {"like": data}
    if isinstance(data, tuple) and key in map(str, range(len(data))):
        place = int(key)
        return (*data[:place], replaced(data[place], path, value, depth + 1), *data[place + 1 :])
    if isinstance(data, tuple):
        raise PathError(
            f"'{dots(path[:depth])}' is a list of {len(data)}, and has no {key!r}; the first is 0"
        )
    if not isinstance(data, Mapping):
        raise PathError(f"'{dots(path[:depth])}' is not a mapping")
    if depth > MAX_DEPTH:
        raise PathError("nested too deep")
    return {**data, key: replaced(data.get(key, {}), path, value, depth + 1)}


def leaves(
    changes: Mapping[str, Any], base: object, above: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the value of each change of `base`.

    A mapping changes only the keys that it has.  A mapping of another `kind`, or one with `like`, replaces what stands there.
    """
    for key, value in changes.items():
        path, was = (*above, key), child(base, key)
        if (
            isinstance(value, Mapping)
            and value
            and "like" not in value
            and value.get("kind") in (None, child(was, "kind"))
        ):
            yield from leaves(value, was, path)
        else:
            yield path, value
