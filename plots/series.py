"""The lines of a sweep's figure: the points of each system, by rising x."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import style
from plots.claims import BEHIND
from plots.looks import LINES, MARKERS, Appearance, Look, looks
from sim.inputs.key_paths import value_at
from sim.results.verdict import NOT_STEADY
from sim.scenario.pools import POOLS
from sim.studies.sweep import Swept
from sim.studies.sweep_table import swept_key

if TYPE_CHECKING:
    import polars


SHOWN_DEGREES = ("tensor", "pipeline", "replicas")


@dataclass(frozen=True, eq=False)
class Series:
    """A line: one system, and in a grid one combination of the keys that are not on the x axis.

    table: its rows of the sweep's table, by rising x. Left out: points with errors.
    """

    system: str
    look: Look
    table: "polars.DataFrame"

    @property
    def label(self) -> str:
        """The label of the system, with the values of the other keys of a grid."""
        return self.look.label

    @property
    def colour(self) -> str:
        """The colour of the system."""
        return self.look.colour

    def values(self, column: str) -> list[float]:
        """Return the values of a column, by rising x."""
        return list(self.table[column])

    def knows(self, column: str) -> bool:
        """Return whether the table has the column, with a value at every point of the line."""
        return column in self.table.columns and None not in self.values(column)

    @property
    def speeds(self) -> list[float]:
        """Output tokens per second of the median request: the speed of one user."""
        return [1000 / tpot for tpot in self.values("median_tpot_ms")]

    @property
    def overloaded(self) -> list[bool]:
        """Points whose verdict is OVERLOADED or REFUSED."""
        return list(self.table["verdict"].is_in(NOT_STEADY))

    @property
    def hollow(self) -> list[bool]:
        """Points that say little of the system: users wait for room, or the run is too short."""
        return [verdict != "STABLE" for verdict in self.table["verdict"]]

    @property
    def steady(self) -> list[bool]:
        """Points at which the system keeps up with the load."""
        return [verdict not in BEHIND for verdict in self.table["verdict"]]

    @property
    def chips(self) -> tuple[str, int]:
        """Kind and number of chips. A fleet has no kind of its own, so its name stands for it.

        Systems with equal chips differ by plan. The kind names the chips of an FFN pool or of a
        drafter, too: 'gb200 + 5856 groq-lpu-v1'.
        """
        first = self.table.row(0, named=True)
        kind = str(first["chip"] or self.system)
        for other in ("ffn", "drafter"):
            if number := first.get(f"{other}.chips"):
                kind += f" + {number:.0f} {first[f'{other}.chip']}"
        return kind, int(first["chips"])


def varies(swept: Swept, x: str) -> bool:
    """Return whether some system has points at more than one x."""
    return any(len(line.table[x].unique()) > 1 for line in series(swept, x))


def load(swept: Swept) -> str:
    """Return the column that raises the load: users, or the request rate."""
    return "users" if varies(swept, "users") else "rate"


def swept_looks(swept: Swept) -> dict[str, Look]:
    """Return the look of each system of a sweep, by name."""
    systems = {}
    for name in swept.summary.systems:
        own = swept.table.filter((swept.table["system"] == name) & (swept.table["error"] == ""))
        first = own.row(0, named=True) if len(own) else {}
        systems[name] = Appearance(
            first.get("label") or name,
            first.get("colour"),
            first.get("vendor"),
            first.get("chip"),
        )
    return looks(systems)


def series(swept: Swept, x: str) -> list[Series]:
    """Return the lines of a figure over a column of the table.

    In a grid each combination of the other keys is a line of its own. In a list each system is one
    line. If a system has several lines, line styles and markers follow the place of the line.
    Left out: rows without a value of x, and keys of other systems.
    """
    import polars

    table, groups = swept.table, []
    if x not in table.columns or "verdict" not in table.columns:
        return []
    looked = swept_looks(swept)
    for name in swept.summary.systems:
        own = table.filter(
            (polars.col("system") == name)
            & polars.col(x).is_not_null()
            & polars.col("completed").gt(0)
        )
        others = other_keys(swept, x, name)
        parts = own.partition_by(others, maintain_order=True) if others and len(own) else [own]
        for part in (part for part in parts if len(part)):
            varied = [f"{short_key(key)} {part[key][0]}" for key in others if len(parts) > 1]
            rows = part.unique(x, keep="first", maintain_order=True).sort(x)
            groups.append((name, varied, rows))
    several = len(groups) > len({name for name, _, _ in groups})
    return [
        Series(name, _line_look(looked[name], varied, place if several else None), rows)
        for place, (name, varied, rows) in enumerate(groups)
    ]


def other_keys(swept: Swept, x: str, system: str) -> list[str]:
    """Return the keys of a grid that change a system and are not on the x axis."""
    own_keys = {
        "workload",
        x,
        f"workload.{x}",
        f"systems.{system}",
        f"systems.{system}.{x}",
        f"systems.{system}.cluster",
    }
    keys = swept.summary.keys if swept.summary.grid else ()
    axis = swept_key(x)
    return [key for key in keys if key not in own_keys | {axis} and _matters(key, system)]


def short_key(key: str) -> str:
    """Return 'max_sequences' for 'systems.lpu.max_sequences'."""
    return key.rpartition(".")[2]


def _line_look(look: Look, varied: Sequence[str], place: int | None) -> Look:
    """Return the look of a line of a system. place: of the line, if a system has several."""
    label = ", ".join([look.label, *varied])
    if place is None:
        return replace(look, label=label)
    dashes, marker = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
    return replace(look, label=label, dashes=dashes, marker=marker)


def _matters(key: str, system: str) -> bool:
    """Return whether a key can change this system: it is not a key of another one.

    Left out: fleets. A key of a member changes them, but is a key of another system.
    """
    parts = key.split(".")
    return parts[0] != "systems" or parts[1] == system


def plot(
    axis: Axes,
    line: Series,
    x: Sequence[float],
    y: Sequence[float],
    hollow: Sequence[bool],
    width: float = 1.8,
) -> None:
    """Draw a line with a mark at each point, hollow where the point says little of the system."""
    axis.plot(x, y, lw=width, ls=line.look.dashes, color=line.colour)
    for filled in (True, False):
        at = [i for i, empty in enumerate(hollow) if empty is not filled]
        face = line.colour if filled else "white"
        axis.plot(
            [x[i] for i in at],
            [y[i] for i in at],
            ls="",
            marker=line.look.marker,
            ms=4.5,
            mfc=face,
            mec=line.colour,
            zorder=3,
        )


def key(lines: Sequence[Series]) -> list[Line2D]:
    """Return the entries of the key: one for each line."""
    return [line.look.entry() for line in lines]


def marked_key(lines: Sequence[Series]) -> list[Line2D]:
    """Return the entries of the key, with one for hollow marks if there are any."""
    has_hollow = any(True in line.hollow for line in lines)
    return [*key(lines), hollow()] if has_hollow else key(lines)


def hollow() -> Line2D:
    """Return the entry of the key for hollow marks."""
    return Line2D(
        [],
        [],
        color="#555555",
        ls="",
        marker="o",
        ms=4.5,
        mfc="white",
        label="hollow: users wait for room, or too short to tell",
    )


def sweep_footnote(figure: Figure, swept: Swept, *more: str) -> None:
    """Put under a figure what each system of a sweep is, at its first point without an error."""
    systems = []
    for name in swept.summary.systems:
        own = swept.table.filter((swept.table["system"] == name) & (swept.table["error"] == ""))
        if len(own):
            first = own.row(0, named=True)
            label = first.get("label") or name
            systems.append(style.FootnoteSystem(label, first["model"], _hardware(swept, name, own)))
    scenario = f"scenario {swept.summary.scenario}, seed {swept.summary.seed}"
    style.write_footnote(figure, scenario, systems, more)


def _hardware(swept: Swept, name: str, own: "polars.DataFrame") -> str:
    """Return '8 x h100-sxm, vllm, fp8 weights, plan 8 x 1 x 1', of a fleet '1 x lpu, 4 x h100x8'.

    With an FFN pool or a drafter on other chips, '16 x gb200 + 4 x gb200, vllm + ideal'.
    Left out: the plan, if it is not the same in all points; other numbers of chips of pools.
    """
    origin = swept.summary.origin
    fleet = value_at(origin.inputs, ("systems", name, "fleet")) if origin else None
    if fleet:
        return ", ".join(f"{copies} {member}" for member, copies in fleet.items())
    pools = [origin and value_at(origin.inputs, ("systems", name, pool)) for pool in POOLS]
    if any(pools):
        named = [pool if isinstance(pool, str) else "a system in place" for pool in pools]
        return f"{named[0]} for prompts, {named[1]} for decode"
    first = own.row(0, named=True)
    least, most = own["chips"].min(), own["chips"].max()
    chips = str(least) if least == most else f"{least!s} to {most!s}"
    parts = [part for part in ("ffn", "drafter") if first.get(f"{part}.chips")]
    if parts:
        own = first["chips"] - sum(first[f"{part}.chips"] for part in parts)
        kinds = [(own, first["chip"]), *((first[f"{p}.chips"], first[f"{p}.chip"]) for p in parts)]
        engines = (first["engine"], *(first[f"{part}.engine"] for part in parts))
        hardware = " + ".join(f"{number} x {chip}" for number, chip in kinds)
        return f"{hardware}, {' + '.join(engines)}"
    weights = f"{first['precision.weights']} weights"
    return f"{chips} x {first['chip']}, {first['engine']}, {weights}{_plan(own)}"


def _plan(own: "polars.DataFrame") -> str:
    """Return ', plan 8 x 72 x 1' (tensor x pipeline x replicas), or '' if points have several."""
    plans = own.select([f"plan.{key}" for key in SHOWN_DEGREES]).unique()
    if len(plans) != 1 or None in plans.row(0):
        return ""
    return f", plan {' x '.join(map(str, plans.row(0)))}"
