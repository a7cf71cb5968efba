"""Comparisons of two runs: every key that differs, and no other."""

import pytest

from sim import read, run
from sim.inputs.errors import UserError
from sim.results.encoding import encode_summary
from sim.results.saving import save_result
from sim.results.summary import EntrySources, RunOrigin, RunSummary
from sim.studies.compare import SummaryChanges, compare_runs, compare_summaries

SOURCES = {"chip x": EntrySources(title="x", facts=(("memory.capacity", "1 GB", "a guess"),))}
INPUTS = {
    "model": "m",
    "seed": 0,
    "systems": {"a": {"chip": "x", "exceptions": [{"chip": 1}, {"chip": 2}]}},
}
SYSTEMS = {
    "a": {
        "verdict": "STABLE",
        "completed": 4,
        "median_tpot_ms": 2.0,
        "refused": 0,
        "lone_request": {"tpot_ms": 1.0},
    },
    "b": {"verdict": "STABLE", "completed": 4, "median_tpot_ms": None},
}


def summary(inputs=INPUTS, sources=SOURCES, version="1", **parts) -> RunSummary:
    """A run of two systems, as far as a comparison reads it."""
    origin = RunOrigin(version=version, inputs=inputs, sources=sources)
    return RunSummary(**{"scenario": "s", "seed": 0, "systems": SYSTEMS, "origin": origin} | parts)


def test_a_run_against_itself_has_no_changes():
    assert compare_summaries(summary(), summary()) == SummaryChanges(
        inputs={}, only_in_base=(), only_here=(), systems={"a": {}, "b": {}}
    )


def test_inputs_are_listed_by_dotted_key_with_version_and_seed():
    inputs = {
        "model": "m",
        "seed": 0,
        "slo": {"ttft": "1 s"},
        "systems": {"a": {"chip": "x", "exceptions": [{"chip": 1}]}},
    }
    assert compare_summaries(summary(), summary(inputs=inputs, version="2", seed=3)).inputs == {
        "version": ("1", "2"),
        "seed": (0, 3),
        "systems.a.exceptions.1.chip": (2, None),
        "slo.ttft": (None, "1 s"),
    }


def test_a_number_of_a_chip_of_both_that_changed_is_an_input_that_changed():
    other = EntrySources(title="x", facts=(("memory.capacity", "2 GB", "a data sheet"),))
    found = compare_summaries(summary(), summary(sources={"chip x": other, "chip y": other}))
    assert found.inputs == {"chip x: memory.capacity": ("1 GB", "2 GB")}


def test_metrics_change_by_so_much_and_by_so_many_percent():
    slower = SYSTEMS["a"] | {
        "median_tpot_ms": 1.5,
        "refused": 2,
        "verdict": "OVERLOADED",
        "lone_request": {"tpot_ms": 4.0},
    }
    changes = compare_summaries(
        summary(), summary(systems={"a": slower, "b": SYSTEMS["b"] | {"median_tpot_ms": 3.0}})
    )
    found = encode_summary(changes)["systems"]
    assert found["a"] == {
        "verdict": {"base": "STABLE", "is": "OVERLOADED", "change": None, "change_pct": None},
        "median_tpot_ms": {"base": 2.0, "is": 1.5, "change": -0.5, "change_pct": -25.0},
        "refused": {"base": 0, "is": 2, "change": 2, "change_pct": None},
        "lone_request.tpot_ms": {"base": 1.0, "is": 4.0, "change": 3.0, "change_pct": 300.0},
    }
    assert found["b"] == {
        "median_tpot_ms": {"base": None, "is": 3.0, "change": None, "change_pct": None}
    }


def test_a_system_of_one_run_only_is_named():
    found = compare_summaries(summary(), summary(systems={"a": SYSTEMS["a"], "c": SYSTEMS["b"]}))
    assert (found.only_in_base, found.only_here, list(found.systems)) == (("b",), ("c",), ["a"])


def test_folders_are_compared_with_the_first(tmp_path):
    for name, requests in (("base", 3), ("more", 4), ("most", 5)):
        (tmp_path / name).mkdir()
        save_result(
            run(read("llama3-8b-lpu-vs-h100", [f"workload.requests={requests}"])).saved(),
            tmp_path / name,
        )
    folders = [tmp_path / name for name in ("base", "more", "most")]
    found = encode_summary(compare_runs(folders))
    assert found["base"] == str(tmp_path / "base")
    assert [each["folder"] for each in found["runs"]] == [
        str(tmp_path / "more"),
        str(tmp_path / "most"),
    ]
    assert [each["inputs"] for each in found["runs"]] == [
        {"workload.requests": [3, 4]},
        {"workload.requests": [3, 5]},
    ]
    assert found["runs"][1]["systems"]["lpu"]["completed"] == {
        "base": 3,
        "is": 5,
        "change": 2,
        "change_pct": pytest.approx(200 / 3),
    }
    with pytest.raises(UserError, match=r"got no result\.json; expected the folder of a result of"):
        compare_runs([tmp_path / "base", tmp_path])
