"""Steps that links spoil: as many as the closed form expects, each made again, and none of their tokens lost or counted twice."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sim import PlanError, read, run
from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.chipsim.visits import visit_factory
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.planning.attention_ffn import PoolSharing, deploy_with_ffn
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.reliability.link_errors import LinkErrors, LinkErrorSampler, expected_retries
from sim.serving.policy import Policies
from sim.serving.replica_config import Outage, PoolOutages, ReplicaConfig
from sim.serving.service import serve_fleet
from sim.workload.requests import RequestBatch

KINDS = {
    "tensor": (2, Plan(tensor=2)),
    "piped": (3, Plan(pipeline=3)),
    "both": (6, Plan(tensor=2, pipeline=3)),
    "pools": (2, Plan(tensor=2)),  # attention, with an FFN pool like it
}


@pytest.fixture(scope="module")
def spoilt(make_deployment, make_model, make_chip, make_engine):
    """A replica of a kind whose steps of one token are spoilt with a chance, and its deployment."""
    deployments = {kind: make_deployment(chips, plan=plan) for kind, (chips, plan) in KINDS.items()}
    chips, plan = KINDS["pools"]
    pool = DeploymentParts(make_model(), make_chip(), chips, make_engine(), plan)
    sharing = PoolSharing(2, LayerTransfer(bandwidth=1e9, latency=1e-6))
    limits = LimitOverrides(token_budget=16), LimitOverrides()
    deployments["pools"] = deploy_with_ffn(pool, pool, sharing, (64, 32), limits)

    def build(kind, chance, seed=0, restart=0.0, **options):
        deployment = deployments[kind]
        rate = -math.expm1(math.log1p(-chance) / (8 * deployment.costs.link_bytes(1)))
        errors = LinkErrors(bit_error_rate=rate, restart=restart)
        error_sampler = LinkErrorSampler(errors, deployment.costs, [seed])
        return replace(
            ReplicaConfig(
                deployment.costs, deployment.limits, Policies(), error_sampler=error_sampler
            ),
            **options,
        ), errors

    return build


def asked(n, users=None, prompt=24, output=20, every=1e-4):
    return RequestBatch(
        np.full(n, np.nan) if users else every * np.arange(n),
        np.full(n, prompt),
        np.full(n, output),
        users,
    )


def served(setup, requests, **options):
    return serve_fleet(requests, [setup], lambda replicas, job: 0, **options)


@pytest.mark.parametrize("kind", list(KINDS))
def test_links_without_errors_change_nothing(spoilt, kind):
    setup, _ = spoilt(kind, 0.0)
    with_links, without = (
        served(setup, asked(30)),
        served(replace(setup, error_sampler=None), asked(30), leap=False),
    )
    for column in ("admitted", "first_token", "last_token"):
        np.testing.assert_allclose(
            getattr(with_links, column), getattr(without, column), rtol=1e-12
        )
    assert with_links.gaps.count == without.gaps.count
    assert with_links.gaps.total == pytest.approx(without.gaps.total, rel=1e-12)
    assert with_links.tallies[0].batch_steps == without.tallies[0].batch_steps
    assert with_links.replays == [0]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("chance", [0.003, 0.1])
def test_as_many_steps_are_made_again_as_the_closed_form_expects(spoilt, kind, chance):
    """Within three standard errors for each of 8 seeds; each step's standard error is that of a throw."""
    for seed in range(8):
        setup, errors = spoilt(kind, chance, seed)
        rows = served(setup, asked(100, users=3, prompt=2))
        batch_steps, costs = rows.tallies[0].batch_steps, setup.costs
        expected = expected_retries(errors, costs, rows.tallies[0])
        chances = {n: errors.step_error_probability(costs, n) for n in batch_steps}
        deviation = math.sqrt(
            sum(steps * chances[n] * (1 - chances[n]) for n, steps in batch_steps.items())
        )
        assert abs(rows.replays[0] - expected) <= 3 * deviation
        assert rows.finished.all()


def test_a_token_takes_as_many_passages_as_it_takes(spoilt):
    """One user: a passage is spoilt with chance p, so a token takes 1/(1-p) of them, and p/(1-p) restarts."""
    chance, n = 0.2, 200
    setup, _ = spoilt("both", chance)
    alone = served(replace(setup, error_sampler=None), asked(n, users=1, prompt=1))
    step = restart = alone.gaps.mean
    setup, _ = spoilt("both", chance, restart=restart)
    rows = served(setup, asked(n, users=1, prompt=1))
    tokens = rows.gaps.count
    assert tokens == alone.gaps.count == 19 * n
    deviation = math.sqrt(chance / tokens) / (1 - chance) * (step + restart)
    assert rows.gaps.mean == pytest.approx(
        (step + chance * restart) / (1 - chance), abs=3 * deviation
    )
    assert rows.gaps.total == pytest.approx((rows.last_token - rows.first_token).sum())


@pytest.mark.parametrize("kind", list(KINDS))
def test_chips_as_processes_make_the_same_steps_again(spoilt, kind):
    setup, _ = spoilt(kind, 0.05, restart=2e-6)
    stages = served(setup, asked(4, users=1))
    setup, _ = spoilt(kind, 0.05, restart=2e-6)
    machine = machine_factory(setup.costs, [Irregularities()], [0])
    if kind == "pools":
        machine = visit_factory(setup.costs, (Irregularities(), Irregularities()), [0])
    chips = served(replace(setup, machine=machine), asked(4, users=1))
    assert chips.replays == stages.replays != [0]
    np.testing.assert_allclose(chips.last_token, stages.last_token, rtol=1e-9)
    assert chips.traffic[0].messages > 0


def test_a_replica_that_fails_counts_what_it_had_made_again(spoilt):
    setup, errors = spoilt("both", 0.2)
    alone = served(setup, asked(50, every=1e-6))
    outage = Outage(at=float(alone.last_token.max()) / 2, lasts=1e-3)
    setup, _ = spoilt("both", 0.2)
    rows = served(replace(setup, outages=(outage,)), asked(50, every=1e-6))
    assert rows.finished.all()
    assert rows.retries.any()
    expected = expected_retries(errors, setup.costs, rows.tallies[0])
    assert abs(rows.replays[0] - expected) <= 4 * math.sqrt(expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_that_an_outage_interrupts_is_no_replay(spoilt, kind):
    """It counts in part, as without links; and a replica that fails in the middle of a replay loses its requests all the same."""
    outage = Outage(at=1.234e-3, lasts=1e-3)
    setup, _ = spoilt(kind, 0.0, outages=(outage,))
    with_links, without = (
        served(setup, asked(30)),
        served(replace(setup, error_sampler=None), asked(30), leap=False),
    )
    assert with_links.tallies[0].batch_steps == pytest.approx(without.tallies[0].batch_steps)
    assert with_links.tallies[0].context == pytest.approx(without.tallies[0].context)
    assert any(steps % 1 for steps in without.tallies[0].batch_steps.values())
    often = served(spoilt(kind, 0.02, restart=1e-5, outages=(outage,))[0], asked(30))
    assert often.finished.all()
    assert often.busy[0].max() <= often.elapsed


def test_steps_fail_also_between_the_outages_of_a_drafter(spoilt):
    """An outage after the run changes nothing, and one within it makes no step fail that did not."""
    setup, _ = spoilt("tensor", 0.02, restart=1e-5)
    alone = served(setup, asked(30))
    middle = float(alone.last_token.max()) / 2
    for at, late in ((1e6, 0.0), (middle, 1.0)):
        failing = PoolOutages(other=(Outage(at=at, lasts=1.0),))
        rows, single = (
            served(spoilt("tensor", 0.02, restart=1e-5, pool_outages=failing)[0], asked(30), **how)
            for how in ({}, {"leap": False})
        )
        assert rows.replays[0] > 5
        assert abs(rows.replays[0] - alone.replays[0]) <= bool(late)
        assert rows.last_token.max() == pytest.approx(alone.last_token.max() + late, abs=1e-3)
        np.testing.assert_allclose(rows.last_token, single.last_token, rtol=1e-9)
        assert (rows.replays, rows.gaps.count) == (single.replays, single.gaps.count)
        assert rows.gaps.total == pytest.approx(single.gaps.total)
        for size, steps in single.tallies[0].batch_steps.items():
            assert rows.tallies[0].batch_steps[size] == pytest.approx(steps)


OPTIONS = [
    "systems.lpu.link_errors={bit_error_rate: 1e-11, restart: 1 ms}",
    "workload.requests=4",
    "workload.output=8 token",
]


def test_a_run_tells_what_was_made_again_and_how_much_that_is():
    scenario = read("llama2-70b-lpu-vs-h100", OPTIONS)
    metrics = run(scenario).systems["lpu"].metrics
    assert metrics.link_errors
    assert metrics.link_errors.replays_per_day > metrics.link_errors.expected_replays > 0
    assert 0 < metrics.link_errors.replayed_share < 0.2
    assert not run(scenario).systems["h100"].metrics.link_errors
    assert run(scenario).as_json() == run(scenario).as_json()


def test_a_result_keeps_who_says_how_often_links_err():
    told = " ".join(str(each) for each in read("link-errors").origin.sources.items())
    assert "software notices and begins the step again" in told


def test_links_through_which_nothing_comes_are_refused():
    with pytest.raises(
        PlanError,
        match=r"systems\.lpu\.link_errors\.bit_error_rate: got 1e-07, at which 100 % of the steps",
    ):
        run(read("llama2-70b-lpu-vs-h100", [OPTIONS[0].replace("1e-11", "1e-7")]))


@pytest.mark.parametrize("extra", ["", ", outages: [{at: 1 us, lasts: 1 s}]"])
def test_a_member_of_a_fleet_that_serves_nothing_makes_no_step_again(tmp_path, extra):
    """Round robin gives the only request to the first member; the other one's links have nothing to spoil."""
    (tmp_path / "fleet.yaml").write_text(f"""\
model: llama-2-7b
workload: {{kind: closed, users: 1, requests: 1, prompt: 30 token, output: 3 token}}
systems:
  sound: {{chip: h100-sxm, chips: 1, engine: ideal}}
  erring: {{chip: h100-sxm, chips: 1, engine: ideal, link_errors: {{bit_error_rate: 1.0e-15}}{extra}}}
  both: {{fleet: {{sound: 1, erring: 1}}, router: round-robin}}
""")
    result = run(tmp_path / "fleet.yaml")
    both, alone = (result.systems[name].metrics for name in ("both", "sound"))
    assert (
        both.link_errors.replays,
        both.link_errors.expected_replays,
        both.link_errors.replayed_share,
        both.link_errors.replays_per_day,
    ) == (0, 0, 0, 0)
    assert both.output_throughput == alone.output_throughput


class Spoiling:
    """An error sampler that spoils steps by their numbers, counted from 0."""

    def __init__(self, spoilt, restart):
        self.errors, self.left, self.made = (
            LinkErrors(bit_error_rate=0.0, restart=restart),
            spoilt,
            0,
        )

    def good_steps(self, size):
        return next((n - self.made for n in self.left if n >= self.made), 10**6)

    def count(self, size, steps):
        self.made += steps


@pytest.mark.parametrize("leap", [True, False])
def test_a_failure_counts_a_spoilt_step_whole_and_only_once(spoilt, leap):
    """It fails while a spoilt step waits to be made again, or in step 9 of good ones after it. A part of the run counts alike."""
    setup, _ = spoilt("tensor", 0.0)

    def tokens(at):
        failing = replace(
            setup,
            error_sampler=Spoiling([5], restart),
            outages=(Outage(at=at, lasts=1.0, requests="fail"),),
        )
        return served(failing, asked(1, output=20), leap=leap).tallies[0].logits

    usual = served(replace(setup, error_sampler=None), asked(1, output=20))
    first, step = usual.first_token[0], usual.gaps.mean
    restart = 10 * step
    steps = 5 - math.ceil(24 / setup.limits.token_budget)  # decodes before the spoilt one
    waiting = first + (steps + 6) * step
    assert tokens(waiting) == pytest.approx(1 + steps + 1)
    spoiling = replace(setup, error_sampler=Spoiling([5], restart))
    part = served(spoiling, asked(1, output=20), leap=leap, counted=(0.0, waiting)).span
    assert part.tallies[0].logits == pytest.approx(1 + steps + 1)
    after = tokens(first + (steps + 1 + 10 + 1 + 8.5) * step)
    assert after == pytest.approx(1 + steps + 1 + 8.5, abs=0.3)
