"""The look of each system: its label, and the same colour, line style and marker in all figures.

    system_looks(summary.identities)["lpu"].colour  # "#D55E00"

1. The scenario's `colour` wins.
2. Otherwise the maker of the chips decides: `MAKER_COLOURS`. A chip's name decides before its
   vendor. So every LPU has the colour of Groq's, also LP30 (`groq-lp30`), which NVIDIA sells.
3. A second kind of chip of the same maker is darker, a third one is lighter.
4. Fleets, and chips of other makers, are black and grey.
5. If all systems have the same maker, the first has the maker's colour. The others take the other
   colours of the palette in order.
6. Line style and marker follow the system's place in the scenario. They differ for eight systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D

from sim.results.labels import system_label
from sim.results.system_identity import Identity
from sim.scenario.system import COLOUR_CODES

MAKER_COLOURS = {
    "Groq": COLOUR_CODES["vermilion"],
    "NVIDIA": COLOUR_CODES["blue"],
    "Google": COLOUR_CODES["green"],
    "AMD": COLOUR_CODES["pink"],
    "Cerebras": COLOUR_CODES["orange"],
    "AWS": COLOUR_CODES["sky"],
}
OTHER_MAKERS = (COLOUR_CODES["black"], "#777777", "#aaaaaa")
# Colours of systems with one maker, after the maker's own. Those of LPUs and GPUs come last,
# because readers know them. Yellow is left out: it is too pale for a line on white.
ONE_MAKER = tuple(
    COLOUR_CODES[name] for name in ("pink", "orange", "sky", "green", "black", "blue", "vermilion")
)
SHADES = (0.0, -0.4, 0.4)  # of the kinds of chips of a maker: darker below 0, lighter above
LineStyle = str | tuple[float, tuple[float, ...]]
LINES: tuple[LineStyle, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.3)),
    (0, (7, 2, 1.5, 2)),
    (0, (11, 3)),
    (0, (7, 2, 1.5, 2, 1.5, 2)),
    (0, (2.5, 1.5)),
    (0, (3, 4)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


@dataclass(frozen=True)
class Look:
    """The label of a system or a line, and how figures draw it."""

    label: str
    colour: str
    dashes: LineStyle
    marker: str

    @property
    def stroke(self) -> dict[str, Any]:
        """The looks of a line without markers."""
        return {"color": self.colour, "ls": self.dashes}

    def entry(self, label: str = "") -> Line2D:
        """Return an entry of a key: the line with its marker."""
        label = label or self.label
        return Line2D([], [], marker=self.marker, ms=4.5, lw=1.8, label=label, **self.stroke)

    def line_entry(self) -> Line2D:
        """Return an entry of a key: the line without its marker."""
        return Line2D([], [], lw=1.8, label=self.label, **self.stroke)


@dataclass(frozen=True)
class Appearance:
    """The properties of a system that its look depends on.

    colour: of the scenario. vendor, chip: maker and kind of the chips; None for a fleet.
    """

    label: str
    colour: str | None = None
    vendor: str | None = None
    chip: str | None = None

    @property
    def maker(self) -> str | None:
        """The key in `MAKER_COLOURS`; None for a fleet, and for chips of other makers."""
        named = (self.chip or "").partition("-")[0].capitalize()
        return next((maker for maker in (named, self.vendor) if maker in MAKER_COLOURS), None)


def system_looks(identities: Mapping[str, Identity]) -> dict[str, Look]:
    """Return the look of each system of a scenario, by name."""
    return looks(
        {
            name: Appearance(
                system_label(name, identity),
                identity.colour,
                identity.plain.vendor if identity.plain else None,
                identity.plain.chip if identity.plain else None,
            )
            for name, identity in identities.items()
        }
    )


def looks(systems: Mapping[str, Appearance]) -> dict[str, Look]:
    """Return the look of each system, in the order of the scenario."""
    colours = system_colours(list(systems.values()))
    return {
        name: Look(system.label, colour, LINES[place % len(LINES)], MARKERS[place % len(MARKERS)])
        for place, ((name, system), colour) in enumerate(zip(systems.items(), colours, strict=True))
    }


def system_colours(systems: Sequence[Appearance]) -> list[str]:
    """Return the colour of each system by rules 1 to 5 of this module."""
    makers = [system.maker for system in systems]
    one_maker = len(set(makers)) == 1 and len(systems) > 1
    own = MAKER_COLOURS.get(makers[0] or "", OTHER_MAKERS[0]) if systems else ""
    palette = [own, *(colour for colour in ONE_MAKER if colour != own)]
    kinds: dict[str | None, list[str | None]] = {}  # chips of each maker, in order
    colours = []
    for place, (system, maker) in enumerate(zip(systems, makers, strict=True)):
        of_maker = kinds.setdefault(maker, [])
        if maker is None or system.chip not in of_maker:
            of_maker.append(system.chip)
        kind = len(of_maker) - 1 if maker is None else of_maker.index(system.chip)
        if one_maker:
            colour = palette[place % len(palette)]
        elif maker is None:
            colour = OTHER_MAKERS[kind % len(OTHER_MAKERS)]
        else:
            colour = shaded(MAKER_COLOURS[maker], SHADES[kind % len(SHADES)])
        colours.append(system.colour or colour)
    return colours


def shaded(colour: str, amount: float) -> str:
    """Return a colour mixed with black (amount below 0) or white (above 0); 1 is all of it."""
    other, part = (1.0 if amount > 0 else 0.0), abs(amount)
    red, green, blue = ((1 - part) * value + part * other for value in to_rgb(colour))
    return to_hex((red, green, blue))
