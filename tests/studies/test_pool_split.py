"""The search for the sizes of attention and FFN pools: against every split, and errors."""

import io
import math
from dataclasses import replace
from itertools import product

import pytest
from rich.console import Console

from sim.cost.layer_transfer import LayerTransfer
from sim.cost.layout import fit
from sim.cost.plan import Plan, PlanError
from sim.hardware.power import Power
from sim.planning.attention_ffn import deploy_attention, ffn_layout
from sim.report.plan_tables import capacity_table
from sim.scenario.attention_ffn import AttentionFfn, pool_parts
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.split_search import SplitSearch
from sim.scenario.system import System
from sim.studies import pool_split
from sim.studies.bound import NEAR_BOUND, load_bound
from sim.studies.capacity import capacity
from sim.studies.capacity_search import Guess
from sim.studies.design import best_plans, bound_plans, search_plans
from sim.studies.pool_budget import alone_with, budget_of, ordinary_system
from sim.studies.pool_split import Splits, opened
from sim.workload.arrivals import ClosedLoop, Poisson
from sim.workload.lengths import Length
from sim.workload.slo import SLO

EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
LINK = LayerTransfer(bandwidth=1e9, latency=2e-6, copies="rank", back="fp16", out="fp8")
LENGTHS = {"prompt": Length(fixed=40), "output": Length(fixed=20)}
POISSON = Poisson(rate=1.0, requests=150, **LENGTHS)
LIMITS = SLO(ttft=0.5, tpot=0.02)
# A file's keys, for errors at their lines.
FILE = """\
model: qwen3-235b-a22b
workload: {kind: poisson, rate: 1 request/s, requests: 8, prompt: 64 token, output: 8 token}
slo: {tpot: 1 s}
systems:
  afd:
    attention: {chip: gb200, engine: ideal, plan: {weights: fp8}}
    ffn: {chip: gb200, engine: ideal, plan: {weights: fp8}}
    plan: {search: capacity, chips: 3}
    transfer: {bandwidth: 900 GB/s}
"""


@pytest.fixture(scope="module")
def open_scenario(make_model, make_chip, lossy):
    """Two open pools of a small model with experts; `ffn` changes the FFN pool's chip."""

    def make(
        search,
        workload=POISSON,
        attention_chip=(),
        ffn=(),
        **options,
    ):
        def pool(**changes):
            chips = changes.pop("chips", 8)
            chip = make_chip(**{"capacity": 1.2e6, "fp16": 1e10} | changes)
            return {"chip": chip, "chips": chips, "engine": lossy}

        pools = {
            "attention": System(**pool(**dict(attention_chip)), token_budget=32),
            "ffn": System(**pool(**dict(ffn))),
        }
        afd = AttentionFfn(plan=SplitSearch(**search), transfer=LINK, **pools, **options)
        return Scenario(
            model=make_model(**EXPERTS), workload=workload, slo=LIMITS, systems={"afd": afd}
        )

    return make


def every_split(scenario, chips, micro_batches):
    """Yield each split of at most `chips` chips, with each plan of both pools."""
    system = scenario.systems["afd"]
    sizes = [n for n in product(range(1, chips), repeat=2) if sum(n) <= chips]
    for (own, ffn), count in product(sizes, micro_batches):
        for tensor in (n for n in range(1, own + 1) if own % n == 0):
            attention = Plan(tensor=tensor, attention_data=own // tensor)
            for stages in (n for n in range(1, ffn + 1) if ffn % n == 0):
                for expert in (n for n in range(1, ffn // stages + 1) if ffn // stages % n == 0):
                    plan = Plan(tensor=ffn // stages, expert=expert, pipeline=stages)
                    pools = {
                        "attention": {"chips": own, "plan": attention},
                        "ffn": {"chips": ffn, "plan": plan},
                    }
                    sized = {
                        name: getattr(system, name).model_copy(update=values)
                        for name, values in pools.items()
                    }
                    values = sized | {"micro_batches": count, "plan": None}
                    yield system.model_copy(update=values)


def bound_of(scenario, split):
    """The bound of a split; 0 if it does not fit."""
    alone = alone_with(scenario, "afd", split)
    try:
        deployment = alone.deploy("afd")
    except PlanError:
        return 0.0
    return load_bound(alone, {"afd": Member(deployment)}) if deployment.fit.fits else 0.0


@pytest.mark.parametrize("workload", [POISSON, ClosedLoop(users=1, requests=150, **LENGTHS)])
def test_no_split_has_a_higher_bound_than_the_pruned_search_finds(open_scenario, workload):
    scenario = open_scenario({"search": "capacity", "chips": 4}, workload)
    best = Splits(scenario, "afd").by_bound()[1][0][0]
    bounds = [bound_of(scenario, split) for split in every_split(scenario, 4, (1, 2, 3, 4))]
    assert best == pytest.approx(max(bounds), rel=1e-9)
    assert min(bound for bound in bounds if bound) < best / 1.5, "else nothing is searched for"


def test_the_found_split_takes_what_no_other_one_exceeds(open_scenario):
    """All splits of three chips are simulated, and one ordinary system of three chips as well."""
    room = {"capacity": 3e6}
    scenario = open_scenario(
        {"search": "capacity", "chips": 3}, attention_chip=room, ffn=room, micro_batches=2
    )
    found = search_plans(scenario, requests=100)
    search = found.searches["afd"]
    more = 1.05 * search.load  # two brackets of 2 % each, and little luck of 100 requests
    for other in every_split(scenario, 3, (2,)):
        alone = alone_with(scenario, "afd", other)
        # One trial a little above the load that was found.
        result = capacity(alone, requests=100, guess=Guess(more, more)).systems["afd"]
        assert result.best is None
    served = capacity(found, requests=100, guess=Guess(search.load / 1.01)).systems["afd"]
    assert served.best.goodput == pytest.approx(search.load, rel=0.03)
    assert search.rival.chips == 3
    assert 0 < search.rival.load != pytest.approx(search.load, rel=0.03)


def test_limits_of_power_and_price_bound_the_chips_of_both_kinds(open_scenario):
    powered = {"power": Power(maximum=100.0), "price": 1000.0}
    cheap = {"power": Power(maximum=40.0), "price": 10.0}
    search = {"search": "capacity", "power": 500.0, "price": 3500.0}
    scenario = open_scenario(search, attention_chip=powered, ffn=cheap)
    budget = budget_of(scenario, "afd")
    assert [budget.attention_chips(n) for n in (1, 5, 8)] == [3, 3, 1]
    split = bound_plans(scenario).systems["afd"]
    sizes = split.attention.chips, split.ffn.chips
    assert 100 * sizes[0] + 40 * sizes[1] <= 500
    assert 1000 * sizes[0] + 10 * sizes[1] <= 3500
    assert ordinary_system(scenario, "afd").chips == 3
    with pytest.raises(PlanError, match=r"plan\.power: got a limit, and the power of in-place is "):
        bound_plans(open_scenario(search, attention_chip=powered))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("slo: {tpot: 1 s}\n", "", "plan.search: got capacity without an slo; expected limits"),
        ("tpot: 1 s", "tpot: 1 us", "plan.search: got capacity, and a mean request misses the slo"),
        ("chips: 3", "chips: 1", "plan.search: got no FFN pool of gb200 that holds the MLPs of"),
        (
            "ideal, plan: {w",
            "ideal, plan: {tensor: 2, w",
            "attention.plan.tensor: got 2; expected no",
        ),
    ],
)
def test_wrong_searches_are_one_line(sramsim, tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.replace(old, new, 1))
    status, _, err = sramsim("check", str(path))
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_a_search_has_a_limit():
    with pytest.raises(ValueError, match="got a search without a limit; expected chips, power or"):
        SplitSearch(search="capacity")


def test_a_check_names_a_split_of_all_chips(sramsim, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    status, out, err = sramsim("check", str(path))
    assert (status, "ok (afd on 3 chips)" in out) == (0, True)
    assert "systems.afd: search: capacity: " in err


def test_the_plans_of_fixed_pools_are_searched_within_their_chips(open_scenario):
    """Two chips for attention and one for MLPs may change places, and micro-batches change."""
    room = {"capacity": 3e6}
    limits = {"search": "capacity", "chips": 3}
    scenario = open_scenario(limits, attention_chip=room, ffn=room)
    first = scenario.systems["afd"]
    fixed = first.model_copy(
        update={
            "attention": first.attention.model_copy(
                update={"chips": 2, "plan": Plan(attention_data=2)}
            ),
            "ffn": first.ffn.model_copy(update={"chips": 1, "plan": Plan(tensor=1)}),
            "micro_batches": 2,
            "plan": None,
        }
    )
    alone = alone_with(scenario, "afd", fixed)
    result = capacity(alone, requests=100)
    own = result.systems
    best = best_plans(alone, None, 100, own=own)["afd"]
    printed = Console(width=200, record=True, file=io.StringIO())
    printed.print(capacity_table(result.summary({"afd": best.summary})))
    assert f"FFN pool {best.summary.ffn.text}" in " ".join(
        printed.export_text().partition("best plan")[2].replace("│", " ").split()
    )
    searched = search_plans(scenario, requests=100).searches["afd"]
    assert best.summary.most.load >= max(own["afd"].best.goodput, 0.97 * searched.load)
    ffn, plan = best.summary.ffn, best.summary.plan
    assert ffn.chips + plan.tensor * plan.attention_data <= 3
    assert best.summary.considered == searched.considered


def test_chips_of_a_cluster_or_of_two_kinds_keep_their_pool(open_scenario):
    alike = open_scenario({"search": "capacity", "chips": 9}).systems["afd"]
    unlike = open_scenario({"search": "capacity", "chips": 9}, ffn={"bandwidth": 2e9}).systems[
        "afd"
    ]
    for system, sizes in ((alike, (16, 16)), (unlike, (8, 8))):
        pools = opened(system).pools.values()
        assert tuple(own.chips for own in pools) == sizes
        assert opened(system).plan.chips == 16


def fewest_stages(splits, tensor, expert, tokens, chips):
    """Return the fewest stages of an FFN pool that hold the MLPs; None if no number does."""
    plan = splits.system.ffn.plan.model_copy(update={"tensor": tensor, "expert": expert})
    parts, limits = pool_parts(splits.system.ffn, splits.model)
    for stages in range(1, min(splits.model.num_hidden_layers, chips // tensor) + 1):
        sized = replace(parts, plan=plan, chips=tensor * stages)
        layout = ffn_layout(sized, replace(limits, token_budget=tokens))
        if fit(layout, splits.lengths[0]).fits:
            return stages
    return None


@pytest.mark.parametrize("layers", [3, 7])
@pytest.mark.parametrize("capacity", [5e4, 8e4, 1.1e5, 1.5e5, 2.2e5, 1e6])
@pytest.mark.parametrize("every_size", [3, 64])
def test_each_shape_of_an_ffn_pool_has_the_fewest_stages(
    open_scenario, make_model, monkeypatch, layers, capacity, every_size
):
    """For one token of a micro-batch, and for the most; the capacity is 1 to 20 layers."""
    monkeypatch.setattr(pool_split, "EVERY_SIZE", every_size)
    limit = 20
    scenario = open_scenario(
        {"search": "capacity", "chips": limit},
        ffn={"capacity": capacity, "chips": 24},
        attention_chip={"chips": 24},
    )
    model = make_model(**EXPERTS, num_hidden_layers=layers)
    splits = Splits(scenario.model_copy(update={"model": model}), "afd")
    expected = set()
    for tensor, expert in product(range(1, 9), range(1, 9)):
        is_size = tensor <= every_size or tensor in (4, 8)  # powers of two and divisors
        if not is_size or not (expert == 1 or tensor in (expert, 2 * expert, 4 * expert)):
            continue
        for tokens in splits.step_tokens:
            stages = fewest_stages(splits, tensor, expert, tokens, 24)
            if stages and tensor * stages < limit:
                expected.add((tensor, expert, stages))
    if not expected:
        with pytest.raises(PlanError, match="got no FFN pool"):
            splits.ffn_pools()
        return
    pools = splits.ffn_pools()
    found = [(own.plan.tensor, own.plan.expert, own.plan.pipeline) for own in pools]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert all(own.chips == own.plan.tensor * own.plan.pipeline for own in pools)


def test_many_tokens_of_a_step_need_more_stages(open_scenario):
    """The largest micro-batch has the tokens of all ranks of the largest attention pool."""
    ffn = {"capacity": 9e5}
    scenario = open_scenario({"search": "capacity", "chips": 8}, ffn=ffn, micro_batches=3)
    splits = Splits(scenario, "afd")
    budgets = []
    for own in splits.attention_pools(7):
        parts, limits = pool_parts(own, splits.model)
        layout = deploy_attention(parts, splits.lengths, limits).layout
        budgets.append(layout.token_budget)
    assert splits.step_tokens == (1, math.ceil(max(budgets) / 3))
    assert max(budgets) % 3, "else rounding makes no difference"
    stages = [own.plan.pipeline for own in splits.ffn_pools() if own.plan.tensor == 1]
    assert len(stages) == len(set(stages)) == 2
    free = Splits(open_scenario({"search": "capacity", "chips": 8}, ffn=ffn), "afd")
    assert free.step_tokens == (1, max(budgets)), "one micro-batch is among those that are tried"


@pytest.mark.parametrize("chips", range(1, 10))
def test_an_attention_pool_leaves_fewer_chips_than_a_rank(open_scenario, make_model, chips):
    """Tensor degrees are powers of two, and divisors of the heads: six here."""
    scenario = open_scenario({"search": "capacity", "chips": 9})
    model = make_model(**EXPERTS, hidden_size=96, num_attention_heads=6)
    splits = Splits(scenario.model_copy(update={"model": model}), "afd")
    pools = list(splits.attention_pools(chips))
    assert [own.plan.tensor for own in pools] == [n for n in (1, 2, 3, 4, 6) if n <= chips]
    for own in pools:
        assert own.chips == own.plan.tensor * own.plan.attention_data
        assert 0 <= chips - own.chips < own.plan.tensor


@pytest.mark.parametrize(
    ("workload", "least"),
    [(POISSON, 1.0 - 1e-9), (ClosedLoop(users=1, requests=150, **LENGTHS), NEAR_BOUND)],
)
def test_a_bound_is_at_most_that_of_each_pool_alone(open_scenario, workload, least):
    """In a closed loop it may exceed one, but not by so much that the search skips the split."""
    splits = Splits(open_scenario({"search": "capacity", "chips": 4}, workload), "afd")
    considered, ordered = splits.by_bound()
    for load, split in ordered:
        alone = splits.attention_bound(split.attention)
        assert least * load <= min(alone, splits.ffn_bound(split.attention, split.ffn))
    beside = (splits.budget.attention_chips(own.chips) for own in splits.ffn_pools())
    assert considered == 4 * sum(len(list(splits.attention_pools(chips))) for chips in beside)


def test_among_equal_bounds_fewer_chips_come_first(open_scenario, monkeypatch):
    monkeypatch.setattr(pool_split, "load_bound", lambda scenario, members: 1.0)
    splits = Splits(open_scenario({"search": "capacity", "chips": 5}), "afd")
    chips = [split.attention.chips + split.ffn.chips for _, split in splits.by_bound()[1]]
    assert chips == sorted(chips)
    assert chips[0] < chips[-1] == 5


def test_more_chips_never_lower_the_highest_bound(open_scenario):
    best = [
        Splits(open_scenario({"search": "capacity", "chips": n}), "afd").by_bound()[1][0][0]
        for n in (3, 4, 6)
    ]
    assert best == sorted(best)
    assert best[-1] > 1.5 * best[0]


def test_a_changed_chip_of_both_pools_is_printed_once(sramsim, tmp_path):
    path = tmp_path / "mine.yaml"
    chip = "chip: {like: gb200, memory: {hbm: {bandwidth: 7 TB/s}}}"
    text = FILE.replace("plan: {search: capacity, chips: 3}", "micro_batches: 2")
    for _ in range(2):
        text = text.replace("chip: gb200", f"{chip}, chips: 1", 1)
    path.write_text(text)
    status, out, _ = sramsim("plan", str(path))
    assert status == 0
    note = " ".join(out.partition("† afd: chip gb200 with ")[2].split())
    assert note.count("bandwidth 7 TB/s") == 1
