"""Meanings of keys, for the error that one is missing.

>>> from sim.workload.arrivals import Poisson
>>> key_meaning(Poisson, ("rate",))
'mean rate of arrivals [request/s]'
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel


def key_meaning(cls: type[BaseModel], path: Sequence[int | str]) -> str:
    """Return the description of the key at a path below a class, as part of a sentence.

    A key of several classes has the description of the first one that requires it. '' if none does.
    """
    *above, key = path
    classes = _with_kinds([cls])
    for name in above:
        fields = [c.model_fields[str(name)] for c in classes if str(name) in c.model_fields]
        # A name of an entry, or a number of a list, leads to no other class.
        if fields:
            classes = _with_kinds(part for field in fields for part in _classes(field.annotation))
    for kind in classes:
        field = kind.model_fields.get(str(key))
        if field and field.is_required() and field.description:
            text = field.description.rstrip(".")
            keeps = text[:2].isupper() or not text[0].isupper()
            return text if keeps else text[0].lower() + text[1:]
    return ""


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the classes within an annotation, such as a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _classes(part)


def _with_kinds(classes: Any) -> list[type[BaseModel]]:
    """Return classes with all kinds of them, each once."""
    kinds: list[type[BaseModel]] = []
    for cls in classes:
        for kind in (cls, *_with_kinds(cls.__subclasses__())):
            if kind not in kinds:
                kinds.append(kind)
    return kinds
