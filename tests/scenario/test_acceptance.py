"""Published acceptance of drafters by name: the chances of their curves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.acceptance import AcceptanceCurve, chances_of
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names
from sim.scenario.speculate import Speculate

CURVES = catalogue_names("acceptance")


def test_a_name_means_the_chances_of_its_curve():
    """1.92, 2.58 and 2.82 tokens a step with 1, 2 and 3 drafts (TensorRT-LLM's tech blog 1)."""
    named = Speculate(method="mtp", tokens=2, acceptance="deepseek-r1-mtp")
    assert named.acceptance == pytest.approx((0.92, 0.66, 0.24))


def test_a_name_that_no_curve_has_is_told():
    with pytest.raises(ScenarioError, match=r"got 'deepseek-r2-mtp'; .* did you mean"):
        Speculate(method="mtp", tokens=2, acceptance="deepseek-r2-mtp")


@given(st.lists(st.floats(1, 9), min_size=1, max_size=10))
def test_chances_never_increase(lengths):
    chances = chances_of(tuple(lengths))
    assert len(chances) == len(lengths)
    assert all(0 <= chance <= 1 for chance in chances)
    assert list(chances) == sorted(chances, reverse=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_a_curve_without_noise_is_kept(chances):
    chances = sorted(chances, reverse=True)
    lengths = tuple(1 + sum(chances[: place + 1]) for place in range(len(chances)))
    assert chances_of(lengths) == pytest.approx(chances, abs=2e-6)


@pytest.mark.parametrize("name", CURVES)
def test_chances_give_the_published_lengths_again(name):
    """To 5 %, except where more drafts were accepted less often than fewer."""
    curve = read_value(CURVES[name], AcceptanceCurve)
    means = [1 + sum(curve.chances[: place + 1]) for place in range(len(curve.lengths))]
    best = [max(curve.lengths[: place + 1]) for place in range(len(curve.lengths))]
    assert means == pytest.approx(best, rel=0.05)
