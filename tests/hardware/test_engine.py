"""What software may lose: parts of a rate and seconds, never a gain."""

import pytest
from pydantic import ValidationError

from sim.hardware.chip import Chip, Precision
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names, find_entry
from sim.scenario.system import System
from sim.serving.policy import continuous, prefill_first, static

EFFICIENCIES = (
    "attention_memory_efficiency",
    "attention_compute_efficiency",
    "collective_efficiency",
)
OVERHEADS = (
    "layer_overhead",
    "step_overhead",
    "sequence_overhead",
    "collective_latency",
    "collective_latency_per_chip",
)
LOSSLESS = {
    "memory_efficiency": {"16": 1.0, "8": 1.0},
    "compute_efficiency": {"16": 1.0, "8": 1.0},
    **dict.fromkeys(EFFICIENCIES, 1.0),
    **dict.fromkeys(OVERHEADS, 0.0),
    "memory_fraction": 1.0,
    "reserve": 0.0,
}


def engine(**changes) -> Engine:
    return Engine(**(LOSSLESS | changes))


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        ("fp16", "16"),
        ("bf16", "16"),
        ("fp8", "8"),
        ("int8", "8"),
        ("fp4", "4"),
        ("int4", "4"),
        ("fp32", "32"),
    ],
)
def test_efficiencies_go_by_the_bits_of_the_weights(precision, bits):
    lossy = engine(compute_efficiency={bits: 0.25}, memory_efficiency={bits: 0.5})
    assert lossy.efficiencies(precision) == (0.25, 0.5)


def test_bits_that_an_engine_was_not_fitted_for_are_refused_with_those_it_was():
    half = engine(id="half", memory_efficiency={"16": 1.0, "8": 1.0, "4": 1.0})
    with pytest.raises(
        ValueError,
        match=r"engine half: got 4-bit weights \(int4\); expected 8 or 16, as in its eff",
    ):
        half.efficiencies("int4")


@pytest.mark.parametrize("key", [*EFFICIENCIES, "memory_fraction"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_an_efficiency_is_more_than_nothing_and_no_more_than_all(key, value):
    with pytest.raises(ValidationError, match=key):
        engine(**{key: value})


@pytest.mark.parametrize("key", ["memory_efficiency", "compute_efficiency"])
@pytest.mark.parametrize("value", [0.0, 1.01])
def test_so_is_an_efficiency_by_bits(key, value):
    with pytest.raises(ValidationError, match=key):
        engine(**{key: {"8": value}})


@pytest.mark.parametrize("key", [*OVERHEADS, "reserve"])
@pytest.mark.parametrize("value", [-1e-6, float("nan"), float("inf")])
def test_an_overhead_is_never_a_gain(key, value):
    with pytest.raises(ValidationError, match=key):
        engine(**{key: value})


@pytest.mark.parametrize("key", sorted(LOSSLESS))
def test_an_engine_leaves_no_loss_unsaid(key):
    with pytest.raises(ValidationError, match=key):
        Engine(**{k: v for k, v in LOSSLESS.items() if k != key})


def test_an_engine_may_name_the_ways_of_an_all_reduce_that_it_has():
    assert engine().collectives == ()
    assert engine(collectives=("one-shot", "ring")).collectives == ("one-shot", "ring")
    with pytest.raises(ValidationError, match="collectives"):
        engine(collectives=("three-shot",))


def test_the_ideal_engine_loses_nothing_at_any_width():
    ideal = read_value(catalogue_names("engines")["ideal"], Engine)
    assert all(ideal.efficiencies(precision) == (1, 1) for precision in Precision)
    assert all(getattr(ideal, key) == 1 for key in (*EFFICIENCIES, "memory_fraction"))
    assert all(getattr(ideal, key) == 0 for key in (*OVERHEADS, "reserve"))


def test_a_file_says_the_unit_of_each_overhead(tmp_path):
    text = catalogue_names("engines")["ideal"].read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("layer_overhead: 0 us", "layer_overhead: 5"), encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine.yaml:\d+: layer_overhead: got 5 without a unit"):
        read_value(file, Engine)


# What an engine does where a system does not say.


def test_a_system_schedules_as_its_engine_does_or_as_it_says(make_chip):
    def policies(of_engine: dict[str, str], **of_system: str):
        return System(chip=make_chip(), chips=1, engine=engine(**of_engine), **of_system).policies

    assert (policies({}).batching, policies({}).reserve) == (continuous, True)
    eager = {"policy": "prefill-first", "admission": "prompt"}
    assert (policies(eager).batching, policies(eager).reserve) == (prefill_first, False)
    overridden = policies(eager, policy="static", admission="reserve")
    assert (overridden.batching, overridden.reserve) == (static, True)
    assert policies({}, admission="prompt").reserve is False


def test_a_launch_names_both_kinds_of_step():
    with pytest.raises(ValidationError, match=r"layer_launch\.prefill"):
        engine(layer_launch={"decode": 1e-6})


@pytest.mark.parametrize(
    ("engine", "chip", "label"),
    [
        ("groq-compiler", "groq-lpu-v1", None),
        ("vllm", "h100-sxm", None),
        ("vllm", "a100-80gb", "extrapolated"),
        ("tensorrt-llm-1.0", "b200-sxm", "extrapolated"),
        ("ideal", "h100-sxm", "speed of light, no engine known"),
        ("ideal", "dmatrix-corsair", "speed of light, no engine known"),
        (
            "sambaflow",
            "sambanova-sn40l",
            "speed of light, no engine known",
        ),  # all its numbers are assumed
    ],
)
def test_a_speed_says_what_it_is_where_its_engine_was_not_measured(engine, chip, label):
    assert (
        read_value(find_entry(engine, "engines"), Engine).speed_label(
            read_value(find_entry(chip, "chips"), Chip)
        )
        == label
    )


def test_an_engine_of_ones_own_is_extrapolated(make_engine, make_chip):
    assert make_engine().speed_label(make_chip()) == "extrapolated"
