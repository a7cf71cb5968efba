"""The same physics twice: every chip a process, and stages in closed form.  Where nothing contends they give the same times."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sim
from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.cost.plan import Plan
from sim.cost.program import CollectiveOp, WaitOp, program
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.hardware.engine import Launch
from sim.hardware.topology import (
    Bus,
    Dragonfly,
    FullyConnected,
    Hierarchical,
    Line,
    Link,
    Mesh,
    Ring,
    Switch,
    Torus,
)
from sim.scenario.replicas import chip_machines
from sim.serving.step_draws import StepDraws

pytestmark = pytest.mark.slow

LINK = Link(latency=1e-6, bandwidth=1e9)
FAR = Link(latency=3e-6, bandwidth=0.4e9)
DRAGONFLY = {
    "node": 4,
    "rack": 3,
    "direct": 20,
    "limit": 480,
    "direct_bandwidth": 2e9,
    "global_bandwidth": 1e9,
}

# On these the messages of one stage never meet those of another, so that many passages may be under way at once.
APART = {
    "fully-connected": FullyConnected(link=LINK),
    "additions take time": FullyConnected(link=LINK, reduction=5e-7),
    "nodes": Hierarchical(
        levels=(FullyConnected(link=LINK, chips=4), FullyConnected(link=FAR)), reduction=5e-7
    ),
    "dragonfly": Dragonfly(link=LINK, global_link=FAR, reduction=5e-7, **DRAGONFLY),
}
# On these one passage alone does not contend with itself.
SHARED = {
    "switch": Switch(link=LINK),
    "switched nodes": Hierarchical(levels=(Switch(link=LINK, chips=2), FullyConnected(link=FAR))),
    "nodes on a switch": Hierarchical(
        levels=(FullyConnected(link=LINK, chips=4), Switch(link=FAR))
    ),
    "bus": Bus(link=LINK),
    "ring": Ring(link=LINK, reduction=5e-7),
    "line": Line(link=LINK),
    "mesh": Mesh(link=LINK, dims=(4, 4)),
    "mesh of threes": Mesh(link=LINK, dims=(6, 3)),
    "torus": Torus(link=LINK, dims=(4, 2, 2)),
    "racks": Hierarchical(levels=(Ring(link=LINK, chips=4), Line(link=FAR))),
}
MODELS = {
    "dense": {},
    "windows": {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2},
    "experts": {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
}
PLANS = [
    Plan(tensor=t, pipeline=p)
    for t, p in ((1, 4), (2, 1), (2, 3), (4, 1), (4, 2), (8, 1), (8, 2), (16, 1))
]
EXPERT_PLANS = [
    Plan(tensor=2, attention_data=2, pipeline=2),
    Plan(tensor=1, attention_data=4, pipeline=3),
    Plan(tensor=4, expert=4),
    Plan(tensor=1, attention_data=8, dispatch="fp8"),  # over two nodes of four
    Plan(tensor=2, attention_data=4, expert=4, pipeline=2),
    Plan(tensor=1, attention_data=16, expert=1),
]


def both(deployment, serve_on, requests, irregular=None, **options):
    """The rows of the same requests at both fidelities."""
    parts = [irregular or Irregularities()] * deployment.layout.plan.replicas
    by_chip = serve_on(
        deployment, requests, machine=machine_factory(deployment.costs, parts, [0]), **options
    )
    return serve_on(deployment, requests, **options), by_chip


def same(stage, chip):
    for name in ("admitted", "first_token", "last_token"):
        np.testing.assert_allclose(getattr(chip, name), getattr(stage, name), rtol=1e-9, atol=1e-9)
    for one, other in zip(stage.busy, chip.busy, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9)


def uncontended(deployment) -> bool:
    """Whether the topology runs all that the program says without contending with itself."""
    costs, topology = deployment.costs, deployment.layout.topology
    stages = program(costs, Work(decodes=1, context=9, logits=1, windowed_context=9)).stages
    talks = [
        each.exchange
        for instructions in stages
        for each in instructions
        if isinstance(each, CollectiveOp)
    ]
    return all(e.operation in topology.uncontended(group) for e in talks for group in e.groups)


def alone_on_its_cables(deployment) -> bool:
    """Whether a passage's slices, too, have cables of their own: not where a stage turns the corner of a row of four."""
    plan, topology = deployment.layout.plan, deployment.layout.topology
    turns = topology.noun() in ("mesh", "hierarchical") and plan.tensor == 2 and plan.pipeline > 2
    return uncontended(deployment) and not turns


@pytest.fixture(scope="module")
def lay(make_model, make_chip, make_deployment, lossy, eager, make_engine):
    compiled = lossy.model_copy(update={"tokens_per_beat": 2})
    hiding = lossy.model_copy(update={"overlap": 0.7})
    engines = {
        "ideal": make_engine(),
        "lossy": lossy,
        "eager": eager,
        "compiled": compiled,
        "hiding": hiding,
    }

    def build(topology, plan, model="dense", engine="lossy", **options):
        chips = plan.stage_size * (plan.pipeline or 1) * plan.replicas
        chip = make_chip(topology=topology)
        # Every chip could hold all the model: not what is asked here.
        chip = chip.model_copy(
            update={"memory": {"sram": chip.memory["sram"].model_copy(update={"capacity": 1e9})}}
        )
        return make_deployment(
            chips,
            model=make_model(**MODELS[model]),
            chip=chip,
            engine=engines[engine],
            plan=plan,
            **options,
        )

    return build


engines = st.sampled_from(["ideal", "lossy", "eager", "compiled"])
requests = st.lists(
    st.tuples(st.floats(0, 0.02), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=6
)


@given(
    requests,
    st.sampled_from(list(APART)),
    st.sampled_from(PLANS),
    st.sampled_from(["dense", "windows"]),
    engines,
)
@settings(max_examples=20)
def test_many_requests_take_the_same_time(lay, serve_on, drawn, topology, plan, model, engine):
    deployment = lay(APART[topology], plan, model, engine)
    assert uncontended(deployment)
    same(*both(deployment, serve_on, sorted(drawn)))


@given(
    requests,
    st.sampled_from(list(APART)),
    st.sampled_from([Plan(tensor=1), Plan(tensor=2, pipeline=3), Plan(tensor=4)]),
    st.sampled_from(["layer", "model"]),
    st.integers(2, 4),
)
@settings(max_examples=8)
def test_drafts_take_the_same_time(
    lay, serve_on, speculate, make_model, drawn, topology, plan, kind, tokens
):
    """A draft layer, and a draft model of three layers, in `tokens` passes."""
    drafter = make_model(num_hidden_layers=3) if kind == "model" else None
    method = "draft" if drafter else "eagle"
    drafts = speculate(tokens, 0.6, method=method, drafter=drafter)
    deployment = lay(APART[topology], plan, speculation=drafts)
    same(*both(deployment, serve_on, sorted(drawn), draws=StepDraws((0.6,) * tokens, seed=3)))


@given(requests, st.sampled_from(list(SHARED)), st.sampled_from(PLANS), engines)
@settings(max_examples=14)
def test_where_no_message_waited_the_time_is_the_same(lay, serve_on, drawn, topology, plan, engine):
    """Whatever the topology: only messages of other stages or passages, met on a cable, tell the two apart."""
    deployment = lay(SHARED[topology], plan, engine=engine)
    assume(alone_on_its_cables(deployment))
    stage, chip = both(deployment, serve_on, sorted(drawn))
    if not chip.traffic[0].waited:
        same(stage, chip)


@given(
    requests,
    st.sampled_from(list(APART)),
    st.sampled_from(EXPERT_PLANS),
    st.sampled_from(["ideal", "lossy", "hiding"]),
)
@settings(max_examples=20)
def test_experts_take_the_same_time(lay, serve_on, drawn, topology, plan, engine):
    deployment = lay(APART[topology], plan, "experts", engine)
    if uncontended(deployment):
        same(*both(deployment, serve_on, sorted(drawn)))
    else:  # an all-to-all over nodes of a dragonfly: the closed form takes the longest path for all
        assert topology == "dragonfly"
        # One request only: a step that ends 1 % earlier can admit another request one step earlier.
        stage, chip = both(deployment, serve_on, sorted(drawn)[:1])
        np.testing.assert_allclose(chip.last_token, stage.last_token, rtol=0.01)
        assert (chip.last_token <= stage.last_token * (1 + 1e-9)).all()


@given(
    st.sampled_from(list(SHARED | APART)),
    st.sampled_from(PLANS),
    st.integers(1, 16),
    st.integers(2, 9),
    engines,
)
@settings(max_examples=30)
def test_a_lone_request_takes_the_same_time(lay, serve_on, topology, plan, prompt, output, engine):
    """Of a prompt that is one chunk."""
    deployment = lay((SHARED | APART)[topology], plan, engine=engine)
    prompt = min(prompt, deployment.limits.token_budget)
    assume(alone_on_its_cables(deployment))
    same(*both(deployment, serve_on, [(0.0, prompt, output)]))


@pytest.mark.parametrize(
    "mode", [Irregularities(), Irregularities(scheduled=True)], ids=["dynamic", "scheduled"]
)
@pytest.mark.parametrize(
    "plan", [Plan(tensor=4, pipeline=2, replicas=2), Plan(tensor=2, pipeline=3, slots=2)]
)
def test_replicas_and_slots(lay, serve_on, plan, mode):
    drawn = [(0.001 * i, 7 * i % 50 + 1, 3 * i % 11 + 1) for i in range(20)]
    same(*both(lay(APART["dragonfly"], plan), serve_on, drawn, mode))


def test_latent_attention_and_sequences_split_over_chips(
    lay, serve_on, make_deployment, make_model, lossy
):
    latent = {
        "q_lora_rank": 8,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    for changes, plan in (
        ({"model_type": "deepseek_v3", **latent}, Plan(tensor=2, pipeline=2)),
        ({}, Plan(tensor=4, kv_split="sequence")),
    ):
        deployment = make_deployment(
            plan.tensor * (plan.pipeline or 1), model=make_model(**changes), engine=lossy, plan=plan
        )
        same(*both(deployment, serve_on, [(0.0, 40, 9), (0.001, 5, 3)]))


def test_users_in_a_closed_loop(lay, serve_on):
    deployment = lay(APART["nodes"], Plan(tensor=2, pipeline=2))
    same(
        *both(
            deployment,
            serve_on,
            [(0.0, 20 + i, 5 + i % 3) for i in range(9)],
            users=2,
            think=0.0003,
            overhead=0.0001,
        )
    )


def test_sampled_experts_are_drawn_alike(lay, serve_on):
    """The same stream gives the same drawings: the two fidelities ask for them in the same order."""
    rows = []
    for by_chip in (False, True):
        deployment = lay(APART["nodes"], EXPERT_PLANS[0], "experts")
        layout = replace(deployment.layout, expert_seed=(7,))
        deployment = replace(deployment, costs=Costs(layout))
        chips = machine_factory(deployment.costs, [Irregularities()], [0]) if by_chip else None
        rows.append(serve_on(deployment, [(0.0, 30, 9), (0.002, 10, 9)], machine=chips))
    same(*rows)


@pytest.mark.parametrize("system", ["lpu", "h100", "h100x8"])
def test_the_flagship_takes_the_same_time(serve_on, system):
    scenario = sim.read("llama2-70b-lpu-vs-h100")
    deployment = scenario.deploy(system)
    chips = chip_machines(scenario.model_copy(update={"fidelity": "chip"}), system, deployment)
    requests = [(0.0, 40, 6)]
    same(serve_on(deployment, requests), serve_on(deployment, requests, machine=chips))


def test_a_dragonfly_of_racks_with_groups_over_nodes(lay, serve_on):
    """Sixteen chips of four nodes in two racks: hierarchical all-reduces, five hops."""
    fabric = Dragonfly(link=LINK, global_link=FAR, **(DRAGONFLY | {"node": 4, "rack": 2}))
    deployment = lay(fabric, Plan(tensor=16, pipeline=3))
    assert uncontended(deployment)
    same(*both(deployment, serve_on, [(0.0, 50, 5), (0.001, 20, 9)]))


def test_a_group_that_contends_with_itself_is_not_called_uncontended(lay):
    """A ring has no all-to-all of its own: all its messages meet on the links between."""
    assert not uncontended(lay(SHARED["ring"], EXPERT_PLANS[0], "experts"))
    assert not uncontended(
        lay(APART["nodes"], Plan(tensor=3, pipeline=2))
    )  # its second group lies across two nodes


@pytest.mark.parametrize("grid", [Mesh, Torus])
@pytest.mark.parametrize("dims", [(4, 3), (3, 4), (4, 4), (2, 2, 2), (2, 4)])
def test_any_group_of_a_grid_that_is_called_uncontended_takes_the_same_time(
    lay, serve_on, grid, dims
):
    """Every tensor degree, also those that rows do not divide: a group at the grid's beginning."""
    chips = int(np.prod(dims))
    agreeing = 0
    for tensor in range(2, chips + 1):
        deployment = lay(grid(link=LINK, dims=dims, reduction=3e-7), Plan(tensor=tensor))
        if uncontended(deployment):
            agreeing += 1
            same(*both(deployment, serve_on, [(0.0, 9, 3)]))
    assert agreeing >= chips // 2


def test_contention_only_makes_slower(lay, serve_on):
    """Two stages at work at once on one bus."""
    deployment = lay(SHARED["bus"], Plan(tensor=4, pipeline=2), engine="ideal")
    stage, chip = both(deployment, serve_on, [(0.0, 64, 12), (0.0, 64, 12)])
    assert (chip.last_token >= stage.last_token * (1 - 1e-12)).all()
    assert chip.last_token.max() > 1.01 * stage.last_token.max()
    assert chip.traffic[0].waited > 0


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_launch_that_nothing_waits_for_changes_nothing(
    lay, make_deployment, eager, serve_on, scheduled
):
    """Chips that jitter, fast ones among them, and a host that takes no time."""
    idle = eager.model_copy(update={"layer_launch": Launch(decode=0.0, prefill=0.0)})
    none = eager.model_copy(update={"layer_launch": None})
    plan = Plan(tensor=2, pipeline=2)
    rows = []
    for engine in (idle, none):
        deployment = make_deployment(4, engine=engine, plan=plan)
        irregular = Irregularities(jitter=0.0 if scheduled else 0.2, scheduled=scheduled)
        rows.append(both(deployment, serve_on, [(0.0, 40, 9), (0.001, 5, 3)], irregular)[1])
    same(*rows)


@pytest.mark.parametrize("engine", ["lossy", "eager", "hiding"])
def test_the_program_is_the_closed_form(lay, engine):
    """Stage by stage, the instructions of a program add up to what a step takes, or its host takes longer; every kind of block."""
    for laid in (
        (SHARED["nodes on a switch"], EXPERT_PLANS[3], "experts"),
        (SHARED["switch"], EXPERT_PLANS[0], "experts"),
        (APART["nodes"], Plan(tensor=4, pipeline=3)),
    ):
        deployment = lay(*laid, engine=engine)
        work = Work(
            decodes=3, context=50, prompt_tokens=9, chunks=1, attended=45, cached=9, logits=4
        )
        times = []
        for instructions in program(deployment.costs, work).stages:
            waits = [each.seconds for each in instructions if isinstance(each, WaitOp)]
            assert len(waits) == (engine == "eager")
            rest = [each for each in instructions if not isinstance(each, WaitOp)]
            chips = sum(
                each.exchange.time if isinstance(each, CollectiveOp) else each.seconds
                for each in rest
            )
            times.append(max(chips, *waits, 0.0))
        np.testing.assert_allclose(times, deployment.costs.step(work).time, rtol=1e-12)
