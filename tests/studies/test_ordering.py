"""The order of systems: against runs, and numbers that are shared by several systems."""

import math
import re

import pytest

import sim
from sim.report.ordering_text import order_lines
from sim.studies.ordering import order_of, shared_numbers, token_costs_of
from sim.studies.run import run
from sim.studies.sensitivity import single_request_metrics
from sim.studies.uncertain_numbers import uncertain_numbers

FILE = """\
model: llama-3.1-8b
workload: {kind: closed, users: 6, requests: 60, prompt: 16 token, output: 200 token}
order_by: joules
systems:
  two: {chip: h100-sxm, chips: 2, engine: tensorrt-llm, plan: {tensor: 2}}
  one: {chip: h100-sxm, chips: 2, engine: tensorrt-llm, plan: {replicas: 2}}
  slow: {chip: {like: h100-sxm, power.idle: 200 W}, chips: 2, engine: vllm, plan: {tensor: 2}}
  drafted:
    chip: h100-sxm
    chips: 2
    engine: tensorrt-llm
    plan: {tensor: 2}
    speculate:
      method: draft
      tokens: 3
      acceptance: 0.7
      range: {acceptance: [0.5, 0.9]}
      draft:
        model: llama-3.2-1b
        system: {chip: l40s, chips: 1, engine: tensorrt-llm}
        transfer: {bandwidth: 50 GB/s, latency: 5 us, range: {latency: [1 us, 50 us]}}
  pd: {prefill: two, decode: one, transfer: {bandwidth: 1e6 GB/s, handover: 0 ms}}
  placed:
    prefill: {chip: h100-sxm, chips: 2, engine: tensorrt-llm, plan: {tensor: 2}}
    decode: one
    transfer: {bandwidth: 1e6 GB/s, handover: 0 ms}
  both: {fleet: {two: 1, slow: 1}}
"""


def read(tmp_path, text=FILE):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return sim.read(path)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(read(tmp_path_factory.mktemp("order")))


def test_steady_tokens_take_what_runs_take(result):
    for name, system in result.summary.systems.items():
        taken = token_costs_of(result.scenario, name)
        assert taken["joules"] == pytest.approx(system.costs.energy.joules_per_token, rel=0.08)
        assert 1000 * taken["tpot"] == pytest.approx(system.metrics.tpot.mean, rel=0.08)


@pytest.mark.parametrize(("users", "stages"), [(5, 3), (6, 3), (6, 4)])
def test_micro_batches_of_a_pipeline_take_turns_on_its_slowest_stage(tmp_path, users, stages):
    """Some have one sequence and some two. An H100 takes nearly as long for one as for two."""
    text = FILE.partition("  one:")[0].replace("users: 6", f"users: {users}")
    text = text.replace("chips: 2", f"chips: {stages}").replace("tensor: 2", f"pipeline: {stages}")
    scenario = read(tmp_path, text)
    taken = token_costs_of(scenario, "two")["tpot"]
    ran = run(scenario).summary.systems["two"].metrics.tpot.mean
    assert 1000 * taken == pytest.approx(ran, rel=0.01)


@pytest.mark.parametrize("degree", ["tensor", "pipeline"])
def test_a_single_user_is_a_single_request(tmp_path, degree):
    text = FILE.replace("users: 6", "users: 1").replace("tensor: 2", f"{degree}: 2", 1)
    scenario = read(tmp_path, text)
    for name in ("two", "slow", "drafted"):
        alone = single_request_metrics(scenario, name, scenario.plain(name))
        taken = token_costs_of(scenario, name)
        assert taken["tpot"] == pytest.approx(alone["tpot"], rel=0.01)
        assert taken["joules"] == pytest.approx(alone["joules"], rel=0.01)


def test_users_of_a_fleet_are_dealt_to_its_members(tmp_path):
    """Of five users the first member has three."""
    five, three, two = (
        read(tmp_path, FILE.replace("users: 6", f"users: {users}")) for users in (5, 3, 2)
    )
    rate = 3 / token_costs_of(three, "two")["tpot"] + 2 / token_costs_of(two, "slow")["tpot"]
    assert token_costs_of(five, "both")["tpot"] == pytest.approx(5 / rate)


def test_users_left_over_go_to_replicas_of_all_members(tmp_path):
    """Five users on three replicas: two on the first member, two and one on the other's."""
    text = FILE.replace("slow: 1}}", "one: 1}}")
    five, three, two = (
        read(tmp_path, text.replace("users: 6", f"users: {users}")) for users in (5, 3, 2)
    )
    rate = 2 / token_costs_of(two, "two")["tpot"] + 3 / token_costs_of(three, "one")["tpot"]
    assert token_costs_of(five, "both")["tpot"] == pytest.approx(5 / rate)


@pytest.mark.parametrize("most", ["60 us", "150 us"])
def test_bands_add_the_moves_of_both_systems_in_squares(tmp_path, most):
    """Each latency has a range of its own. Systems may change places if the band has a ratio of 1."""
    drafted = FILE.partition("  drafted:")[2].partition("  pd:")[0].replace("tensorrt-llm", "ideal")
    near = drafted.replace("range: {acceptance: [0.5, 0.9]}", "range: {}")
    near = near.replace("50 us", most)
    far = near.replace(": 5 us", ": 100 us").replace(f"[1 us, {most}]", "[50 us, 200 us]")
    text = f"{FILE.partition('  two:')[0]}  near:{near}  far:{far}"
    latencies = (("near", f": {most}"), ("near", ": 1 us"), ("far", ": 50 us"), ("far", ": 200 us"))
    moved = {}
    scenario = read(tmp_path, text)
    usual = {name: token_costs_of(scenario, name)["tpot"] for name in ("near", "far")}
    for name, latency in latencies:
        other = read(tmp_path, text.replace(": 5 us" if name == "near" else ": 100 us", latency))
        moved[name, latency] = abs(math.log(token_costs_of(other, name)["tpot"] / usual[name]))
    more, less, faster, slower = moved.values()
    order, ratio = order_of(scenario, "tpot"), usual["near"] / usual["far"]
    low, high = order.systems["far"].band
    assert ratio < 1
    assert low == pytest.approx(ratio / math.exp(math.hypot(less, slower)))
    assert high == pytest.approx(ratio * math.exp(math.hypot(more, faster)))
    assert order.swappable == ((("near", "far"),) if high > 1 else ())
    assert (high > 1) == (most == "150 us")


def test_a_number_of_one_file_moves_in_all_systems_that_use_it(result):
    shared = {of.text: of.keys for of in shared_numbers(result.scenario)}
    losses = shared["tensorrt-llm: layer_overhead"]
    assert losses.keys() == {"two", "one", "drafted", "placed.prefill"}
    assert losses["drafted"] == [
        "engine.layer_overhead",
        "speculate.draft.system.engine.layer_overhead",
    ]
    assert "slow" not in shared["h100-sxm: power.idle"], "it has an idle power of its own"
    keys = {f"scenario: {key}" for key in ("speculate.acceptance", "transfer.latency")}
    assert keys <= shared.keys()


def test_the_order_is_that_of_joules_and_its_bands_hold_each_end(result):
    order, scenario = result.order, result.scenario
    taken = {name: token_costs_of(scenario, name)["joules"] for name in scenario.systems}
    assert list(order.systems) == sorted(taken, key=taken.get)
    assert order.systems["two"].band == (1.0, 1.0)
    for name, system in order.systems.items():
        assert system.ratio == pytest.approx(taken["two"] / taken[name])
        assert system.band[0] <= system.ratio <= system.band[1]
    for number in uncertain_numbers(scenario.plain("drafted")):
        if number.of[0] != "scenario":
            continue
        for end in number.ends:  # no other system has these numbers
            moved = {**scenario.systems, "drafted": number.moved_to(end)}
            changed = scenario.model_copy(update={"systems": moved})
            ratio = taken["two"] / token_costs_of(changed, "drafted")["joules"]
            low, high = order.systems["drafted"].band
            assert low <= ratio <= high


def test_pools_of_a_named_system_move_as_pools_in_place(result):
    named, placed = (result.order.systems[name] for name in ("pd", "placed"))
    assert (named.ratio, *named.band) == pytest.approx((placed.ratio, *placed.band), rel=1e-12)


def test_a_hinge_reverses_its_pair(tmp_path):
    """A latency of 1 us or 5 ms decides whether drafts make a user faster."""
    text = FILE.replace("[1 us, 50 us]", "[1 us, 5 ms]").replace("tensorrt-llm", "ideal")
    text = text.replace("l40s", "h100-sxm")
    first, two, rest = text.partition("  two:")
    kept = two + rest.partition("  one:")[0] + "  drafted:" + rest.partition("  drafted:")[2]
    order = order_of(read(tmp_path, first + kept.partition("  pd:")[0]), "tpot")
    assert list(order.systems) == ["drafted", "two"]
    assert order.swappable == (("drafted", "two"),)
    hinges = {(of.key, of.at) for of in order.depends_on}
    assert ("scenario: transfer.latency", "5 ms") in hinges
    assert ("scenario: transfer.latency", "1 us") not in hinges


def test_the_screen_says_the_order(result):
    lines = "\n".join(order_lines(result.summary))
    assert "Order by token/s per MW, relative to two" in lines
    for place, name in enumerate(result.order.systems, 1):
        assert f"  {place}. {name}: " in lines
    place = list(result.order.systems).index(result.order.swappable[0][0]) + 1
    assert f"Places {place} and {place + 1} may be swapped by one of these alone: " in lines
    assert re.search(r"power\.idle at \d+ W instead of \d+ W \(assumed\)", lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "order_by: joules",
            "order_by: watts",
            "order_by: got 'watts'; expected 'joules', 'usd' or",
        ),
        ("closed, users: 6", "poisson, rate: 1 request/s", "order_by: got joules with workload po"),
        ("acceptance: 0.7", "acceptance: [0.7, 0.5, 0.3]", "range.acceptance: got a range of"),
    ],
)
def test_wrong_orders_and_ranges_are_one_line(sramsim, tmp_path, old, new, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.replace(old, new))
    status, _, err = sramsim("check", str(path))
    assert (status, err.count("\n")) == (2, 1)
    assert expected in err
