"""Every shipped scenario does what its first line asks; what `run` and `plan` print keeps its contract."""

import functools
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sim import PlanError, plan, read, run
from sim.cli.app import main
from sim.cost.program import ComputeOp, program
from sim.cost.work import Work
from sim.inputs.names import catalogue_names
from sim.report.findings import notes
from sim.report.tables import comparison

REFUSED = {"does-not-fit": "4 chips would do"}
VERDICTS = {
    ("lpu-decode-h100-prefill", "lpus"): "OVERLOADED",  # alone; that is the scenario's question
    ("jia-2024", "lpu"): "BACKLOGGED",  # 256 users are more than its SRAM holds
    ("jia-2024", "nodes"): "BACKLOGGED",
    (
        "mooncake-conversation",
        "lpu",
    ): "BACKLOGGED",  # room for four mean prompts, and they come in bursts
    ("day-in-the-life", "one-of-lpus"): "BACKLOGGED",  # by those who came while it was down
    **{  # as many users as fill the steps of 12 trays
        ("afd-fastafd", name): "BACKLOGGED"
        for name in ("trays-4", "trays-5", "trays-8", "light-5", "ep32", "ep32-ideal")
    },
    ("fleet", "lpus"): "OVERLOADED",  # alone; that is the scenario's question
    (
        "replay-vllm-rtx4090",
        "rtx4090",
    ): "OVERLOADED",  # as the server was whose requests these are: a minute to the first token
}
# What a long scenario is cut to, with an outage of as large a part of it: its question and its verdicts stay.
OUTAGE = "[{at: 75 s, lasts: 30 s}]"
SHORTER = {
    "day-in-the-life": [
        "workload.requests=600",
        *(
            f"systems.{name}.outages={OUTAGE}"
            for name in ("one-of-lpus", "two-of-lpus", "four-of-h100x8")
        ),
    ],
    "afd-fastafd": [
        "workload.requests=2400",
        "workload.output=32 token",
        "measure.window=[0 s, 9 s]",
    ],
    "afd-step3": ["workload.users=1536", "workload.requests=1536", "workload.output=32 token"],
    "azure-conversation": ["workload.synthetic.requests=400"],
    "claims/lpx": [
        "order_by=null",
        "workload.requests=9",
        "workload.shared_prefix=1000 token",
        "workload.output=8 token",
        "measure.window=[0 s, 9 s]",
    ],
    "claims/lpx-drafter": [
        "workload.requests=27",
        "workload.shared_prefix=1000 token",
        "workload.output=16 token",
        "measure.warmup=0 s",
    ],
    "claims/lpx-kimi-k2": [
        "order_by=null",
        "workload.requests=9",
        "workload.shared_prefix=1000 token",
        "workload.output=8 token",
        "measure.window=[0 s, 9 s]",
    ],
    "dead-link": ["workload.output=3 token"],
    "jitter": ["workload.prompt=2 token", "workload.output=6 token"],
    "kimi-k2-afd": ["workload.requests=64", "workload.output=8 token"],
    "kimi-k2-on-lpus": ["workload.output=4 token"],
    "latency-vs-load": ["workload.requests=500"],
    "link-errors": ["workload.requests=24"],
    "long-contexts": ["workload.prompt=2048 token"],
    "lpu-decode-h100-prefill": ["workload.requests=500"],
    "mixed-requests": ["workload.requests=1000"],
    "mooncake-conversation": ["workload.synthetic.requests=150"],
    "pareto": ["workload.requests=100"],
    "scheduling": ["workload.requests=600"],
    "shared-prefix": ["workload.requests=300"],
    "spares": [
        f"systems.{name}.faults.samples=60" for name in ("no-spare", "pooled", "one-per-rack")
    ],
    "straggler": ["workload.prompt=2 token", "workload.output=3 token"],
    "users": ["workload.requests=100"],
}
FLAGSHIP = "llama2-70b-lpu-vs-h100"
STATISTICS = [
    f"{s}_{m}_ms"
    for m in ("ttft", "tpot", "itl", "e2el")
    for s in ("mean", "median", "std", "p90", "p95", "p99")
]
METRICS = [
    "chips",
    "verdict",
    "completed",
    "refused",
    "duration",
    "output_throughput",
    "request_throughput",
    "fitted_share",
]


@functools.cache
def ran(name):
    """Run a scenario once, as it stands, or cut short."""
    return run(read(name, SHORTER.get(name)))


@pytest.fixture(scope="module")
def flagship():
    return ran(FLAGSHIP)


def whole_table(name) -> str:
    """Return what `run --all` prints of a scenario that has run already, as one line."""
    console = Console(width=120, file=io.StringIO())
    console.print(comparison(ran(name).summary, name), markup=False)
    return " ".join(console.file.getvalue().split())


def command(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sramsim", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(catalogue_names("scenarios")) - set(REFUSED)))
def test_every_scenario_serves_all_its_requests(name):
    result = ran(name)
    for system_name, system in result.systems.items():
        assert system.rows.finished.all()
        assert system.metrics.verdict == VERDICTS.get((name, system_name), "STABLE")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_fit_is_refused_with_what_would_do(name):
    with pytest.raises(PlanError, match=REFUSED[name]):
        run(name)


@pytest.mark.parametrize("name", sorted(catalogue_names("scenarios")))
def test_every_scenario_opens_with_its_question(name):
    first = catalogue_names("scenarios")[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert "?" in first


def test_the_flagship_gives_the_published_order_of_speeds(flagship):
    speed = {name: 1000 / s.metrics.tpot.median for name, s in flagship.systems.items()}
    assert 240 <= speed["lpu"] <= 360
    assert 25 <= speed["h100"] <= 45
    assert 6 <= speed["lpu"] / speed["h100"] <= 12
    assert 0.4 <= flagship.systems["lpu"].metrics.fitted_share <= 0.6
    assert 25 <= flagship.systems["lpu"].metrics.ttft.median <= 45


def test_the_flagship_says_where_its_joules_of_a_busy_system_are(monkeypatch, capsys, flagship):
    """576 LPUs work for a four-hundredth of the time at 0.1 request/s; one H100 for three tenths at the same rate."""
    shares = {name: system["busy_share"] for name, system in flagship.as_json()["systems"].items()}
    assert shares["lpu"] < 0.005 < 0.05 < shares["h100x8"] < 0.1 < shares["h100"] < 0.4
    pointer = f"J and $ at capacity: sramsim capacity {FLAGSHIP}"
    summary = flagship.summary
    assert pointer in notes(summary, FLAGSHIP)
    busy = {
        name: replace(system, costs=replace(system.costs, busy_share=0.5))
        for name, system in summary.systems.items()
    }
    for change in ({"systems": busy}, {"slo": None}, {"workload": "listed"}):
        other = replace(summary, **change)
        assert not any(line.startswith("J and $") for line in notes(other, FLAGSHIP))
    words = (
        "workload.requests=2",
        "systems={lpu: {cluster: groq-576, engine: groq-compiler, plan: {tensor: 8, weights: int8}}}",
    )
    out = command(
        monkeypatch,
        capsys,
        "run",
        "--all",
        FLAGSHIP,
        *(word for each in words for word in ("--set", each)),
    )
    assert pointer in out
    assert "chips busy, % of their time" in out


def test_run_json_keeps_its_contract(flagship):
    summary = flagship.as_json()
    assert (summary["scenario"], summary["seed"]) == (FLAGSHIP, 0)
    for system in summary["systems"].values():
        assert set(METRICS + STATISTICS) <= set(system)
        assert {"model", "chip", "engine", "plan", "precision"} <= set(system)


def test_the_same_seed_prints_the_same_bytes_and_another_does_not(monkeypatch, capsys):
    first, second, other = (
        command(monkeypatch, capsys, "run", FLAGSHIP, "--json", "--seed", seed) for seed in "003"
    )
    assert first == second != other
    assert json.loads(other)["seed"] == 3


def test_plan_json_keeps_its_contract(monkeypatch, capsys):
    summary = json.loads(
        command(
            monkeypatch, capsys, "plan", FLAGSHIP, "--json", "--tokens", "4096", "--tokens", "512"
        )
    )
    lpu = summary["systems"]["lpu"]
    assert lpu["fits"] is True
    assert lpu["chips"] == 576 >= lpu["minimum_chips"]
    held = lpu["bytes_per_chip"]
    assert held["weights"] + held["kv"] + held["activations"] + held["reserve"] <= held["capacity"]
    assert len(lpu["stages"]) == 72
    assert lpu["stages"][0][0] == 0
    assert all(
        before[1] + 1 == after[0]
        for before, after in zip(lpu["stages"], lpu["stages"][1:], strict=False)
    )
    assert set(lpu["max_sequences"]) == {"4096", "512"}
    assert (
        lpu["max_sequences"]["4096"]["fullest_stage"] < lpu["max_sequences"]["4096"]["all_memory"]
    )
    lone = lpu["lone_request"]
    assert sum(lone["terms_ms"].values()) == pytest.approx(lone["tpot_ms"], rel=1e-9)
    assert lone["fitted_share"] == pytest.approx(
        sum(lone["fitted_terms_ms"].values()) / lone["tpot_ms"]
    )


def test_plan_answers_where_run_refuses(monkeypatch, capsys):
    summary = json.loads(command(monkeypatch, capsys, "plan", "does-not-fit", "--json"))
    card = summary["systems"]["rtx3090"]
    assert card["fits"] is False
    assert card["minimum_chips"] == 4
    assert card["lone_request"] is None


def tpot(result, name) -> float:
    return result.systems[name].metrics.tpot.median


def test_the_flagship_at_chip_fidelity_has_the_same_tpot():
    short = ["workload.requests=1", "workload.output=6 token", "workload.prompt=16 token"]
    stage, chip = (
        run(read(FLAGSHIP, [*short, f"fidelity={fidelity}"])) for fidelity in ("stage", "chip")
    )
    for system in ("lpu", "h100x8"):
        assert tpot(chip, system) == pytest.approx(tpot(stage, system), rel=1e-9)
        assert chip.as_json()["systems"][system]["network"]["waited_ms"] == 0


def test_a_straggler_costs_a_pipeline_a_stage_and_a_group_everything():
    result = ran("straggler")
    costs = result.systems["lpu"].members["lpu"].deployment.costs
    # Messages are as fast as before.
    computing = sum(
        op.seconds
        for op in program(costs, Work(1, 12, logits=1)).stages[36]
        if isinstance(op, ComputeOp)
    )
    assert 1e-3 * (tpot(result, "lpu-straggler") - tpot(result, "lpu")) == pytest.approx(
        computing, rel=1e-3
    )
    assert 1.7 < tpot(result, "h100x8-straggler") / tpot(result, "h100x8") < 2


def test_contention_is_slower_than_the_closed_form_and_the_link_is_named():
    result = ran("contention")
    for metric in ("tpot", "ttft"):
        by_chip, closed = (
            result.systems[name].metrics.latency(metric).median
            for name in ("by-chip", "closed-form")
        )
        assert 1.01 < by_chip / closed < 1.5
    assert result.systems["by-chip"].network.links_waited_for[0].link == "bus"
    assert "chip by chip: messages waited most for the link bus" in whole_table("contention")


def test_jitter_costs_more_the_more_there_is_and_a_dead_link_more_than_nothing():
    result = ran("jitter")
    assert (
        tpot(result, "h100x8-jitter-0.3")
        > 1.1 * tpot(result, "h100x8-jitter-0.1")
        > 1.15 * tpot(result, "h100x8")
    )
    result = ran("dead-link")
    assert 1 < tpot(result, "lpu-dead-cable") / tpot(result, "lpu") < 1.01


def test_schedulers_differ_as_the_scenario_asks():
    result = ran("scheduling")
    ttft = {name: system.metrics.ttft.p99 for name, system in result.systems.items()}
    assert ttft["static-64"] > 5 * ttft["chunked-prefill"]
    assert tpot(result, "prefill-first") > 1.05 * tpot(result, "chunked-prefill")
    assert result.systems["preempting"].metrics.preemptions > 0
    assert result.systems["chunked-prefill"].metrics.preemptions == 0


def test_a_fleet_takes_what_neither_of_its_members_can():
    result = ran("fleet")
    good = {name: system.metrics.request_goodput for name, system in result.systems.items()}
    assert min(good["by-room"], good["short-to-lpus"]) > 1.3 * max(good["lpus"], good["gpus"])
    rows = result.systems["short-to-lpus"].rows
    tokens = rows.requests.prompt + rows.requests.output
    assert (tokens[rows.replica == 0] <= 1024).all()
    told = whole_table("fleet")
    assert re.search(r"fleet by length: 576 Groq LPUs served 3\d % of the requests \(median", told)


def test_plan_and_check_put_a_fleet_together_from_its_members(monkeypatch, capsys):
    systems = json.loads(command(monkeypatch, capsys, "plan", "fleet", "--json"))["systems"]
    fleet = systems["by-room"]
    assert (fleet["fits"], fleet["chips"]) == (True, 608)
    assert fleet["members"] == {name: {"copies": 1} | systems[name] for name in ("lpus", "gpus")}
    table = command(monkeypatch, capsys, "plan", "fleet")
    assert table.count("1 x 576 Groq LPUs +") == 2
    assert "fleet by room" in table
    assert "by-room on 608 chips" in command(monkeypatch, capsys, "check", "fleet")


SOURCE = "Llama 3 (arXiv 2407.21783): failures of the category GPU"


def test_three_pooled_spares_beat_one_in_each_rack():
    """Simulated as in closed form; what is left are the swaps, and the loading over the host links is the least of them."""
    result = ran("spares")
    found = {name: system.metrics.availability for name, system in result.systems.items()}
    for each in found.values():
        assert (
            abs(each.availability - each.faults.closed_form_availability)
            < 3 * each.ci95_availability / 1.96
        )
        assert each.ci95_availability / 1.96 < 0.1 * (1 - each.availability)
    assert (
        found["no-spare"].availability
        < 0.9
        < found["one-per-rack"].availability
        < found["pooled"].availability
    )
    assert 1 - found["pooled"].faults.closed_form_availability_without_swaps < 0.05 * (
        1 - found["pooled"].availability
    )
    assert 600 < found["pooled"].faults.swap_s < 600.1
    assert SOURCE in str(result.scenario.origin.sources)
    told = whole_table("spares")
    assert "availability, % and its 95 % interval" in told
    assert "99.875" in told


def test_spares_idle_and_cost_and_who_is_down_earns_nothing():
    """Three nodes of eight chips, or one in each of nine racks, beside 72 nodes."""
    systems = ran("spares").as_json()["systems"]
    alone = systems["no-spare"]
    for name, spares in (("pooled", 3), ("one-per-rack", 9)):
        more, own = 1 + spares / 72, systems[name]
        for cause in ("idle", "server"):
            joules = [each["energy"]["joules_per_token_by_cause"][cause] for each in (own, alone)]
            assert joules[0] == pytest.approx(more * joules[1])
        assert own["economics"]["capital_usd"] == pytest.approx(
            more * alone["economics"]["capital_usd"]
        )
        earned = [each["economics"]["usd_per_mtok"] * each["availability"] for each in (own, alone)]
        assert earned[0] == pytest.approx(more * earned[1])


def test_the_estimate_is_followed_by_the_answer_for_a_token(monkeypatch, capsys):
    """At the price that is told, a run says that tokens cost the same; with 305 chips the estimate stands before the refusal."""
    few = ["--set", "workload.requests=8", "--set", "workload.users=2"]
    told = " ".join(command(monkeypatch, capsys, "run", "--all", "jia-2024", *few).split())
    assert all(ratio in told for ratio in ("38.13", "10.58", "32.80"))
    price = re.search(
        r"costs as much as one of 8 H100 \(TP8\) with this load \([\d.]+ token/s for a user\) at \$([\d,.]+) a card",
        told,
    )
    assert price
    card = f"economics.systems.nodes.card={price[1].replace(',', '')} USD"
    systems = json.loads(
        command(monkeypatch, capsys, "run", "jia-2024", "--json", *few, "--set", card)
    )["systems"]
    usd = {name: system["economics"]["usd_per_mtok"] for name, system in systems.items()}
    assert usd["nodes"] == pytest.approx(usd["h100x8"], rel=1e-3)


FAILING = (
    "{chip: {rate: 1e-3 failure/h}, repair: 24 h, detection: 10 min, horizon: 12 month, samples: 8}"
)


def test_replicas_fail_each_for_itself_and_a_fleet_as_its_members_do():
    """One of four that is down takes a quarter: availability is that of one, whatever the number; of a fleet it is their mean."""
    told = []
    for n in (1, 4):
        replicas = [f"systems.gpus.chips={8 * n}", f"systems.gpus.plan.replicas={n}"]
        told.append(
            run(
                read("fleet", ["workload.requests=40", f"systems.gpus.faults={FAILING}", *replicas])
            ).as_json()["systems"]
        )
    one, four = (systems["gpus"]["closed_form_availability"] for systems in told)
    assert one == four == pytest.approx(0.83, abs=0.02)
    for systems in told:
        fleet = systems["by-room"]
        assert systems["gpus"]["availability"] < fleet["availability"] < 1
        assert fleet["ci95_availability"] > 0


def test_fewer_samples_and_no_closed_form_are_told(monkeypatch, capsys):
    sets = [
        "systems.pooled.faults.crews=1",
        "systems.pooled.faults.rack={rate: 1e-7 failure/h}",
        "systems.pooled.faults.samples=2",
    ]
    words = [word for each in sets for word in ("--set", each)]
    drop = ["--set", "systems.no-spare.faults=null", "--set", "systems.one-per-rack.faults=null"]
    told = json.loads(command(monkeypatch, capsys, "run", "spares", "--json", *words, *drop))[
        "systems"
    ]
    assert told["pooled"]["closed_form_availability"] is None
    assert "availability" not in told["no-spare"]
    assert "in closed form" in command(monkeypatch, capsys, "run", "--all", "spares", *words, *drop)


DAY = [
    "workload.requests=400",
    "workload.rate=20 request/s",
    "workload.prompt={uniform: [100 token, 500 token]}",
]


@pytest.fixture(scope="module")
def day():
    """Twenty seconds, of which the replicas are down for four."""
    spans = [
        f"systems.{name}.outages=[{{at: 8 s, lasts: 4 s}}]"
        for name in ("one-of-lpus", "two-of-lpus", "four-of-h100x8")
    ]
    return run(read("day-in-the-life", [*DAY, *spans]))


def test_who_has_replicas_moves_its_requests_and_who_has_one_lets_them_wait(day):
    alone, two, four = (
        day.systems[name].metrics for name in ("one-of-lpus", "two-of-lpus", "four-of-h100x8")
    )
    assert alone.completed == two.completed == four.completed == 400
    assert (alone.moved, alone.failed) == (0, 0)
    assert min(alone.retried, two.moved, four.moved) > 0
    assert two.moved == two.retried
    assert 4000 < day.systems["one-of-lpus"].metrics.ttft.p99 < 6000
    assert max(two.ttft.p99, four.ttft.p99) < 2000
    told = day.as_json()
    assert told["systems"]["two-of-lpus"]["outages"] == [[8.0, 12.0]]


def test_the_day_is_drawn_with_its_outages(day):
    from plots import OUTAGES, draw_all

    saved = day.saved()
    assert "day" in draw_all(saved)
    figure = OUTAGES["day"](saved)
    ttft, good = figure.axes
    shaded = [patch.get_extents().transformed(ttft.transData.inverted()) for patch in ttft.patches]
    assert [(round(box.x0, 6), round(box.x1, 6)) for box in shaded] == [(8, 12)]
    line = next(
        line for line in good.lines if line.get_label() and line.get_color().lower() == "#d55e00"
    )
    x, y = line.get_data()
    assert y[(x > 8.5) & (x < 11.5)].max() == 0 < y[x < 8].mean()
    assert "576 Groq LPUs" in figure.get_suptitle()


def test_requests_fail_where_they_are_not_to_be_retried():
    outage = "systems.two-of-lpus.outages=[{at: 8 s, lasts: 4 s, requests: fail}]"
    told = run(read("day-in-the-life", [*DAY, outage])).systems["two-of-lpus"].metrics
    assert told.failed > 0
    assert told.completed + told.failed == 400
    assert told.refused == 0


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        (
            "outages=[{at: 1 s, lasts: 2 s, replica: 2}]",
            "--set systems.two-of-lpus.outages: systems.two-of-lpus.outages.0.replica: got 2; expected 0 to 1",
        ),
        (
            "outages=[{at: 1 s, lasts: 2 s}, {at: 2 s, lasts: 2 s}]",
            "systems.two-of-lpus.outages.1.at: got 2 s; expected at least 3 s, since replica 0 is down",
        ),
        ("outages=[{at: 1 s, lasts: 0 s}]", "expected more than 0"),
    ],
)
def test_outages_that_cannot_be_are_one_line(sramsim, assignment, reason):
    status, out, err = sramsim(
        "check", "day-in-the-life", "--set", f"systems.two-of-lpus.{assignment}"
    )
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_a_step_is_chosen_ahead_of_one_micro_batch_only(sramsim):
    """The micro-batches of an LPU's pipeline take turns, so another one's step begins next."""
    status, _, err = sramsim("check", FLAGSHIP, "--set", "systems.lpu.async_scheduling=true")
    assert status == 2
    assert "systems.lpu.async_scheduling: got true with " in err
    assert "micro-batches in flight; expected one micro-batch; try leaving it out" in err
    assert sramsim("check", FLAGSHIP, "--set", "systems.h100.async_scheduling=true")[0] == 0


def test_sampled_experts_of_a_model_without_experts_are_one_line(sramsim):
    status, _, err = sramsim("check", "fleet", "--set", "systems.lpus.routing=sampled")
    assert status == 2
    assert "systems.lpus.routing: got sampled; expected a model with experts, and llama" in err


def test_weights_come_over_the_host_links(monkeypatch, capsys):
    told = json.loads(command(monkeypatch, capsys, "plan", FLAGSHIP, "--json"))["systems"]
    assert told["lpu"]["load_s"] == pytest.approx(told["lpu"]["bytes_per_chip"]["weights"] / 31.5e9)
    assert "weights from the hosts" in command(monkeypatch, capsys, "plan", FLAGSHIP)


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        (
            "chips_per_node=7",
            "--set systems.pooled.faults.chips_per_node: got 7; expected a divisor of 576; try 6",
        ),
        ("chip.rate=1e-5 1/h", "got '1e-5 1/h'; expected a quantity in failure/s"),
        ("spares=-1", "got -1; expected at least 0"),
        ("crew=1", "faults has no 'crew'; did you mean 'crews'?"),
    ],
)
def test_faults_that_cannot_be_are_one_line(sramsim, assignment, reason):
    status, out, err = sramsim("check", "spares", "--set", f"systems.pooled.faults.{assignment}")
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


FLEET = "mine.yaml:9"


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        (
            "{lpo: 1}",
            f"{FLEET}: systems.both.fleet.lpo: got 'lpo', no system; expected a system with chips; did you mean 'lpu'?",
        ),
        (
            "{both: 1}",
            f"{FLEET}: systems.both.fleet.both: got 'both', a fleet itself; expected a system with chips; try lpu",
        ),
        ("{lpu: 0}", f"{FLEET}: systems.both.fleet.lpu: got 0; expected at least 1"),
        (
            "{}",
            f"{FLEET}: systems.both.fleet: got no systems; expected one or more; try {{lpu: 2}}",
        ),
        (
            "{lpu: 1}, chips: 4",
            f"{FLEET}: fleet has no 'chips'; it has label, colour, fleet, router",
        ),
        (
            "{lpu: 1}, router: nearest",
            f"{FLEET}: got 'nearest'; expected a router; choose from least-loaded, prefix-aware, round-robin",
        ),
        (
            "{lpu: 1, other: 2}",
            "mine.yaml:8: systems.both: got llama-3.1-8b for lpu and llama-2-7b for other; expected one model for all members; try one `model` for them",
        ),
    ],
)
def test_a_fleet_that_cannot_be_is_one_line(monkeypatch, capsys, tmp_path, fleet, message):
    monkeypatch.chdir(tmp_path)
    lpu = "{chip: groq-lpu-v1, chips: 64, engine: groq-compiler, plan: {tensor: 8, weights: int8, head: int8}}"
    other = lpu.replace("{chip", "{model: llama-2-7b, chip", 1) if "other" in fleet else ""
    lines = [
        "# May a fleet be so?",
        "model: llama-3.1-8b",
        "workload: {kind: poisson, rate: 1 request/s, requests: 2, prompt: 9 token, output: 9 token}",
        "systems:",
        f"  lpu: {lpu}",
        f"  other: {other}" if other else "",
        "",
        "  both:",
        f"    {{fleet: {fleet}}}",
    ]
    Path("mine.yaml").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["sramsim", "check", "mine.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err) == (2, "", message + "\n")


POLICIES = """\
from sim.serving.policy import BatchDecision, BatchState


def half(state: BatchState) -> BatchDecision:
    return BatchDecision(True, (state.budget - state.running) // 2, state.budget)


def longest_first(job):
    return -job.tokens


def last(replicas, job):
    return len(replicas) - 1
"""


def test_a_users_policies(monkeypatch, capsys, tmp_path):
    """One function each, in a file beside the scenario."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_policies.py").write_text(POLICIES)
    command(monkeypatch, capsys, "new", "mine")
    keys = [
        "policy=my_policies:half",
        "order=my_policies:longest_first",
        "router=my_policies:last",
        "chips=2",
        "plan.replicas=2",
    ]
    sets = [word for key in keys for word in ("--set", f"systems.h100.{key}")]
    told = json.loads(
        command(monkeypatch, capsys, "run", "mine.yaml", "--json", "--out", "out", *sets)
    )
    assert told["systems"]["h100"]["completed"] == 200
    import polars

    rows = polars.read_parquet("out/requests.parquet").filter(polars.col("system") == "h100")
    assert rows["replica"].unique().to_list() == [1]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (
            "policy=prefill",
            "got 'prefill'; expected a batching policy; did you mean 'prefill-first'?",
        ),
        ("policy=my_policies:none", "'my_policies:none': my_policies has no function none"),
        (
            "order=no_such_module:f",
            "'no_such_module:f': no_such_module cannot be imported: ModuleNotFoundError",
        ),
        (
            "router=3",
            "expected a router: least-loaded, prefix-aware, round-robin, or a function as module:function",
        ),
    ],
)
def test_a_policy_that_is_none_is_one_line(monkeypatch, capsys, tmp_path, key, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_policies.py").write_text(POLICIES)
    monkeypatch.setattr(sys, "argv", ["sramsim", "check", FLAGSHIP, "--set", f"systems.lpu.{key}"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_engine_ideal_is_physics_alone():
    ideal = plan(read(FLAGSHIP, [f"systems.{name}.engine=ideal" for name in ("lpu", "h100")]))
    assert ideal.unloaded["lpu"].fitted_share == ideal.unloaded["h100"].fitted_share == 0
    assert 540 <= 1 / ideal.unloaded["lpu"].tpot <= 680
    assert 45 <= 1 / ideal.unloaded["h100"].tpot <= 49


def test_all_systems_meet_the_same_requests(flagship):
    rows = [system.rows for system in flagship.systems.values()]
    for other in rows[1:]:
        assert (rows[0].arrival == other.arrival).all()
        assert (rows[0].requests.prompt == other.requests.prompt).all()


def test_out_holds_the_run(monkeypatch, capsys, tmp_path):
    import polars

    command(
        monkeypatch,
        capsys,
        "run",
        "llama3-8b-lpu-vs-h100",
        "--seed",
        "5",
        "--out",
        str(tmp_path / "a"),
    )
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "requests.parquet",
        "result.json",
    ]
    summary = json.loads((tmp_path / "a" / "result.json").read_text())
    assert summary["seed"] == 5
    assert {"version", "inputs"} <= set(summary)
    from sim.results.rows import COLUMNS

    rows = polars.read_parquet(tmp_path / "a" / "requests.parquet")
    assert rows.columns == list(COLUMNS)
    assert len(rows) == 2 * summary["inputs"]["workload"]["requests"]


def test_what_of_a_trace_was_left_out_or_cut_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(
        "Timestamp,Request tokens,Response tokens\n1,90,5\n2,10,0\n3,10,5\n"
    )
    words = [
        "run",
        "azure-conversation",
        "--set",
        "workload.path=trace.csv",
        "--set",
        "workload.max_prompt=20 token",
    ]
    told = "BurstGPT, times in s; requests without output left out: 1; prompts cut to 20 token: 1"
    assert f"Trace: {told}." in " ".join(command(monkeypatch, capsys, *words).split())
    assert json.loads(command(monkeypatch, capsys, *words, "--json"))["note"] == told


def test_a_new_scenario_runs_as_it_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, capsys, "new", "mine")
    assert "A user gets the first token" in command(monkeypatch, capsys, "run", "mine.yaml")


def test_a_strangers_chip_and_its_own_kind(monkeypatch, capsys, tmp_path):
    source = Path(__file__).parents[1] / "data" / "my-chip"
    for file in source.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "32 x my-chip" in command(monkeypatch, capsys, "run", "mine.yaml")
    assert "an analog array's read-out" in command(
        monkeypatch, capsys, "show", "chip", "my-chip.yaml"
    )
