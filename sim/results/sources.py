"""An entry of the catalogue as people read it: each number with its source.

>>> EntrySources("Groq LPU v1 (TSP)", (("power.typical", "185 W", "a data sheet"),)).note
''
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import OMIT_NONE

Fact = tuple[str, str, str]  # key, value as written, source


@dataclass(frozen=True)
class EntrySources:
    """An entry of the catalogue, with the source of each number. facts: key, value, source."""

    title: str
    facts: tuple[Fact, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ListedMemory:
    """A memory of a chip: its capacity [B] and bandwidth [B/s]."""

    capacity: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class ListedEntry:
    """An entry as `catalog` lists it. memory: of chips only. parameters: of models only."""

    name: str
    title: str
    memory: Annotated[Mapping[str, ListedMemory] | None, OMIT_NONE] = None
    parameters: Annotated[int | None, OMIT_NONE] = None
