"""The package from Python: scenarios from mappings, changed values, frames that concatenate, plug-ins."""

from pathlib import Path

import polars
import pytest

import sim
from sim.inputs.key_paths import replaced
from sim.results.frames import COUNT_COLUMNS, METRIC_COLUMNS, TEXT_COLUMNS
from sim.scenario.sources import yaml_text

CARD = {
    "chip": "h100-sxm",
    "chips": 1,
    "engine": "ideal",
    "plan": {"weights": "fp16", "activations": "fp16"},
}
SCENARIO = {
    "model": "llama-2-7b",
    "workload": {
        "kind": "poisson",
        "requests": 6,
        "rate": "2 request/s",
        "prompt": "64 token",
        "output": "4 token",
    },
    "slo": {"ttft": "2 s"},
    "systems": {"card": CARD},
}


@pytest.fixture(scope="module")
def result():
    return sim.run(SCENARIO)


@pytest.fixture(scope="module")
def swept():
    return sim.sweep(SCENARIO, over={"workload.rate": ["1 request/s", "2 request/s"]})


def test_a_mapping_is_run_as_a_file_with_the_same_content(result, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml_text(SCENARIO))
    of_file = sim.run(tmp_path / "mine.yaml")
    assert result.as_json() | {"scenario": "mine"} == of_file.as_json()


def test_changes_are_those_of_set(result):
    for changes in ({"workload__requests": 3}, {"workload.requests": 3}):
        changed = sim.run(SCENARIO, **changes)
        assert changed.systems["card"].metrics.completed == 3
        again = sim.run(result.scenario, **changes)
        assert again.as_json() == changed.as_json()
    assert result.scenario.workload.size == 6  # it is not changed


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            SCENARIO,
            {"workload__rate": 4},
            "argument workload__rate: got 4 without a unit; try '4 request/s'",
        ),
        (SCENARIO, {"workload__ratte": "1 request/s"}, "did you mean 'rate'"),
        (
            SCENARIO,
            {"seed": 1, "workload__rate": object()},
            "workload.rate: got a value of type ob",
        ),
        ({"model": "llama-2-7b"}, {}, "scenario in Python: workload: got nothing; expected"),
        ({**SCENARIO, "slo": {"ttft": "2 m"}}, {}, "scenario in Python: slo.ttft"),
        (None, {}, "scenario: got NoneType; expected a path, a name of the catalogue, a mapping"),
        (0, {}, "scenario: got int; expected"),
        (SCENARIO, {"seed": -1}, "seed: got -1; expected a whole number of at least 0; try 0"),
        (SCENARIO, {"seed": "1"}, "seed: got '1'; expected a whole number"),
        (SCENARIO, {"seed": True}, "seed: got True; expected a whole number"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(source, changes, message):
    with pytest.raises(sim.UserError, match=message) as raised:
        sim.run(source, **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (sim.capacity, {"attainment": 90}, "attainment: got 90; expected a share"),
        (sim.capacity, {"requests": 0}, "requests: got 0; expected a whole number"),
        (sim.capacity, {"workload__rate": 4}, "argument workload__rate: got 4 without"),
        (sim.sweep, {"jobs": 0}, "jobs: got 0; expected a whole number"),
        (sim.sweep, {"workload__rate": 4}, "argument workload__rate: got 4 without"),
        (sim.sweep, {"systems__kart__chips": 2}, "argument systems__kart__chips: got system"),
        (sim.sweep, {"over": {"workload.rate": [4]}}, "argument over: workload.rate: got 4"),
        (sim.sweep, {"over": {"rate": [4]}}, "argument over: scenario has no 'rate'"),
        (
            sim.capacity,
            {"systems__card__outages": [{"at": "1 s", "lasts": "1 s"}]},
            "argument systems__card__outages: systems.card: got outages",
        ),
    ],
)
def test_errors_name_arguments_and_no_options(function, arguments, message):
    with pytest.raises(sim.UserError) as raised:
        function(SCENARIO, **arguments)
    assert str(raised.value).startswith(message)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize("source", [SCENARIO, None, 0])
def test_what_is_no_file_is_refused_by_its_type(source):
    expected = f"path: got {type(source).__name__}; expected a path or a name of the catalogue"
    with pytest.raises(sim.UserError, match=expected):
        sim.read(source)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "llama-2-7c"),
        ("slo", "llama2-7b"),
        ("workload.kind", "poison"),
        ("systems.card.chip", "h100-sxn"),
        ("systems.card.chip", {"like": "h100-sxn"}),
        ("systems.card.engine", "ideel"),
        ("systems.card.plan.weight", "fp16"),
        ("systems.card.drafts", 3),
    ],
)
def test_a_wrong_name_in_a_mapping_is_refused_with_its_key(key, value):
    with pytest.raises(sim.UserError) as raised:
        sim.run(replaced(SCENARIO, key.split("."), value))
    assert str(raised.value).startswith(f"scenario in Python: {key}")


def test_numbers_that_a_function_takes_are_checked():
    with pytest.raises(sim.UserError, match="requests: got 0; expected a whole number of at le"):
        sim.capacity(SCENARIO, requests=0)
    with pytest.raises(sim.UserError, match="jobs: got 0; expected a whole number of at least 1"):
        sim.sweep(SCENARIO, over={"workload.rate": ["1 request/s"]}, jobs=0)
    with pytest.raises(sim.UserError, match="systems: got 'cart'; expected card; did you mean 'c"):
        sim.search_plans(SCENARIO, systems=["cart"])


def test_a_scenario_that_was_set_in_code_is_not_changed_silently(result):
    other = result.scenario.model_copy(update={"seed": 5})
    assert sim.run(other).seed == 5
    with pytest.raises(sim.UserError, match="got values set in code"):
        sim.run(other, workload__requests=3)


def test_frames_have_fixed_columns_and_concatenate(result, swept):
    others = sim.run("llama3-8b-lpu-vs-h100", workload__requests=3)
    both = polars.concat([result.metrics, others.metrics])
    assert both.columns == list(METRIC_COLUMNS)
    assert both["system"].to_list() == ["card", "lpu", "h100"]
    for column, dtype in both.schema.items():
        wanted = polars.Int64 if column in COUNT_COLUMNS else polars.Float64
        assert dtype == (polars.String if column in TEXT_COLUMNS else wanted), column
    for column in ("energy.joules_per_token", "economics.usd_per_mtok", "rate"):
        assert both[column].null_count() == 0
    assert swept.metrics.columns[3:] == both.columns
    assert polars.concat([swept.metrics, both], how="diagonal")["scenario"].to_list() == [
        *["scenario"] * 3,
        *["llama3-8b-lpu-vs-h100"] * 2,
    ]


def test_a_sweep_has_texts_and_numbers_in_si_units_and_the_metrics_of_runs(result, swept):
    frame = swept.metrics
    assert frame["workload.rate"].to_list() == ["1 request/s", "2 request/s"]
    assert frame["workload.rate [request/s]"].to_list() == frame["rate"].to_list() == [1.0, 2.0]
    at_two = frame.filter(frame["rate"] == 2).select(list(METRIC_COLUMNS))
    assert at_two.equals(result.metrics)


def test_a_plan_and_a_capacity_take_the_same_sources(result):
    planned = sim.plan(SCENARIO, systems__card__chips=2, systems__card__plan__tensor=2)
    assert planned.deployments["card"].chips == 2
    capacity = sim.capacity(SCENARIO, requests=200, workload__output="2 token")
    row = capacity.table.to_dicts()[0]
    assert row["max_goodput_rate"] == capacity.systems["card"].best.goodput
    assert row["energy.joules_per_token"] > 0
    assert row["economics.usd_per_mtok"] > 0


@pytest.mark.parametrize("name", ["run", "plan", "check", "capacity", "search_plans", "sweep"])
def test_a_function_takes_every_source(name, tmp_path, monkeypatch):
    """A path, a mapping, a scenario or a name, with equal changes: all fail at the changed key."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml_text(SCENARIO))
    sources = Path("mine.yaml"), "mine.yaml", SCENARIO, sim.read("mine.yaml")
    for source in (*sources, "llama3-8b-lpu-vs-h100"):
        with pytest.raises(sim.ScenarioError, match="argument workload__rate: got 4 without"):
            getattr(sim, name)(source, workload__rate=4)


def test_a_check_lays_out_every_source():
    (members,) = sim.check(SCENARIO, systems__card__chips=2, systems__card__plan__tensor=2).values()
    assert members["card"].deployment.chips == 2


def test_a_sweep_says_in_labels_what_is_changed(tmp_path):
    """As with `--set` and in `sim.run`."""
    card = {**CARD, "chips": 4, "label": "one card", "plan": {**CARD["plan"], "tensor": 4}}
    swept = sim.sweep(
        {**SCENARIO, "systems": {"card": card}},
        over={"workload.rate": ["1 request/s"]},
        systems__card__chips=8,
        systems__card__plan__tensor=8,
    )
    assert swept.table["label"].to_list() == ["one card (now 8 chips)"]


def test_a_capacity_takes_a_plan_that_is_searched():
    """As `run` does: the capacity is that of the plan which the search found."""
    searched = replaced(SCENARIO, ["systems", "card"], {**CARD, "chips": 2})
    searched = replaced(
        searched, ["systems", "card", "plan"], {**CARD["plan"], "search": "capacity"}
    )
    found = sim.capacity(searched, requests=100)
    (search,) = found.scenario.searches.values()
    assert search.considered > 1
    # Both searches end at 2 %, from other loads.
    assert found.systems["card"].best.goodput == pytest.approx(search.load, rel=0.02)


@pytest.mark.parametrize(
    ("line", "told", "jobs"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero", 1),
        ("exit(0)", "SystemExit: 0", 1),
        ("exit(0)", "SystemExit: 0", 2),
    ],
)
def test_an_error_in_the_users_code_is_one_line_of_a_sweep(tmp_path, monkeypatch, line, told, jobs):
    """An exit with status 0 would otherwise end a sweep as if it were complete."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(f"def policy(state):\n    {line}\n")
    scenario = replaced(SCENARIO, ["systems", "card", "policy"], "mine:policy")
    rates = {"workload.rate": ["1 request/s", "2 request/s"]}
    (error,) = set(sim.sweep(scenario, over=rates, jobs=jobs).table["error"])
    assert error == f"mine.py:2: got {told}; try correcting this line"


def test_reprs_are_short(result, swept):
    shown = {repr(result), repr(swept), repr(sim.plan(SCENARIO))}
    shown.add(repr(sim.size("llama-2-7b", "h100-sxm")))
    assert all(len(text) < 120 for text in shown)
    assert "card STABLE" in repr(result)
    assert "2 points of workload.rate" in repr(swept)


def test_a_figure_is_a_function_of_the_user(result, tmp_path, sramsim, monkeypatch):
    from sim.results.saving import save_result

    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    save_result(result.saved(), Path("out"))
    Path("mine.py").write_text(
        "from matplotlib.figure import Figure\n"
        "def draw(saved):\n"
        "    figure = Figure()\n"
        "    figure.subplots().plot(saved.requests['arrival'].to_list())\n"
        "    return figure\n"
        "def text(saved):\n"
        "    return 'none'\n"
        "def wrong(saved):\n"
        "    return column(saved, 'ttft')\n"
        "def column(saved, name):\n"
        "    return saved.requests[name]\n"
    )
    assert sramsim("plot", "out", "--figure", "mine.py:draw")[0] == 0
    assert {path.name for path in Path("out").glob("mine-draw.*")} == {
        f"mine-draw.{suffix}" for suffix in ("png", "svg", "pdf")
    }
    for name, message in (
        ("mine.py:text", "--figure mine.py:text: got str; expected a matplotlib Figure"),
        ("mine.py:wrong", "mine.py:11: got ColumnNotFoundError: "),
        ("mine.py:dram", "mine has no function dram"),
        ("nowhere.py:draw", "nowhere cannot be imported"),
    ):
        code, _, printed = sramsim("plot", "out", "--figure", name)
        assert (code, printed.count("\n")) == (2, 1)
        assert message in printed


def test_a_file_that_hides_the_package_is_noted(tmp_path, sramsim, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "sim.py" not in sramsim("--version")[2]
    Path("sim.py").write_text("")
    code, _, printed = sramsim("--version")
    assert code == 0
    assert "sim.py in this folder hides the package sim" in printed
