"""A system of attention and FFN pools as a prefill pool, and as a decode pool."""

import pytest

from sim.cost.energy import usage
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.economics.owner_costs import Economics
from sim.hardware.chip import Memory
from sim.hardware.power import Power
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.pools import PoolCopies, Pools
from sim.scenario.scenario import Scenario, read
from sim.scenario.speculate import Speculate
from sim.scenario.system import System
from sim.serving.replica_config import Outage
from sim.serving.transfer import Transfer
from sim.studies.accounts import total_capex
from sim.studies.identity import system_identity
from sim.studies.pool_sizes import with_sizes
from sim.studies.run import run
from sim.workload.arrivals import Listed, ListedRequest
from sim.workload.slo import SLO

EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
# As many prompts as one step computes, so that their sequences decode together, and one alone.
ASKED = [(0.0, 3, 30), (0.0, 4, 30), (0.0, 5, 30), (5.0, 12, 20)]
LINK_ENERGY = 1e-9
PAIRS = ("named", "placed")


@pytest.fixture(scope="module")
def served(make_model, make_chip, make_engine):
    """The run of an attention and FFN pool alone, and as a decode pool: by name, and in place."""
    powered = {
        "memory": {"sram": Memory(capacity=2e6, bandwidth=1e9, energy=1e-9)},
        "power": Power(maximum=21.0, idle=2.0, flop=3e-12, link=5e-9),
        "price": 100.0,
    }

    def pool(chips, plan, **options):
        chip = make_chip(**powered)
        return System(chip=chip, chips=chips, engine=make_engine(), plan=plan, **options)

    afd = AttentionFfn(
        attention=pool(2, Plan(attention_data=2), token_budget=16),
        ffn=pool(4, Plan(expert=4)),
        transfer=LayerTransfer(bandwidth=1e8, latency=2e-6),
    )
    link = Transfer(bandwidth=1e40, energy=LINK_ENERGY)
    one = pool(2, Plan(tensor=2), token_budget=16)
    listed = [ListedRequest(arrival=at, prompt=p, output=n) for at, p, n in ASKED]
    scenario = Scenario(
        model=make_model(**EXPERTS),
        workload=Listed(requests=tuple(listed)),
        slo=SLO(tpot=1.0),
        economics=Economics(pue=1.0),
        systems={
            "one": one,
            "afd": afd,
            "named": Pools(prefill="one", decode="afd", transfer=link),
            "placed": Pools(prefill=one, decode=afd, transfer=link),
            "turned": Pools(prefill="afd", decode="one", transfer=link),
            "turned-placed": Pools(prefill=afd, decode=one, transfer=link),
            "both": Pools(prefill="afd", decode="afd", transfer=link),
            "costly": Pools(
                prefill="afd",
                decode="one",
                transfer=link.model_copy(update={"energy": 3 * LINK_ENERGY}),
            ),
        },
    )
    return scenario, run(scenario).systems


def test_without_a_time_to_travel_tokens_come_as_from_the_decode_pool_alone(served):
    rows = {name: system.rows for name, system in served[1].items()}
    assert rows["named"].finished.all()
    for pools in (rows[name] for name in PAIRS):
        alone = rows["afd"].last_token - rows["afd"].first_token
        assert pools.last_token - pools.first_token == pytest.approx(alone, rel=1e-9)
        assert pools.first_token == pytest.approx(rows["one"].first_token, rel=1e-9)


@pytest.mark.parametrize("name", ["turned", "turned-placed", "both"])
def test_prompts_are_computed_as_on_the_prefill_pool_alone(served, name):
    """Their KV cache is that of the undivided model, and the copies that its ranks do not hold."""
    rows = {key: system.rows for key, system in served[1].items()}
    alone = rows["afd" if name == "both" else "one"]
    assert rows[name].first_token == pytest.approx(rows["afd"].first_token, rel=1e-9)
    times = alone.last_token - alone.first_token
    assert rows[name].last_token - rows[name].first_token == pytest.approx(times, rel=1e-9)
    assert rows[name].transfers.nbytes == rows["named"].transfers.nbytes
    idle = served[1][name].costs.energy.joules_per_token_by_cause["idle"]
    chips = 12 if name == "both" else 8
    assert idle * sum(n for *_, n in ASKED) == pytest.approx(chips * 2.0 * rows[name].elapsed)


def test_a_search_of_copies_keeps_both_pools_of_a_pool(served):
    scenario = served[0]
    for name in ("named", "placed", "turned"):
        sized = with_sizes(scenario, name, PoolCopies(prefill=1, decode=2))
        chips = [sized.deploy(f"{name}.{pool}").chips for pool in ("prefill", "decode")]
        assert sorted(chips) == [2, 6]


@pytest.mark.parametrize("drafts", [1, 3])
def test_an_ffn_pool_computes_the_drafters_prompts_too(served, speculate_scenario, drafts):
    """The prefill pool takes the drafts of the decode pool, as an undivided one does."""
    result = run(speculate_scenario(served[0], drafts))
    rows = {name: system.rows for name, system in result.systems.items()}
    assert rows["turned"].transfers.nbytes == rows["plain"].transfers.nbytes
    assert (rows["turned"].first_token > rows["before"].first_token).all()
    assert (rows["turned"].steps < rows["turned"].requests.output - 1).any()


def test_an_ffn_outage_delays_prompts_and_loses_none(served):
    scenario, usual = served[0], served[1]["turned-placed"].rows
    pools = scenario.systems["turned-placed"]
    ffn = pools.prefill.ffn.model_copy(update={"outages": (Outage(at=0.0, lasts=0.5),)})
    prefill = pools.prefill.model_copy(update={"ffn": ffn})
    systems = {"turned-placed": pools.model_copy(update={"prefill": prefill})}
    rows = run(scenario.model_copy(update={"systems": systems})).systems["turned-placed"].rows
    assert rows.first_token[:3] == pytest.approx(0.5 + usual.first_token[:3], rel=1e-9)
    assert rows.last_token[3] == pytest.approx(usual.last_token[3], rel=1e-9)
    assert not rows.retries.any()


def test_an_ffn_outage_stops_decoding_and_loses_no_request(served):
    """Prompts are computed elsewhere, and KV caches arrive: first tokens come as usual."""
    scenario, usual = served[0], served[1]["placed"].rows
    at = float((usual.first_token[0] + usual.last_token[0]) / 2)
    pools = scenario.systems["placed"]
    ffn = pools.decode.ffn.model_copy(update={"outages": (Outage(at=at, lasts=0.5),)})
    decode = pools.decode.model_copy(update={"ffn": ffn})
    systems = {"placed": pools.model_copy(update={"decode": decode})}
    rows = run(scenario.model_copy(update={"systems": systems})).systems["placed"].rows
    late = rows.last_token - usual.last_token
    step = (usual.last_token[0] - usual.first_token[0]) / 29
    assert ((late[:3] >= 0.5) & (late[:3] < 0.5 + 2 * step)).all()
    assert late[3] == pytest.approx(0.0, abs=1e-9)  # it comes after the repair
    assert rows.first_token == pytest.approx(usual.first_token, rel=1e-9)
    assert not rows.retries.any()


def test_energy_and_money_are_those_of_three_pools(served):
    """Eight chips idle. The prompts travel once, and hidden states in every layer as without them."""
    scenario, systems = served
    spent = {name: systems[name].costs.energy for name in ("afd", "named", "placed")}
    assert spent["named"] == spent["placed"]
    rows, tokens = systems["named"].rows, sum(output for *_, output in ASKED)
    joules = {
        cause: own * tokens for cause, own in spent["named"].joules_per_token_by_cause.items()
    }
    assert joules["idle"] == pytest.approx(8 * 2.0 * rows.elapsed, rel=1e-9)
    prefill, decode = rows.tallies
    costs = [member.deployment.costs for member in systems["named"].members.values()]
    parts = [*costs[0].spread(prefill), *costs[1].spread(decode)]
    within = sum(usage(*part).link_bytes for part in parts) + costs[1].sent(decode)
    assert prefill.sent == rows.transfers.nbytes > 0
    links = 5e-9 * within + LINK_ENERGY * prefill.sent
    assert joules["links"] == pytest.approx(links, rel=1e-9)
    bought = total_capex(scenario, {"named.prefill": 1, "named.decode": 1})
    apart = [total_capex(scenario, {name: 1}) for name in ("one", "afd")]
    assert bought.chips == sum(part.chips for part in apart) == 800.0
    assert bought == total_capex(scenario, {"placed.prefill": 1, "placed.decode": 1})


def test_kv_caches_take_the_energy_of_their_link_and_hidden_states_that_of_the_chip(served):
    """Both leave the same chips, and only the link's energy differs between the two systems."""
    usual, costly = (served[1][name] for name in ("turned", "costly"))
    tokens = sum(output for *_, output in ASKED)
    links = [s.costs.energy.joules_per_token_by_cause["links"] * tokens for s in (usual, costly)]
    more = 2 * LINK_ENERGY * usual.rows.transfers.nbytes
    assert links[1] - links[0] == pytest.approx(more, rel=1e-9)


def test_all_chips_count_and_both_pools_are_named(served):
    identities = [system_identity(served[0], name, served[1][name].members) for name in PAIRS]
    for name, identity in zip(PAIRS, identities, strict=True):
        assert identity.chips == 8
        assert identity.members[f"{name}.decode"].identity.ffn.chips == 4


@pytest.fixture
def speculate_scenario():
    """The scenario of `served` with drafts in the decode pool of one chip kind."""

    def make(scenario, drafts):
        of = Speculate(method="mtp", tokens=drafts, acceptance=0.8)
        one, afd = scenario.systems["one"], scenario.systems["afd"]
        drafting = one.model_copy(update={"speculate": of})
        link = scenario.systems["turned"].transfer
        systems = {
            "plain": Pools(prefill=one, decode=drafting, transfer=link),
            "turned": Pools(prefill=afd, decode=drafting, transfer=link),
            "before": Pools(prefill=afd, decode=one, transfer=link),
        }
        return scenario.model_copy(update={"systems": systems})

    return make


TEXT = """\
model: qwen3-235b-a22b
workload: {kind: closed, users: 8, requests: 8, prompt: 64 token, output: 8 token}
systems:
  pd:
    prefill: {chip: gb200, chips: 8, engine: ideal, plan: {tensor: 8, weights: fp8}}
    decode:
      attention: {chip: gb200, chips: 4, engine: ideal, plan: {attention_data: 4, weights: fp8}}
      ffn: {chip: gb200, chips: 4, engine: ideal, plan: {expert: 4, weights: fp8}}
      transfer: {bandwidth: 900 GB/s}
    transfer: {bandwidth: 50 GB/s}
"""
REFUSED = {
    "systems.pd.decode.attention.max_waiting=9": "systems.pd.decode.attention.max_waiting: got 9; exp",
    "systems.pd.decode.attention.policy=prefill-first": "systems.pd.decode.attention.policy: got pref",
    "systems.pd.decode.attention.outages=[{at: 1 s, lasts: 1 s}]": "decode.attention.outages: got a list",
    "systems.pd.decode.ffn.chip=l40s": "systems.pd.decode: qwen3-235b-a22b on 4 l40s of the ffn pool",
}


def test_turns_of_chips_are_those_of_pools(tmp_path):
    path, key = tmp_path / "mine.yaml", "systems.pd.decode.attention.fidelity"
    path.write_text(TEXT)
    changes = ["workload.requests=4", "workload.users=4", "workload.output=3 token"]
    by_chip, by_stage = (
        run(read(str(path), [*changes, f"{key}={fidelity}"])).systems["pd"].rows
        for fidelity in ("chip", "stage")
    )
    assert by_chip.last_token == pytest.approx(by_stage.last_token, rel=1e-9)


@pytest.mark.parametrize("assignment", REFUSED)
def test_what_is_not_simulated_is_refused_by_its_key(sramsim, tmp_path, assignment):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    status, _, err = sramsim("check", str(path), "--set", assignment)
    assert REFUSED[assignment] in err
    assert (status, err.count("\n")) == (2, 1)


def test_a_pool_in_place_is_not_searched_for(sramsim, tmp_path):
    path = tmp_path / "mine.yaml"
    open_pools = TEXT.replace("{attention_data: 4, weights: fp8}", "{weights: fp8}")
    open_pools = open_pools.replace("{expert: 4, weights: fp8}", "{weights: fp8}")
    path.write_text(open_pools.replace("chips: 4, ", "") + "slo: {tpot: 1 s}\n")
    search = "systems.pd.decode.plan={search: capacity, chips: 8}"
    status, _, err = sramsim("check", str(path), "--set", search)
    assert "systems.pd.decode.plan.search: got capacity for a pool in place" in err
    assert (status, err.count("\n")) == (2, 1)
