"""Frozen values made from files: what every chip, engine, model, plan and workload is."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from sim.inputs.errors import error_at_key
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.inputs.suggestions import spelling_hint
from sim.units import brief


class Text(str):
    """A text from a file, with its place and the folder to which its paths are relative."""

    where: str
    folder: Path

    def __new__(cls, text: str, where: str, folder: Path) -> Self:
        self = super().__new__(cls, text)
        self.where, self.folder = where, folder
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, Path]]:
        """Return how to make the text again, for copies and for the processes of a sweep."""
        return type(self), (str(self), self.where, self.folder)


class Value(BaseModel):
    """A frozen value made from a file.

    Values are equal by content. Unknown keys and silent conversions are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def noun(cls) -> str:
        """Return the name that errors use: 'tensor-streaming' for TensorStreaming."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    def model_copy(self, *, update: Mapping[str, object] | None = None, deep: bool = False) -> Self:
        """Return a copy without the cached properties, which may depend on what is updated."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        """Report an unknown key first. A misspelt key would otherwise be reported as missing."""
        if cls.model_config.get("extra") == "forbid" and isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise cls.unknown(key)
        return data

    @classmethod
    def unknown(cls, key: object) -> PydanticCustomError:
        """Return the error for a key that this class does not have."""
        hint = spelling_hint(str(key), cls.model_fields, f"it has {', '.join(cls.model_fields)}")
        path: Any = (key,)
        return error_at_key(path, f"{cls.noun()} has no {brief(str(key))!r}; {hint}")

    @classmethod
    def spelled(cls, data: Mapping[str, JsonValue]) -> JsonObject:
        """Return the data of a file with every key under the name of its field."""
        return dict(data)


# A value of an entry (None if it has none), and the value that replaces it.
Change = tuple[str | None, str]


class Entry(Value):
    """A value that the catalogue may hold under a name."""

    id: str = Field(
        default="in-place",
        description="Name of the entry; by default the file's name, by which the catalogue finds "
        "it.",
    )
    _changed: dict[str, Change] = PrivateAttr(default_factory=dict)

    @property
    def changed(self) -> dict[str, Change]:
        """The values that a scenario changed, by dotted key."""
        return self._changed


class Sourced(Entry):
    """A catalogue entry: a name, notes, and a source for every quantity."""

    name: str = Field(default="", description="Full name, for people.")
    aliases: tuple[str, ...] = Field(
        default=(), description="Other names that tables and people use; each means one entry."
    )
    note: str = Field(default="", description="Remark about the entry, for people.")
    source: dict[str, str] = Field(
        default={},
        description="Source of each number by dotted key, or `assumed: why`, or `derived: from "
        "what`; a prefix covers all keys below.",
    )
    range: dict[str, tuple[str | float, str | float]] = Field(
        default={},
        description="Lowest and highest value by dotted key, if sources disagree or the value is "
        "assumed.",
    )

    def source_of(self, path: str) -> str | None:
        """Return the source of 'memory.sram.capacity'; None without one."""
        return source_of(self.source, path)


def source_of(sources: Mapping[str, str], path: str) -> str | None:
    """Return the source of a path: its own entry, or the entry of the nearest prefix."""
    while path not in sources and "." in path:
        path = path.rpartition(".")[0]
    return sources.get(path) or sources.get(path + ":")
