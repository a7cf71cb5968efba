"""The fewest chips for users and a TPOT, against every plan there is; TPOT against a simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.plan import Plan, PlanError
from sim.hardware.topology import Link, Switch
from sim.planning.deployment import DeploymentParts, deploy
from sim.planning.loaded_speed import loaded_tpot
from sim.planning.sizing import Demand, JoinError, size_deployment
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

LINK = Link(latency=1e-6, bandwidth=1e9)


@pytest.fixture(scope="module")
def parts(make_model, make_chip, make_engine):
    """Return the small model on chips of a size, whose switch joins at most `limit` of them."""

    def make(capacity=1e5, limit=None, **engine):
        topology = Switch(link=LINK, **({"limit": limit} if limit else {}))
        chip = make_chip(capacity, topology=topology)
        engine = make_engine(token_budget=16, **engine)
        return DeploymentParts(make_model(num_hidden_layers=2), chip, 1, engine, Plan())

    return make


def meeting(parts, demand, most):
    """Return the chips of every plan that meets a demand with at most so many."""
    chips = []
    for tensor in range(1, parts.model.num_attention_heads + 1):
        for pipeline in range(1, len(parts.model.blocks) + 1):
            for replicas in range(1, demand.users + 1):
                if tensor * pipeline * replicas > most:
                    continue
                for balance in ("time", "memory"):
                    plan = Plan(
                        tensor=tensor, pipeline=pipeline, replicas=replicas, balance=balance
                    )
                    count = tensor * pipeline * replicas
                    users = math.ceil(demand.users / replicas)
                    try:
                        deployment = deploy(replace(parts, chips=count, plan=plan), demand.context)
                    except ValueError:  # the topology joins fewer
                        continue
                    tpot = loaded_tpot(deployment, users, demand.context)
                    if deployment.sequences(demand.context)[0] >= users and tpot <= (
                        demand.tpot or math.inf
                    ):
                        chips.append(count)
    return chips


@settings(max_examples=8)
@given(
    capacity=st.sampled_from([6e4, 1e5, 3e5]),
    users=st.integers(1, 4),
    tpot=st.none() | st.sampled_from([6e-5, 1.2e-4, 2e-4, 4e-4]),
    limit=st.none() | st.sampled_from([3, 6]),
    beat=st.sampled_from([None, 1]),
)
def test_no_plan_with_fewer_chips_meets_the_demand(parts, capacity, users, tpot, limit, beat):
    own = parts(capacity, limit, tokens_per_beat=beat, layer_overhead=1e-5)
    demand = Demand(40, 32, users, tpot)
    try:
        sized = size_deployment(own, demand)
    except PlanError:
        assert not meeting(own, demand, math.inf)
        return
    assert sized.deployment.chips == min(meeting(own, demand, sized.deployment.chips))
    assert sized.deployment.sequences(40)[0] >= sized.users
    assert sized.tpot <= (tpot or math.inf)
    assert sized.otherwise < sized.deployment.chips or sized.binds == "capacity"


def test_users_at_once_are_as_slow_as_in_a_simulation(make_deployment, lossy):
    """Two micro-batches of three users; long answers, so that prompts hardly count."""
    deployment = make_deployment(4, plan=Plan(tensor=2), engine=lossy)
    requests = RequestBatch(np.zeros(6), np.full(6, 10), np.full(6, 400))
    rows = serve(requests, deployment.costs, deployment.limits)
    tpot = float(np.mean((rows.last_token - rows.first_token) / 399))
    expected = np.mean([loaded_tpot(deployment, 6, context) for context in range(11, 410)])
    assert tpot == pytest.approx(expected, rel=0.01)
    assert expected > 1.2 * loaded_tpot(deployment, 1, 210)


def test_what_binds_is_named(parts):
    def binds(users=1, tpot=None, limit=None):
        return size_deployment(parts(1e5, limit), Demand(40, 32, users, tpot)).binds

    assert binds() == "capacity"
    assert binds(users=8) == "KV"
    alone = size_deployment(parts(), Demand(40, 32))
    assert binds(tpot=0.9 * alone.tpot) == "TPOT"
    assert binds(users=60, limit=alone.deployment.chips) == "topology"


def test_a_topology_that_joins_too_few_chips_is_the_cause(parts):
    chips = size_deployment(parts(), Demand(40, 32)).deployment.chips
    with pytest.raises(JoinError, match=rf"joins at most {chips - 1} chips; expected {chips},"):
        size_deployment(parts(limit=chips - 1), Demand(40, 32))


def test_the_best_tpot_is_named_and_can_be_reached(parts):
    with pytest.raises(PlanError, match=r"got 1 us; expected at least .* try '") as refusal:
        size_deployment(parts(), Demand(40, 32, 3, 1e-6))
    tried = float(str(refusal.value).rpartition("try '")[2].split()[0])
    assert size_deployment(parts(), Demand(40, 32, 3, tried / 1000)).tpot <= tried / 1000
