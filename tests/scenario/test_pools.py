"""Prefill and decode pools in a scenario: members, plans, capacity, energy and money, and what is refused."""

import json
from collections import defaultdict

import pytest

import sim
from plots import draw_all, pools
from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.plan import PlanError
from sim.hardware.chip import Memory
from sim.hardware.power import Power
from sim.reliability.failures import Failures, Faults
from sim.scenario.layout import deploy_members
from sim.scenario.pools import PoolCopies, Pools
from sim.scenario.scenario import Scenario
from sim.scenario.speculate import Speculate
from sim.scenario.system import Fleet, System
from sim.serving.transfer import Transfer
from sim.studies.capacity import capacity
from sim.studies.design import bound_plans, search_plans
from sim.studies.pool_bound import pools_point
from sim.studies.pool_timeline import pools_json
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


def test_the_figure_of_pools_adds_up_to_the_second_token(make_scenario):
    saved = sim.run(make_scenario()).saved()
    assert list(pools.pooled(saved)) == ["both", "mixed"]
    rows = saved.requests.filter(saved.requests["system"] == "mixed")
    way = rows["decode_start"] - rows["arrival"]
    step = (rows["last_token"] - rows["decode_start"]) / (rows["output_tokens"] - 1)
    parts = pools.mean_parts(saved, "mixed")
    assert sum(parts.values()) == pytest.approx((way + step).mean())
    assert min(parts.values()) >= -1e-12
    for _, share in pools.rooms_over_time(saved, "mixed", pools.pooled(saved)["mixed"]).values():
        assert 0 <= min(share) <= max(share) <= 1
    title = pools.draw(saved).get_suptitle()
    assert title.startswith("both: ")
    assert "of the time to the second token" in title
    assert "pools" in draw_all(saved)


def test_a_trace_of_pools_has_a_track_for_each_request_under_way(make_scenario):
    scenario = make_scenario()
    events = json.loads(pools_json(scenario, "mixed"))["traceEvents"]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == [
        "prefill replica 0",
        "link of prefill replica 0",
        "decode replica 1",
        "decode replica 2",
    ]
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    for track in tracks.values():
        ends = [ts + dur for ts, dur in sorted(track)]
        assert all(
            start >= end - 1e-3 for (start, _), end in zip(sorted(track)[1:], ends, strict=False)
        )
    rows = sim.run(scenario).systems["mixed"].rows
    travelled = 1e6 * (rows.transfers.end - rows.transfers.start).sum()
    durations = [event["dur"] for event in events if event.get("cat") == "transfer"]
    assert sum(durations) == pytest.approx(travelled)
    totals = [event["args"]["tokens"] for event in events if event["ph"] == "C"]
    assert min(totals) == 0


def test_the_bytes_between_pools_cost_their_energy(make_scenario):
    costly = Pools(prefill="one", decode="one", transfer=LINK.model_copy(update={"energy": 1e-6}))
    result = sim.run(make_scenario({"costly": costly}))
    free, paid = (result.systems[name] for name in ("both", "costly"))
    joules = paid.rows.transfers.nbytes * 1e-6 / paid.rows.requests.output.sum()
    links = [s.costs.energy.joules_per_token_by_cause["links"] for s in (free, paid)]
    assert links[1] - links[0] == pytest.approx(joules)


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


def test_pools_work_while_both_of_them_do(make_scenario):
    """Of two pools with equal faults, each is available with its own share of the time."""
    faults = Faults(
        node=Failures(rate=1e-4),
        repair=900.0,
        detection=1.0,
        horizon=1e6,
        samples=30,
        source={},
    )
    one = make_scenario().systems["one"].model_copy(update={"faults": faults})
    systems = {"failing": one, "pd": Pools(prefill="failing", decode="failing", transfer=LINK)}
    result = sim.run(make_scenario(systems, rate=50.0))
    alone, both = (result.systems[name].metrics.availability for name in ("failing", "pd"))
    assert both.availability == pytest.approx(alone.availability**2, rel=0.02)


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


def test_the_estimate_leaves_out_the_prefix_that_both_pools_have(make_scenario):
    """The request/s where the prefill pool binds, and the bytes between the pools."""
    caching = make_scenario().systems["one"].model_copy(update={"prefix_caching": True})
    systems = {"one": caching, "pd": Pools(prefill="one", decode="one", transfer=LINK)}
    workload = Poisson(
        rate=100.0, requests=400, shared_prefix=64, prompt=Length(fixed=16), output=Length(fixed=3)
    )
    scenario = make_scenario(slo=SLO(ttft=0.05, tpot=0.05)).model_copy(
        update={"workload": workload, "systems": systems}
    )
    found = capacity(scenario, requests=400).systems["pd"].best.goodput
    estimate = sim.run(scenario).summary.systems["pd"].at_capacity.load
    assert found == pytest.approx(estimate, rel=0.25)
    members = deploy_members(scenario, "pd")
    point = pools_point(scenario, members)
    sent = point.tallies["pd.prefill"].sent / point.rate
    assert sent == pytest.approx(prompt_kv_bytes(members["pd.prefill"].deployment.layout, 16))


def test_a_search_finds_the_sizes_with_the_highest_goodput(make_scenario):
    """Of four chips: those that no other size beats by more than a capacity is known to."""
    sizes = [PoolCopies(prefill=n, decode=4 - n) for n in (1, 2, 3)]
    systems = {
        f"p{size.prefill}": Pools(prefill="one", decode="one", copies=size, transfer=LINK)
        for size in sizes
    }
    slo = SLO(ttft=0.05, tpot=0.05)
    scenario = make_scenario(systems, slo=slo)
    kept = {name: scenario.systems[name] for name in ("one", *systems)}
    result = capacity(scenario.model_copy(update={"systems": kept}), requests=150)
    rates = {size.prefill: result.systems[f"p{size.prefill}"].best.goodput for size in sizes}
    open_copies = PoolCopies(search="capacity", chips=4)
    systems = {"pd": Pools(prefill="one", decode="one", copies=open_copies, transfer=LINK)}
    found = search_plans(make_scenario(systems, slo=slo), requests=150)
    copies = found.systems["pd"].copies
    assert copies.prefill + copies.decode == 4
    assert rates[copies.prefill] >= max(rates.values()) / 1.02
    assert found.searches["pd"].load == pytest.approx(rates[copies.prefill], rel=0.02)
    assert bound_plans(make_scenario(systems, slo=slo)).systems["pd"].copies.prefill in (1, 2, 3)
    few = PoolCopies(search="capacity", chips=1)
    systems["pd"] = systems["pd"].model_copy(update={"copies": few})
    with pytest.raises(PlanError, match="got 1; expected at least 2, for a copy of each; try 2"):
        search_plans(make_scenario(systems, slo=slo))


@pytest.mark.parametrize(
    ("changes", "pool", "reason"),
    [
        (
            {"max_waiting": 3},
            "decode",
            "max_waiting: got 3; expected none, because the decode pool",
        ),
        ({"request_overhead": 0.1}, "decode", "request_overhead: got 100 ms; expected none"),
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


def test_a_prefill_pool_computes_the_kv_cache_of_the_decode_pools_drafter(make_scenario):
    one = make_scenario().systems["one"]
    drafts = Speculate(method="eagle", tokens=2, acceptance=0.8)
    decode = one.model_copy(update={"speculate": drafts})
    systems = {"drafting": decode, "pd": Pools(prefill="one", decode="drafting", transfer=LINK)}
    scenario = make_scenario(systems)
    result = sim.run(scenario)
    members = result.systems["pd"].members
    widths = {name: of.deployment.layout.width for name, of in members.items()}
    assert widths == {"pd.prefill": 3, "pd.decode": 3}
    rows, plain = (result.systems[name].rows for name in ("pd", "both"))
    assert rows.finished.all()
    assert (rows.steps == result.systems["drafting"].rows.steps).all()  # equal luck
    assert rows.transfers.nbytes == pytest.approx(plain.transfers.nbytes * 5 / 4)  # of 4 layers
    scenario = scenario.model_copy(update={"slo": SLO(ttft=0.05, tpot=0.05)})
    estimate = sim.run(scenario).summary.systems["pd"].at_capacity
    assert estimate.load > 0
    other = one.model_copy(update={"speculate": drafts.model_copy(update={"tokens": 1})})
    systems["pd"] = Pools(prefill=other, decode="drafting", transfer=LINK)
    with pytest.raises(ValueError, match="got eagle with 1 drafts; expected the drafts of the dec"):
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
        with pytest.raises(ValueError, match=f"got '{name}', {what}; expected a system with chips"):
            make_scenario(systems)


def test_both_pools_serve_one_model(make_scenario, make_model):
    one = make_scenario().systems["one"]
    other = one.model_copy(update={"model": make_model(num_hidden_layers=2)})
    scenario = make_scenario({"pd": Pools(prefill="one", decode=other, transfer=LINK)})
    with pytest.raises(
        PlanError, match=r"systems\.pd: got .* for pd\.prefill and .* expected one model for both"
    ):
        sim.check(scenario)


NAMED = """\
model: llama-3.1-8b
workload: {kind: closed, users: 1, requests: 1, prompt: 64 token, output: 8 token}
systems:
  one: {chip: h100-sxm, chips: 1, engine: vllm, plan: {tensor: 1, kv: fp8}}
  pd:
    prefill: one
    decode: {chip: h100-sxm, chips: 1, engine: vllm, plan: {tensor: 1, kv: bf16}}
    transfer: {bandwidth: 50 GB/s}
"""


def test_a_kv_cache_that_changes_its_precision_on_the_way_is_told(sramsim, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(NAMED)
    sends = "systems.pd.decode: warning: the prefill pool sends its KV cache in fp8, and this pool"
    assert sends in sramsim("check", str(path))[2]
    equal = "systems.pd.decode.plan.kv=fp8"
    assert "sends its KV" not in sramsim("check", str(path), "--set", equal)[2]
