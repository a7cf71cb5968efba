"""Attention and FFN pools with a drafter on a third kind of chips: each kind counts once."""

import pytest

from sim.results.encoding import json_object
from sim.scenario.outages import failing_units
from sim.scenario.pools import owned_chips, why_plan_is_kept
from sim.studies.accounts import total_capex
from sim.studies.explaining import explain
from sim.studies.run import plan, run
from sim.studies.sensitivity import single_request_metrics
from sim.studies.uncertain_numbers import uncertain_numbers
from sim.studies.visits import full_layer

FAULTS = "{chips_per_node: 1, chip: {rate: 1e-3 failure/h}, repair: 24 h, detection: 10 min, horizon: 1 month, samples: 10}"
DRAFTER = f"{{chip: l40s, chips: 2, engine: tensorrt-llm, plan: {{tensor: 2}}, faults: {FAULTS}}}"
POOLS = f"""\
    attention: {{chip: h100-sxm, chips: 2, engine: tensorrt-llm, plan: {{attention_data: 2}}, faults: {FAULTS}DRAFTS}}
    ffn: {{chip: h200, chips: 2, engine: tensorrt-llm, plan: {{tensor: 2}}, faults: {FAULTS}}}
    transfer: {{bandwidth: 100 GB/s, latency: 5 us}}
"""
DRAFTS = """,
      speculate: {method: draft, tokens: 3, acceptance: 0.7, draft: {model: llama-3.2-1b,
        system: small, groups: 2, transfer: {bandwidth: 50 GB/s, latency: 5 us}}}"""
SPEC = f"""\
model: llama-3.1-8b
workload: {{kind: closed, users: 4, requests: 8, prompt: 64 token, output: 24 token}}
economics: {{electricity: 0.1 USD/kWh, systems: {{small: {{card: 1000 USD}}}}}}
systems:
  small: {DRAFTER[:-1]}, model: llama-3.2-1b}}
  plain:
{POOLS.replace("DRAFTS", "")}
  named:
    label: pools of {{chips}}
{POOLS.replace("DRAFTS", DRAFTS)}
"""


def test_a_named_drafter_is_the_one_in_place(scenario, result, read):
    text = SPEC.replace("system: small", f"system: {DRAFTER}")
    text = text.replace("small: {card", "named.draft: {card").replace("{chips}", "6")
    in_place = run(read(text)).summary.systems["named"]
    named = json_object(result.summary.systems["named"])
    assert json_object(in_place) | {"label": ""} == named | {"label": ""}
    assert (named["label"], json_object(in_place)["label"]) == ("pools of 6", "pools of 6")
    assert list(owned_chips(scenario.systems, "named")) == ["named.attention", "named.ffn", "small"]


def test_chips_money_energy_and_faults_are_those_of_all_three_parts(scenario, result):
    systems = result.summary.systems
    identity = systems["named"].identity
    assert identity.hardware[0] == "2 x h100-sxm + 2 x h200-sxm + 2 x l40s"
    assert (identity.chips, identity.own_chips, identity.ffn.micro_batches) == (6, 2, 2)
    costs = [sum(total_capex(scenario, {name: 1})) for name in ("named", "plain", "small")]
    assert costs[0] == pytest.approx(costs[1] + costs[2], rel=1e-9)
    own, pools, small = (_idle(systems[name]) for name in ("named", "plain", "small"))
    assert own == pytest.approx(pools + small, rel=1e-9)
    units = failing_units(scenario, "named", scenario.deploy("named"))
    assert [(unit.path, unit.chips) for unit in units] == [
        (("attention",), 1),
        (("ffn",), 2),
        (("attention", "speculate", "draft", "system"), 2),
    ]
    shares = [systems[name].metrics.availability.availability for name in ("named", "plain")]
    assert 0 < shares[0] < shares[1] < 1


def _idle(system):
    """Watts: joules of a token by cause, times tokens/s."""
    energy = system.costs.energy
    share = energy.joules_per_token_by_cause["idle"] / energy.joules_per_token
    return share * energy.mean_power_w


def test_a_decode_pool_with_a_drafter_decodes_as_the_system_alone(read):
    """One user, so that nothing waits. The KV cache of the drafter comes from the prefill pool."""
    text = SPEC.replace("users: 4, requests: 8", "users: 1, requests: 4")
    link = "transfer: {bandwidth: 1e6 GB/s, handover: 0 ms}"
    result = run(read(f"{text}  pd: {{prefill: plain, decode: named, {link}}}\n"))
    alone, pools = (result.systems[name].rows for name in ("named", "pd"))
    decoding = [rows.last_token - rows.first_token for rows in (alone, pools)]
    assert decoding[1] == pytest.approx(decoding[0], rel=1e-6)
    assert result.summary.systems["pd"].identity.chips == 4 + 6


@pytest.mark.parametrize("part", ["drafter", "both", "rank"])
def test_without_its_drafter_or_ffn_pool_no_step_is_made(read, part):
    """They may be down together. A rank of the attention pool stops its own sequences alone."""
    one = SPEC.replace("users: 4, requests: 8", "users: 2, requests: 2")
    usual = run(read(one)).systems["named"].rows
    down = usual.first_token[0] + 0.45 * (usual.last_token[0] - usual.first_token[0])
    until = f"outages: [{{at: {down:.6f} s, lasts: 2 s"
    text = one
    if part == "rank":
        text = text.replace(f"faults: {FAULTS},\n", f"faults: {FAULTS}, {until}, replica: 1}}],\n")
    else:
        text = text.replace("system: small", f"system: {DRAFTER[:-1]}, {until}}}]}}")
        text = text.replace("small: {card", "named.draft: {card")
    if part == "both":
        ffn = f"ffn: {{outages: [{{at: {down + 1:.6f} s, lasts: 2 s}}], "
        text = ffn.join(text.rsplit("ffn: {", 1))
    failing = run(read(text)).systems["named"].rows
    step = (usual.last_token[0] - usual.first_token[0]) / usual.steps[0]
    later = failing.last_token - usual.last_token
    if part == "rank":
        assert sorted(failing.retries) == [0, 1]
        assert later.min() < 1
        return
    lasts = 3 if part == "both" else 2
    assert not failing.retries.any()
    assert ((lasts < later) & (later < lasts + step)).all()


def test_explanation_and_sensitivity_know_all_three_parts(scenario):
    system = explain(scenario, ["named"]).systems["named"]
    assert system.token.ms == pytest.approx(system.token.simulated_ms, rel=1e-3)
    keys = {key for line in system.token.lines for key in line.keys}
    assert {"drafter.chip.memory.gddr.bandwidth", "ffn.chip.memory.hbm.bandwidth"} <= keys
    named = scenario.systems["named"].attention.speculate.draft.system
    assert named == "small"  # its numbers are found although the file names it
    numbers = {number.key: number for number in uncertain_numbers(scenario.shown("named"))}
    moved = numbers["attention.speculate.draft.system.engine.layer_overhead"]
    low, high = (
        single_request_metrics(scenario, "named", moved.moved_to(end)) for end in moved.ends
    )
    assert low["tpot"] < high["tpot"]


def test_other_plans_of_pools_are_tried_unless_a_drafter_is_on_other_chips(scenario):
    assert not why_plan_is_kept(scenario.systems["plain"])
    assert "the chips of its drafter; try" in why_plan_is_kept(scenario.systems["named"])


def test_the_layer_of_a_plan_is_that_of_one_group(scenario):
    assert plan(scenario).summary([640]).systems["named"].identity.drafter.groups == 2
    layers = [full_layer(scenario, scenario.deploy(name))[1] for name in ("named", "plain")]
    assert (layers[0].sequences, layers[0].micro_batches) == (4, 2)
    assert layers[0].cycle_us != layers[1].cycle_us
