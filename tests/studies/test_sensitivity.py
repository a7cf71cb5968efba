"""Uncertain numbers at the ends of their ranges, and the latency of a single request."""

import json
import math
from pathlib import Path

import pytest

import sim
from sim.cost.plan import PlanError
from sim.inputs.errors import ScenarioError
from sim.inputs.names import find_entry
from sim.results.encoding import encode_summary
from sim.scenario.scenario import read
from sim.studies.sensitivity import Sensitivity, Swing, sensitivity, single_request_metrics
from sim.studies.uncertain_numbers import moved

CHIP = """\
memory:
  hbm: {capacity: 80 GB, bandwidth: 2 TB/s}
compute: {kind: roofline, fp16: 300 TFLOP/s}
topology: {kind: switch, limit: 8, link: {latency: 1 us, bandwidth: 100 GB/s}}
power: {maximum: 700 W}
range:
  memory.hbm.bandwidth: [1.6 TB/s, 2.2 TB/s]
  memory.hbm.capacity: [8 GB, 80 GB]
  topology.link.latency: [0.5 us, 2 us]
  power.maximum: [600 W, 700 W]
source: {memory: "assumed: for tests"}
"""
ENGINE = """\
memory_efficiency: {16: 0.8}
compute_efficiency: {16: 0.6}
attention_memory_efficiency: 0.8
attention_compute_efficiency: 0.4
layer_overhead: 20 us
step_overhead: 0.1 ms
sequence_overhead: 0 us
collective_latency: 4 us
collective_latency_per_chip: 0 us
collective_efficiency: 0.8
memory_fraction: 0.9
reserve: 2 GB
range:
  memory_efficiency.16: [0.7, 0.9]
  compute_efficiency.16: [0.4, 0.7]
  layer_overhead: [10 us, 40 us]
source: {layer_overhead: "assumed: for tests"}
"""
SCENARIO = """\
model: llama-2-7b
workload: {kind: poisson, rate: 1 request/s, requests: 3, prompt: 640 token, output: 8 token}
systems:
  cards: {chip: chip.yaml, chips: 2, engine: engine.yaml, plan: {tensor: 2}}
  both: {fleet: {cards: 2}}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The scenario of these tests in a folder of its own, with one text in place of another."""
    monkeypatch.chdir(tmp_path)

    def write(old: str = "", new: str = "", **assignments: str) -> Path:
        for name, text in (("chip", CHIP), ("engine", ENGINE), ("mine", SCENARIO)):
            (tmp_path / f"{name}.yaml").write_text(
                text.replace(old, new, 1) if old else text, encoding="utf-8"
            )
        return tmp_path / "mine.yaml"

    return write


@pytest.fixture
def found(mine):
    return sensitivity(read(str(mine())))["cards"]


def by_key(found: Sensitivity) -> dict[str, Swing]:
    return {swing.key: swing for swing in found.swings}


def test_every_range_is_a_swing_and_the_fleets_are_of_its_members(mine):
    assert list(sensitivity(read(str(mine())))) == ["cards"]
    swings = by_key(sensitivity(read(str(mine())))["cards"])
    engine = {
        "engine.memory_efficiency.16",
        "engine.compute_efficiency.16",
        "engine.layer_overhead",
    }
    chip = {
        "chip.memory.hbm.bandwidth",
        "chip.memory.hbm.capacity",
        "chip.topology.link.latency",
        "chip.power.maximum",
    }
    assert set(swings) == engine | chip
    layer = swings["engine.layer_overhead"]
    assert (layer.ends, layer.value, layer.source) == (
        ("10 us", "40 us"),
        "2e-05",
        "assumed: for tests",
    )


def test_a_number_at_the_end_of_its_range_is_as_if_its_file_said_so(mine, found):
    for key, place in (
        ("layer_overhead: 20 us", "layer_overhead: 40 us"),
        ("bandwidth: 2 TB/s", "bandwidth: 2.2 TB/s"),
    ):
        scenario = read(str(mine(key, place)))
        swing = next(swing for swing in found.swings if swing.key.endswith(key.partition(":")[0]))
        assert swing.high == pytest.approx(
            single_request_metrics(scenario, "cards", scenario.plain("cards"))
        )


@pytest.mark.parametrize(
    ("key", "metric", "slower"),
    [
        ("engine.memory_efficiency.16", "tpot", "low"),
        ("engine.compute_efficiency.16", "ttft", "low"),
        ("engine.layer_overhead", "tpot", "high"),
        ("chip.memory.hbm.bandwidth", "tpot", "low"),
        ("chip.topology.link.latency", "tpot", "high"),
    ],
)
def test_the_ends_of_a_range_bracket_what_is(found, key, metric, slower):
    swing = by_key(found)[key]
    slow, fast = (swing.low, swing.high) if slower == "low" else (swing.high, swing.low)
    assert fast[metric] < found.base[metric] < slow[metric]


def test_numbers_without_effect_are_listed(found):
    swings = by_key(found)
    for end in (swings["chip.power.maximum"].low, swings["chip.power.maximum"].high):
        assert end == found.base
    assert (
        swings["engine.compute_efficiency.16"].width("tpot", found.base) < 1e-15
    )  # one token waits for memory
    assert [swing.width("tpot", found.base) for swing in found.swings] == sorted(
        (swing.width("tpot", found.base) for swing in found.swings), reverse=True
    )


def test_an_end_at_which_the_model_does_not_fit_is_none(found):
    """Two times 8 GB, less a tenth and the reserve, for 13.5 GB of weights."""
    swing = by_key(found)["chip.memory.hbm.capacity"]
    assert swing.high == pytest.approx(found.base)
    assert swing.low is None


def test_a_band_adds_deviations_in_squares_each_way_apart(found):
    """3 and 4 down make 5; 6 and 8 up make 10; an end that does not fit has no effect."""

    def swing(low: float | None, high: float | None) -> Swing:
        ends = (
            {"tpot": 100 + end, "ttft": 1.0} if end is not None else None for end in (low, high)
        )
        return Swing("x", "1", ("0", "2"), *ends, "")

    told = Sensitivity(
        {"tpot": 100, "ttft": 1.0},
        (swing(-3, 6), swing(8, -4), swing(None, 0), swing(None, None)),
        found.system,
    )
    assert told.band("tpot") == pytest.approx((95, 110))
    assert told.band("ttft") == (1.0, 1.0)
    both_up = Sensitivity({"tpot": 100, "ttft": 1.0}, (swing(3, 4),), found.system)
    assert both_up.band("tpot") == pytest.approx((100, 104))


@pytest.mark.parametrize("metric", ["tpot", "ttft"])
def test_a_band_is_at_least_each_swing(found, metric):
    low, high = found.band(metric)
    assert low < found.base[metric] < high
    for swing in found.swings:
        for end in (swing.low, swing.high):
            assert end is None or low <= end[metric] + 1e-15 <= high + 2e-15
    moves = [
        min(0.0, *(end[metric] - found.base[metric] for end in (s.low, s.high) if end))
        for s in found.swings
    ]
    assert low == pytest.approx(found.base[metric] - math.sqrt(sum(move**2 for move in moves)))


def test_a_copy_remembers_nothing_of_the_original(mine):
    scenario = read(str(mine()))
    system = scenario.plain("cards")
    assert system.chip.compute.peak("fp16") == 300e12
    other = moved(system, ["chip", "compute", "fp16"], "400 TFLOP/s")
    assert other.chip.compute.peak("fp16") == 400e12
    assert system.chip.compute.fp16 == 300e12


def test_numbers_without_ranges_are_refused(mine):
    path = mine()
    for name in ("chip", "engine"):
        text = path.with_name(f"{name}.yaml").read_text()
        path.with_name(f"{name}.yaml").write_text(text[: text.index("range:")])
    with pytest.raises(
        ScenarioError,
        match=r"^mine: got no number with a range in the files of its chips and engines; ",
    ):
        sensitivity(read(str(path)))


def test_what_does_not_fit_as_it_is_is_refused(mine):
    with pytest.raises(
        PlanError,
        match=r"systems.cards: llama-3.1-405b does not fit; try sramsim check for what would do",
    ):
        sensitivity(read(str(mine("llama-2-7b", "llama-3.1-405b"))))


def test_cables_that_a_system_replaces_are_not_moved(mine):
    path = mine(
        "plan: {tensor: 2}",
        "plan: {tensor: 2}, topology: {kind: switch, link: {latency: 1 us, bandwidth: 100 GB/s}}",
    )
    assert "chip.topology.link.latency" not in by_key(sensitivity(read(str(path)))["cards"])


def test_a_scenario_of_the_catalogue_has_a_band_around_its_tpot():
    """A chip of SRAM and one of HBM, with all the kinds of numbers that their files leave open."""
    for name, told in sensitivity(
        read(str(find_entry("llama3-8b-lpu-vs-h100", "scenarios")))
    ).items():
        low, high = told.band("tpot")
        assert low <= told.base["tpot"] <= high, name


# The command.


def test_the_command_prints_json_and_a_table_and_draws_a_figure(sramsim, mine, found):
    mine()
    status, out, err = sramsim("sensitivity", "mine.yaml", "--json", "--figure", "tornado.svg")
    assert (status, err) == (0, "tornado.svg: written\n")
    told = json.loads(out)
    assert told == {
        "scenario": "mine",
        "systems": {"cards": json.loads(json.dumps(encode_summary(found.summary)))},
        "loaded": False,
    }
    cards = told["systems"]["cards"]
    assert cards["tpot_ms"] == pytest.approx(1000 * found.base["tpot"])
    assert cards["tpot_band_ms"] == pytest.approx([1000 * end for end in found.band("tpot")])
    assert "TPOT depends most: cards on bandwidth" in Path("tornado.svg").read_text()
    status, out, err = sramsim("sensitivity", "mine.yaml")
    assert (status, err) == (0, "")
    assert "Without effect on a single request, to 0.1 %: chip.power.maximum." in " ".join(
        out.split()
    )
    assert "all together" in out


def test_a_scenario_without_ranges_is_one_line(sramsim, mine):
    path = mine()
    for name in ("chip", "engine"):
        text = path.with_name(f"{name}.yaml").read_text()
        path.with_name(f"{name}.yaml").write_text(text[: text.index("range:")])
    message = (
        "mine: got no number with a range in the files of its chips and engines;"
        " expected one; try to add range: to an engine's file\n"
    )
    assert sramsim("sensitivity", "mine.yaml") == (2, "", message)


def test_under_load_the_metrics_are_those_of_a_run(tmp_path):
    cut = ["workload.requests=5", "systems={h100: {chip: h100-sxm, chips: 1, engine: ideal}}"]
    scenario = read("llama3-8b-lpu-vs-h100", cut)
    found = sensitivity(scenario, loaded=True)["h100"]
    served = sim.run(scenario).summary.systems["h100"]
    assert found.base["tpot"] == served.metrics.tpot.median / 1000
    assert found.base["ttft"] == served.metrics.ttft.median / 1000
    assert found.base["joules"] == served.costs.energy.joules_per_token
    low, high = found.band("usd")
    assert low < served.costs.economics.usd_per_mtok < high
