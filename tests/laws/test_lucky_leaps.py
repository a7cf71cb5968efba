"""Link errors and drawn experts: a leap is its steps, whatever else happens, and chips have the luck of stages."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.cost.experts import ExpertDraws, slowest_shards
from sim.cost.plan import Plan
from sim.cost.step import Costs
from sim.model.blocks import Experts
from sim.reliability.link_errors import LinkErrors, LinkErrorSampler
from sim.serving.policy import Policies
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.service import serve_fleet
from sim.serving.step_draws import StepDraws
from sim.workload.requests import RequestBatch

EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
LAYOUTS = {
    "two chips, experts apart": (2, Plan(tensor=2, expert=2)),
    "three stages": (3, Plan(pipeline=3)),
    "two stages of two ranks": (4, Plan(tensor=1, attention_data=2, expert=2, pipeline=2)),
    "drafts, two chips": (2, Plan(tensor=2)),
    "drafts, two stages": (2, Plan(pipeline=2)),
}


@pytest.fixture(scope="module")
def layouts(make_deployment, make_model, make_chip, lossy, speculate):
    parts = {"model": make_model(**EXPERTS), "chip": make_chip(capacity=1e8), "engine": lossy}
    return {
        name: make_deployment(
            chips, plan=plan, speculation=speculate(2) if "drafts" in name else None, **parts
        )
        for name, (chips, plan) in LAYOUTS.items()
    }


def config(deployment, chance=None, drawn=False, seed=7, restart=0.0, tokens=1, **options):
    """A replica whose steps of so many tokens fail with a chance, or whose experts are drawn."""
    layout = replace(deployment.layout, expert_seed=(seed,))
    costs = Costs(layout) if drawn else deployment.costs
    sampler = None
    if chance is not None:
        rate = -math.expm1(math.log1p(-chance) / (8 * costs.collectives.link_bytes(tokens)))
        sampler = LinkErrorSampler(LinkErrors(bit_error_rate=rate, restart=restart), costs, [seed])
    of, draws = deployment.layout.speculation, None
    if of:
        draws = StepDraws(of.acceptance, seed)
    return ReplicaConfig(costs, deployment.limits, error_sampler=sampler, draws=draws, **options)


def served(config, requests, **options):
    return serve_fleet(requests, [config], lambda replicas, request: 0, **options)


@st.composite
def runs(draw):
    drawn = draw(
        st.lists(
            st.tuples(st.floats(0, 0.02), st.integers(1, 60), st.integers(1, 60)),
            min_size=1,
            max_size=12,
        )
    )
    gaps, prompts, outputs = (np.array(column) for column in zip(*drawn, strict=True))
    arrivals, users = np.cumsum(gaps), draw(st.none() | st.integers(1, 4))
    lasts = draw(st.sampled_from([None, None, 0.0371]))
    return {
        "layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "requests": RequestBatch(
            np.full(len(drawn), np.nan) if users else arrivals, prompts, outputs, users
        ),
        "chance": draw(st.sampled_from([None, 0.001, 0.02, 0.2])),
        "restart": draw(st.sampled_from([0.0, 1.0171e-3])),
        "drawn": draw(st.booleans()),
        "slots": draw(st.integers(1, 5)),
        "budget": draw(st.integers(1, 24)),
        "kv_tokens": draw(st.integers(120, 400)),
        "policies": Policies(
            reserve=draw(st.booleans()), deadline=draw(st.sampled_from([None, None, 0.0713]))
        ),
        "outages": (Outage(at=0.0213, lasts=lasts),) if lasts else (),
    }


@settings(max_examples=50)
@given(runs())
def test_a_leap_is_its_steps(layouts, run):
    deployment, slots = layouts[run["layout"]], run["slots"]
    if deployment.costs.stages == 1:
        slots = 1
    width = deployment.limits.width
    budget = max(width * run["budget"], deployment.layout.plan.attention_data)
    limits = replace(
        deployment.limits,
        micro_batches=slots,
        token_budget=budget,
        sequences=4 * budget // width,
        kv_tokens=run["kv_tokens"],
    )

    def rows(leap):
        keys = ("chance", "drawn", "restart", "policies", "outages")
        # A full step that nearly always failed would be repeated for ever.
        setup = config(deployment, tokens=budget, **{key: run[key] for key in keys})
        return served(replace(setup, limits=limits), run["requests"], leap=leap)

    leap, step = rows(True), rows(False)
    for column in ("admitted", "first_token", "last_token"):
        assert getattr(leap, column) == pytest.approx(
            getattr(step, column), rel=1e-9, abs=1e-12, nan_ok=True
        )
    assert leap.replays == step.replays
    assert leap.preemptions.tolist() == step.preemptions.tolist()
    assert leap.reason == step.reason
    assert leap.gaps.count == step.gaps.count
    assert leap.gaps.total == pytest.approx(step.gaps.total)
    whole, single = leap.tallies[0].batch_steps, step.tallies[0].batch_steps
    assert dict(whole) == pytest.approx({size: single[size] for size in whole})
    assert leap.busy[0] == pytest.approx(step.busy[0])


def test_a_long_answer_is_a_few_events(layouts):
    """Without errors one; with them three for each step that fails: those before it, itself, and its repeat."""
    deployment = layouts["two chips, experts apart"]
    alone = RequestBatch(np.zeros(1), np.array([4]), np.array([400]))
    setup = config(deployment, chance=0.01)
    sent, line = [], deployment.costs.line
    deployment.costs.line = lambda work: (sent.append(work), line(work))[1]
    rows = served(setup, alone)
    deployment.costs.line = line
    assert rows.replays[0] > 0
    assert len(sent) <= 2 + 3 * rows.replays[0]
    assert rows.gaps.count == 399


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "ranks" not in name])
@pytest.mark.parametrize("luck", [{"drawn": True}, {"drawn": True, "chance": 0.05}])
def test_chips_have_the_luck_of_stages(layouts, layout, luck):
    luck = dict(luck)
    deployment = layouts[layout]
    requests = RequestBatch(1e-3 * np.arange(6), np.full(6, 20), np.full(6, 15))
    luck = luck | {"outages": (Outage(at=8.1e-3, lasts=2e-3),)}  # in the middle of steps
    stages, chips = config(deployment, **luck), config(deployment, **luck)
    machine = machine_factory(chips.costs, [Irregularities()], [0])
    by_stage, by_chip = served(stages, requests), served(replace(chips, machine=machine), requests)
    np.testing.assert_allclose(by_chip.last_token, by_stage.last_token, rtol=1e-9)
    assert by_chip.replays == by_stage.replays
    assert by_stage.retries.any()


def test_good_steps_before_one_that_fails_are_geometric(layouts):
    """P(n good steps) = p (1 - p)^n, within four standard errors for each n."""
    chance, draws = 0.2, 20_000
    sampler = config(layouts["three stages"], chance=chance).error_sampler
    runs = Counter()
    for _ in range(draws):
        good = sampler.good_steps((1, 1))
        runs[good] += 1
        sampler.count((1, 1), good + 1)
    for n in range(12):
        expected = chance * (1 - chance) ** n
        error = 4 * math.sqrt(expected * (1 - expected) / draws)
        assert runs[n] / draws == pytest.approx(expected, abs=error)


def test_the_nth_equal_step_has_the_nth_draw_of_its_stream():
    """Whatever is taken together, and whatever other steps are made in between."""
    routed = Experts(8, 2, ())

    def taken(together, others):
        draws, loads = ExpertDraws([3], [routed, routed], 0.5, 4), []
        while len(loads) < 200:
            if others:
                draws.take((3, 3), others)
            loads += [draws.coming((5, 5))[0]]
            loads[-1:] = [draws.take((5, 5)) for _ in range(together)]
        return loads[:200]

    assert taken(1, 0) == taken(7, 2) == taken(3, 1)
    stream = np.random.default_rng([3, 5, 5])
    drawn = [routed.draw(5, routed.chances(0.5), stream, 1) for _ in range(2)]
    first = [[int(n[0]) for n in slowest_shards(of_block, 4)] for of_block in drawn]
    assert [list(load) for load in taken(1, 0)[0]] == first
