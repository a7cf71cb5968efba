"""The lines of a sweep's figure: for each system its points along what is on the x axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import style
from sim.studies.sweep import Swept

if TYPE_CHECKING:
    import polars


DEGREES = ("tensor", "pipeline", "replicas")


@dataclass(frozen=True, eq=False)
class Series:
    """One line: a system, in a grid of several keys with the values of the others; its rows, without errors, by rising x."""

    system: str
    label: str
    table: "polars.DataFrame"
    colour: str
    dashes: str
    marker: str

    def values(self, column: str) -> list[float]:
        return list(self.table[column])

    def knows(self, column: str) -> bool:
        """Whether the table has the column, and a value in each of the line's points."""
        return column in self.table.columns and None not in self.values(column)

    @property
    def speeds(self) -> list[float]:
        """What one user gets: output tokens per second of the median request."""
        return [1000 / tpot for tpot in self.values("median_tpot_ms")]

    @property
    def overloaded(self) -> list[bool]:
        return list(self.table["verdict"].is_in(["OVERLOADED", "REFUSED"]))

    @property
    def hollow(self) -> list[bool]:
        """Points that say more of the run's length than of the system: overloaded, or too short to tell."""
        return list(self.table["verdict"].is_in(["OVERLOADED", "REFUSED", "TOO SHORT"]))

    @property
    def chips(self) -> tuple[str, int]:
        """Kind and number of chips; of a fleet, which has members instead, its name.  Systems that share them differ by plan."""
        return str(self.table["chip"][0] or self.system), int(self.table["chips"][0])


def varies(swept: Swept, x: str) -> bool:
    """Whether some system has points at more than one x."""
    return any(len(each.table[x].unique()) > 1 for each in series(swept, x))


def load(swept: Swept) -> str:
    """What makes the load rise: users, or the rate of requests."""
    return "users" if varies(swept, "users") else "rate"


def series(swept: Swept, x: str) -> list[Series]:
    """The lines of a figure over a column of the table, where that has numbers.

    In a grid each combination of the other keys is a line of its own, but for keys of other systems; a list is one line.
    """
    import polars

    table, found = swept.table, []
    if x not in table.columns or "verdict" not in table.columns:
        return []
    colours = style.colours(swept.summary["systems"])
    markers = style.markers(swept.summary["systems"])
    for name in swept.summary["systems"]:
        own = table.filter(
            (polars.col("system") == name)
            & polars.col(x).is_not_null()
            & polars.col("completed").gt(0)
        )
        own_keys = {
            "workload",
            f"workload.{x}",
            f"systems.{name}",
            f"systems.{name}.{x}",
            f"systems.{name}.cluster",
        }
        keys = swept.summary["keys"] if swept.summary["grid"] else []
        others = [key for key in keys if key not in own_keys and _matters(key, name)]
        groups = own.partition_by(others, maintain_order=True) if others and len(own) else [own]
        for place, group in enumerate(each for each in groups if len(each)):
            told = [
                f"{key.rpartition('.')[2]} {group[key][0]}" for key in others if len(groups) > 1
            ]
            line = group.unique(x, keep="first", maintain_order=True).sort(x)
            found.append(
                Series(
                    name,
                    ", ".join([name, *told]),
                    line,
                    colours[name],
                    style.LINES[place % len(style.LINES)],
                    markers[name],
                )
            )
    return found


def _matters(key: str, system: str) -> bool:
    """A key of another system changes nothing in this one (but in a fleet, whose members are other systems)."""
    parts = key.split(".")
    return parts[0] != "systems" or parts[1] == system


def plot(
    axis: Axes,
    each: Series,
    x: Sequence[float],
    y: Sequence[float],
    hollow: Sequence[bool],
    **looks: Any,
) -> None:
    """Draw a line with a mark at each point, hollow where the point says little of the system."""
    whole: dict[str, Any] = {"lw": 1.8, "ls": each.dashes, "color": each.colour} | looks
    axis.plot(x, y, **whole)
    for filled in (True, False):
        at = [i for i, empty in enumerate(hollow) if empty is not filled]
        face = each.colour if filled else "white"
        axis.plot(
            [x[i] for i in at],
            [y[i] for i in at],
            ls="",
            marker=each.marker,
            ms=4.5,
            mfc=face,
            mec=each.colour,
            zorder=3,
        )


def key(lines: Sequence[Series]) -> list[Line2D]:
    """For the legend."""
    return [
        Line2D(
            [],
            [],
            color=each.colour,
            ls=each.dashes,
            lw=1.8,
            marker=each.marker,
            ms=4.5,
            label=each.label,
        )
        for each in lines
    ]


def hollow() -> Line2D:
    """For the legend: what a hollow mark means."""
    return Line2D(
        [],
        [],
        color="#555555",
        ls="",
        marker="o",
        ms=4.5,
        mfc="white",
        label="hollow: overloaded, or too short to tell",
    )


def footnote(figure: Figure, swept: Swept, *more: str) -> None:
    """Put under a figure what each system of a sweep is, in its first point that worked."""
    systems = []
    for name in swept.summary["systems"]:
        own = swept.table.filter((swept.table["system"] == name) & (swept.table["error"] == ""))
        if len(own):
            first = own.row(0, named=True)
            systems.append(style.FootnoteSystem(name, first["model"], _hardware(swept, name, own)))
    scenario = f"scenario {swept.summary['scenario']}, seed {swept.summary['seed']}"
    style.write_footnote(figure, scenario, systems, more)


def _hardware(swept: Swept, name: str, own: "polars.DataFrame") -> str:
    """Return '8 x h100-sxm, vllm, fp8 weights, plan 8 x 1 x 1', of a fleet '1 lpu, 4 h100x8'.

    Left out: the plan, if it is not the same in all points.
    """
    fleet = swept.summary["inputs"]["systems"][name].get("fleet")
    if fleet:
        return ", ".join(f"{copies} {member}" for member, copies in fleet.items())
    first = own.row(0, named=True)
    least, most = own["chips"].min(), own["chips"].max()
    chips = str(least) if least == most else f"{least!s} to {most!s}"
    weights = f"{first['precision.weights']} weights"
    return f"{chips} x {first['chip']}, {first['engine']}, {weights}{_plan(own)}"


def _plan(own: "polars.DataFrame") -> str:
    """Return ', plan 8 x 72 x 1' (tensor x pipeline x replicas), or '' if points have several."""
    found = own.select([f"plan.{key}" for key in DEGREES]).unique()
    if len(found) != 1 or None in found.row(0):
        return ""
    return f", plan {' x '.join(map(str, found.row(0)))}"
