"""Published figures, to hold simulated ones against: facts with sources, from the catalogue's measurements."""

from sim.files import Value, names, read
from sim.units import Count, TokensPerSecond


class Speed(Value):
    """What one user got, without speculative decoding; `chips` is left out where it was not published."""

    id: str
    model: str
    chip: str
    chips: Count | None = None
    engine: str
    weights: str
    speed: TokensPerSecond
    date: str
    source: str


class Speeds(Value):
    """A file of published speeds."""

    id: str
    note: str = ""
    points: tuple[Speed, ...]


def published(model: str, chip: str, chips: int) -> list[Speed]:
    """The published single-user speeds of a model on so many chips of a kind (or on a number that was not published)."""
    points = read(names("measurements")["single-user"], Speeds).points
    return [p for p in points if (p.model, p.chip) == (model, chip) and p.chips in (chips, None)]
