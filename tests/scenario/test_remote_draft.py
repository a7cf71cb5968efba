"""A drafter on other chips in a scenario: what is refused by name, and what counts both kinds of chips."""

import pytest

import sim
from sim.results.encoding import json_object
from sim.scenario.outages import failing_units
from sim.scenario.pools import owned_chips
from sim.studies.accounts import total_capex
from sim.studies.capacity import capacity
from sim.studies.design import search_plans
from sim.studies.explaining import explain
from sim.studies.run import plan, run
from sim.studies.sensitivity import single_request_metrics
from sim.studies.uncertain_numbers import uncertain_numbers
from sim.units import parse_quantity

SPEC = """\
model: llama-3.1-8b
workload: {kind: closed, users: 4, requests: 8, prompt: 64 token, output: 24 token}
economics: {electricity: 0.1 USD/kWh, systems: {small: {card: 1000 USD}}}
systems:
  plain: {chip: h100-sxm, chips: 2, engine: tensorrt-llm, plan: {tensor: 2}}
  small: {chip: l40s, chips: 2, engine: tensorrt-llm, plan: {tensor: 2}, model: llama-3.2-1b}
  named:
    chip: h100-sxm
    chips: 2
    engine: tensorrt-llm
    plan: {tensor: 2}
    speculate:
      method: draft
      tokens: 3
      acceptance: 0.7
      draft: {model: llama-3.2-1b, system: small, transfer: {bandwidth: 50 GB/s, latency: 5 us}, groups: 2}
  local:
    chip: h100-sxm
    chips: 2
    engine: tensorrt-llm
    plan: {tensor: 2}
    speculate: {method: draft, tokens: 3, acceptance: 0.7, draft: {model: llama-3.2-1b}}
  both: {fleet: {named: 2, plain: 1}}
"""
USER = "users: 1, requests: 2, prompt: 16 token, output: 400"  # instead of four
DRAFT = "named.speculate.draft."
INLINE = "{chip: l40s, chips: 2, engine: tensorrt-llm, plan: {tensor: 2}}"
FAULTS = "{chips_per_node: 2, chip: {rate: 1e-3 failure/h}, spares: 1, repair: 24 h, detection: 10 min, horizon: 1 month, samples: 10}"
REFUSED = {
    "named.speculate.draft.system=large": "got 'large'; expected another system with chips of one kind; there are plain, small, local",
    "named.speculate.draft.system=named": "got 'named'; expected another system with chips of one kind",
    "named.speculate.draft.system=both": "got 'both'; expected another system with chips of one kind",
    "named.speculate.draft.system=local": "system local: got speculate, which is not simulated for a",
    "small.max_sequences=4": "draft.system: system small: got max_sequences, which is not simulated",
    "small.model=llama-3.1-8b": "draft.system: system small: got model llama-3.1-8b; expected the",
    "small.outages=[{at: 1 s, lasts: 1 s, replica: 1}]": "outages.0.replica: got 1; expected 0, the only",
    f"{DRAFT}system={INLINE[:-1]}, outages: [{{at: 1 s, lasts: 1 s, requests: fail}}]}}": "got fail; expected retry for a drafter",
    f"{DRAFT}plan={{tensor: 2}}": "draft.plan: got a plan; expected none with system",
    f"{DRAFT[:-1]}={{model: llama-3.2-1b, system: small}}": "draft.system: got a drafter on other chips without transfer; expected the",
    f"{DRAFT}groups=3": "draft.groups: got 3; expected at most 2",
    "local.speculate.draft.groups=2": "draft.groups: got groups without system; expected a drafter on",
    "named.speculate.method=eagle": "got llama-3.2-1b with method eagle",
    "local.speculate.draft.model=llama-3.1-70b": "got llama-3.1-70b with 70.6 billion parameters; expec",
    f"{DRAFT}transfer.range={{latency: [5 us, 1 us]}}": "range.latency: got the highest value first; expected the",
    "named.speculate.range={acceptance: [0.9, 0.5]}": "acceptance: got the highest value first; expected the lowest",
    "named.fidelity=chip": "speculate: got fidelity: chip; expected a system without it",
    "named.routing=sampled": "speculate: got routing: sampled with groups: 2; expected a system",
    "small.plan=auto": "draft.system.plan.search: got speed; expected degrees of a drafter on other",
    "named.plan={tensor: 1, replicas: 2}": "plan.replicas: got 1; expected 2, a drafter for each repl",
    f"named.plan=auto|{DRAFT}system={{chip: l40s, chips: 3, engine: tensorrt-llm, plan: {{replicas: 3}}}}": "got 2 chips, over which no plan splits llama-3.1-8b into 3 replicas; expected",
    "named.engine=groq-compiler": "named.engine: got groq-compiler, which has tokens_per_beat; expec",
    "small.plan.slots=2": "draft.system.plan.slots: got 2; expected none, since a drafter has the",
    "named.plan={tensor: 2, slots: 2}": "plan.slots: got 2; expected 1 with a drafter on other chips;",
    "small.kv_tokens=1000 token|named.kv_tokens=2000 token": "named.kv_tokens: got 2000 token; expec",
    "small.engine={like: tensorrt-llm, max_sequences: 8}|named.max_sequences=9": "named.max_sequences: got 9; expected at most 8, since the drafter's engine tensorrt-llm runs 8; try 8",
    f"{DRAFT}system={{chip: l40s, chips: 2, engine: {{like: tensorrt-llm, tokens_per_beat: 2 token}}}}": "system.engine: got tensorrt-llm with token_budget 8192 token; expected none, since",
    f"{DRAFT}system={{like: small}}": "draft-system has no 'like'",
    f"{DRAFT}system={{chip: l40s, chips: 2, engine: tensorrt-llm, policy: continuous}}": "draft-system h",
    f"{DRAFT}system={{chip: rtx-4090, chips: 1, engine: vllm, memory_fraction: 0.05}}": "that draft does",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_simulated_is_refused_by_name(sramsim, tmp_path, key):
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    sets = [word for own in key.split("|") for word in ("--set", f"systems.{own}")]
    status, _, err = sramsim("check", str(path), *sets)
    assert (status, err.count("\n")) == (2, 1)
    assert REFUSED[key] in err


def test_a_named_drafter_is_the_one_in_place(scenario, result, read):
    text = SPEC.replace("system: small", f"system: {INLINE}")
    text = text.replace("small: {card", "named.draft: {card")
    in_place = run(read(text)).summary.systems["named"]
    assert json_object(in_place) == json_object(result.summary.systems["named"])
    assert list(owned_chips(scenario.systems, "named")) == ["named", "small"]


def test_chips_money_and_energy_are_those_of_both_parts(scenario, result):
    systems = result.summary.systems
    identity = systems["named"].identity
    assert (identity.chips, identity.own_chips, identity.drafter.chips) == (4, 2, 2)
    assert identity.hardware[0] == "2 x h100-sxm + 2 x l40s"
    assert total_capex(scenario, {"named": 1}) == purchased(scenario, "plain", "small")
    own, plain, small = (power(systems[name], "idle") for name in ("named", "plain", "small"))
    assert own == pytest.approx(plain + small, rel=1e-9)
    assert systems["both"].identity.chips == 2 * 4 + 2
    drawn = json_object(systems["named"])["drafter"]
    assert (drawn["chip"], drawn["groups"], drawn["round_trip_us"]) == (
        "l40s",
        2,
        pytest.approx(10, rel=1e-3),
    )


@pytest.mark.parametrize("link", ["1 GB/s", "1 TB/s", None])
def test_weights_are_loaded_when_the_drafter_has_them_too(read, result, link):
    """All chips load at the same time, so the slower part counts. An L40S has no host link in its file."""
    card = f"{{like: l40s, host_link: {link}}}" if link else "l40s"
    changed = read(SPEC.replace("chip: l40s", f"chip: {card}"))
    identity = sim.plan(changed).planned_system("named", [64]).identity
    drafter = identity.drafter.weight_bytes / parse_quantity(link, "B/s") if link else 0.0
    own = result.summary.systems["plain"].identity.load_s
    assert identity.load_s == (pytest.approx(max(own, drafter)) if link else None)


POOLS = """\
  local-pd: {prefill: plain, decode: local, transfer: {bandwidth: 1e6 GB/s, handover: 0 ms}}
  pd: {prefill: plain, decode: named, transfer: {bandwidth: 1e6 GB/s, handover: 0 ms}}
"""


def test_a_decode_pool_with_a_drafter_decodes_as_the_system_alone(read):
    """One user, so that nothing waits. The drafter's KV cache is computed in the prefill pool."""
    text = SPEC.replace("users: 4, requests: 8", "users: 1, requests: 4")
    text = text.replace("plan: {tensor: 2}, model", "plan: {tensor: 2, kv: fp8}, model")
    text = text.replace("{model: llama-3.2-1b}}", "{model: llama-3.2-1b, plan: {kv: fp8}}}")
    result = run(read(text + POOLS))
    rows = {name: result.systems[name].rows for name in ("named", "pd", "local-pd")}
    decoding = {name: own.last_token - own.first_token for name, own in rows.items()}
    assert decoding["pd"] == pytest.approx(decoding["named"], rel=1e-6)
    assert rows["pd"].transfers.nbytes == rows["local-pd"].transfers.nbytes
    assert rows["pd"].first_token - rows["pd"].arrival == pytest.approx(
        rows["local-pd"].first_token - rows["local-pd"].arrival
    )
    systems = result.summary.systems
    assert systems["pd"].identity.chips == 2 + systems["named"].identity.chips


def test_drafts_of_a_prefill_pool_on_other_chips_are_refused_by_name(read):
    more = "  pd: {prefill: named, decode: named, transfer: {bandwidth: 1 GB/s}}\n"
    with pytest.raises(sim.ScenarioError, match="expected the drafts of the decode pool, whose KV"):
        read(SPEC + more)


def test_without_drafts_no_chips_draft(read, result):
    none = read(SPEC.replace("tokens: 3", "tokens: 0"))
    assert list(owned_chips(none.systems, "named")) == ["named"]
    summary = run(none).summary.systems["named"]
    assert json_object(summary) == json_object(result.summary.systems["plain"])


def test_spare_nodes_of_the_model_are_not_bought_for_its_drafter(read):
    both = read(
        SPEC.replace("tensor: 2}\n    spec", f"tensor: 2}}\n    faults: {FAULTS}\n    spec"),
    )
    spared = both.spare_chips("named")
    assert (spared, both.spare_chips("plain")) == (2, 0)
    assert [unit.chips for unit in failing_units(both, "named", both.deploy("named"))] == [2]
    bought = total_capex(both, {"named": 1}).chips - purchased(both, "plain", "small").chips
    assert bought == pytest.approx(total_capex(both, {"plain": 1}).chips)
    result = run(both).summary.systems
    idle = power(result["named"], "idle") - power(result["small"], "idle")
    assert idle == pytest.approx(2 * power(result["plain"], "idle"), rel=1e-9)
    assert 0 < result["named"].metrics.availability.availability < 1


def test_without_its_drafter_a_model_waits_and_keeps_its_sequences(read):
    """The step under way is lost. A replica that fails meanwhile waits for the drafter as well."""
    one = SPEC.replace("users: 4, requests: 8", "users: 1, requests: 1")
    usual = run(read(one)).systems["named"].rows
    down = usual.first_token[0] + 0.45 * (usual.last_token[0] - usual.first_token[0])
    late = f", outages: [{{at: {down:.6f} s, lasts: 2 s}}]}}"
    text = one.replace("system: small", f"system: {INLINE[:-1]}{late}")
    failing = run(read(text)).systems["named"].rows
    step = (usual.last_token[0] - usual.first_token[0]) / usual.steps[0]
    assert failing.retries.tolist() == [0]
    assert 2 < failing.last_token[0] - usual.last_token[0] < 2 + step
    own = f"    outages: [{{at: {down + 0.5:.6f} s, lasts: 0.5 s}}]\n    speculate"
    both = run(read(text.replace("    speculate", own, 1))).systems["named"].rows
    assert both.retries.tolist() == [1]
    assert both.first_token[0] == pytest.approx(down + 2 + usual.first_token[0], rel=1e-4)


def test_a_drafter_that_fails_is_needed_as_well(read):
    """Its nodes are as many as those of the model, and fail as often. Their spares are bought."""
    own = SPEC.replace("tensor: 2}\n    spec", f"tensor: 2}}\n    faults: {FAULTS}\n    spec")
    text = own.replace("system: small", f"system: {INLINE[:-1]}, faults: {FAULTS}}}")
    text = text.replace("small: {card", "named.draft: {card")
    both, alone = read(text), read(own)
    chips = [unit.chips for unit in failing_units(both, "named", both.deploy("named"))]
    assert chips == [2, 2]
    assert total_capex(both, {"named": 1}).chips - total_capex(
        alone, {"named": 1}
    ).chips == pytest.approx(2 * 1000)
    results = [run(of).summary.systems["named"] for of in (both, alone)]
    shares = [of.metrics.availability.availability for of in results]
    assert 0 < shares[0] < shares[1] < 1
    idle = [power(of, "idle") for of in results]
    assert idle[0] - idle[1] == pytest.approx(power(run(alone).summary.systems["small"], "idle"))


def purchased(scenario, *names):
    first, second = (total_capex(scenario, {name: 1}) for name in names)
    return type(first)(*map(sum, zip(first, second, strict=True)))


def power(system, cause):
    """Watts: joules of a token by cause, times tokens/s."""
    energy = system.costs.energy
    share = energy.joules_per_token_by_cause[cause] / energy.joules_per_token
    return share * energy.mean_power_w


def test_the_plan_says_which_chips_draft_and_when_drafts_pay(scenario):
    planned = plan(scenario).summary([640]).systems
    named, local = planned["named"], planned["local"]
    assert named.identity.kv_tokens <= named.identity.drafter.kv_tokens
    assert named.bytes_per_chip.weights < local.bytes_per_chip.weights
    assert named.draft_gain.verify == local.draft_gain.verify
    assert named.draft_gain.break_even != local.draft_gain.break_even
    assert named.draft_gain.speedup == pytest.approx(
        planned["plain"].unloaded.tpot_ms / named.unloaded.tpot_ms, rel=0.01
    )


def test_the_lines_of_an_explanation_are_the_token(scenario):
    for name, system in explain(scenario, ["named", "local"]).systems.items():
        token = system.token
        assert token.ms == pytest.approx(token.simulated_ms, rel=1e-3)
        of_drafter = [line for line in token.lines if line.what.startswith("drafter: ")]
        assert bool(of_drafter) == (name == "named")
        for line in token.lines:
            assert {key.startswith("drafter.") for key in line.keys} <= {line in of_drafter}
        keys = {key for line in of_drafter for key in line.keys}
        assert keys <= set(system.sources)
        if name == "named":
            chip, path = scenario.plain("small").chip, "topology.link.latency"
            assert "drafter.chip.memory.gddr.bandwidth" in keys
            assert system.sources[f"drafter.{path}"].source == chip.source_of(path)


def test_the_uncertain_numbers_of_a_drafter_move_its_system(scenario):
    numbers = {number.key: number for number in uncertain_numbers(scenario.plain("named"))}
    assert "engine.layer_overhead" in numbers
    moved = numbers["speculate.draft.system.engine.layer_overhead"]
    low, high = (
        single_request_metrics(scenario, "named", moved.moved_to(end)) for end in moved.ends
    )
    assert low["tpot"] < high["tpot"]
    assert low["joules"] < high["joules"]


def test_a_single_user_takes_the_joules_of_the_sensitivity(read):
    """The last of 158 steps yields fewer tokens, and the prompt is short."""
    text = SPEC.replace("users: 4, requests: 8, prompt: 64 token, output: 24", USER)
    text = text.replace("acceptance: 0.7,", "acceptance: 0.7, sampling: expected,")
    text = text.replace("acceptance: 0.7\n", "acceptance: 0.7\n      sampling: expected\n")
    scenario = read(text.replace("  both: {fleet: {named: 2, plain: 1}}\n", ""))
    for name, system in run(scenario).summary.systems.items():
        single = single_request_metrics(scenario, name, scenario.plain(name))
        assert single["joules"] == pytest.approx(system.costs.energy.joules_per_token, rel=0.01)


def test_a_search_by_capacity_finds_the_best_of_all_plans_of_the_model(read):
    """Each plan is also simulated on its own. Two replicas would need a second drafter."""
    text = SPEC.replace("  both: {fleet: {named: 2, plain: 1}}\n", "")
    text = text.replace("economics:", "slo: {tpot: 9 ms, ttft: 1 s}\neconomics:", 1)

    def planned(plan):
        whole = read(text.replace("tensor: 2}\n    spec", f"{plan}}}\n    spec", 1))
        named = {"named": whole.plain("named")}
        return whole.model_copy(update={"systems": named})

    search = search_plans(planned("search: capacity"), requests=12).searches["named"]
    loads = [
        capacity(planned(plan), None, 12).systems["named"].best
        for plan in ("tensor: 2", "pipeline: 2")
    ]
    assert search.considered == search.simulated == 2
    assert search.load == max(best.load for best in loads if best) > 1
