"""Sweeps: a scenario at every point of a grid or a list.  One file for each finished point; what is there is not computed again.

A folder holds `points/HASH.json`, and at the end `sweep.json` (what was asked) and `table.parquet`, `table.csv` (what came out).
"""

import copy
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sim import __version__
from sim.hardware.chip import BYTES_OF
from sim.inputs.files import Document, ScenarioError, UserError, write_whole
from sim.planning.deployment import Deployment
from sim.results.saving import write_parquet
from sim.scenario.scenario import Member, Scenario, laid_out, of
from sim.scenario.scenario import document as opened
from sim.studies.design import search_plans
from sim.studies.provenance import package_digest, users_digest
from sim.studies.run import Result, served
from sim.units import Seconds

if TYPE_CHECKING:
    import polars

# Of a system's result: what is no single number, a fleet's parts, and what the values of a point say.
LEFT_OUT = ("members", "published", "network", "tried", "changed")


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """A scenario with values put in: `values` by dotted key, the name of its file, and what is wrong where it cannot be read."""

    values: dict[str, Any]
    document: Document
    digest: str
    error: str = ""


@dataclass(frozen=True, eq=False)
class Swept:
    """A finished sweep as figures and reports read it: what was asked (sweep.json), and a row for each point and system."""

    summary: dict[str, Any]
    table: "polars.DataFrame"


def sweep(
    file: Path | str,
    folder: Path,
    overrides: list[str] | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Swept:
    """Computes what `folder` lacks of a scenario's points, on this machine's processes or a Dask cluster, and writes the table.

    A point that cannot be read, or a system that does not fit, is a row with its error.  What goes wrong through no fault of the
    scenario is such a row too, but is not kept: the next call tries it again.

    Raises: ScenarioError where the scenario is wrong, or each of its points; UserError where it has no sweep.
    """
    document = opened(file, overrides)
    scenario = of(document)
    asked = sweep_points(document, scenario)
    where = {point.digest: folder / "points" / f"{point.digest}.json" for point in asked}
    found = {digest: record for digest, path in where.items() if (record := kept(path)) is not None}
    missing = {point.digest: point.document for point in asked if point.digest not in found}
    with write_whole(folder):
        pass  # a folder that cannot be written is told before the simulation, not after it
    progress(len(found), len(where))
    for digest, record in computing(missing, jobs or os.cpu_count() or 1, cluster):
        if (record["version"], record["code"]) != (__version__, package_digest()):
            code = " with other code" if record["version"] == __version__ else ""
            raise UserError(
                f"a worker runs sramsim {record['version']}{code}, and this is {__version__}; install the same on all"
            )
        if not record.pop("again"):
            with write_whole(folder / "points") as scratch:
                (scratch / f"{digest}.json").write_text(text_of(record), encoding="utf-8")
        found[digest] = record
        progress(len(found), len(where))
    keys = list(dict.fromkeys(key for point in asked for key in point.values))
    summary = {
        "scenario": scenario.id,
        "seed": scenario.seed,
        **scenario.origin,
        "grid": isinstance(scenario.sweep, Mapping),
        "keys": keys,
        "systems": list(scenario.systems),
        "points": [{"hash": point.digest, "values": point.values} for point in asked],
    }
    table = tabled(summary, [found[point.digest] for point in asked])
    with write_whole(folder) as scratch:
        (scratch / "sweep.json").write_text(text_of(summary), encoding="utf-8")
        write_parquet(table, scratch / "table.parquet")
        (scratch / "table.csv").write_bytes(table.write_csv().encode())
    return Swept(summary, table)


def load_sweep(folder: Path) -> Swept:
    """What `sweep` wrote.  Raises: UserError where the folder holds no finished sweep."""
    import polars

    try:
        summary = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        if not (
            isinstance(summary, dict)
            and {"scenario", "keys", "points", "systems"} <= summary.keys()
        ):
            raise ValueError("sweep.json is of another kind")
        table = polars.read_parquet((folder / "table.parquet").read_bytes())
        if not {"system", "error"} <= set(table.columns):
            raise ValueError("table.parquet is of another kind")
        return Swept(summary, table)
    except (OSError, ValueError, polars.exceptions.PolarsError) as error:
        raise UserError(
            f"{folder}: holds no finished sweep: {str(error).splitlines()[0]}"
        ) from None


def sweep_points(document: Document, scenario: Scenario) -> list[SweepPoint]:
    """The points of a scenario's sweep, in its order: of a grid the last key varies first.

    Raises: UserError where it has no sweep, ScenarioError where not one point can be read.
    """
    asked = scenario.sweep
    if asked is None:
        raise UserError(
            f"{document.shown}: has no sweep; add one, such as sweep: {{workload.rate: [1 request/s, 2 request/s]}}"
        )
    places: list[
        dict[str, tuple[str | int, ...]]
    ]  # by point: where the value of each key stands in the file
    if isinstance(asked, Mapping):
        ways = itertools.product(*(range(len(values)) for values in asked.values()))
        places = [
            {key: ("sweep", key, i) for key, i in zip(asked, way, strict=True)} for way in ways
        ]
    else:
        places = [{key: ("sweep", i, key) for key in values} for i, values in enumerate(asked)]
    found = [point(document, sources) for sources in places]
    if all(each.error for each in found):
        raise ScenarioError(found[0].error)
    return found


def point(document: Document, sources: Mapping[str, tuple[str | int, ...]]) -> SweepPoint:
    """The document with some values put in, that stand elsewhere in it; its digest covers inputs, version and code."""
    changed, values = copy.deepcopy(document), {}
    error = ""
    for key, source in sources.items():
        value: Any = document.data
        for step in source:
            value = value[step]
        values[key] = value
        try:
            changed.put(key, value, source)
        except ScenarioError as wrong:
            error = error or str(wrong)
    del changed.data["sweep"]
    try:
        inputs = canonical(of(changed)) if not error else None
    except ScenarioError as wrong:
        inputs, error = None, str(wrong)
    whole_input = json.dumps(
        [__version__, package_digest(), [changed.data, values] if inputs is None else inputs],
        sort_keys=True,
    )
    return SweepPoint(values, changed, hashlib.sha256(whole_input.encode()).hexdigest()[:32], error)


def canonical(value: object) -> Any:
    """Plain data that is equal where the inputs are, whatever the order in which a file names them.

    Mappings of names are kept in order, since there it can mean something (a chip's memories, the members of a fleet); the
    systems of a scenario are not.  Of a file that is read, and of code that is not ours, the content counts.
    """
    match value:
        case BaseModel():
            fields = {name: canonical(getattr(value, name)) for name in type(value).model_fields}
            if isinstance(value, Scenario):
                fields["systems"].sort()
            return [code(type(value)), fields]
        case Mapping():
            return [[key, canonical(each)] for key, each in value.items()]
        case tuple() | list():
            return [canonical(each) for each in value]
        case Path():
            return hashlib.sha256(value.read_bytes()).hexdigest()
        case None | bool() | int() | float() | str():
            return value
    return code(value)


def code(thing: Any) -> list[str]:
    """A class or a function by its name; where it is a user's, also the file that it stands in, and those that this imports."""
    module = sys.modules.get(thing.__module__)
    path = getattr(module, "__file__", None)
    users = path is not None and not thing.__module__.startswith("sim.")
    return [thing.__qualname__, users_digest(Path(path)) if path and users else ""]


def kept(path: Path) -> dict[str, Any] | None:
    """What a point's file holds; None where it is missing or no whole record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        record
        if isinstance(record, dict) and {"version", "error", "systems"} <= record.keys()
        else None
    )


def text_of(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def computing(
    missing: Mapping[str, Document], jobs: int, cluster: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record of each point, as they are finished."""
    jobs = min(jobs, len(missing))
    if cluster:
        return on_cluster(missing, cluster)
    return (
        on_processes(missing, jobs)
        if jobs > 1
        else ((digest, computed(each)) for digest, each in missing.items())
    )


def on_processes(
    missing: Mapping[str, Document], jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """On processes of this machine.  They end with this one, however it ends.

    Raises: UserError where one of them is killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_attend)
    try:
        futures = {pool.submit(computed, document): digest for digest, document in missing.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process was killed (out of memory?); the same command computes the rest, with fewer --jobs"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _attend() -> None:
    """In a process of the pool: Ctrl-C ends it silently, and it does not outlive who started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def on_cluster(
    missing: Mapping[str, Document], address: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """On the workers of a Dask scheduler, which gives the points of a worker that is lost to others.

    The workers need the same sramsim, and see files that the scenario names by path where they stand here.

    Raises: UserError where Dask is not installed, or nobody answers at the address.
    """
    try:
        import distributed
    except ImportError:
        raise UserError(
            "--dask: needs dask.distributed; install it with: pip install 'sramsim[dask]'"
        ) from None
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(f"--dask {address}: no scheduler answers: {error}") from None
    with client:
        futures = {
            client.submit(computed, document, pure=False): digest
            for digest, document in missing.items()
        }
        for future in distributed.as_completed(futures):
            yield futures[future], future.result()


def computed(document: Document) -> dict[str, Any]:
    """The record of one point: of each system its result, as `run --json` has it and flat, or its error.

    `again` where something went wrong that the scenario does not explain.
    """
    record: dict[str, Any] = {
        "version": __version__,
        "code": package_digest(),
        "error": "",
        "systems": {},
        "inputs": document.data,
        "again": False,
    }
    try:
        scenario = of(document)
        requests = scenario.workload.draw(scenario.seed)
    except Exception as error:
        record["error"], record["again"] = told(error), not isinstance(error, UserError)
        return record
    for name in scenario.systems:
        try:
            scenario = search_plans(scenario, systems=scenario.members(name))
            members = laid_out(scenario, name)
            result = Result(
                scenario, scenario.seed, {name: served(scenario, name, members, requests)}
            )
            record["systems"][name] = {
                "error": "",
                **flat(offered(scenario, members) | result.as_json()["systems"][name]),
            }
        except Exception as error:
            record["systems"][name] = {"error": told(error)}
            record["again"] = record["again"] or not isinstance(error, UserError)
    return record


def told(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).splitlines())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def flat(result: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Single numbers and texts, those of mappings as 'plan.tensor'."""
    found: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Mapping) and key not in LEFT_OUT:
            found |= flat(value, f"{above}{key}.")
        elif not isinstance(value, Mapping | list | tuple):
            found[above + key] = value
    return found


def offered(scenario: Scenario, members: Mapping[str, Member]) -> dict[str, Any]:
    """What a figure asks for beside a result: the load, what the chips draw, and the bound of a lone token's time."""
    powers = [(each.chips, each.deployment.layout.chip.power) for each in members.values()]
    watts = {}
    for kind in ("typical", "maximum"):
        drawn = [
            chips * getattr(power, kind)
            for chips, power in powers
            if getattr(power, kind, None) is not None
        ]
        watts[f"{kind}_watts"] = sum(drawn) if len(drawn) == len(powers) else None
    lone = next(iter(members.values())).deployment if len(members) == 1 else None
    return {
        "rate": getattr(scenario.workload, "rate", None),
        "users": getattr(scenario.workload, "users", None),
        **watts,
        "fill": lone and (lone.limits.fill or lone.limits.micro_batches),
        "bound_tpot_ms": lone and 1000 * single_stream(lone),
    }


def single_stream(deployment: Deployment) -> Seconds:
    """The least time of a token: its weights at the bandwidth that a multiply makes of a chip, times the chips of a stage.

    Stages work one after the other, so only the chips of one read at a time.  Left out: KV cache, computing, messages, overheads.
    """
    layout = deployment.layout
    plan, chip = layout.plan, layout.chip
    nbytes = sum(
        block.active * BYTES_OF[plan.precision(block)] for block in layout.model.blocks[1:]
    )
    return nbytes / (
        chip.weight_bandwidth(layout.weights_memory, plan.given("weights")) * plan.stage_size
    )


def tabled(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> "polars.DataFrame":
    """A row for each point and system: the point's number, its values, the system, its error, and what it did."""
    import polars

    rows = []
    for number, (asked, record) in enumerate(zip(summary["points"], records, strict=True)):
        for name in summary["systems"]:
            told = record["systems"].get(name) or {
                "error": record["error"] or f"this point has no system {name}"
            }
            values = {key: asked["values"].get(key) for key in summary["keys"]}
            rows.append({"point": number, **values, "system": name, **told})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return polars.DataFrame([column(key, [row.get(key) for row in rows]) for key in columns])


def column(name: str, values: Sequence[Any]) -> "polars.Series":
    """Whole numbers, numbers, truth values, or texts (of anything else its JSON)."""
    import polars

    kinds = {type(value) for value in values if value is not None}
    for dtype, allowed in (
        (polars.Boolean, {bool}),
        (polars.Int64, {int}),
        (polars.Float64, {int, float}),
    ):
        if kinds and kinds <= allowed:
            return polars.Series(name, values, dtype=dtype, strict=False)
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value) for value in values
    ]
    return polars.Series(
        name, [None if text is None else str(text) for text in texts], dtype=polars.String
    )
