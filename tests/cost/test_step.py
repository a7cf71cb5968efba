"""`Costs`: the time of a step on each stage."""

import pytest

from sim.cost.step import Costs
from sim.cost.work import decodes_at
from sim.hardware.engine import Launch


@pytest.mark.parametrize(("launch", "waits"), [(0.0, False), (1.0, True)])
def test_a_step_with_drawn_experts_waits_for_its_launches_in_expectation(
    make_deployment, make_model, lossy, launch, waits
):
    """With expected loads a step takes as long as without draws: its work, or its launches if they take longer."""
    model = make_model(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    engine = lossy.model_copy(update={"layer_launch": Launch(decode=launch, prefill=launch)})
    layout = make_deployment(model=model, engine=engine).layout
    work = decodes_at(2, 100, None)
    expected, drawn = Costs(layout), Costs(layout, [7])
    assert drawn.seconds(work) == pytest.approx(expected.seconds(work))
    assert (drawn.seconds(work) == expected.launching(work).sum()) == waits
