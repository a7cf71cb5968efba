"""Typed results as plain data for JSON, and plain data as typed results.

    >>> @dataclass(frozen=True)
    ... class Beat:
    ...     us: float
    ...     fill: Annotated[int | None, OMIT_NONE] = None
    >>> encode_summary(Beat(us=61.9))
    {'us': 61.9}
    >>> decode_summary(Beat, {"us": 61.9})
    Beat(us=61.9, fill=None)

A field becomes a key with its name. `OMIT_NONE`, `SPLICED` and `Key` in an annotation change that.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from sim.inputs.key_paths import JsonObject, JsonValue

Kind = TypeVar("Kind")
Data = Mapping[str, JsonValue]

OMIT_NONE = "left out"  # a field that is None has no key
# A field that is a dataclass: its keys are among those of the outer object. An optional field is
# None if the data lack one of its required keys.
SPLICED = "spliced"


@dataclass(frozen=True)
class Key:
    """The key of a field, if it differs from the field's name."""

    name: str


@dataclass(frozen=True)
class SplicedField:
    """Two functions for a field that becomes several keys of the outer object.

    encode: from the field's name and value to keys. decode: from name and data to the value.
    """

    encode: Callable[[str, Any], Data]
    decode: Callable[[str, Data], Any]


def encode_summary(value: Any) -> Any:
    """Return typed values as dicts, lists, texts and numbers, in the order of their fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value)
    if isinstance(value, Mapping):
        return {key: encode_summary(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode_summary(item) for item in value]
    # NumPy's float64 is a float, but a Polars table would store it as a text.
    return value.item() if isinstance(value, np.generic) else value


def json_object(value: object) -> JsonObject:
    """Return a typed result as the object of a JSON document."""
    data: JsonObject = encode_summary(value)
    return data


def decode_summary(kind: type[Kind], data: Any) -> Kind:
    """Return the typed value that `encode_summary` made these data from.

    Keys without a field are dropped. A field without a key gets its default. Numbers do not
    change.
    Raises: ValueError if a key without a default is missing.
    """
    decoded: Kind = _decode(kind, data)
    return decoded


@dataclass(frozen=True)
class _Codec:
    """The encoding of one field: its kind, its key, and the marks of its annotation."""

    name: str
    key: str
    kind: Any
    required: bool
    left_out: bool
    whole: bool  # SPLICED
    custom: SplicedField | None


@cache
def _codecs(kind: Any) -> tuple[_Codec, ...]:
    return tuple(_codecs_of(kind))


def _codecs_of(kind: Any) -> Iterator[_Codec]:
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        hint: Any = hints[item.name]
        marks: list[Any] = []
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
        keys = [mark.name for mark in marks if isinstance(mark, Key)]
        custom = [mark for mark in marks if isinstance(mark, SplicedField)]
        yield _Codec(
            item.name,
            keys[0] if keys else item.name,
            hint,
            required=item.default is MISSING and item.default_factory is MISSING,
            left_out=OMIT_NONE in marks,
            whole=SPLICED in marks,
            custom=custom[0] if custom else None,
        )


def _encode_fields(value: Any) -> JsonObject:
    data: JsonObject = {}
    kind: Any = type(value)
    for codec in _codecs(kind):
        content = getattr(value, codec.name)
        if codec.custom:
            data |= encode_summary(codec.custom.encode(codec.name, content))
        elif codec.whole:
            data |= {} if content is None else _encode_fields(content)
        elif content is not None or not codec.left_out:
            data[codec.key] = encode_summary(content)
    return data


def _decode(kind: Any, data: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if data is None:
        return None
    if origin is Union or origin is types.UnionType:
        return _decode(_fitting(arguments, data), data)
    if is_dataclass(kind):
        return _decode_fields(kind, data)
    if origin is tuple and arguments[-1] is ...:
        return tuple(_decode(arguments[0], item) for item in data)
    if origin is tuple:
        return tuple(map(_decode, arguments, data))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _decode(arguments[1], item) for key, item in data.items()}
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple is a list in JSON
        return kind(*data)
    return data


def _decode_fields(kind: Any, data: Data) -> Any:
    values: dict[str, object] = {}
    for codec in _codecs(kind):
        if codec.custom:
            values[codec.name] = codec.custom.decode(codec.name, data)
        elif codec.whole:
            part = _fitting(get_args(codec.kind) or (codec.kind,), data)
            values[codec.name] = None if part is types.NoneType else _decode_fields(part, data)
        elif codec.key in data:
            values[codec.name] = _decode(codec.kind, data[codec.key])
        elif codec.required:
            raise ValueError(f"{codec.key} is missing")
    return kind(**values)


def _fitting(kinds: tuple[Any, ...], data: Any) -> Any:
    """Return the first dataclass whose required keys are all in the data.

    Without one: NoneType if it is among the kinds, else the first kind that is no dataclass, else
    the first kind.
    """
    if isinstance(data, Mapping):
        for kind in kinds:
            if is_dataclass(kind) and all(key in data for key in _required_keys(kind)):
                return kind
        if types.NoneType in kinds and any(map(is_dataclass, kinds)):
            return types.NoneType
    plain = [kind for kind in kinds if kind is not types.NoneType and not is_dataclass(kind)]
    return plain[0] if plain else kinds[0]


def _required_keys(kind: Any) -> Iterator[str]:
    for codec in _codecs(kind):
        if codec.whole and is_dataclass(codec.kind):
            yield from _required_keys(codec.kind)
        elif codec.required and not codec.whole and not codec.custom:
            yield codec.key
