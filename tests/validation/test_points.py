"""Rows of tables as points: every row is one or has a reason; rules complete it, in order."""

import csv
import random
from dataclasses import replace

import pytest

from sim.catalogue.measurements import PublishedSpeeds, Rule
from sim.hardware.chip import Precision
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names
from sim.validation import points as module
from sim.validation import systems
from sim.validation.points import POINT_METRICS, fitting_half, measured_points
from sim.validation.systems import parallel_degrees
from sim.validation.validate import SETS, shipped_table


@pytest.fixture
def point(make_table):
    """The one point of a table of one row."""

    def make(kind: str, **changes: object):
        (found,) = measured_points(make_table(kind, changes))
        return found

    return make


@pytest.fixture
def refused(make_table):
    """The one line that says what is wrong with the second of two rows."""

    def call(kind: str, **changes: object) -> str:
        with pytest.raises(ScenarioError) as error:
            measured_points(make_table(kind, {}, changes))
        assert "\n" not in str(error.value)
        assert "mine.csv:3: " in str(error.value)
        return str(error.value).partition("mine.csv:3: ")[2]

    return call


@pytest.fixture(scope="module")
def serving():
    return measured_points(shipped_table("serving"))


# Every row of the shipped tables.


@pytest.mark.parametrize(
    "name", [name for name in SETS if name != "sram-replies"]
)  # whose points stand for many rows
def test_every_row_is_one_point_or_has_a_reason(name, serving):
    with shipped_table(name).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    found = serving if name == "serving" else measured_points(shipped_table(name))
    assert len(found) == len({each.id for each in found}) == len(rows) > 30
    for each, row in zip(found, rows, strict=True):
        assert each.id == row.get("point_id", each.id)
        assert each.about["model"] == row["model"]
        assert each.system or len(each.reason) > 15
        assert each.measured
        assert all(0 < seconds < 1000 for seconds in each.measured.values())


# The kinds, by hand.


@pytest.mark.parametrize(
    ("metric", "cells", "measured", "pattern", "output"),
    [
        ("decode_tok_s_user", {}, {"tpot": 1 / 50}, "alone", 16),
        ("decode_tok_s_user", {"batch_or_concurrency": 4}, {"tpot": 1 / 50}, "batch", 16),
        ("prefill_tok_s", {}, {"ttft": 64 / 50}, "alone", 1),
        ("TTFT_ms", {}, {"ttft": 0.05}, "alone", 16),
        ("TTFT_ms", {"batch_or_concurrency": 4}, {"ttft": 0.05}, "users", 16),
        ("TTFT_ms", {"batch_or_concurrency": 4, "output_tokens": 1}, {"ttft": 0.05}, "batch", 1),
        ("TPOT_ms", {}, {"tpot": 0.05}, "alone", 16),
        ("ITL_ms", {"batch_or_concurrency": 4}, {"itl": 0.05}, "users", 16),
        ("e2e_latency_s", {}, {"e2el": 50}, "batch", 16),
        (
            "throughput_tok_s_total",
            {"n_accelerators": 2, "parallelism": "TP2"},
            {"throughput": 1 / 50},
            "full",
            16,
        ),
        (
            "throughput_tok_s_per_gpu",
            {"n_accelerators": 2, "parallelism": "TP2"},
            {"throughput": 1 / 100},
            "full",
            16,
        ),
    ],
)
def test_a_published_metric_is_a_time_and_the_requests_that_have_it(
    point, metric, cells, measured, pattern, output
):
    found = point("published", metric=metric, value=50, **cells)
    assert found.measured == pytest.approx(measured)
    assert (found.pattern, found.output, found.prompt) == (pattern, output, 64)
    assert found.users == int(cells.get("batch_or_concurrency", 1))
    assert set(found.measured) == {POINT_METRICS[metric]}


def test_what_a_published_row_leaves_out_is_a_chat(point):
    found = point(
        "published", batch_or_concurrency="API", input_tokens="~100..1000", output_tokens=""
    )
    assert (found.users, found.prompt, found.output, found.pattern) == (1, *module.API, "alone")


def test_a_throughput_without_users_has_as_many_as_fit(point):
    assert (
        point("published", metric="throughput_tok_s_total", batch_or_concurrency="max load").users
        == 0
    )


def test_a_metric_that_nothing_simulates_has_a_reason(point):
    found = point("published", metric="joules_per_token")
    assert (found.system, found.measured) == (None, {})
    assert found.reason.startswith("metric joules_per_token: nothing simulates it")


def test_a_serving_row_is_a_closed_loop(point):
    found = point(
        "serving", attention_dp=2, chips=8, tp=2, model="Llama-3.1-70B", lengths="80-100 % uniform"
    )
    assert found.measured == {"ttft": 0.03, "tpot": 0.008}
    assert (found.pattern, found.users, found.prompt, found.output, found.spread) == (
        "users",
        4,
        64,
        16,
        True,
    )
    plan = found.system.plan
    assert (plan.tensor, plan.attention_data, plan.pipeline, plan.replicas) == (2, 2, 1, 2)
    assert (found.system.chips, found.system.chip.id, found.system.engine.id) == (
        8,
        "h100-sxm",
        "vllm",
    )


def test_a_row_of_steps_is_a_batch(point):
    found = point("steps")
    assert found.measured == {"ttft": 0.08, "tpot": 0.04}
    assert (found.pattern, found.users, found.prompt, found.output) == ("batch", 2, 64, 16)
    assert (found.system.plan.tensor, found.system.engine.id) == (4, "engine-2023")


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("TP8", {"plan.tensor": 8, "plan.pipeline": 1}),
        ("PP4", {"plan.tensor": 1, "plan.pipeline": 4}),
        ("TP2 PP3", {"plan.tensor": 2, "plan.pipeline": 3}),
        ("TP4 EP2", {"plan.tensor": 4, "plan.pipeline": 1, "plan.expert": 2}),
        ("DEP4", {"plan.attention_data": 4}),
        ("none", {"plan.tensor": 1}),
        ("PP over wafers", {"plan.tensor": 1}),
        ("TP x PP", {"plan.tensor": 16}),
    ],
)
def test_degrees_are_read(text, degrees):
    assert parallel_degrees(text, 16) == degrees


# What cannot be simulated is told, not raised.


@pytest.mark.parametrize(
    ("kind", "cells", "reason"),
    [
        ("published", {"engine": "abacus"}, "engine 'abacus': the catalogue has no file for it"),
        ("published", {"model": "Llama-9-9B"}, "'Llama-9-9B' is not among the catalogue's models"),
        ("published", {"accelerator_chip_id": "z80"}, "'z80' is not among the catalogue's chips"),
        ("published", {"weight_precision": "1.58-bit"}, "precision '1.58-bit' is not known"),
        ("published", {"parallelism": "by hand"}, "parallelism 'by hand' is not known"),
        (
            "published",
            {"speculative_decoding": "1"},
            "speculative decoding, and its acceptance is not published",
        ),
        ("published", {"engine": "Hazy"}, "a kernel of its own for one model"),
        (
            "serving",
            {"backend": "abacus"},
            "engine 'abacus 0.11': the catalogue has no file for it",
        ),
        ("serving", {"system": "z80"}, "'z80' is not among the catalogue's chips"),
        ("serving", {"use": "context", "reason": "nobody knows"}, "nobody knows"),
        ("serving", {"use": "context"}, "its use is 'context', not 'score'"),
        ("steps", {"hardware": "z80"}, "'z80' is not among the catalogue's chips"),
        ("steps", {"model": "llama9"}, "'llama9' is not among the catalogue's models"),
    ],
)
def test_a_row_that_cannot_be_expressed_has_a_reason(point, kind, cells, reason):
    found = point(kind, **cells)
    assert found.system is None
    assert found.reason.startswith(reason)
    assert found.measured  # it counts as a row all the same


# What is malformed.


@pytest.mark.parametrize(
    ("kind", "cells", "reason"),
    [
        ("published", {"value": "fast"}, "value: got 'fast'; expected a finite number above 0"),
        ("published", {"value": ""}, "value: got ''; expected a finite number above 0"),
        ("published", {"value": "0"}, "value: got '0'; expected a finite number above 0"),
        ("published", {"value": "nan"}, "value: got 'nan'; expected a finite number above 0"),
        ("published", {"value": "inf"}, "value: got 'inf'; expected a finite number above 0"),
        ("published", {"n_accelerators": "0"}, "chips: Input should be greater than or equal to 1"),
        ("published", {"parallelism": "TP0"}, "tensor: Input should be greater than or equal to 1"),
        ("serving", {"isl": "64.5"}, "isl: got '64.5'; expected a whole number above 0"),
        (
            "serving",
            {"concurrency": "-2"},
            "concurrency: got '-2'; expected a whole number above 0",
        ),
        (
            "serving",
            {"mean_tpot_ms": "-"},
            "mean_tpot_ms: got '-'; expected a finite number above 0",
        ),
        ("serving", {"tp": "4"}, "replicas: Input should be greater than or equal to 1"),
        ("steps", {"batch_size": "x"}, "batch_size: got 'x'; expected a whole number above 0"),
    ],
)
def test_a_malformed_cell_is_named_with_its_line(refused, kind, cells, reason):
    assert refused(kind, **cells).startswith(reason)


def test_a_header_that_is_not_known_is_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("when,what\n1,2\n")
    with pytest.raises(
        ScenarioError,
        match=r"mine.csv:1: got no column 'model'; expected at least model, chip, chips",
    ) as error:
        measured_points(tmp_path / "mine.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["published", "serving", "steps"])
@pytest.mark.parametrize(
    "change", [lambda row: row.rpartition(",")[0], lambda row: row + ",9"], ids=["short", "long"]
)
def test_a_row_of_another_length_is_refused(make_table, kind, change):
    path = make_table(kind, {}, {})
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, change(last)]))
    with pytest.raises(
        ScenarioError,
        match=r"mine.csv:3: the row has more or fewer cells than the head of the table$",
    ):
        measured_points(path)


def test_blank_lines_before_the_head_of_a_table_count_as_lines_alone(make_table):
    path = make_table("published", {}, {})
    plain, text = measured_points(path), path.read_text()
    path.write_text("\n \n" + text)
    assert measured_points(path) == plain
    path.write_text("\n \n" + text.rstrip() + ",9\n")
    with pytest.raises(ScenarioError, match=r"mine.csv:5: the row has more or fewer cells"):
        measured_points(path)


def test_other_columns_do_not_matter_and_no_output_is_one_token(make_table):
    path = make_table("published", {"output_tokens": 0, "metric": "TTFT_ms", "weather": "fine"})
    assert measured_points(path)[0].output == 1


# Rules.


def test_rules_apply_in_order_and_later_ones_say_more(point, monkeypatch):
    shipped_rules = systems.measurement_rules()

    def told(*rules: dict[str, object]) -> dict[str, object]:
        made = tuple(Rule.model_validate({"source": "here"} | rule) for rule in rules)
        monkeypatch.setattr(systems, "measurement_rules", lambda: shipped_rules + made)
        return point("published")

    ours, others = {"model": ("LLAMA-2", "falcon")}, {"model": ("llama-3",)}
    assert told({"when": ours, "system": {"token_budget": 7}}).system.token_budget == 7
    assert told({"when": others, "system": {"token_budget": 7}}).system.token_budget is None
    both = (
        {"when": ours, "system": {"token_budget": 7, "max_sequences": 3}},
        {"when": ours, "system": {"token_budget": 9}},
    )
    assert told(*both).system.token_budget == 9
    assert told(*reversed(both)).system.token_budget == 7
    assert told(*both).system.max_sequences == 3
    assert told(
        {"when": ours | {"engine": ("vllm",)}, "exclude": "no"}
    ).system  # all of a rule's columns must hold
    assert told({"when": ours, "exclude": "never ran"}).reason == "never ran"
    assert told({"when": ours, "remark": "odd"}).remark == "odd"
    assert not told({"when": ours, "prefill": False}).prefill
    assert told({"when": ours, "assumed": "a neighbour's"}).reason == "a neighbour's"
    assert told({"when": ours, "assumed": "a neighbour's"}).system


def test_degrees_of_a_rule_replace_those_of_the_row_but_not_its_half(point, monkeypatch):
    degrees = {"plan.tensor": 1, "plan.attention_data": 2}
    rules = (*systems.measurement_rules(), Rule(when={}, system=degrees, source="here"))
    plain = point("serving", tp=2, chips=2)
    monkeypatch.setattr(systems, "measurement_rules", lambda: rules)
    ranked = point("serving", tp=2, chips=2)
    plans = [(each.system.plan.tensor, each.system.plan.attention_data) for each in (plain, ranked)]
    assert plans == [(2, 1), (1, 2)]
    assert (ranked.users, ranked.group) == (plain.users, plain.group)


def test_a_server_may_have_a_place_less_than_users(point, monkeypatch):
    rule = Rule(when={}, one_less=True, source="here")
    rules = (*systems.measurement_rules(), rule)
    monkeypatch.setattr(systems, "measurement_rules", lambda: rules)
    assert [point("serving", concurrency=users).system.max_sequences for users in (1, 2, 9)] == [
        1,
        1,
        8,
    ]


# Bounds: speeds of paced services.


def test_a_paced_row_carries_the_reason(point, monkeypatch):
    rule = Rule(when={"model": ("llama-2",)}, bound="throttled at 50", source="here")
    rules = (*systems.measurement_rules(), rule)
    assert point("published").bound == ""
    monkeypatch.setattr(systems, "measurement_rules", lambda: rules)
    assert point("published").bound == "throttled at 50"
    assert point("published").system


@pytest.mark.parametrize(
    ("metric", "paced", "simulated", "error"),
    [
        ("tpot", "throttled", 2.0, 1.0),
        ("tpot", "throttled", 0.5, 0.0),
        ("e2el", "throttled", 0.5, 0.0),
        ("ttft", "throttled", 0.5, -0.5),  # a pace does not delay the first token
        ("tpot", "", 0.5, -0.5),
    ],
)
def test_a_paced_time_is_missed_only_by_a_longer_one(point, metric, paced, simulated, error):
    found = replace(point("published"), bound=paced)
    assert found.error(metric, simulated, 1.0) == pytest.approx(error)


def test_bounds_of_the_catalogue_are_speeds_of_groqs_service_and_demonstration():
    tables = ("calibration", "validation", "serving", "steps-2023")
    found = [
        point for name in tables for point in measured_points(shipped_table(name)) if point.bound
    ]
    assert {point.about["engine"] for point in found} == {"Groq compiler"}
    assert [point.id for point in found] == [
        "P139",
        "P140",
        "P147",
        "P154",
        "P155",
        "P156",
        "P158",
        "P157",
    ]


def test_speeds_and_points_agree_on_what_is_paced():
    speeds = read_value(catalogue_names("measurements")["single-user"], PublishedSpeeds).points
    paced = {
        each.id: bool(each.bound)
        for name in ("calibration", "validation")
        for each in measured_points(shipped_table(name))
    }
    marked = [speed.id for speed in speeds if speed.paced]
    assert len(marked) == 4
    assert all(paced[name] for name in marked)


def test_speculative_speeds_of_sambanova_are_no_measurements(point):
    (found,) = (each for each in measured_points(shipped_table("validation")) if each.id == "P134")
    assert found.system is None
    assert found.reason.startswith("speculative decoding: replies of SambaNova's service print")
    unlabelled = {
        "engine": "SambaFlow",
        "accelerator_chip_id": "sambanova_sn40l",
        "model": "Llama-3.3-70B",
    }
    assert point("published", **unlabelled).reason.startswith("speculative decoding: ")


def test_deepseek_with_tensorrt_llm_has_the_kernels_and_formats_that_its_servers_set(serving):
    """On ranks with attention of their own: experts by DeepGEMM in FP8, tokens sent in FP4 in FP4."""
    found = {
        (
            each.about["precision"],
            each.system.plan.attention_data > 1,
            getattr(each.system.engine.block_kernels, "id", None),
            each.system.plan.dispatch,
        )
        for each in serving
        if each.system and each.system.engine.id == "tensorrt-llm-kernels"
    }
    assert found == {
        ("fp4", False, None, None),
        ("fp4", True, None, Precision.FP4),
        ("fp8", False, None, None),
        ("fp8", True, "deepgemm", None),
    }


# Halves.


def test_a_half_is_whole_configurations_and_the_same_in_any_order(serving):
    chosen = fitting_half(serving)
    shuffled = serving.copy()
    random.Random(1).shuffle(shuffled)
    assert fitting_half(shuffled) == fitting_half(serving[::-1]) == chosen
    groups: dict[str, set[bool]] = {}
    for each in serving:
        if each.system:
            groups.setdefault(each.group, set()).add(each.id in chosen)
        else:
            assert each.id not in chosen
    assert all(len(answers) == 1 for answers in groups.values())


def test_a_half_is_about_a_half_of_each_model_on_each_system(serving):
    chosen = fitting_half(serving)
    by_kind: dict[tuple[str, ...], dict[str, bool]] = {}
    for each in serving:
        if each.system and not each.system.speculate:
            kind = each.about["model"], each.about["chip"], each.about["engine"].split()[0]
            by_kind.setdefault(kind, {})[each.group] = each.id in chosen
    assert len(by_kind) > 5
    for groups in by_kind.values():
        assert sum(groups.values()) == len(groups) // 2  # the odd one tests


def test_rows_with_drafts_are_in_no_half_and_say_whose_acceptance_they_have(serving):
    drafting = [each for each in serving if each.system and each.system.speculate]
    assert len(drafting) == 25
    assert not {each.id for each in drafting} & fitting_half(serving)
    assert {each.system.speculate.tokens for each in drafting} == {1, 2, 3}
    assert all(each.reason == "acceptance of deepseek-r1-mtp, of another text" for each in drafting)


def test_configurations_that_differ_are_not_one(make_table):
    """Configurations differ in all but the users, so that each is simulated for itself."""
    changes = [
        {},
        {"isl": 65},
        {"osl": 17},
        {"chips": 2},
        {"lengths": "80-100 % uniform"},
        {"precision": "fp8"},
        {"backend_version": "1"},
    ]
    groups = [
        each.group for each in measured_points(make_table("serving", *changes, {"concurrency": 3}))
    ]
    assert len(set(groups)) == len(changes)
    assert groups[-1] == groups[0]
    several = {"n_accelerators": 2}
    changes = [
        {},
        {"input_tokens": 65},
        several | {"parallelism": "TP2"},
        several | {"parallelism": "PP2"},
        {"metric": "e2e_latency_s"},
    ]
    assert len({each.group for each in measured_points(make_table("published", *changes))}) == len(
        changes
    )
