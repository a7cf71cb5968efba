"""The lines of an explanation: they add up to the step's own terms, and their formulas are true."""

import numpy as np
import pytest

from sim.cost.contributions import Contribution, contributions, merged, way_back
from sim.cost.plan import Plan
from sim.cost.system_costs import step_terms
from sim.cost.terms import FITTED, HOPS, TERMS, TIME
from sim.cost.work import Work
from sim.hardware.chip import Compute, TensorStreaming
from sim.hardware.topology import Dragonfly, Link
from sim.planning.single_request import first_token_path, time_single_request

DECODE = Work(decodes=3, context=300.0, logits=3, windowed_context=90.0)
MIXED = Work(2, 200.0, 9, 1, 500, 64, 3, 60.0, 300, 40)
LINK = Link(latency=1e-6, bandwidth=1e9)
FABRIC = Dragonfly(
    link=LINK, global_link=LINK, node=2, rack=2, direct=4, limit=16,
    direct_bandwidth=2e9, global_bandwidth=1e9, reduction=2e-6,
)  # fmt: skip
STREAMING = TensorStreaming(clock=1e9, planes=4, tile=16, weight_load=5e8, fp16=2.048e12)


class Fixed(Compute):
    """A kind of a user's own, which states no quotients."""

    def times(self, op, memory):
        return 1e-6 * op.tokens + op.flops / 1e12, (op.weights + op.kv) / 1e9


CASES = {
    "one chip": (1, Plan(), {}),
    "pipeline": (6, Plan(tensor=2), {"topology": FABRIC}),
    "streaming": (4, Plan(tensor=2), {"compute": STREAMING}),
    "own kind": (2, Plan(tensor=2), {"compute": Fixed(fp16=1e12)}),
    "experts": (4, Plan(tensor=2, attention_data=2, expert=2), {}),
}


@pytest.mark.parametrize("software", ["lossy", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_lines_add_up_to_the_terms_and_their_formulas_hold(
    request, make_deployment, make_model, make_chip, software, case
):
    chips, plan, parts = CASES[case]
    routed = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    deployment = make_deployment(
        chips,
        plan=plan,
        model=make_model(**(routed if case == "experts" else {})),
        chip=make_chip(**parts),
        engine=request.getfixturevalue(software).model_copy(
            update={"overlap": 0.5, "elementwise_efficiency": 0.6}
        ),
    )
    costs = deployment.costs
    for work in (DECODE, MIXED):
        table, sums = step_terms(costs, work).sum(axis=0), np.zeros((2, len(TERMS)))
        table[TIME, HOPS] += costs.back
        lines = merged([*contributions(costs, work, *np.ones((2, costs.stages))), way_back(costs)])
        for line in lines:
            below = line.chips * (line.rate or 1.0) * line.efficiency
            assert line.amount / below == pytest.approx(line.seconds, rel=1e-9)
            sums[TIME, TERMS.index(line.term)] += line.seconds
            sums[FITTED, TERMS.index(line.term)] += line.seconds - line.ideal
        assert sums == pytest.approx(table, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("prompt", [1, 16, 50, 64])
@pytest.mark.parametrize("stages", [1, 3, 5])
def test_the_way_to_the_first_token_takes_as_long_as_the_simulation(
    make_deployment, make_engine, lossy, stages, prompt
):
    """Steps of 16 tokens: 50 leave a smaller chunk, which waits behind the full ones."""
    for engine in (lossy, lossy.model_copy(update={"tokens_per_beat": 16})):
        deployment = make_deployment(2 * stages, plan=Plan(tensor=2), engine=engine)
        path = first_token_path(deployment, prompt)
        lines = [line for step in path for line in contributions(deployment.costs, *step)]
        ttft = time_single_request(deployment, prompt, 4).ttft
        assert sum(line.seconds for line in lines) == pytest.approx(ttft, rel=2e-3)


def test_lines_without_a_time_are_left_out():
    """Layers that read no KV cache in a memory of its own: nothing to divide by."""
    line = Contribution("kv", "KV cache", "read", "memory", 1, 0.0, "B", 0.0, 0.0, 2, 1e9)
    assert merged([line, line]) == []
