"""The command line: results on stdout, and errors as one line on stderr with status 2."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.inputs.names import catalogue_folder
from sim.studies import run as result

MINE = """\
# Does a small model run on one card?
model: llama-2-7b
workload: {kind: poisson, rate: 1 request/s, requests: 3, prompt: 64 token, output: 8 token}
systems:
  card:
    chip: h100-sxm
    chips: 1
    engine: ideal
    plan: {tensor: 1}
"""


def written(folder):
    """The paths in a folder. Python itself may add bytecode."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder that holds mine.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path


@pytest.fixture
def refusal(sramsim, folder):
    """Return the one line on stderr of a command that must fail and write nothing."""

    def call(*words: str) -> str:
        before = written(folder)
        status, out, err = sramsim(*words)
        assert (status, out) == (2, "")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert written(folder) == before
        return err.rstrip("\n")

    return call


def raising(error: BaseException) -> Callable[..., None]:
    def instead(*_: object) -> None:
        raise error

    return instead


def mine(old: str, new: str) -> None:
    assert MINE.count(old) == 1
    Path("mine.yaml").write_text(MINE.replace(old, new))


# The command line itself.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "catalog chip",
            "catalog: got 'chip'; expected acceptance, chips, engines, kernels, models, families, "
            "clusters, measurements or scenarios; did you mean 'chips'?",
        ),
        (
            "catalog x",
            "catalog: got 'x'; expected acceptance, chips, engines, kernels, models, families, "
            "clusters, measurements or scenarios",
        ),
        (
            "show chips h100-sxm",
            "show: got 'chips'; expected chip, engine, kernels, model, cluster, acceptance, measurement or "
            "scenario; did you mean 'chip'?",
        ),
        (
            "show chip h100-smx",
            "got 'h100-smx'; expected one of the catalogue's chips; did you mean 'h100-sxm', 'h800-sxm', "
            "'h200-sxm'?",
        ),
        ("show chip nope.yaml", "nope.yaml: no such file"),
        (
            "show engine groq",
            "got 'groq'; expected one of the catalogue's engines; did you mean 'groq-compiler'?",
        ),
        ("show engine", "Missing argument 'NAME|FILE'; try sramsim show -h"),
        ("show chip ./", "./: is a directory; expected a file"),
        (
            "trace fleet --system by-room --program",
            "--system: got by-room, which is a fleet; expected one of its members; try --system "
            "lpus",
        ),
        (
            "plot . --set a=1",
            "--set: got a=1 with ., which is a result; expected a scenario; try sramsim run "
            "SCENARIO --set a=1",
        ),
        (
            "report . -o page.pdf",
            "--output: got page.pdf; expected a name that ends with .html; try report.html",
        ),
        (
            "report . -o .html",
            "--output: got .html; expected a name that ends with .html; try report.html",
        ),
        (
            "report nope",
            "nope: got no result.json; expected the folder of a result of `sramsim run --out`; "
            "try sramsim run SCENARIO --out FOLDER",
        ),
        (
            "compare .",
            "compare: got one folder, .; expected two or more, the first as the base; try "
            "sramsim compare . OTHER",
        ),
        (
            "compare . nope",
            ".: got no result.json; expected the folder of a result of `sramsim run --out`; "
            "try sramsim run SCENARIO --out FOLDER",
        ),
        (
            "show scenario flee",
            "got 'flee'; expected one of the catalogue's scenarios; did you mean 'fleet'?",
        ),
        (
            "new my --from flee",
            "got 'flee'; expected one of the catalogue's scenarios; did you mean 'fleet'?",
        ),
        ("new mine", "new: got mine.yaml, which exists; expected a new name; try another one"),
        ("new mine.yaml", "new: got mine.yaml, which exists; expected a new name; try another one"),
        ("new mine.yaml/x", "mine.yaml: cannot be written: File exists"),
        ("new ..", "new: got '..'; expected the name of a file; try new mine"),
        (f"new {'x' * 300}", ".: cannot be written: File name too long"),
    ],
)
def test_a_wrong_command_line_is_one_line(refusal, words, message):
    assert refusal(*words.split()) == message


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("nope", "No such command 'nope'"),
        ("rnu mine.yaml", "No such command 'rnu'"),
        ("--nope", "--nope"),
        ("run", "FILE"),
        ("check", "FILE"),
        ("show chip", "NAME"),
        ("run mine.yaml other.yaml", "other.yaml"),
        ("run mine.yaml --sed 1", "--sed"),
        ("run mine.yaml --seed", "--seed"),
        ("run mine.yaml --seed x", "--seed"),
        ("run mine.yaml --seed -1", "--seed"),
        ("run mine.yaml --json=3", "--json"),
        ("run mine.yaml --out", "--out"),
        ("run mine.yaml --set", "--set"),
        ("plan mine.yaml --tokens 0", "--tokens"),
        (
            "capacity mine.yaml --requests 99",
            "--requests: got 99; expected at least 100; try 100",
        ),
        ("capacity mine.yaml --attainment much", "--attainment"),
    ],
)
def test_an_error_of_typer_is_one_line(refusal, words, fragment):
    assert fragment in refusal(*words.split())


def test_no_command_prints_the_help(sramsim):
    status, out, err = sramsim()
    assert (status, err) == (0, "")
    assert "Usage" in out
    assert "catalog" in out


@pytest.mark.parametrize("words", ["-h", "run -h", "new --help"])
def test_help_is_short_or_long(sramsim, words):
    status, out, err = sramsim(*words.split())
    assert (status, err) == (0, "")
    assert "-h" in out
    assert ("Extend" in out) == (words == "-h")  # a panel of commands


def test_version(sramsim):
    assert sramsim("--version") == (0, f"sramsim {sim.__version__}\n", "")


def test_an_empty_name_or_one_of_two_lines_is_an_error(refusal):
    assert refusal("new", "") == "new: got ''; expected the name of a file; try new mine"
    assert refusal("new", "a\nb") == "new: got 'a\\nb'; expected the name of a file; try new mine"


# Scenarios.


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nope.yaml", "nope.yaml: no such file"),
        ("below/nope", "below/nope: no such file"),
        ("fleet.yaml", "fleet.yaml: no such file; did you mean 'fleet'?"),
        ("./", "./: is a directory; expected a file"),
        ("a\nb.yaml", "a b.yaml: no such file"),
        (
            "does-not-fi",
            "got 'does-not-fi'; expected one of the catalogue's scenarios; did you mean 'does-not-fit'?",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_a_scenario_that_is_not_there(refusal, command, file, message):
    assert refusal(command, file) == message


def test_a_name_too_long_for_a_file_is_not_there(refusal):
    assert refusal("check", "x" * 5000 + ".yaml").endswith("x.yaml: no such file")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("workload:", "worklaod:", "3: scenario has no 'worklaod'; did you mean 'workload'?"),
        ("tensor: 1", "tensr: 1", "9: plan has no 'tensr'; did you mean 'tensor'?"),
        (
            "rate: 1 request/s",
            "rate: 1",
            "3: workload.rate: got 1 without a unit; try '1 request/s'",
        ),
        (
            "kind: poisson",
            "kind: poison",
            "3: got 'poison'; expected a kind of workload; did you mean 'poisson'?",
        ),
        (
            "requests: 3",
            "requests: 1e12",
            "3: workload.requests: got 1000000000000.0; expected a whole number",
        ),
        (
            "prompt: 64 token",
            "prompt: 0 token",
            "3: workload.prompt: got '0 token'; expected at least 1",
        ),
        (
            "prompt: 64 token",
            "prompt: {uniform: [1 token]}",
            "3: workload.prompt.uniform: got a list of 1; expected 2 or more",
        ),
        (
            "output: 8 token",
            "output: {lognormal: {mean: 8 token, sigma: 99}}",
            "3: workload.output.lognormal.sigma: got 99; expected at most 10",
        ),
        (
            "model: llama-2-7b",
            "model: lama-2-7b",
            "2: got 'lama-2-7b'; expected one of the catalogue's models; did you mean 'llama-2-7b'",
        ),
        (
            "    chip: h100-sxm\n",
            "",
            "5: systems.card: got no chip; expected chip and chips, or a cluster; try chip",
        ),
        (
            "h100-sxm",
            "h100-smx",
            "6: got 'h100-smx'; expected one of the catalogue's chips; did you mean 'h100-sxm', ",
        ),
        (
            "engine: ideal",
            "engine: ideal\n    slots: 3",
            "9: system has no 'slots'; it has label, colour, chip, chips",
        ),
        (
            "tensor: 1",
            "weights: int3",
            "9: systems.card.plan.weights: got 'int3'; expected 'fp32', 'bf16', 'fp16'",
        ),
        (
            "tensor: 1",
            "tensor: 2",
            "9: systems.card.plan: got tensor 2 x pipeline 1 = 2 chips; expected 1; try chips: 2",
        ),
        (
            "chips: 1",
            "chips: 9",
            "5: systems.card: switch: got 9 chips; expected at most 8",
        ),
        (
            "h100-sxm",
            "rtx-3090\n    memory_fraction: 0.1",
            "5: systems.card: llama-2-7b on 1 rtx-3090 does not fit: ",
        ),
        (
            "engine: ideal",
            "engine: ideal\n    kv_tokens: 9e7 token",
            "9: systems.card.kv_tokens: got 90000000 token; expected at most ",
        ),
        ("chips: 1", "chips: 0", "7: systems.card.chips: got 0; expected at least 1"),
    ],
)
def test_an_error_in_a_scenario_names_file_and_line(refusal, old, new, message):
    mine(old, new)
    for command in ("check", "run"):
        assert refusal(command, "mine.yaml").startswith(f"mine.yaml:{message}")


@pytest.mark.parametrize("command", ["check", "plan", "run"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "tensor: 1",
            "replicas: 1000000000",
            "systems.card.plan.replicas: got 1,000,000,000 replicas; expected at most 10,000, ",
        ),
        (
            "chips: 1",
            "chips: 1000000000",
            "systems.card.chips: got 1,000,000,000; expected at most 1,000,000, ",
        ),
        (
            "tensor: 1",
            "slots: 1000000000",
            "systems.card.plan.slots: got 1,000,000,000 micro-batches; expected at most 100,000, ",
        ),
        (
            "    plan: {tensor: 1}",
            "  all: {fleet: {card: 1000000000}}",
            "systems.all: got 1,000,000,000 replicas; expected at most 10,000, ",
        ),
        (
            "engine: ideal",
            "engine: ideal\n    kv_tokens: 9e7 token",
            "systems.card.kv_tokens: got 90000000 token; expected at most ",
        ),
    ],
)
def test_numbers_beyond_what_can_be_are_refused_by_every_command(
    refusal, command, old, new, message
):
    """In little time and memory: nothing is listed before it is counted."""
    mine(old, new)
    assert message in refusal(command, "mine.yaml")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "systems.card.plan.tensor=x",
            "--set systems.card.plan.tensor: got 'x'; expected a whole number",
        ),
        (
            "systems.card.plan.tensr=2",
            "--set systems.card.plan.tensr: plan has no 'tensr'; did you mean 'tensor'?",
        ),
        (
            "systems.card.plan.tensor",
            "--set systems.card.plan.tensor: got no key and value; expected a.b.c=value",
        ),
        (
            "systems.card.plan.tensor=2",
            "--set systems.card.plan.tensor: systems.card.plan: got tensor 2 x pipeline 1 = "
            "2 chips; expected 1; try chips: 2",
        ),
        ("systems.card.chip=nope.yaml", "--set systems.card.chip: nope.yaml: no such file"),
        ("measure={}", "--set measure: got "),
        (
            "measure={warmup: 1 s, window: [1 s, 2 s]}",
            "--set measure: got ",
        ),
        (
            "measure.window=[2 s, 1 s]",
            "--set measure.window: measure: window: got 2 s to 1 s; expected a later end",
        ),
        ("measure.warmup=10", "--set measure.warmup: got 10 without a unit; try"),
        (
            "measure.warmup=1e9 s",
            "measure: got no request from 1e+09 s; expected one or more; try 5.30903 s, when",
        ),
        (
            "workload.rate=2",
            "--set workload.rate: got 2 without a unit; try '2 request/s'",
        ),
        ("model=xyz", "--set model: got 'xyz'; expected one of the catalogue's models; there are "),
    ],
)
def test_an_error_in_an_assignment_names_the_assignment(refusal, assignment, message):
    assert refusal("run", "mine.yaml", "--set", assignment).startswith(message)


def test_of_several_files_the_wrong_one_is_named(sramsim):
    status, out, err = sramsim("check", "mine.yaml", "does-not-fit")
    assert (status, out) == (2, "mine.yaml: ok (card on 1 chips)\n")
    assert "does-not-fit.yaml:6: systems.rtx3090: llama-2-70b on 1 rtx-3090 does not fit" in err
    assert len(err.splitlines()) == 1


# Files that a scenario names.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "3.35 TB/s",
            "3.35 TB",
            "chips/card.yaml:6: memory.hbm.bandwidth: got '3.35 TB'; expected a quantity in B/s",
        ),
        (
            "bandwidth: 3.35",
            "bandwith: 3.35",
            "chips/card.yaml:6: memory has no 'bandwith'; did you mean 'bandwidth'?",
        ),
        (
            "80 GiB",
            "-80 GiB",
            "chips/card.yaml:6: memory.hbm.capacity: got '-80 GiB'; expected at least 0",
        ),
        (
            "kind: roofline",
            "kind: roof",
            "chips/card.yaml:7: got 'roof'; expected a kind of compute; did you mean 'roofline'?",
        ),
        (
            "kind: roofline",
            "kind: cards:Card",
            "chips/card.yaml:7: 'cards:Card': cards cannot be imported: ValueError: one two",
        ),
        (
            "kind: switch",
            "kind: hexagon",
            "chips/card.yaml:9: got 'hexagon'; expected a kind of topology; choose from ",
        ),
        ("memory:", "memory: [", "chips/card.yaml:7: YAML: "),
    ],
)
@pytest.mark.parametrize("command", [("run", "mine.yaml"), ("show", "chip", "chips/card.yaml")])
def test_an_error_in_a_chip_names_the_chips_file_and_line(
    refusal, folder, command, old, new, message
):
    mine("h100-sxm", "chips/card.yaml")
    text = (catalogue_folder() / "chips" / "h100-sxm.yaml").read_text(encoding="utf-8")
    assert old in text
    (folder / "chips").mkdir()
    (folder / "chips" / "card.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    (folder / "chips" / "cards.py").write_text("raise ValueError('one\\ntwo')")
    assert refusal(*command).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"llama"', '"gpt2"', "5: model_type: got 'gpt2'; expected a family that `sramsim c"),
        (
            '"hidden_size": 4096',
            '"hidden_size": null',
            "6: hidden_size: got null; expected a whole number",
        ),
        (
            '"hidden_size": 4096',
            '"hidden_size": "4096"',
            "6: hidden_size: got '4096'; expected a whole number",
        ),
        (
            '"hidden_size": 4096',
            '"hidden_size": 4096, "hidden_size": 1',
            "6: got 'hidden_size' twice; expected it once; try deleting one",
        ),
        (
            '"num_hidden_layers": 32',
            '"num_hidden_layers": 1000000000',
            "8: num_hidden_layers: got 1000000000; expected at most 1000",
        ),
        (
            '"num_hidden_layers": 32',
            '"num_hidden_layers": 32, "layer_types": 3',
            "8: layer_types: got 3; expected a list",
        ),
        (
            '"hidden_size": 4096',
            '"state_size": 8',
            "6: state_size: got 8; expected none: state-space layers are not covered",
        ),
        ('"float16"\n}', '"float16"', "16: YAML: "),
    ],
)
@pytest.mark.parametrize("command", [("run", "mine.yaml"), ("show", "model", "config.json")])
def test_an_error_in_a_model_names_its_config_and_line(refusal, folder, command, old, new, message):
    mine("llama-2-7b", "config.json")
    text = (catalogue_folder() / "models" / "llama-2-7b.json").read_text(encoding="utf-8")
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new, 1), encoding="utf-8")
    assert refusal(*command).startswith(f"config.json:{message}")


# What is written, and when.


@pytest.mark.parametrize("out", ["mine.yaml", "mine.yaml/below", "x" * 300])
def test_an_out_that_cannot_be_written_is_an_error_before_the_simulation(refusal, monkeypatch, out):
    monkeypatch.setattr(result, "run", lambda *_: pytest.fail("it was simulated"))
    assert refusal("run", "mine.yaml", "--out", out).startswith(f"{out}: cannot be written: ")


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (KeyboardInterrupt(), (130, "", "interrupted; nothing was written\n")),
        (MemoryError("7 TiB"), (2, "", "not enough memory: 7 TiB\n")),
        (sim.PlanError("too big"), (2, "", "too big\n")),
    ],
)
def test_a_run_that_stops_leaves_nothing(sramsim, folder, monkeypatch, error, end):
    monkeypatch.setattr(result, "run", raising(error))
    before = written(folder)
    assert sramsim("run", "mine.yaml", "--out", "out/deep") == end
    assert written(folder) == before


def test_an_error_of_ours_keeps_its_traceback(sramsim, monkeypatch):
    monkeypatch.setattr(result, "run", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        sramsim("run", "mine.yaml")


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"systems": {}}', ""])
def test_a_folder_of_something_else_is_not_drawn(sramsim, refusal, folder, text):
    assert refusal("plot", ".").startswith(".: got no result.json; expected the folder of a result")
    assert sramsim("run", "mine.yaml", "--out", "out")[0] == 0
    (folder / "out" / "result.json").write_text(text)
    assert refusal("plot", "out").startswith("out: holds no result of `sramsim run --out`: ")


def test_results_go_to_stdout_and_what_was_written_to_stderr(sramsim, folder):
    status, out, err = sramsim("run", "mine.yaml", "--json", "--out", "out")
    assert status == 0
    assert list(json.loads(out)["systems"]) == ["card"]
    assert err == "out: requests.parquet, result.json\n"


def test_a_report_is_written_whole_or_not_at_all(sramsim, refusal, folder):
    assert sramsim("run", "mine.yaml", "--out", "out")[0] == 0
    assert sramsim("report", "out", "-o", "deep/page.html") == (0, "", "deep/page.html: written\n")
    assert (folder / "deep" / "page.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert (
        refusal("report", "out", "-o", "mine.yaml/page.html")
        == "mine.yaml: cannot be written: File exists"
    )
    (folder / "out" / "result.json").write_text("{}")
    assert refusal("report", "out", "-o", "page.html").startswith(
        "out: holds no result of `sramsim run --out`: "
    )


def test_runs_are_compared_as_a_table_and_as_json(sramsim):
    for out, rate in (("base", "1 request/s"), ("busy", "2 request/s")):
        assert sramsim("run", "mine.yaml", "--set", f"workload.rate={rate}", "--out", out)[0] == 0
    status, out, err = sramsim("compare", "base", "busy")
    assert (status, err) == (0, "")
    assert re.search(r"workload.rate +│ 1 request/s +│ 2 request/s", out)
    assert re.search(
        r"card: output_throughput +│ +[\d.]+ +│ +[\d.]+ +│ +\+[\d.]+ +│ +\+[\d.]+\n", out
    )
    assert "median_tpot_ms" not in out  # nobody waits: a token takes as long
    (run,) = json.loads(sramsim("compare", "base", "busy", "--json")[1])["runs"]
    assert run["inputs"] == {"workload.rate": ["1 request/s", "2 request/s"]}
    assert run["systems"]["card"]["output_throughput"]["change"] > 0
    status, out, _ = sramsim("compare", "base", "base")
    assert out.splitlines() == [
        "base against base: the same inputs.",
        "",
        "base against base: the same metrics.",
    ]


def test_names_are_no_markup_of_the_terminal(sramsim):
    status, out, _ = sramsim(
        "run",
        "mine.yaml",
        "--set",
        "systems={'[/b]one': {chip: h100-sxm, chips: 1, engine: ideal}}",
    )
    assert status == 0
    assert "[/b]one" in out


WITH_SLO = ("--set", "slo={ttft: 500 ms, tpot: 20 ms}")


def test_a_capacity_and_its_trials_are_printed(sramsim):
    """Two runs print equal bytes, and table and JSON agree."""
    words = ("capacity", "mine.yaml", "--requests", "100", *WITH_SLO)
    once, again, table = sramsim(*words, "--json"), sramsim(*words, "--json"), sramsim(*words)
    assert once == again
    status, out, err = once
    found = json.loads(out)
    card = found["systems"]["card"]
    assert status == 0
    assert (found["slo"], found["attainment"]) == ({"ttft_ms": 500.0, "tpot_ms": 20.0}, 0.9)
    assert card["max_goodput_rate"] > 0
    assert len(err.splitlines()) == card["trials"] - 1  # the lone requests are no trial of a load
    assert "highest goodput, request/s" in table[1]
    assert f"{100 * card['attainment']:.1f} %" in table[1]


@pytest.mark.parametrize("ttft", ["500 ms", "1 us"])  # with 1 us no load is tried
def test_the_trials_of_a_capacity_are_saved_and_drawn(sramsim, ttft):
    limits = f"slo={{ttft: {ttft}, tpot: 20 ms}}"
    words = ("capacity", "mine.yaml", "--requests", "100", "--set", limits)
    status, out, err = sramsim(*words, "--json", "--out", "cap")
    assert status == 0
    assert json.loads(Path("cap/capacity.json").read_text()) == json.loads(out)
    trials = Path("cap/trials.csv").read_text().splitlines()
    assert len(trials) - 1 == len(err.splitlines()) - 1  # a header, and the note of the files
    assert Path("cap/capacity.png").exists()


def test_the_figure_of_any_column_is_drawn_and_another_name_is_one_line(sramsim):
    grid = "sweep={workload.rate: [1 request/s, 2 request/s]}"
    assert sramsim("sweep", "mine.yaml", "--out", "swept", "--jobs", "1", "--set", grid)[0] == 0
    status, out, err = sramsim("plot", "swept", "--metric", "joules_per_token")
    assert (status, err) == (0, "swept: energy.joules_per_token as png, svg, pdf\n")
    assert Path("swept/energy.joules_per_token.png").exists()
    assert "STABLE" in out or "TOO SHORT" in out
    status, _, err = sramsim("plot", "swept", "--metric", "median_tpt_ms")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "did you mean 'median_tpot_ms'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "mine.yaml:2: slo: got none; expected a limit to meet; try slo: {ttft: 2 s, tpot: "
            "100 ms}",
        ),
        (
            ("--attainment", "0", *WITH_SLO),
            "--attainment: got 0; expected a share above 0 and at most 1; try 0.9",
        ),
        (
            (
                "--set",
                "workload={kind: listed, requests: [{arrival: 0 s, prompt: 8 token, output: 8 "
                "token}]}",
                *WITH_SLO,
            ),
            "--set workload: got listed; its requests are listed one by one; "
            "expected a rate of requests or users to vary; try poisson, gamma, trace, sessions or closed",
        ),
    ],
)
def test_a_scenario_without_a_capacity_is_one_line(refusal, words, message):
    assert refusal("capacity", "mine.yaml", *words) == message


def test_the_pointer_to_capacity_keeps_what_was_set(sramsim):
    chips = "systems.card.chips=1"
    _, out, _ = sramsim("run", "mine.yaml", "--all", *WITH_SLO, "--set", chips, "--seed", "7")
    words = shlex.split(out.partition("J and $ at capacity: sramsim ")[2])  # lines are cut
    assert words[:8] == ["capacity", "mine.yaml", *WITH_SLO, "--set", chips, "--set", "seed=7"]


def test_check_warns_of_the_members_of_a_fleet_too(sramsim):
    fleet = "systems.both={fleet: {card: 2}}"
    long = "workload.output=5000 token"
    status, _, err = sramsim("check", "mine.yaml", "--set", fleet, "--set", long)
    assert status == 0
    for name in ("card", "both.fleet.card"):
        assert f"mine.yaml: systems.{name}: warning: a mean request has 5064 tokens" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--format", "vllm", "--json"),
            "--format: got vllm with --json; expected one; try leaving --json out",
        ),
        (("--all", "--json"), "--all: got format json; expected text; try leaving --all out"),
    ],
)
def test_formats_that_contradict_each_other_are_one_line(refusal, words, message):
    assert refusal("run", "mine.yaml", *words) == message


def test_the_block_of_vllm_has_its_rows_and_widths(sramsim):
    """One block for each system; the numbers are those of --format json."""
    out = sramsim("run", "mine.yaml", "--format", "vllm", *WITH_SLO)[1]
    card = json.loads(sramsim("run", "mine.yaml", "--format", "json", *WITH_SLO)[1])["systems"]
    label, *lines = out.splitlines()
    assert label == "card"
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[1] == "Successful requests:                     3         "
    assert lines[3] == "Total input tokens:                      192       "
    assert lines[9] == "---------------Time to First Token----------------"
    values = dict(re.findall(r"^(.*):\s+([\d.]+) *$", out, re.MULTILINE))
    assert values["P99 TPOT (ms)"] == f"{card['card']['p99_tpot_ms']:.2f}"
    assert (
        values["Total Token throughput (tok/s)"] == f"{card['card']['total_token_throughput']:.2f}"
    )
    assert lines[-1] == 50 * "="


def test_an_overloaded_system_is_marked_beside_each_statistic(sramsim):
    """Numbers of the overloaded system have a star, with a line about its meaning."""
    load = "workload={kind: poisson, rate: 700 request/s, requests: 400, prompt: 64 token, output: 8 token}"
    two = "systems.two={chip: h100-sxm, chips: 8, engine: ideal, plan: {replicas: 8}}"
    status, out, _ = sramsim(
        *("run", "--all", "mine.yaml", "--set", load, "--set", two),
        *("--set", "systems.card.engine=vllm"),
    )
    assert status == 0
    lines = [line for line in out.splitlines() if "median / p99" in line or "95 % interval" in line]
    assert len(lines) == 7
    for line in lines:
        card, other = line.split("│")[1:]
        assert "*" in card
        assert "*" not in other
        assert "±" in other or "interval" not in line
    assert "* card is overloaded: " in out


def test_a_models_folder_is_as_good_as_its_config(sramsim, refusal, folder):
    (folder / "my-llama").mkdir()
    config = (catalogue_folder() / "models" / "llama-2-7b.json").read_text(encoding="utf-8")
    (folder / "my-llama" / "config.json").write_text(config.replace("32000", "64000"))
    for name in ("my-llama", "./my-llama", "my-llama/config.json"):
        Path("mine.yaml").write_text(MINE.replace("llama-2-7b", name))
        model = sim.read("mine.yaml").model
        assert (model.id, model.vocab_size) == ("my-llama", 64000)
    assert sramsim("show", "model", "my-llama")[1].startswith("my-llama: llama")
    Path("mine.yaml").write_text(MINE.replace("llama-2-7b", "meta-llama/Llama-9"))
    assert refusal("check", "mine.yaml") == (
        "mine.yaml:2: got 'meta-llama/Llama-9', which is no file; expected a catalogue name, or a"
        " config.json or its folder; for the Hugging Face Hub's meta-llama/Llama-9 try `hf download"
        " meta-llama/Llama-9 config.json --local-dir Llama-9`, and name Llama-9/config.json"
    )
    (folder / "empty").mkdir()
    assert refusal("show", "model", "./empty") == "./empty: is a directory; expected a file"


def test_a_new_scenario_begins_as_a_shipped_one(sramsim, refusal):
    status, text, _ = sramsim("show", "scenario", "straggler")
    assert status == 0
    assert sramsim("new", "mine2", "--from", "straggler")[0] == 0
    head, _, rest = Path("mine2.yaml").read_text().partition("\n")
    assert head == "# mine2, from straggler: change the question."
    assert rest == text
    assert sim.read("mine2.yaml").systems == sim.read("straggler").systems
    for name, beside in (("fleet", "by_length.py"), ("replay-vllm-rtx4090", "replay-vllm")):
        assert f"--from: got {name}, which reads {beside}" in refusal("new", "b", "--from", name)


def test_a_new_scenario_is_written_and_can_be_read(sramsim, folder):
    assert sramsim("new", "below/first") == (
        0,
        "below/first.yaml: written; try `sramsim run below/first.yaml`\n",
        "",
    )
    assert sramsim("check", "below/first.yaml") == (
        0,
        "below/first.yaml: ok (lpu on 64 chips, h100 on 1 chips)\n",
        "",
    )


@pytest.mark.parametrize(
    "kind",
    ["", "chips", "engines", "kernels", "models", "clusters", "measurements", "scenarios"],
)
def test_the_catalogue_is_listed(sramsim, kind):
    status, out, err = sramsim("catalog", *kind.split())
    assert (status, err) == (0, "")
    shown = {
        "": "h100-sxm",
        "chips": "h100-sxm",
        "engines": "ideal",
        "kernels": "sglang",
        "models": "llama-2-7b",
        "measurements": "single-user",
    }
    shown["clusters"] = "dgx-h100"
    assert shown.get(kind, "does-not-fit") in out


def test_chips_are_listed_with_capacity_and_bandwidth(sramsim):
    _, table, _ = sramsim("catalog", "chips")
    corsair = table[table.index("dmatrix-corsair") :].splitlines()[:2]
    assert [line.split("│")[1:4] for line in corsair] == [
        [" sram   ", "     2 GB ", "   150 TB/s "],
        [" lpddr  ", "   256 GB ", "   400 GB/s "],
    ]
    entries = {
        entry["name"]: entry for entry in json.loads(sramsim("catalog", "--json")[1])["chips"]
    }
    assert entries["h200-sxm"]["memory"] == {"hbm": {"capacity": 150.7e9, "bandwidth": 4.8e12}}


@pytest.mark.parametrize(
    "words",
    [
        "chip h100-sxm",
        "engine vllm",
        "model llama-2-7b",
        "cluster dgx-h100-x4",
        "measurement single-user",
    ],
)
def test_an_entry_is_shown_with_sources(sramsim, words):
    status, out, err = sramsim("show", *words.split())
    assert (status, err) == (0, "")
    assert "source" in out
    assert "no source given" not in out


def test_a_throttled_speed_is_marked_in_tables_and_json(sramsim):
    """GroqCloud served Llama-3.1-8B at a pace of 750 token/s."""
    words = ["run", "llama3-8b-lpu-vs-h100", "--set", "workload.requests=2"]
    out = sramsim(*words, "--all")[1]
    assert "751 (paced)" in out
    assert "(paced): the service throttled this speed; the hardware is at least as fast." in out
    (speed,) = json.loads(sramsim(*words, "--json")[1])["systems"]["lpu"]["published"]
    assert (speed["tokens_per_second"], speed["paced"]) == (751, True)
    assert "751 token/s (paced)" in sramsim("show", "measurement", "single-user")[1]


@pytest.mark.parametrize(
    ("scenario", "pools", "member"),
    [("pd-mooncake", "pools", "node"), ("pd-goodput", "apart", "apart.decode")],
)
def test_a_trace_of_pools_advises_a_system_with_chips(refusal, scenario, pools, member):
    line = refusal("trace", scenario, "--system", pools, "--figure", "t.png")
    assert line.endswith(f"try -o trace.json, or --system {member}")


TRACE = ["trace", "llama3-8b-lpu-vs-h100", "--set", "workload.prompt=20 token", "--tokens", "1"]


def test_a_trace_and_its_figure_are_written(sramsim, tmp_path):
    status, out, err = sramsim(*TRACE, "-o", "out/trace.json", "--figure", "out/gantt.svg")
    assert (status, out) == (0, "")
    assert "open it at https://ui.perfetto.dev" in err
    assert {path.name for path in Path("out").iterdir()} == {"trace.json", "gantt.svg"}
    assert len(json.loads(Path("out/trace.json").read_text())["traceEvents"]) > 1000


def test_a_program_is_printed(sramsim):
    status, out, _ = sramsim(*TRACE, "--program", "--chip", "9")
    assert status == 0
    assert "layer 4 attention" in out
    assert "chip 9 sends to 10 (" in out
    assert "one-shot" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "trace: got no output; expected -o, --figure or --program; try -o trace.json"),
        (
            ["--system", "tpu", "-o", "t.json"],
            "--system: got 'tpu'; expected lpu or h100; did you mean 'lpu'?",
        ),
        (
            ["--figure", "gantt.doc"],
            "--figure: got gantt.doc; expected a name that ends with .png, .svg or .pdf; try "
            "gantt.png",
        ),
        (
            ["--program", "-o", "t.json"],
            "--program: got -o or --figure too; expected none, because --program only prints; "
            "try without them",
        ),
        (
            ["--chip", "3", "-o", "t.json"],
            "--chip: got 3 without --program; try --program --chip 3",
        ),
        (
            ["--system", "h100", "-o", "t.json", "--tokens", "131070"],
            "trace: got 131091 tokens; expected at most 131072, the model's context; try fewer "
            "--tokens",
        ),
        (["--program", "--chip", "64"], "--chip: got 64; expected at most 63"),
        (["-o", "t.json", "--tokens", "100000"], "trace: got about "),
        (
            ["-o", "t.json", "--set", "systems.lpu.exceptions=[{chip: 1}]"],
            "systems.lpu.exceptions: expected fidelity chip for this key; try systems.lpu.fidelity",
        ),
        (
            ["-o", "t.json", "--set", "systems.lpu.chips=8"],
            "systems.lpu: llama-3.1-8b on 8 groq-lpu-v1 does not fit",
        ),
    ],
)
def test_a_trace_that_cannot_be_is_one_line(sramsim, words, reason):
    status, out, err = sramsim(*TRACE, *words)
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert not Path("t.json").exists()


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        (
            "{chip: 64, speed: 0.5}",
            "systems.lpu.exceptions.0.chip: got 64; expected at most 63, the last chip",
        ),
        ("{chip: 3, speed: 0}", "systems.lpu.exceptions.0.speed: got 0 for chip 3; expected more"),
        (
            "{chip: 3, like: h100-sxm}",
            "exceptions.0.like: got h100-sxm, without the memory 'sram' that the plan uses",
        ),
        (
            "{link: [3, 12], speed: 0}",
            "exceptions.0.link: got [3, 12]; expected a link of the dragonfly",
        ),
        ("{link: [3, switch], speed: 0}", "got [3, switch]; expected a link of the dragonfly"),
        ("{link: [foo, bar], speed: 0}", "got [foo, bar]; expected a chip at one end at least"),
        (
            "{link: [64, 65], speed: 0}",
            "exceptions.0.link: got 65; expected at most 63, the last chip",
        ),
        (
            "{chip: 3, speed: 0.5}, {chip: 3, speed: 0.6}",
            "exceptions.1.chip: got chip 3 again; expected one exception",
        ),
        ("{chip: 3, speed: 1.0e-300}", "speed: got 1e-300; expected 0, or 1e-6 to 1e6"),
        ("{speed: 0.5}", "got neither of chip and link; expected one"),
        ("{chip: 3, speed: 0.5}", "schedule: chip 3 is "),  # the engine's network is scheduled
    ],
)
def test_an_exception_that_cannot_be_is_one_line(sramsim, exception, reason):
    status, out, err = sramsim(
        "run", "llama3-8b-lpu-vs-h100", "--set", "fidelity=chip", "--set", "workload.requests=1",
        "--set", f"systems.lpu.exceptions=[{exception}]",
    )  # fmt: skip
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


# In a process of its own.


def process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return python("-m", "sim", *words, **options)


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    settings = {"LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": ""}
    options = {"capture_output": True, "text": True, "env": os.environ | settings} | options
    return subprocess.run([sys.executable, *words], **options)


SEVERAL = """\
import os, resource, sys
from sim.cli import main

def end(*words):
    sys.argv = ["sramsim", *(os.fsdecode(word.encode()) for word in words)]
    try:
        main()
    except SystemExit as ended:
        return ended.code
"""  # commands in one process, which imports the simulator once


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing_half_written(folder):
    """Before the first file, in it, and in the table of 400 requests.

    No file grows beyond so many bytes, as on a disk that is full.
    """
    mine("requests: 3", "requests: 400")
    Path("mine.yaml").write_text(Path("mine.yaml").read_text() + "sweep: {seed: [1]}\n")
    full = """
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for size, *words in ((0, "run"), (15000, "run"), (2000, "sweep", "--jobs", "1")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    assert end(*words, "mine.yaml", "--out", f"out{size}") == 2
"""
    ended = python("-c", SEVERAL + full)
    assert (ended.returncode, ended.stdout) == (0, "")
    reason = "cannot be written: File too large"
    assert ended.stderr.splitlines() == [
        f"{place}: {reason}" for place in ("out0", "out15000", "out2000/points")
    ]
    assert not [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "mine.yaml" and path.parent.name != "points"
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        "run mine.yaml",
        "--version",
        "check mine.yaml nope",
    ],
)
def test_a_stdout_that_is_full_is_one_line_and_status_2(words):
    with open("/dev/full", "w") as full:
        ended = process(*words.split(), capture_output=False, stdout=full, stderr=subprocess.PIPE)
    reason = (
        "got 'nope'; expected one of the catalogue's scenarios; "
        if "nope" in words
        else "stdout: No space left on device\n"
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(reason)
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("words", "status", "lost"),
    [
        ("run mine.yaml --json --out out", 0, "closed"),
        ("new ..", 2, "closed"),
        ("new ..", 2, "full"),
    ],
)
def test_what_cannot_be_said_on_stderr_is_no_reason_to_fail(words, status, lost):
    """And nothing that belongs there goes to stdout."""
    with open("/dev/full", "w") as full:
        options = {"stderr": full} if lost == "full" else {"preexec_fn": lambda: os.close(2)}
        ended = process(*words.split(), capture_output=False, stdout=subprocess.PIPE, **options)
    assert ended.returncode == status
    systems = list(json.loads(ended.stdout)["systems"]) if ended.stdout else []
    assert systems == ([] if status else ["card"])


RUN = 'assert end("run", "frühling.yaml", "--out", "größe") == 0\n'
MORE = """
assert end("compare", "größe", "größe") == 0
assert end("report", "größe", "--brief", "-o", "größe/page.html") == 0
"""
CHECK = 'sys.exit(end("check", "nirgendwo-dä.yaml"))\n'
ASCII = [
    ({"PYTHONIOENCODING": "ascii"}, RUN + CHECK),  # of stdout alone
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, RUN + MORE + CHECK),
]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "commands"), ASCII)
def test_names_in_other_scripts_are_question_marks_where_stdout_has_no_letters_for_them(
    folder, settings, commands
):
    """Folders with such names are written and read all the same."""
    Path("frühling.yaml").write_text(MINE.replace("  card:", "  kärtchen 卡:"), encoding="utf-8")
    (folder / "named.py").write_text(SEVERAL + commands, encoding="utf-8")
    ended = python("named.py", env=os.environ | settings)
    assert "k?rtchen ?" in ended.stdout
    assert ended.returncode == 2
    assert ended.stderr.endswith("no such file\n")
    assert "Traceback" not in ended.stderr
    saved = json.loads(Path("größe/result.json").read_text(encoding="utf-8"))
    assert saved["scenario"] == "frühling"


REPLAY = """arrived_at_s,input_tokens,output_tokens,first_token_s,last_token_s
0,10,5,0.1,0.5
2,20,5,2.3,2.7
3,30,3,3.2,3.4
"""


def test_measured_times_of_a_trace_are_shown_with_each_system(sramsim, folder):
    """Times to the first token of 100, 300 and 200 ms; to the last 500, 700 and 400 ms."""
    (folder / "replay.csv").write_text(REPLAY)
    mine(
        "{kind: poisson, rate: 1 request/s, requests: 3, prompt: 64 token, output: 8 token}",
        "{kind: trace, path: replay.csv}",
    )
    status, out, _ = sramsim("run", "mine.yaml", "--json")
    told = json.loads(out)
    assert status == 0
    measured = {
        "mean_ttft_ms": 200,
        "median_ttft_ms": 200,
        "mean_tpot_ms": 100,
        "mean_e2el_ms": 1600 / 3,
    }
    assert {key: told["measured"][key] for key in measured} == pytest.approx(measured)
    assert {key.rpartition("_")[0].rpartition("_")[2] for key in told["measured"]} == {
        "ttft",
        "tpot",
        "e2el",
    }
    status, out, _ = sramsim("run", "mine.yaml")
    (row,) = [line.split() for line in out.splitlines() if line.startswith("TTFT mean")]
    assert row[4] == "200"
    card = told["systems"]["card"]
    assert f"({100 * (card['mean_ttft_ms'] / 200 - 1):+.1f}" in row[-2]
    (row,) = [line.split() for line in out.splitlines() if line.startswith("E2E latency median")]
    assert f"({100 * (card['median_e2el_ms'] / 500 - 1):+.1f}" in row[-2]
    status, out, _ = sramsim("run", "mine.yaml", "--json", "--set", "workload.time_scale=2")
    assert "measured" not in json.loads(out)


# Money.


def test_the_estimate_is_printed_before_the_tokens(sramsim):
    status, out, _ = sramsim(
        "run", "--all", "jia-2024", "--set", "workload.requests=16", "--set", "workload.users=4"
    )
    assert status == 0
    assert [
        line.split("│")[5].strip()
        for line in out.splitlines()
        if re.match("(cap|op)ex|total", line)
    ] == [
        "38.13",
        "10.58",
        "32.80",
    ]
    assert "$ for a million output tokens" in out
    assert "J for an output token" in out


def test_what_cannot_serve_has_its_estimate_all_the_same(sramsim):
    status, out, err = sramsim(
        "run", "jia-2024", "--set", "systems.lpu.chips=305", "--set", "systems.lpu.plan.tensor=5"
    )
    assert status == 2
    assert "20.33" in out
    assert "5.64" in out
    assert err.count("\n") == 1
    assert "the fullest chip needs" in err


def test_power_and_prices_are_moved_too(sramsim):
    _, out, _ = sramsim("sensitivity", "mine.yaml", "--json")
    swings = {swing["key"]: swing for swing in json.loads(out)["systems"]["card"]["swings"]}
    assert (
        swings["chip.price"]["low"]["usd_per_mtok"] < swings["chip.price"]["high"]["usd_per_mtok"]
    )
    assert (
        swings["chip.power.idle"]["low"]["joules_per_token"]
        < swings["chip.power.idle"]["high"]["joules_per_token"]
    )
    assert swings["chip.price"]["low"]["tpot_ms"] == swings["chip.price"]["high"]["tpot_ms"]


# What a speed is, and what an estimate.

LABELS = """
model: llama-3.1-8b
workload: {kind: closed, users: 1, requests: 1, prompt: 16 token, output: 8 token}
systems:
  known: {chip: h100-sxm, chips: 1, engine: vllm, plan: {weights: bf16}}
  carried: {chip: a100-80gb, chips: 1, engine: vllm, plan: {weights: bf16}}
  light: {chip: b200-sxm, chips: 1, engine: ideal, plan: {weights: bf16}}
"""


def test_speeds_say_what_they_are_wherever_they_stand(sramsim, tmp_path):
    (tmp_path / "mine.yaml").write_text(LABELS, encoding="utf-8")
    file = str(tmp_path / "mine.yaml")
    for command, every in (("run", ["--all"]), ("plan", [])):
        systems = json.loads(sramsim(command, file, "--json")[1])["systems"]
        labels = {name: system["speed_label"] for name, system in systems.items()}
        assert labels == {
            "known": None,
            "carried": "extrapolated",
            "light": "speed of light, no engine known",
        }
        out = " ".join(sramsim(command, file, *every)[1].split())
        assert "its speeds are" in out
        assert "extrapolated" in out
    out = " ".join(sramsim("run", file)[1].split())
    assert "light (speed of light, no engine known) is fastest for a user" in out
    assert "carried: 1 x a100-80gb, vllm, bf16 weights, 1 x 1 x 1, extrapolated" in out


@pytest.mark.parametrize(
    ("engine", "weights", "shown"),
    [
        ("gpt-fast", "bf16", [62.5]),
        ("gpt-fast", "int8", []),  # of another width
        ("tensorrt-llm-0.5", "bf16", []),  # of another generation
        ("ideal", "bf16", []),
    ],
)
def test_a_published_speed_stands_beside_its_own_engine_and_precision(
    sramsim, engine, weights, shown
):
    plan = f"plan={{tensor: 8, weights: {weights}, activations: bf16, kv: bf16}}"
    changes = [
        f"--set=systems.h100x8.{change}" for change in ("chip=a100-80gb", f"engine={engine}", plan)
    ]
    told = json.loads(sramsim("plan", "llama2-70b-lpu-vs-h100", "--json", *changes)[1])["systems"][
        "h100x8"
    ]
    assert [point["tokens_per_second"] for point in told["published"]] == shown


GRID = """
model: {model_type: llama, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 4, num_attention_heads: 4,
  vocab_size: 500, max_position_embeddings: 512, torch_dtype: float16}
workload: {kind: closed, users: 1, requests: 1, prompt: 9 token, output: 5 token}
systems:
  stage:
    chip: &grid {memory: {sram: {capacity: 300 MB, bandwidth: 2 TB/s}}, compute: {kind: roofline, fp16: 5 TFLOP/s},
      topology: {kind: mesh, dims: [4, 3], link: {latency: 2 us, bandwidth: 2 GB/s}}}
    chips: CHIPS
    engine: ideal
    plan: {tensor: 4}
  chip: {chip: *grid, chips: CHIPS, engine: ideal, plan: {tensor: 4}, fidelity: chip}
"""


def test_a_grid_whose_rows_do_not_divide_the_group_agrees_or_says_that_it_does_not(
    sramsim, tmp_path
):
    """Groups of four on rows of three: the first is a chain, the second spans two rows."""
    file = tmp_path / "grid.yaml"
    file.write_text(GRID.replace("CHIPS", "4"), encoding="utf-8")
    systems = json.loads(sramsim("run", str(file), "--json")[1])["systems"]
    assert systems["chip"]["lone_request"]["tpot_ms"] == pytest.approx(
        systems["stage"]["lone_request"]["tpot_ms"]
    )
    assert systems["chip"]["median_tpot_ms"] == pytest.approx(
        systems["stage"]["median_tpot_ms"], rel=1e-9
    )
    assert systems["chip"]["median_ttft_ms"] == pytest.approx(
        systems["stage"]["median_ttft_ms"], rel=1e-9
    )
    assert systems["stage"]["contended"] is None
    file.write_text(GRID.replace("CHIPS", "8"), encoding="utf-8")
    said = "the messages of all-gather and all-reduce meet on the cables of a group: times by stage are estimates"
    systems = json.loads(sramsim("run", str(file), "--json")[1])["systems"]
    assert systems["stage"]["contended"].startswith(said)
    out = " ".join(sramsim("run", str(file))[1].split())
    assert f"stage: {said}" in out
    assert f"chip: {said}" not in out
    assert said in sramsim("check", str(file))[2]


def test_check_warns_of_requests_beyond_the_models_context(sramsim):
    """512 + 128 tokens and a prefix: 4,096 positions of Llama 2 hold one of 3,456 tokens, not one more."""
    for prefix, warned in ((3456, False), (3457, True)):
        status, _, printed = sramsim(
            "check", "llama2-70b-lpu-vs-h100", "--set", f"workload.shared_prefix={prefix} token"
        )
        assert status == 0
        assert ("longer requests are refused" in printed) == warned
