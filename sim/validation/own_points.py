"""A user's measurements: a CSV file with five columns, and more where the defaults do not hold.

    model,chip,chips,concurrency,tpot_ms
    llama-3.1-8b,h100-sxm,1,16,9.4

`sramsim calibrate --points` fits an engine to them, `sramsim validate --points` compares them.
A row that cannot be used is left out with its reason, and the others count.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sim.catalogue.measurements import errors_at_row, read_csv_table
from sim.cost.plan import Plan, PlanError
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.errors import UserError, nearest_name
from sim.inputs.files import shorten
from sim.inputs.names import find_entry
from sim.inputs.values import Entry, Text
from sim.model.transformer import Model
from sim.scenario.system import System
from sim.validation.points import OWN_COLUMNS, MeasuredPoint, cell_number
from sim.validation.simulate import point_scenario, serve_point

# These have defaults: a column that is missing, or an empty cell, means the text below.
OWN_DEFAULTS = {
    "ttft_ms": "not measured",
    "prompt": "512 tokens",
    "output": "128 tokens",
    "engine": "vllm; in `calibrate` the engine that is fitted",
    "tensor": "all chips that the other degrees leave",
    "host": "client of the TTFT: the mean of the hosts in the engine's file",
    "id": "file and line",
}
# Keys of a plan that a column may have; their defaults are those of a scenario.
DEGREE_COLUMNS = ("tensor", "pipeline", "replicas", "attention_data", "expert")
PRECISION_COLUMNS = ("weights", "attention", "activations", "kv", "head")
PROMPT, OUTPUT, ENGINE = "512", "128", "vllm"
MOST_USERS = 10_000  # each sends 10 requests; more would take hours
UNNAMED_HOST = "unknown"  # no engine's file has it, so the mean of the others counts


@dataclass(frozen=True, slots=True)
class OwnPoints:
    """A user's points, and a line for each row that is left out, with the reason.

    unused: a line for each column without a meaning.
    """

    points: tuple[MeasuredPoint, ...]
    left_out: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The lines about what is not used, and the number of rows that are left out."""
        if not self.left_out:
            return self.unused
        rows = len(self.left_out) + len(self.points)
        return *self.unused, *self.left_out, f"{len(self.left_out)} of {rows} rows left out"


def is_own_table(path: Path) -> bool:
    """Return whether a table has the columns of a user's measurements."""
    return set(OWN_COLUMNS) <= set(read_csv_table(path)[0])


def read_own_points(path: Path, engine: Engine | None = None) -> OwnPoints:
    """Return the points of a user's table.

    engine: engine of all rows; rows that name another one are left out. None: each row's own.
    Raises: UserError if the table lacks a column, ScenarioError if a row has another number of
    cells.
    """
    header, rows = read_csv_table(path)
    if missing := [column for column in OWN_COLUMNS if column not in header]:
        raise UserError(
            f"{shorten(path)}:1: got no column {missing[0]}; expected at least"
            f" {', '.join(OWN_COLUMNS)}; try this header: {','.join(OWN_COLUMNS)}"
        )
    known = (*OWN_COLUMNS, *OWN_DEFAULTS, *DEGREE_COLUMNS, *PRECISION_COLUMNS)
    unused = tuple(
        f"{shorten(path)}:1: column {column!r} is not used"
        + (f"; did you mean {near}?" if (near := nearest_name(column, known)) else "")
        for column in header
        if column not in known
    )
    points, left_out = [], []
    for where, row in rows:
        try:
            with errors_at_row(where):
                points.append(_own_point(row, where, path, engine))
        except UserError as error:
            left_out.append(f"{error}; row left out")
    return OwnPoints(tuple(points), tuple(left_out), unused)


def usable_points(
    table: Path, engine: Engine, progress: Callable[[str], None]
) -> list[MeasuredPoint]:
    """Return the points of a user's table that an engine serves; report each of the others.

    Raises: UserError if no row is usable.
    """
    own = read_own_points(table, engine)
    points, left_out = [], list(own.left_out)
    for point in own.points:
        try:
            times = serve_point(point)
        except PlanError as error:
            left_out.append(f"{point.id}: {error}; row left out")
            continue
        if lacking := point.measured.keys() - times.keys():
            reason = f"an answer of {point.output} token has no {lacking.pop()}"
            left_out.append(f"{point.id}: {reason}; row left out")
        else:
            points.append(point)
    if not points:
        reason = left_out[0] if left_out else "the table has no rows"
        raise UserError(
            f"{shorten(table)}: got no row that an engine can be fitted to; expected at least one;"
            f" the first: {reason}"
        )
    for line in OwnPoints(tuple(points), tuple(left_out), own.unused).notes:
        progress(line)
    return points


def _own_point(
    row: Mapping[str, str], where: str, path: Path, engine: Engine | None
) -> MeasuredPoint:
    """Return the point of a row.  Raises: ValueError or UserError if it cannot be used."""
    cells = {key: cell.strip() for key, cell in row.items() if cell.strip()}
    if engine and cells.get("engine", engine.id) != engine.id:
        raise ValueError(f"engine: got {cells['engine']!r}; expected {engine.id!r}, or nothing")
    named = {"engine": ENGINE} | cells

    def entry(key: str, cls: type[Entry]) -> Entry:
        text = Text(named.get(key, ""), f"{where}: {key}", path.absolute().parent)
        return read_value(find_entry(text, f"{key}s"), cls)

    chips, users = (cell_number(row, key, int) for key in ("chips", "concurrency"))
    if users > MOST_USERS:
        raise ValueError(f"concurrency: got {users}; expected at most {MOST_USERS}")
    measured = {
        metric: cell_number(cells, f"{metric}_ms") / 1000
        for metric in ("tpot", "ttft")
        if f"{metric}_ms" in cells
    }
    if not measured:
        raise ValueError("tpot_ms: got nothing, and no ttft_ms; expected one of them")
    lengths = {"prompt": PROMPT, "output": OUTPUT} | cells
    prompt, output = (cell_number(lengths, key, int) for key in ("prompt", "output"))
    system = System.model_validate(
        {
            "model": entry("model", Model),
            "chip": entry("chip", Chip),
            "chips": chips,
            "engine": engine or entry("engine", Engine),
            "plan": _plan(cells, chips),
        }
    )
    about = {"table": "own", "file": path.name, "model": cells["model"], "chip": cells["chip"]}
    about |= {"engine": system.engine.id, "precision": cells.get("weights", "")}
    point = MeasuredPoint(
        cells.get("id", where),
        about,
        measured,
        "users" if users > 1 else "alone",
        users,
        prompt,
        output,
        system=system,
        host=cells.get("host", UNNAMED_HOST),
        group=where,
    )
    point_scenario(point, users)  # a length beyond all models is an error of this row
    return point


def _plan(cells: Mapping[str, str], chips: int) -> Plan:
    """Return the plan of a row; without `tensor`, a stage has all chips that are left."""
    degrees = {key: cell_number(cells, key, int) for key in DEGREE_COLUMNS if key in cells}
    others = math.prod(degrees.get(key, 1) for key in ("pipeline", "replicas", "attention_data"))
    if chips % others:
        raise ValueError(f"chips: got {chips}; expected a multiple of the degrees, {others}")
    precisions = {key: cells[key] for key in PRECISION_COLUMNS if key in cells}
    return Plan.model_validate({"tensor": chips // others} | degrees | precisions)
