"""How long a chip computes and reads: by hand, with round numbers and with those that Groq published."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.hardware.chip import (
    CARRIERS,
    Chip,
    Compute,
    Memory,
    Op,
    Precision,
    Roofline,
    TensorStreaming,
)
from sim.hardware.topology import FullyConnected, Link

MEMORY = Memory(capacity=1e9, bandwidth=1e9)
SRAM = Memory(capacity=230.7e6, bandwidth=50.7e12)


def op(
    tokens=1,
    flops=0.0,
    weights=0.0,
    kv=0.0,
    activations=0.0,
    precisions=("fp16", "fp16"),
    matrices=(),
) -> Op:
    return Op(tokens, flops, weights, kv, activations, precisions, matrices)


def tile(tokens: int, weights: str, activations: str, shape=(320, 320), count=1) -> Op:
    """So many matrices of one shape; one tile of Groq's unless told."""
    nbytes = count * math.prod(shape) * Precision(weights).bytes
    return op(tokens, 0.0, nbytes, precisions=(weights, activations), matrices=(shape,) * count)


def groq(**changes) -> TensorStreaming:
    """Groq v1 as published: 4 planes of 320 x 320 at 0.9 GHz, 10,240 bytes of weights a cycle, FP16 at a quarter of INT8."""
    int8 = 4 * 320 * 320 * 2 * 0.9e9
    numbers = {
        "clock": 0.9e9,
        "planes": 4,
        "tile": 320,
        "weight_load": 10_240 * 0.9e9,
        "int8": int8,
        "fp16": int8 / 4,
    }
    return TensorStreaming(**(numbers | changes))


# Which rate a multiply runs at.

MIXED = Roofline(fp16=100.0, fp8=200.0, int8=400.0)


@pytest.mark.parametrize(
    ("one", "other", "rate"),
    [
        ("fp16", "fp16", 100),
        ("bf16", "bf16", 100),  # no entry of its own: as fp16
        ("bf16", "fp16", 100),  # engines cast the one to the other
        ("fp8", "fp8", 200),
        ("int8", "int8", 400),
        ("int8", "fp16", 100),  # the wider of two
        ("fp8", "bf16", 100),
        ("int8", "fp8", 100),  # neither carries the other, 16 bits carry both
        ("int4", "int4", 400),  # stored in 4 bits, computed in the next wider precision there is
        ("fp4", "fp4", 200),
        ("int4", "fp16", 100),
    ],
)
def test_a_multiply_runs_at_the_rate_of_what_carries_both_operands(one, other, rate):
    assert MIXED.peak(one, other) == rate == MIXED.peak(other, one)


def test_without_a_unit_for_eight_bits_they_are_multiplied_at_sixteen():
    assert Roofline(fp16=100.0).peak("fp8", "fp8") == 100
    assert Roofline(bf16=100.0).peak("int8", "fp16") == 100


def test_a_precision_that_nothing_carries_is_refused_with_what_there_is():
    with pytest.raises(
        ValueError,
        match=r"got a product of fp32 by fp16; expected .* computes in fp16, fp8, int8; try",
    ):
        MIXED.peak("fp32", "fp16")
    with pytest.raises(ValueError, match="that computes in no precision"):
        Roofline().peak("fp16", "fp16")


def test_a_precision_with_a_rate_of_its_own_runs_at_that():
    slow = Roofline(fp16=200.0, bf16=100.0)
    assert (slow.peak("bf16", "bf16"), slow.peak("int8", "bf16"), slow.peak("fp16", "fp16")) == (
        100,
        100,
        200,
    )


@given(st.sets(st.sampled_from(sorted(Precision))), *[st.sampled_from(sorted(Precision))] * 2)
def test_a_mixed_multiply_is_no_faster_than_either_operand_alone(precisions, one, other):
    chip = Roofline(
        **{name: 1 / Precision(name).bytes for name in {"fp32", *precisions}}
    )  # half the width, twice the rate
    assert chip.peak(one, other) <= min(chip.peak(one, one), chip.peak(other, other))


def test_a_precision_is_carried_by_none_that_is_narrower():
    for precision, carriers in CARRIERS.items():
        assert all(Precision(carrier).bytes >= Precision(precision).bytes for carrier in carriers)


# Roofline.


def test_a_roofline_computes_flops_at_the_peak_and_reads_all_bytes_at_the_bandwidth():
    work = op(flops=300.0, weights=1e9, kv=2e9, activations=4e9)
    assert MIXED.times(work, MEMORY) == (3.0, 7.0)


def test_a_gpu_takes_two_thousand_tokens_a_step():
    assert MIXED.token_budget(("fp8", "fp8")) == 2048


# Tensor streaming.


def test_four_planes_of_int8_are_loaded_in_forty_cycles():
    _, load = groq().times(tile(1, "int8", "int8", count=4), SRAM)
    assert load == pytest.approx(40 / 0.9e9)


def test_four_loaded_planes_compute_a_token_each_cycle():
    compute, _ = groq().times(tile(7, "int8", "int8", count=4), SRAM)
    assert compute == pytest.approx(7 / 0.9e9)


@pytest.mark.parametrize(
    ("weights", "activations", "tokens"),
    [("int8", "int8", 40), ("fp16", "fp16", 20), ("int8", "fp16", 10)],
)
def test_a_step_turns_from_load_bound_to_compute_bound_at_the_published_tokens(
    weights, activations, tokens
):
    chip = groq()
    below, at, above = (
        chip.times(tile(tokens + more, weights, activations), SRAM) for more in (-1, 0, 1)
    )
    assert below[0] < below[1]
    assert at[0] == pytest.approx(at[1])
    assert above[0] > above[1]


def test_weights_are_loaded_once_a_step_however_many_tokens_it_has():
    loads = {groq().times(tile(tokens, "int8", "int8"), SRAM)[1] for tokens in (1, 10, 1000)}
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("shape", "tiles"),
    [((1, 1), 1), ((320, 320), 1), ((321, 320), 2), ((320, 321), 2), ((641, 321), 6)],
)
def test_matrices_are_padded_to_whole_tiles(shape, tiles):
    padded, whole = tile(5, "int8", "int8", shape), tile(5, "int8", "int8", count=tiles)
    assert groq().times(padded, SRAM) == pytest.approx(groq().times(whole, SRAM))


def test_keys_and_values_pass_the_load_path_and_are_multiplied_at_the_peak():
    compute, load = groq(fp16=100.0, weight_load=50.0).times(op(flops=300.0, kv=200.0), SRAM)
    assert (compute, load) == (3.0, 4.0)


def test_weights_arrive_no_faster_than_the_memory_gives_them():
    _, load = groq(weight_load=50.0).times(op(kv=200.0), Memory(capacity=1.0, bandwidth=25.0))
    assert load == 8.0


# What the simulator leaps on, for every kind.


@given(
    st.sampled_from([(MIXED, MEMORY), (groq(), SRAM)]),
    st.sampled_from([(), ((320, 640),)]),
    st.floats(0, 1e12),
    st.floats(0, 1e9),
    st.floats(1, 1e9),
)
@settings(deadline=None)
def test_times_grow_linearly_in_flops_and_kv(pair, matrices, flops, kv, more):
    chip, memory = pair
    start = op(tokens=3, flops=flops, weights=1e6, kv=kv, activations=1e3, matrices=matrices)
    steps = [
        chip.times(replace(start, flops=flops + n * more, kv=kv + n * more), memory)
        for n in range(3)
    ]
    for first, second, third in zip(*steps, strict=True):
        assert third - second == pytest.approx(second - first, rel=1e-3, abs=1e-6 * third)


# A chip.


def chip(**memories: Memory) -> Chip:
    return Chip(
        memory=memories,
        compute=MIXED,
        topology=FullyConnected(link=Link(latency=0.0, bandwidth=1.0)),
    )


def test_a_card_without_a_topology_is_a_replica_by_itself():
    card = Chip(memory={"gddr": MEMORY}, compute=MIXED)
    alone = card.topology.sized(1)
    assert alone.all_reduce(range(1), 1e6) == alone.all_to_all(range(1), 1e6) == 0
    with pytest.raises(ValueError, match="no topology: got a replica of 2 chips; expected 1; try"):
        card.topology.sized(2)


def test_a_chip_has_a_memory_for_weights_and_cache():
    assert chip(sram=SRAM, hbm=MEMORY).homes == ("sram", "hbm")
    assert chip(sram=SRAM.model_copy(update={"holds": ()}), hbm=MEMORY).homes == ("hbm",)
    for memories in ({}, {"hbm": MEMORY.model_copy(update={"holds": ("kv",)})}):
        with pytest.raises(ValidationError, match="got no memory that holds both"):
            chip(**memories)


# The matrix unit cycle by cycle: what the closed form leaves out is the filling of the planes at the start.


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 60),
    st.sampled_from(["int8", "fp16"]),
)
def test_a_streamed_multiply_takes_the_cycles_of_loading_or_computing(
    planes, tile, rows, columns, tokens, precision
):
    """Planes of tiles are loaded while the ones before compute; INT8 takes a token each cycle, FP16 one each four cycles."""
    width, pace = (1, 1) if precision == "int8" else (2, 4)
    load_rate = 2 * tile  # bytes a cycle
    unit = TensorStreaming(
        clock=1.0,
        planes=planes,
        tile=tile,
        weight_load=load_rate,
        int8=2.0 * planes * tile**2,
        fp16=2.0 * planes * tile**2 / 4,
    )
    tiles = math.ceil(rows / tile) * math.ceil(columns / tile)
    loaded = computed = 0.0  # cycles at which the last set of planes was loaded, and had computed
    for first in range(0, tiles, planes):
        filled = min(planes, tiles - first)
        loaded = max(
            loaded + filled * tile**2 * width / load_rate,
            computed - tokens * pace if first else 0.0,
        )
        computed = max(computed, loaded) + tokens * pace
    op = Op(
        tokens,
        2.0 * rows * columns * tokens,
        float(rows * columns * width),
        0.0,
        0.0,
        (precision, precision),
        ((rows, columns),),
    )
    closed = max(unit.times(op, Memory(capacity=1e9, bandwidth=1e9)))
    one_set = planes * tile**2 * width / load_rate + tokens * pace
    assert closed - 1e-9 <= computed + one_set
    assert computed <= closed + 2 * one_set


def test_keys_and_values_may_stream_past_the_load_path():
    attention = Op(1, 1.0, 0.0, 1000.0, 0.0, ("fp16", "fp16"))
    unit = {"clock": 1.0, "planes": 1, "tile": 1, "weight_load": 10.0, "fp16": 2.0}
    memory = Memory(capacity=1e9, bandwidth=50.0)
    assert TensorStreaming(**unit).times(attention, memory)[1] == 100.0
    assert TensorStreaming(**unit, kv_path="stream").times(attention, memory)[1] == 20.0


def test_rates_that_the_planes_cannot_have_are_refused():
    unit = {"planes": 4, "tile": 320, "weight_load": 9.2e12, "int8": 737e12}
    assert TensorStreaming(clock=0.9e9, **unit)
    with pytest.raises(
        ValidationError,
        match=r"expected 1\.024 PFLOP/s, as 4 planes of 320 x 320 at 1\.25 GHz make",
    ):
        TensorStreaming(clock=1.25e9, **unit)


class Squared(Compute):
    """A kind whose attention takes quadratic time."""

    def times(self, op, memory):
        return 0.0, (op.kv / memory.bandwidth) ** 2


class WholePages(Compute):
    """A kind that reads whole pages of 512 bytes."""

    def times(self, op, memory):
        return 0.0, math.ceil(op.kv / 512) * 512 / memory.bandwidth


@pytest.mark.parametrize("compute", [Squared(), WholePages()])
def test_a_kind_whose_times_are_not_linear_is_refused_with_its_numbers(make_chip, compute):
    with pytest.raises(ValidationError, match=r"got reading times of .* expected times linear"):
        Chip.model_validate({**dict(make_chip()), "compute": compute})
