"""Prefill and decode pools in a scenario: members, plans, capacity, energy and money, and what is refused."""

import pytest

import sim
from sim.cost.plan import PlanError
from sim.hardware.chip import Memory
from sim.hardware.power import Power
from sim.scenario.pools import PoolCopies, Pools
from sim.scenario.scenario import Scenario
from sim.scenario.system import Fleet, System
from sim.serving.transfer import Transfer
from sim.studies.capacity import capacity
from sim.workload.arrivals import Poisson
from sim.workload.lengths import Length
from sim.workload.slo import SLO

LINK = Transfer(bandwidth=1e9, latency=1e-4)


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, make_engine):
    """A plain system, the same one as both pools, and pools with a decode pool in place."""

    def make(systems=None, rate=200.0, **options) -> Scenario:
        chip = make_chip(
            memory={"sram": Memory(capacity=1e6, bandwidth=1e9, energy=1e-11)},
            power=Power(maximum=10.0, idle=2.0, flop=1e-12, link=1e-12),
        )
        one = System(chip=chip, chips=1, engine=make_engine(), token_budget=16, kv_tokens=400)
        pools = {
            "both": Pools(prefill="one", decode="one", transfer=LINK),
            "mixed": Pools(prefill="one", decode=one, copies=PoolCopies(decode=2), transfer=LINK),
        }
        workload = Poisson(
            rate=rate, requests=200, prompt=Length(uniform=(1, 40)), output=Length(fixed=6)
        )
        return Scenario(
            model=make_model(),
            workload=workload,
            systems={"one": one} | pools | (systems or {}),
            **options,
        )

    return make


def test_pools_have_a_member_each_and_every_chip_counts(make_scenario):
    result = sim.run(make_scenario())
    summary = result.as_json()["systems"]
    mixed, table = summary["mixed"], result.requests
    assert (mixed["chips"], list(mixed["members"])) == (3, ["mixed.prefill", "mixed.decode"])
    assert mixed["members"]["mixed.prefill"]["replicas"] == [0]
    assert [part["completed"] for part in mixed["members"].values()] == [200, 200]
    # A chip of a pool idles when it waits, so three chips draw at least three times the idle power.
    watts = {name: result.systems[name].costs.energy.mean_power_w for name in ("both", "mixed")}
    assert watts["mixed"] > 3 * 2.0 > watts["both"] > 2 * 2.0
    own = table.filter(table["system"] == "mixed")
    assert set(own["replica"]) == {1, 2}
    assert set(own["member"]) == {"mixed.decode"}
    assert (own["transfer_end"] - own["transfer_start"]).min() >= LINK.latency
    assert table.filter(table["system"] == "one")["transfer_end"].is_null().all()


def test_a_run_without_pools_has_no_columns_of_transfers(make_scenario):
    scenario = make_scenario()
    alone = scenario.model_copy(update={"systems": {"one": scenario.systems["one"]}})
    assert "transfer_end" not in sim.run(alone).requests.columns


def test_plan_and_check_lay_out_both_pools(make_scenario):
    scenario = make_scenario()
    planned = sim.plan(scenario).summary([64])
    assert list(planned.systems) == ["one", "both", "mixed"]
    assert planned.systems["mixed"].chips == 3
    members = sim.check(scenario)["mixed"]
    assert [member.pool for member in members.values()] == ["prefill", "decode"]


def test_the_capacity_is_near_the_bound_of_the_pool_that_binds(make_scenario):
    scenario = make_scenario(slo=SLO(ttft=0.05, tpot=0.05))
    result = capacity(scenario, requests=400)
    rates = {name: system.best.goodput for name, system in result.systems.items()}
    summary = sim.run(scenario).summary.systems
    for name in ("both", "mixed"):
        assert rates[name] == pytest.approx(summary[name].at_capacity.load, rel=0.25)
    assert result.as_json()["systems"]["mixed"]["binds"].endswith("(prefill)")
    # A second decode replica does not help where the only prefill replica binds.
    assert rates["mixed"] >= 0.95 * rates["both"]


@pytest.mark.parametrize(
    ("changes", "pool", "reason"),
    [
        ({"deadline": 1.0}, "prefill", "deadline: expected none, because the prefill pool"),
        ({"max_waiting": 3}, "decode", "max_waiting: expected none, because the decode pool"),
        ({"request_overhead": 0.1}, "decode", "request_overhead: expected none, because"),
        ({"policy": "static"}, "decode", "policy: got static; expected a policy that always"),
    ],
)
def test_keys_that_pools_do_not_simulate_are_refused(make_scenario, changes, pool, reason):
    one = make_scenario().systems["one"]
    changed = System.model_validate(dict(one) | changes)
    systems = {
        "changed": changed,
        "pd": Pools(**({"prefill": "one", "decode": "one"} | {pool: "changed"}), transfer=LINK),
    }
    with pytest.raises(ValueError, match=f"system changed: {reason}"):
        make_scenario(systems)
    systems["pd"] = Pools(**({"prefill": "one", "decode": "one"} | {pool: changed}), transfer=LINK)
    with pytest.raises(ValueError, match=reason.split(": ", 1)[1]):
        make_scenario(systems)


def test_pools_are_made_of_systems_with_chips(make_scenario):
    for name, what in (
        ("two", "no system"),
        ("fleet", "a fleet"),
        ("pd", "a system of pools itself"),
    ):
        systems = {
            "fleet": Fleet(fleet={"one": 1}),
            "pd": Pools(prefill="one", decode=name, transfer=LINK),
        }
        with pytest.raises(ValueError, match=f"'{name}' is {what}; a system of pools is made of"):
            make_scenario(systems)


def test_both_pools_serve_one_model(make_scenario, make_model):
    one = make_scenario().systems["one"]
    other = one.model_copy(update={"model": make_model(num_hidden_layers=2)})
    scenario = make_scenario({"pd": Pools(prefill="one", decode=other, transfer=LINK)})
    with pytest.raises(
        PlanError, match=r"systems\.pd: pd\.prefill serves .* pools serve one model"
    ):
        sim.check(scenario)
