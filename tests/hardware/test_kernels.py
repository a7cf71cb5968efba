"""Kernels of an engine: which one a multiply uses."""

import pytest
from pydantic import ValidationError

from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.hardware.kernels import Kernels, kernel_precision
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names

KERNEL = {"fixed": "3 us", "memory_efficiency": 0.8, "compute_efficiency": 0.7}
KERNELS = Kernels(
    otherwise="old",
    multiplies={
        "old": {"bf16": KERNEL},
        "new": {"bf16": KERNEL, "fp8": {**KERNEL, "fixed": "7 us"}},
    },
)


@pytest.mark.parametrize(
    ("generation", "precision", "key"),
    [
        ("new", "fp8", "multiplies.new.fp8"),
        ("new", "fp4", "multiplies.new.fp8"),
        ("new", "fp8_block", "multiplies.new.fp8"),
        ("old", "fp8_block", "multiplies.old.bf16"),
        ("unknown", "fp8", "multiplies.old.bf16"),
    ],
)
def test_a_kernel_that_is_missing_has_a_stand_in(generation, precision, key):
    assert KERNELS.multiply(generation, precision).key == key


@pytest.mark.parametrize(
    ("weights", "bits", "activations", "precision"),
    [
        ("fp8", 8, "fp8", "fp8"),
        ("fp8", 8.002, "fp8", "fp8_block"),
        ("fp4", 4.5, "fp4", "fp4"),
        ("int4", 4, "int8", "int8"),
        ("int4", 4, "bf16", "bf16"),
        ("fp16", 16, "fp16", "bf16"),
    ],
)
def test_a_kernel_goes_by_what_is_multiplied(weights, bits, activations, precision):
    assert kernel_precision(weights, bits, activations) == precision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"otherwise": "gone"}, "otherwise: got gone; expected one of old"),
        (
            {"multiplies": {"old": {"fp8": KERNEL}}},
            "multiplies.old: got fp8; expected at least bf16",
        ),
    ],
)
def test_a_file_without_the_kernels_of_last_resort_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Kernels(**{"otherwise": "old", "multiplies": {"old": {"bf16": KERNEL}}, **changes})


def test_only_factors_on_kernels_may_exceed_1():
    plain = read_value(catalogue_names("engines")["gpt-fast"], Engine)
    data = plain.model_dump() | {"memory_efficiency": {"16": 1.1}}
    with pytest.raises(ValidationError, match=r"got 1\.1; expected at most 1 without kernels"):
        Engine(**data)
    assert Engine(**data | {"kernels": KERNELS.model_dump()}).memory_efficiency == {"16": 1.1}


def test_fused_quantizing_takes_the_fixed_time_of_16_bits():
    apart, fused = (KERNELS.multiply("new", "fp8", fused) for fused in (False, True))
    assert (apart.fixed, fused.fixed) == pytest.approx((7e-6, 3e-6))
    assert fused.kernel == apart.kernel
    assert fused.fixed_key == "multiplies.new.bf16"


@pytest.mark.parametrize(
    ("quantizing", "whole", "blocks"),
    [("apart", 7e-6, 9e-6), ("fused", 3e-6, 3e-6), ("blocks-apart", 3e-6, 9e-6)],
)
def test_scales_of_blocks_may_need_a_kernel_of_their_own(quantizing, whole, blocks):
    new = dict(KERNELS.multiplies["new"]) | {"fp8_block": {**KERNEL, "fixed": "9 us"}}
    kernels = Kernels(otherwise="new", multiplies={"new": new})
    plain = read_value(catalogue_names("engines")["gpt-fast"], Engine)
    engine = plain.model_copy(update={"kernels": kernels, "quantizing": quantizing})
    chip = read_value(catalogue_names("chips")["h100-sxm"], Chip)
    times = [engine.kernel(chip, ("fp8", bits), "fp8").fixed for bits in (8, 8.002)]
    assert times == pytest.approx([whole, blocks])
