"""An entry of the catalogue as people read it: each number with its source.

>>> EntrySources("Groq LPU v1 (TSP)", (("power.typical", "185 W", "a data sheet"),)).note
''
"""

from dataclasses import dataclass

Fact = tuple[str, str, str]  # key, value as written, source


@dataclass(frozen=True)
class EntrySources:
    """An entry of the catalogue, with the source of each number. facts: key, value, source."""

    title: str
    facts: tuple[Fact, ...]
    note: str = ""
