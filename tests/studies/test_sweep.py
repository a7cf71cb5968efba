"""A sweep computes each point once, in spite of interruptions, with the results of `run`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars
import pytest

import sim
from sim import UserError, read, run
from sim.cli.app import main
from sim.inputs.names import find_entry
from sim.results.encoding import decode_summary, encode_summary
from sim.scenario.scenario import open_document, scenario_from
from sim.studies import provenance, sweep_record, sweep_workers
from sim.studies import sweep_points as points_module
from sim.studies.sweep import SweepSummary, load_sweep, sweep
from sim.studies.sweep_points import SweepPoint, sweep_points

BASE = """\
# How does a small model run on a card, and on two?
model: llama-2-7b
seed: 0
workload: {kind: poisson, rate: 1 request/s, requests: 20, prompt: 64 token, output: 8 token}
systems:
  card:
    chip: h100-sxm
    chips: 1
    engine: ideal
    plan: {tensor: 1}
  two: {chip: h100-sxm, chips: 2, engine: ideal, plan: {tensor: 2}}
"""
GRID = "sweep: {workload.rate: [1 request/s, 2 request/s, 4 request/s], workload.prompt: [64 token, 128 token]}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(BASE + GRID)
    return tmp_path


def asked(text: str, name: str = "mine.yaml", *assignments: str) -> list[SweepPoint]:
    """The points of a file that holds the text."""
    Path(name).write_text(text)
    opened = open_document(name, list(assignments))
    return sweep_points(opened, scenario_from(opened))


def tables(folder: str | Path) -> list[bytes]:
    return [
        (Path(folder) / name).read_bytes() for name in ("table.parquet", "table.csv", "sweep.json")
    ]


# What the points are.


def test_a_grid_is_all_combinations_and_its_last_key_varies_first():
    rates, prompts = ("1 request/s", "2 request/s", "4 request/s"), ("64 token", "128 token")
    values = [tuple(each.values.values()) for each in asked(BASE + GRID)]
    assert values == [(rate, prompt) for rate in rates for prompt in prompts]
    assert len({each.digest for each in asked(BASE + GRID)}) == 6


def test_a_list_is_the_points_themselves():
    table = sweep(
        write("sweep: [{workload.rate: 2 request/s}, {seed: 7, systems.card.engine: vllm}]\n"),
        Path("out"),
        jobs=1,
    ).table
    assert list(table["workload.rate"]) == ["2 request/s"] * 2 + [None] * 2
    assert list(table["seed"]) == [None] * 2 + [7] * 2
    assert list(table["engine"]) == ["ideal", "ideal", "vllm", "ideal"]


def write(sweep_lines: str, base: str = BASE) -> str:
    Path("mine.yaml").write_text(base + sweep_lines)
    return "mine.yaml"


def test_a_row_has_the_results_of_a_run_of_that_point():
    table = sweep("mine.yaml", Path("out"), jobs=1).table
    assert list(table["system"]) == ["card", "two"] * 6
    assert list(table["point"]) == [number for number in range(6) for _ in range(2)]
    result = run(
        read("mine.yaml", ["workload.rate=4 request/s", "workload.prompt=64 token"])
    ).as_json()
    for name, row in zip(
        ("card", "two"), table.filter(polars.col("point") == 4).iter_rows(named=True), strict=True
    ):
        told = result["systems"][name]
        for key in ("chips", "verdict", "median_ttft_ms", "p99_tpot_ms", "output_throughput"):
            assert row[key] == told[key]
        assert row["lone_request.tpot_ms"] == told["lone_request"]["tpot_ms"]
        assert (row["plan.tensor"], row["rate"], row["error"]) == (told["plan"]["tensor"], 4.0, "")


def test_a_run_and_a_check_take_the_values_beside_the_sweep():
    with_sweep = run(read("mine.yaml")).as_json()
    Path("mine.yaml").write_text(BASE)
    assert run(read("mine.yaml")).as_json() == with_sweep


def test_the_bound_is_the_weights_over_the_bandwidth_of_the_chips_of_a_stage():
    """6.6e9 parameters at 2 bytes, less the embedding's table, over 3.35 TB/s a chip."""
    table = sweep("mine.yaml", Path("out"), jobs=1).table
    card, two = table["bound_tpot_ms"][:2]
    assert card == pytest.approx(1e3 * (6.738e9 - 32_000 * 4096) * 2 / 3.35e12, rel=1e-3)
    assert card == pytest.approx(2 * two)
    assert (table["lone_request.tpot_ms"] >= table["bound_tpot_ms"]).all()
    assert list(table["maximum_watts"][:2]) == [700.0, 1400.0]


# The name of a point.


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "workload.output=9 token",
        "systems.two.engine=vllm",
        "systems.card.max_waiting=9",
        "slo={ttft: 1 s}",
        "fidelity=chip",
    ],
)
def test_the_name_of_a_point_changes_with_any_input(assignment):
    assert not {each.digest for each in asked(BASE + GRID)} & {
        each.digest for each in asked(BASE + GRID, "mine.yaml", assignment)
    }


def test_the_name_of_a_point_changes_with_the_version_and_with_the_files_that_are_read(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("chip.yaml").write_bytes(find_entry("h100-sxm", "chips").read_bytes())
    Path("mine.py").write_text("def last(replicas, job):\n    return len(replicas) - 1\n")
    Path("trace.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,9,9\n")
    text = BASE.replace("    chip: h100-sxm\n", "    chip: chip.yaml\n    router: mine:last\n")
    text = (
        re.sub("workload: .*", "workload: {kind: trace, path: trace.csv}", text)
        + "sweep: {seed: [0, 1]}\n"
    )

    def name() -> str:
        return asked(text)[0].digest

    names = [name(), name()]
    for file, old, new in (
        ("chip.yaml", "700 W", "701 W"),
        ("mine.py", "- 1", "- 2"),
        ("trace.csv", "0,9,9", "0,9,8"),
    ):
        Path(file).write_text(Path(file).read_text().replace(old, new))
        names.append(name())
    monkeypatch.setattr(points_module, "__version__", "9.9")
    names.append(name())
    assert names[0] == names[1]
    assert len(set(names)) == 5


def test_the_name_of_a_point_changes_with_the_code_of_the_package(monkeypatch, tmp_path):
    """Every module counts, also if the version stays."""
    code = tmp_path / "package"
    (code / "below").mkdir(parents=True)
    (code / "a.py").write_text("x = 1\n")
    (code / "below" / "b.py").write_text("y = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", code)
    names = []
    for file, text in (
        ("a.py", "x = 1\n"),
        ("below/b.py", "y = 2\n"),
        ("below/c.py", ""),
        ("a.py", "x = 2\n"),
        ("a.py", "x = 1\n"),
    ):
        (code / file).write_text(text)
        provenance.package_digest.cache_clear()
        names.append(asked(BASE + GRID)[0].digest)
    monkeypatch.undo()
    provenance.package_digest.cache_clear()
    assert len(set(names[:4])) == 4
    assert names[4] == names[2]


def test_the_packages_own_modules_are_read_once_and_all_of_them(monkeypatch):
    reads, before = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), before(path))[1])
    provenance.package_digest.cache_clear()
    assert provenance.package_digest() == provenance.package_digest()
    package = Path(sim.__file__).parent
    assert sorted(reads) == sorted([*package.rglob("*.py"), *package.rglob("*/*.yaml")])


MODULE = """\
import importlib
import numpy as np
import helpers
from parts import most
from parts.deep import deeper as renamed

def last(replicas, job):
    from late import never
    importlib.import_module("named")
    return len(replicas) - 1
"""


def test_the_name_of_a_point_changes_with_every_file_that_a_users_module_imports(
    monkeypatch, folder
):
    """Direct, indirect, packaged and relative imports count, also in functions never called."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(folder))
    files = {
        "mine.py": MODULE,
        "helpers.py": "import further\n",
        "further.py": "",
        "late.py": "never = 1\n",
        "named.py": "",
        "parts/__init__.py": "from .one import most\n",
        "parts/one.py": "most = 1\n",
        "parts/deep.py": "from . import deeper\n",
        "parts/deeper.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    text = (
        BASE.replace("    engine: ideal\n", "    engine: ideal\n    router: mine:last\n", 1)
        + "sweep: {seed: [0, 1]}\n"
    )
    assert {
        path.relative_to(folder).as_posix() for path in provenance.users_files(folder / "mine.py")
    } == files.keys() - {"unused.py"}
    before = asked(text)[0].digest
    for name in files:
        Path(name).write_text(f"{files[name]}# changed\n")
        assert (asked(text)[0].digest == before) == (name == "unused.py"), name
        Path(name).write_text(files[name])
    assert asked(text)[0].digest == before
    for name in ("helpers", "further", "parts", "parts.one", "parts.deep", "parts.deeper"):
        del sys.modules[name]


ROUTERS = """\
from functools import partial
from sim.serving.policy import round_robin

def fixed(place):
    return lambda replicas, request: place

class Fixed:
    def __init__(self, place):
        self.place = place

    def __call__(self, replicas, request):
        return self.place

first, second = fixed(0), fixed(1)
third, fourth = partial(round_robin), partial(round_robin)
fifth, sixth = Fixed(0), Fixed(1)
"""


def test_functions_that_differ_only_in_their_name_are_points_of_their_own(folder):
    """A factory's functions, partial functions and objects with `__call__` share their code."""
    Path("routers.py").write_text(ROUTERS)
    names = ["first", "second", "third", "fourth", "fifth", "sixth"]
    routers = ", ".join(f"routers:{name}" for name in names)
    text = f"{BASE}sweep: {{systems.card.router: [{routers}]}}\n"
    before = {point.digest for point in asked(text)}
    assert len(before) == len(names)
    Path("routers.py").write_text(f"{ROUTERS}# changed\n")
    assert not before & {point.digest for point in asked(text)}


def test_a_point_that_other_code_made_is_computed_again(monkeypatch, computed):
    sweep("mine.yaml", Path("out"), jobs=1)
    sweep("mine.yaml", Path("out"), jobs=1)
    assert computed == [6]
    monkeypatch.setattr(points_module, "package_digest", lambda: "of other code")
    table = sweep("mine.yaml", Path("out"), jobs=1).table
    assert computed == [12]
    assert len(table) == 12


def test_a_worker_with_other_code_is_an_error(monkeypatch):
    before = sweep_workers.compute_record
    monkeypatch.setattr(
        sweep_workers, "compute_record", lambda document: replace(before(document), code="other")
    )
    with pytest.raises(
        UserError,
        match=rf"got a worker with sramsim {sim.__version__} with other code; .*; try to install",
    ):
        sweep("mine.yaml", Path("out"), jobs=1)
    assert not list(Path("out").glob("points/*"))


def test_the_name_of_a_point_does_not_change_with_the_order_of_keys():
    swapped = """\
systems:
  two: {plan: {tensor: 2}, engine: ideal, chips: 2, chip: h100-sxm}
  card: {plan: {tensor: 1}, chips: 1, chip: h100-sxm, engine: ideal}
workload: {output: 8 token, prompt: 64 token, requests: 20, kind: poisson, rate: 1 request/s}
model: llama-2-7b
sweep: {workload.prompt: [64 token, 128 token], workload.rate: [1 request/s, 2 request/s, 4 request/s]}
"""
    assert {each.digest for each in asked(BASE + GRID)} == {each.digest for each in asked(swapped)}


def test_the_order_of_a_fleets_members_is_an_input():
    """Its router deals requests out in that order."""
    names = [
        asked(f"{BASE}  both: {{fleet: {fleet}}}\n{GRID}")[0].digest
        for fleet in ("{card: 1, two: 1}", "{two: 1, card: 1}")
    ]
    assert names[0] != names[1]


# What is there is not computed again.


@pytest.fixture
def computed(monkeypatch):
    """How many points were computed, in a list of one number."""
    count, before = [0], sweep_workers.compute_record

    def counting(document):
        count[0] += 1
        return before(document)

    monkeypatch.setattr(sweep_workers, "compute_record", counting)
    return count


def test_only_missing_points_are_computed_and_the_table_is_the_same_bytes(computed):
    sweep("mine.yaml", Path("out"), jobs=1)
    first, files = tables("out"), sorted(Path("out/points").iterdir())
    assert computed == [len(files)] == [6]
    files[0].unlink()
    files[3].write_text("{half")
    for name in ("table.parquet", "table.csv", "sweep.json"):
        (Path("out") / name).unlink()
    sweep("mine.yaml", Path("out"), jobs=1)
    assert computed == [8]
    assert tables("out") == first
    sweep(write(GRID.replace("1 request/s,", "1 request/s, 3 request/s,")), Path("out"), jobs=1)
    assert computed == [10]


def test_points_alike_are_computed_once(computed):
    table = sweep(write("sweep: {seed: [3, 3, 3]}\n"), Path("out"), jobs=1).table
    assert computed == [1]
    assert len(table) == 6


LONG = BASE.replace("requests: 20,", "requests: 600,") + "sweep: {seed: [0, 1, 2, 3, 4, 5]}\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tables of LONG, computed by one process without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mine.yaml").write_text(LONG)
    sweep(folder / "mine.yaml", folder / "out", jobs=1)
    return tables(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_stopped_goes_on_where_it_was(sent, whole):
    """Its processes end with it; points that it finished are not touched again.

    Points of two processes give the same bytes as those of one.
    """
    Path("mine.yaml").write_text(LONG)
    words = [sys.executable, "-m", "sim", "sweep", "mine.yaml", "--jobs", "2", "--out", "out"]
    stopped = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(Path("out/points").glob("*.json")))
    workers = [
        int(line)
        for line in subprocess.check_output(
            ["ps", "-o", "pid=", "--ppid", str(stopped.pid)], text=True
        ).split()
    ]
    stopped.send_signal(sent)
    told = stopped.communicate(timeout=60)[1]  # processes that outlive it would hold the pipe
    done = {path: path.stat().st_mtime_ns for path in Path("out/points").glob("*.json")}
    assert 0 < len(done) < 6
    assert not Path("out/table.csv").exists()
    if sent == signal.SIGINT:
        assert stopped.returncode == 130
        assert (
            told
            == f"interrupted; out has {len(done)} of 6 points; the same command computes the rest\n"
        )
    assert workers
    wait_for(lambda: not any(alive(worker) for worker in workers))
    sweep("mine.yaml", Path("out"), jobs=1)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert tables("out") == whole


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    """Running; one that has ended and that nobody has asked after is not."""
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What goes wrong.


def test_a_system_that_does_not_fit_is_a_row_and_the_rest_goes_on():
    rows = "sweep: {systems.card.memory_fraction: [0.9, 0.1], workload.rate: [1 request/s, 2 request/s]}\n"
    table = sweep(write(rows), Path("out"), jobs=1).table
    wrong = table.filter(polars.col("error") != "")
    assert list(zip(wrong["point"], wrong["system"], strict=True)) == [(2, "card"), (3, "card")]
    assert all(
        "llama-2-7b on 1 h100-sxm does not fit" in error and "\n" not in error
        for error in wrong["error"]
    )
    assert wrong["median_tpot_ms"].is_null().all()
    assert table.filter(polars.col("error") == "")["median_tpot_ms"].is_not_null().all()
    assert sweep("mine.yaml", Path("out"), jobs=1).table.equals(table)


def test_a_point_that_cannot_be_read_is_a_row_with_its_line():
    table = sweep(
        write("sweep:\n  workload.rate:\n    - 1 request/s\n    - 2 request\n"), Path("out"), jobs=1
    ).table
    assert list(table["error"][:2]) == ["", ""]
    assert set(table["error"][2:]) == {
        "mine.yaml:15: workload.rate: got '2 request'; expected a quantity in request/s"
    }


def test_what_is_no_fault_of_the_scenario_is_a_row_and_is_tried_again(monkeypatch, computed):
    before = sweep_record.serve_system

    def failing(scenario, name, *rest):
        if name == "two":
            raise ZeroDivisionError("a bug\nof ours")
        return before(scenario, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(sweep_record, "serve_system", failing)
        table = sweep("mine.yaml", Path("out"), jobs=1).table
    assert list(table["error"]) == ["", "ZeroDivisionError: a bug of ours"] * 6
    assert not list(Path("out").glob("points/*.json"))
    assert set(sweep("mine.yaml", Path("out"), jobs=1).table["error"]) == {""}
    assert computed == [12]


WRONG = [
    (
        "",
        "mine.yaml: sweep: got none; expected keys with their values; try sweep: {workload.rate: "
        "[1 request/s, 2 request/s]}",
    ),
    (
        "sweep: {systems.card.plan.tensr: [1, 2]}",
        "mine.yaml:12: plan has no 'tensr'; did you mean 'tensor'?",
    ),
    (
        "sweep: {workload.rate: 2 request/s}",
        "mine.yaml:12: sweep: workload.rate: got '2 request/s'; expected a list of values; "
        "try [1, 2]",
    ),
    ("sweep: [2 request/s]", "mine.yaml:12: sweep: got no keys; expected a mapping of keys to"),
    ("sweep: []", "mine.yaml:12: sweep: got no keys; expected a mapping of keys to lists"),
    (
        "sweep: {workload..rate: [1]}",
        "mine.yaml:12: sweep: got 'workload..rate'; expected a key with dots; try workload.rate",
    ),
    (
        "sweep: {model.id.x: [1, 2]}",
        "mine.yaml:12: got a key below 'id', which is no mapping; expected none",
    ),
    (
        f"sweep: {{seed: {list(range(400))}, workload.requests: {list(range(1, 400))}}}",
        "mine.yaml:12: sweep: got 159,600 points; expected at most 100,000; try fewer values",
    ),
]


@pytest.mark.parametrize(("lines", "message"), WRONG)
def test_a_scenario_that_cannot_be_swept_is_one_line(monkeypatch, capsys, lines, message):
    write(lines)
    assert refusal(monkeypatch, capsys, "sweep", "mine.yaml", "--out", "out").startswith(message)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep mine.yaml", "Missing option '--out'"),
        (
            "sweep mine.yaml --out out --jobs 0",
            "--jobs: got 0; expected at least 1; try sramsim sweep -h",
        ),
        (
            "sweep mine.yaml --out out --jobs x",
            "--jobs: got x; expected a whole number; try sramsim sweep -h",
        ),
        ("sweep mine.yaml --out mine.yaml", "mine.yaml: cannot be written: File exists"),
        ("plot .", ".: got no result.json; expected the folder of a result of `sramsim run --out`"),
        ("plot broken", "broken: holds no finished sweep"),
    ],
)
def test_a_wrong_command_line_is_one_line(monkeypatch, capsys, words, message):
    Path("broken").mkdir()
    Path("broken/sweep.json").write_text("{")
    assert refusal(monkeypatch, capsys, *words.split()).startswith(message)


def refusal(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sramsim", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    return printed.err.rstrip("\n")


def test_a_sweep_prints_how_many_rows_have_an_error(monkeypatch, capsys):
    write("sweep: {workload.rate: [1 request/s, 2 request]}\n")
    monkeypatch.setattr(
        sys, "argv", ["sramsim", "sweep", "mine.yaml", "--out", "out", "--jobs", "1"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (0, "")
    assert "out: 2 points, 4 rows: sweep.json, table.csv, table.parquet" in printed.err
    assert (
        "out: 2 rows have an error; the first: mine.yaml:12: workload.rate: got '2 request'; expected a quantity in request/s"
        in printed.err
    )


def test_what_is_loaded_is_what_was_written():
    made, found = sweep("mine.yaml", Path("out"), jobs=1), load_sweep(Path("out"))
    assert found.table.equals(made.table)
    written = json.dumps(encode_summary(made.summary))
    assert found.summary == decode_summary(SweepSummary, json.loads(written))


# On a cluster.


def test_without_dask_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=re.escape("pip install 'sramsim[dask]'")):
        sweep("mine.yaml", Path("out"), cluster="tcp://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(whole):
    """With two workers, one is killed while it computes; the other one takes over its points."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    Path("mine.yaml").write_text(LONG)
    killed = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        nannies = list(cluster.workers.values())

        def progress(done: int, total: int) -> None:
            if done == 2 and not killed:
                killed.append(nannies[0].pid)
                os.kill(killed[0], signal.SIGKILL)

        sweep("mine.yaml", Path("there"), cluster=cluster.scheduler_address, progress=progress)
    assert killed
    assert tables("there") == whole


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with pytest.raises(UserError, match="cluster: got nowhere, where no scheduler answers"):
        sweep("mine.yaml", Path("out"), cluster="nowhere")
