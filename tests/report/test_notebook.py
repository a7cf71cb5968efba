"""A result in a notebook: the comparison as a table, rows and metrics as frames; the example notebook runs."""

import ast
import json
from typing import Any

import polars
import pytest

from sim import read, run
from sim.inputs.names import catalogue_folder
from sim.report.answer import answer_sentence
from sim.report.findings import notes
from sim.results.rows import COLUMNS

NOTEBOOK = catalogue_folder() / "notebook.ipynb"


@pytest.fixture(scope="module")
def result():
    return run(read("llama3-8b-lpu-vs-h100", ["workload.requests=5"]))


def test_a_result_shows_itself_as_its_comparison(result):
    html = result._repr_html_()
    summary = result.summary
    assert html.startswith(f"<p>{result.scenario.question}</p><p>{answer_sentence(summary)}</p>")
    short, every = html.split("<details>")
    assert short.count("<table") == every.count("<table") == 1
    assert ">64 Groq LPUs</th>" in short
    assert "first token, median ms" in short
    assert "TPOT median / p99, ms" in html
    assert all(f"<p>{note}</p>" in html for note in notes(summary))


def test_names_are_escaped(result):
    name = "<script>alert(1)</script>"
    lpu, h100 = result.scenario.systems.values()
    systems = {name: lpu.model_copy(update={"label": None}), "h100": h100}
    html = run(result.scenario.model_copy(update={"systems": systems}))._repr_html_()
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") > 1  # as the column's head, and in what it comes to


def test_rows_are_a_frame_with_the_columns_of_the_file(result):
    assert isinstance(result.requests, polars.DataFrame)
    assert result.requests.columns == list(COLUMNS)
    assert result.requests.group_by("system", maintain_order=True).len().rows() == [
        ("lpu", 5),
        ("h100", 5),
    ]


def test_metrics_are_a_frame_with_a_row_for_each_system(result):
    assert result.metrics["system"].to_list() == ["lpu", "h100"]
    for name, system in result.systems.items():
        (row,) = result.metrics.filter(polars.col("system") == name).to_dicts()
        assert row["median_tpot_ms"] == system.metrics.tpot.median
        assert row["verdict"] == system.metrics.verdict


def test_systems_that_lack_a_metric_have_none_of_it():
    """A fleet has no fitted share, and stands before a system that has one."""
    scenario = read("fleet", ["workload.requests=5"])
    first = {
        name: scenario.systems[name]
        for name in sorted(scenario.systems, key=lambda name: name in ("lpus", "gpus"))
    }
    metrics = run(scenario.model_copy(update={"systems": first})).metrics
    assert metrics["fitted_share"].is_null().to_list() == [True, True, False, False]


def cells() -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_example_notebook_runs_and_shows_what_it_says(monkeypatch, tmp_path):
    """Each cell as Jupyter executes it: all of it, and the value of a last expression is what it shows."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = []
    for cell in cells():
        *statements, last = ast.parse(cell).body
        ends = isinstance(last, ast.Expr)
        exec(
            compile(ast.Module(statements if ends else [*statements, last], []), "cell", "exec"),
            names,
        )
        if ends:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    assert [type(each).__name__ for each in shown] == ["Result", "DataFrame", "DataFrame", "Figure"]


def test_the_example_notebook_is_kept_without_outputs():
    book = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
