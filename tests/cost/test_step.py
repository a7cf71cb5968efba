"""`Costs`: the time of a step on each stage."""

import pytest

from sim.cost.step import Costs
from sim.cost.work import decodes_at


@pytest.mark.parametrize("context", [1, 5000])
def test_a_step_with_drawn_experts_waits_for_its_launches_in_expectation(
    make_deployment, make_model, eager, context
):
    """With expected loads a step takes as long as without draws: here its launches, or its reading."""
    model = make_model(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    layout = make_deployment(model=model, engine=eager).layout
    work = decodes_at(2, context, None)
    expected, drawn = Costs(layout), Costs(layout, [7])
    assert drawn.seconds(work) == pytest.approx(expected.seconds(work))
    assert drawn.seconds(work) >= expected.launching(work).sum() > 0
