"""Sweeps: a scenario at every point of a grid or a list, in a folder that can be continued.

    sweep("users", over={"workload.users": [1, 2, 4]}).metrics  # a row for each point and system

The folder has a file for each finished point, `points/HASH.json`, which is not computed again.
At the end, `sweep.json` has the inputs; `table.parquet` and `table.csv` have the results.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from sim import __version__
from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.inputs.files import write_whole
from sim.inputs.key_paths import JsonValue
from sim.results.encoding import SPLICED, Key, decode_summary, encode_summary
from sim.results.frames import METRIC_COLUMNS, metric_frame
from sim.results.saving import one_line_for, write_parquet
from sim.results.summary import RunOrigin
from sim.scenario.assignments import assign, assign_all
from sim.scenario.scenario import scenario_from
from sim.scenario.sources import ScenarioSource, as_document, assignment_of, require_whole
from sim.studies.provenance import package_digest
from sim.studies.sweep_points import SweepPoint, sweep_points
from sim.studies.sweep_record import PointRecord
from sim.studies.sweep_table import sweep_table, swept_key
from sim.studies.sweep_workers import compute_points

if TYPE_CHECKING:
    import polars

SweepOver = Mapping[str, Sequence[object]] | Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class PointValues:
    """A point of a sweep: the name of its file, and its values by dotted key."""

    digest: Annotated[str, Key("hash")]
    values: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """The inputs of a sweep: the content of sweep.json.

    grid: whether all combinations of the values are points. keys: those that the sweep changes.
    systems: names. origin: None if it is not known.
    """

    scenario: str
    seed: int | None = None
    origin: Annotated[RunOrigin | None, SPLICED] = None
    grid: bool = False
    keys: tuple[str, ...]
    systems: tuple[str, ...]
    points: tuple[PointValues, ...]


@dataclass(frozen=True, eq=False)
class Swept:
    """A finished sweep, as figures and reports read it. table: a row for each point and system."""

    summary: SweepSummary
    table: "polars.DataFrame"

    def __repr__(self) -> str:
        """Return the scenario, the swept keys, and the numbers of points and errors."""
        failed = int((self.table["error"] != "").sum())
        keys = ", ".join(self.summary.keys)
        points = f"{len(self.summary.points)} points of {keys}"
        return f"<Swept {self.summary.scenario}: {points}; {failed} rows with an error>"

    @property
    def metrics(self) -> "polars.DataFrame":
        """The table with the columns of `METRIC_COLUMNS`, after the point and the swept keys.

        Frames of sweeps over equal keys concatenate, and others diagonally.
        """
        rows = self.table.to_dicts()
        keys = {"point", *self.summary.keys}
        kept = [c for c in self.table.columns if swept_key(c) in keys and c not in METRIC_COLUMNS]
        for row in rows:
            row.setdefault("seed", self.summary.seed)
            row["scenario"] = self.summary.scenario
        return metric_frame(rows, [self.table[column] for column in kept])


def sweep(
    scenario: ScenarioSource | Document,
    folder: Path | str | None = None,
    over: SweepOver | None = None,
    jobs: int | None = 1,
    cluster: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **changes: object,
) -> Swept:
    """Compute the missing points of a scenario's sweep, and write the table.

    scenario: a path, a name of the catalogue, a mapping, a scenario, or a document.
    folder: where finished points are kept; None keeps none.
    over: keys with their values, or a list of points; None takes the scenario's `sweep`.
    jobs: processes on this machine; None means one for each core. With several of them, a script
    begins its own work under `if __name__ == "__main__":`.
    cluster: address of a Dask scheduler, whose workers compute the points instead.
    changes: values by key, as in `sim.run`.
    A point that cannot be read, or a system that does not fit, is a row with its error.  Any other
    error is such a row too, but its record is not kept, so the next call tries it again.
    Raises: ScenarioError if the scenario is wrong, or every point; UserError if it has no sweep,
    the folder cannot be written, or a worker runs other code.
    """
    if jobs is not None:
        require_whole("jobs", jobs, 1)
    if folder is None:
        with TemporaryDirectory() as scratch:
            return sweep(scenario, scratch, over, jobs, cluster, progress, **changes)
    folder = Path(folder)
    document = scenario if isinstance(scenario, Document) else as_document(scenario)
    assignments = [assignment_of(key, value) for key, value in changes.items()]
    assign_all(document, assignments, in_python=True)
    if over is not None:
        assign(document, assignment_of("sweep", over), "argument over")
    return _sweep_document(document, folder, jobs, cluster, progress)


def _sweep_document(
    document: Document,
    folder: Path,
    jobs: int | None,
    cluster: str | None,
    progress: Callable[[int, int], None],
) -> Swept:
    """Compute the missing points of a document's sweep, and write the table."""
    scenario = scenario_from(document)
    points = sweep_points(document, scenario)
    paths = {point.digest: folder / "points" / f"{point.digest}.json" for point in points}
    records = {
        digest: record
        for digest, path in paths.items()
        if (record := _load_record(path)) is not None
    }
    missing = {point.digest: point.document for point in points if point.digest not in records}
    with write_whole(folder):
        pass  # before the simulation: a folder that cannot be written would lose it
    progress(len(records), len(paths))
    for digest, record in compute_points(missing, jobs or os.cpu_count() or 1, cluster):
        _check_worker(record)
        if not record.again:
            kept = replace(record, again=None)
            with write_whole(folder / "points") as scratch:
                (scratch / f"{digest}.json").write_text(_json_text(kept), encoding="utf-8")
        records[digest] = record
        progress(len(records), len(paths))
    summary = SweepSummary(
        scenario=scenario.id,
        seed=scenario.seed,
        origin=scenario.origin,
        grid=isinstance(scenario.sweep, Mapping),
        keys=tuple(_swept_keys(points)),
        systems=tuple(scenario.systems),
        points=tuple(PointValues(point.digest, point.values) for point in points),
    )
    table = sweep_table(
        summary.keys,
        summary.systems,
        [(point.values, records[point.digest]) for point in points],
    )
    with write_whole(folder) as scratch:
        (scratch / "sweep.json").write_text(_json_text(summary), encoding="utf-8")
        write_parquet(table, scratch / "table.parquet")
        (scratch / "table.csv").write_bytes(table.write_csv().encode())
    return Swept(summary, table)


def load_sweep(folder: Path) -> Swept:
    """Return a sweep that was written.  Raises: UserError if the folder has no finished one."""
    import polars

    with one_line_for(folder, "finished sweep", "sweep"):
        data = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        if not (
            isinstance(data, dict) and {"scenario", "keys", "points", "systems"} <= data.keys()
        ):
            raise ValueError("sweep.json is of another kind")
        summary = decode_summary(SweepSummary, data)
        table = polars.read_parquet((folder / "table.parquet").read_bytes())
        if not {"system", "error"} <= set(table.columns):
            raise ValueError("table.parquet is of another kind")
        return Swept(summary, table)


def _check_worker(record: PointRecord) -> None:
    """Check that the worker of a record runs this version and code.  Raises: UserError."""
    if (record.version, record.code) != (__version__, package_digest()):
        code = " with other code" if record.version == __version__ else ""
        raise UserError(
            f"sweep: got a worker with sramsim {record.version}{code}; expected {__version__},"
            " as here; try to install the same on all"
        )


def _swept_keys(points: Sequence[SweepPoint]) -> list[str]:
    """Return the keys that the sweep changes, in order of their first point."""
    return list(dict.fromkeys(key for point in points for key in point.values))


def _load_record(path: Path) -> PointRecord | None:
    """Return the record in a point's file; None if it is missing or not a whole record."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return decode_summary(PointRecord, data) if isinstance(data, dict) else None
    except (OSError, ValueError):
        return None


def _json_text(content: PointRecord | SweepSummary) -> str:
    """Return the text of a JSON file."""
    return json.dumps(encode_summary(content), indent=2, allow_nan=False) + "\n"
