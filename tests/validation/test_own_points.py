"""A user's own table: five columns are enough, and a row that cannot be used says why."""

import json
from pathlib import Path

import pytest

from sim.cli.measuring import POINTS_HELP
from sim.hardware.engine import Engine
from sim.inputs.document import Document, read_value
from sim.inputs.errors import ScenarioError
from sim.validation.own_points import OWN_DEFAULTS, read_own_points
from sim.validation.points import OWN_COLUMNS
from sim.validation.simulate import serve_point
from sim.validation.validate import validate_file

ENGINE = """\
# An engine of these tests.
memory_efficiency: {16: 0.5, 8: 0.5}
compute_efficiency: {16: 0.6, 8: 0.6}
attention_memory_efficiency: 0.8
attention_compute_efficiency: 0.4
layer_overhead: 20us
step_overhead: 0.1 ms
sequence_overhead: 0 us
collective_latency: 10 us
collective_latency_per_chip: 0.4 us
collective_efficiency: 0.8
memory_fraction: 0.9
reserve: 2 GB
source: {layer_overhead: "fitted: elsewhere", collective_latency: "fitted: elsewhere"}
fit:
  bounds:
    collective_latency: [0 us, 30 us]
    layer_overhead: [0 us, 200 us]
    memory_efficiency.16: [0.3, 1]
    memory_efficiency.8: [0.3, 1]
"""
ROWS = """\
llama-3.2-1b,a100-80gb,1,1,{}
llama-2-7b,a100-80gb,1,1,{}
llama-2-7b,a100-80gb,1,2,{}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with an engine's file."""
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(ENGINE)
    return tmp_path


def table(*rows: str, header: str = ",".join(OWN_COLUMNS)) -> Path:
    Path("mine.csv").write_text("\n".join([header, *rows]) + "\n")
    return Path("mine.csv")


def measured(truth: dict[str, str]) -> Path:
    """Return a table of the times that the engine has with some numbers changed."""
    document = Document(Path("own.yaml"))
    for key, value in truth.items():
        document.set(f"{key}={value}")
    engine = document.value(Engine)
    points = read_own_points(table(*ROWS.format(1, 1, 1).splitlines()), engine).points
    times = [1000 * serve_point(point)["tpot"] for point in points]
    return table(*ROWS.format(*times).splitlines())


def test_a_column_that_is_there_twice_is_refused(folder):
    """One of its values would be ignored. Columns without a name do not matter."""
    head, row = ",".join(OWN_COLUMNS), "llama-3.1-8b,h100-sxm,1,1,7.5"
    with pytest.raises(ScenarioError, match=r"mine.csv:1: got column 'tpot_ms' 2 times; expected"):
        read_own_points(table(f"{row},8", header=f"{head},tpot_ms"))
    assert len(read_own_points(table(f"{row},,", header=f"{head},,")).points) == 1


def test_an_engine_is_fitted_to_a_users_points_as_far_as_they_identify_it(sramsim):
    """Three points on one chip: not the collectives, nor 8 bits, whatever the file said."""
    path = measured({"layer_overhead": "61 us", "memory_efficiency.16": "0.72"})
    status, out, err = sramsim("calibrate", "./own.yaml", "--points", str(path), "-o", "new.yaml")
    assert status == 0
    assert "own: 2 numbers fitted to 3 points of mine" in out
    assert out.count("not identified") == 2
    assert "collective_latency: not identifiable; stays 10 us\n" in err
    engine = read_value("new.yaml", Engine)
    assert engine.layer_overhead == pytest.approx(61e-6, rel=0.02)
    assert engine.memory_efficiency["16"] == pytest.approx(0.72, rel=0.02)
    assert engine.source["collective_latency"].startswith("assumed: 3 points of mine do not")
    assert engine.source["layer_overhead"].endswith("sramsim calibrate own --points mine.csv")
    again = table(
        *(f"{row},./new.yaml" for row in path.read_text().splitlines()[1:]),
        header=",".join([*OWN_COLUMNS, "engine"]),
    )
    rows = validate_file(again).rows
    assert {row.status for row in rows} == {"fitted"}
    assert max(abs(row.error) for row in rows) < 0.01


BAD = (
    "llama-3.2-1b,a100-80gb,1,1,2",
    "llama-3.2-9b,a100-80gb,1,1,2",
    "llama-3.2-1b,a100-80gb,1,many,2",
    "llama-3.2-1b,a100-80gb,1,1,",
    "llama-3.1-405b,a100-80gb,1,1,20",
)
REASONS = [
    "mine.csv:1: column 'color' is not used",
    "mine.csv:3: model: got 'llama-3.2-9b'; expected one of the catalogue's models; did you mean",
    "mine.csv:4: concurrency: got 'many'; expected a whole number above 0; row left out",
    "mine.csv:5: tpot_ms: got nothing, and no ttft_ms; expected one of them; row left out",
]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("model,chip,chips,concurency,tpot_ms", "try 'concurrency' in place of 'concurency'"),
        ("when,what", "got no column 'model'; expected at least model, chip, chips, concurrency"),
        (
            "model,hardware,prompt_size,batch_size,token_size,prompt_time,tokentime,"
            "tensor_parallel",
            "got no column 'token_time'; expected at least model, hardware, prompt_size",
        ),
    ],
)
def test_a_misspelt_header_gives_the_name_of_the_table_it_resembles(sramsim, header, message):
    path = table(",".join("1" for _ in header.split(",")), header=header)
    status, _, err = sramsim("validate", "--points", str(path))
    assert status == 2
    assert err.startswith("mine.csv:1: got no column")
    assert message in err
    assert err.count("\n") == 1


def test_a_misspelt_optional_column_gives_the_near_name(sramsim):
    path = table("llama-3.2-1b,a100-80gb,1,1,2,512", header=",".join([*OWN_COLUMNS, "promt"]))
    status, _, err = sramsim("validate", "--points", str(path))
    assert status == 0
    assert err == "mine.csv:1: column 'promt' is not used; did you mean 'prompt'?\n"


def test_rows_that_cannot_be_used_are_counted_and_say_why(sramsim):
    header = "\ufeff" + ",".join([*OWN_COLUMNS, "color"])
    path = table(*(f"{row},red" for row in BAD), header=header)
    status, out, err = sramsim("validate", "--points", str(path), "--json")
    (lines, last) = err.splitlines()[:-1], err.splitlines()[-1]
    assert (status, last) == (0, "3 of 5 rows left out")
    for line, reason in zip(lines, REASONS, strict=True):
        assert line.startswith(reason)
    points = {point["point_id"]: point for point in json.loads(out)["sets"]["mine"]["points"]}
    assert points["mine.csv:2"]["status"] == "tested"
    assert points["mine.csv:6"]["status"] == "not expressed"


def test_a_fit_leaves_out_rows_that_do_not_fit_the_chips_or_the_engine(sramsim):
    header = ",".join([*OWN_COLUMNS, "engine"])
    path = table(f"{BAD[4]},", f"{BAD[0]},vllm", header=header)
    status, out, err = sramsim("calibrate", "./own.yaml", "--points", str(path))
    assert (status, out) == (2, "")
    assert err == (
        "mine.csv: got no row that an engine can be fitted to; expected at least one; the first:"
        " mine.csv:3: engine: got 'vllm'; expected 'own', or nothing; row left out\n"
    )
    path = table(f"{BAD[4]},", header=header)
    assert "does not fit" in sramsim("calibrate", "./own.yaml", "--points", str(path))[2]


@pytest.mark.parametrize("rows", [(), BAD[1:]])
def test_a_table_without_a_usable_row_is_an_error(sramsim, rows):
    status, out, err = sramsim("validate", "--points", str(table(*rows)))
    assert (status, out) == (2, "")
    assert err.startswith("mine.csv: got no row that can be compared; expected at least one; ")
    assert err.count("\n") == 1


def test_columns_beyond_the_five_replace_their_defaults():
    plain, full = read_own_points(
        table(
            "llama-2-7b,h100-sxm,8,4,5,,,,,,,",
            "llama-2-7b,h100-sxm,8,4,5,40,1000,30,2,fp8,lab,run 7",
            header="model,chip,chips,concurrency,tpot_ms,ttft_ms,prompt,output,replicas,weights,"
            "host,id",
        )
    ).points
    assert (plain.prompt, plain.output, plain.system.engine.id) == (512, 128, "vllm")
    assert (plain.system.plan.tensor, plain.system.plan.weights) == (8, None)
    assert (full.id, full.prompt, full.output, full.host) == ("run 7", 1000, 30, "lab")
    assert full.measured == {"tpot": 0.005, "ttft": 0.04}
    assert (full.system.plan.tensor, full.system.plan.weights.value) == (4, "fp8")


def test_help_names_every_column_with_its_default():
    for column in (*OWN_COLUMNS, *OWN_DEFAULTS):
        assert column in POINTS_HELP
