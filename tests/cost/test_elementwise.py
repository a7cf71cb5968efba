"""What a chip does between multiplies: norms, residuals and activation functions."""

import pytest

from sim.cost.plan import Plan
from sim.cost.system_costs import step_terms
from sim.cost.terms import ACTIVATIONS, TIME
from sim.cost.work import Work

STEP = Work(prompt_tokens=9, chunks=1, attended=45.0, cached=9.0, logits=1)


def layers_time(deployment):
    """Return the seconds of activations in a step, without the embedding."""
    return float(step_terms(deployment.costs, STEP)[:, TIME, ACTIVATIONS].sum())


@pytest.mark.parametrize("tensor", [1, 2])
def test_each_chip_moves_its_share_of_a_layer_and_the_whole_residual(
    make_deployment, make_engine, make_model, tensor
):
    model, parts = make_model(), {"plan": Plan(tensor=tensor), "chips": tensor}
    plain = make_deployment(engine=make_engine(), model=model, **parts)
    counted = make_engine(elementwise_efficiency=0.5)
    deployment = make_deployment(engine=counted, model=model, **parts)
    nbytes = 0
    for block in model.blocks:
        if block.kind in ("attention", "mlp"):
            sides = sum(sum(matrix.share(tensor)) for matrix in block.matrices)
            nbytes += 2 * (sides + 2 * model.hidden_size)  # 16 bits each
    added = layers_time(deployment) - layers_time(plain)
    assert added == pytest.approx(STEP.tokens * nbytes / (0.5 * 1e9))
    times = [own.costs.step(STEP).time.sum() for own in (plain, deployment)]
    assert times[1] - times[0] == pytest.approx(added)


def test_of_routed_experts_only_the_output_is_read(make_deployment, make_engine, make_model):
    model = make_model(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    times = [
        layers_time(make_deployment(model=model, engine=make_engine(**numbers)))
        for numbers in ({}, {"elementwise_efficiency": 1.0})
    ]
    nbytes = 0
    for block in model.blocks:
        if block.kind in ("attention", "mlp"):
            sides = sum(sum(matrix.share(1)) for matrix in block.matrices)  # also the router's
            whole = 3 if block.experts else 2
            nbytes += 2 * (sides + whole * model.hidden_size)
    assert times[1] - times[0] == pytest.approx(STEP.tokens * nbytes / 1e9)
