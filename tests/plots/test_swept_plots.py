"""Figures of sweeps and of what chips hold: their titles say what the data say, and what goes wrong is drawn or told."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from plots import (
    SWEPT,
    cost,
    draw_swept,
    frontier,
    load,
    memory,
    metric,
    occupancy,
    pareto,
    price,
    request,
    scaling,
    series,
    style,
    users,
)
from plots.looks import MAKER_COLOURS, Appearance, looks
from sim import plan, read, run
from sim.inputs.errors import UserError
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept, sweep
from sim.studies.sweep_table import axis_column, metric_column, swept_key

BASE = """\
# How does a small model scale?
model: llama-3.1-8b
workload: {kind: poisson, rate: 1 request/s, requests: 300, prompt: 64 token, output: 16 token}
systems:
  lpu: {chip: groq-lpu-v1, chips: 64, engine: ideal, plan: {tensor: 8, weights: int8, activations: int8, kv: fp16, head: int8}}
  a-card-with-a-name-that-is-rather-long-for-any-figure-that-must-show-it:
    {chip: h100-sxm, chips: 1, engine: ideal, plan: {weights: fp8, activations: fp8, kv: fp16}}
"""
LONG = "a-card-with-a-name-that-is-rather-long-for-any-figure-that-must-show-it"
CLOSED = "{kind: closed, users: %d, requests: 60, prompt: 64 token, output: 16 token}"
SWEEPS = {
    "rate": "{workload.rate: [10 request/s, 1000 request/s, 20000 request/s]}",
    "users": "{workload: [" + ", ".join(CLOSED % n for n in (1, 4, 16)) + "]}",
    "chips": "[{systems.lpu.plan.tensor: 4}, {systems.lpu.chips: 128}, {systems.lpu.chips: 8}]",
}
OF = {
    "energy": "rate",
    "latency-vs-load": "rate",
    "pareto": "users",
    "users": "users",
    "strong-scaling": "chips",
    "card-price": "users",
    "cost": "users",
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> dict[str, Swept]:
    folder: Path = tmp_path_factory.mktemp("sweeps")
    found = {}
    for name, lines in SWEEPS.items():
        (folder / f"{name}.yaml").write_text(f"{BASE}sweep: {lines}\n")
        found[name] = sweep(folder / f"{name}.yaml", folder / name, jobs=1)
    return found


def only(swept: Swept, system: str) -> Swept:
    """The sweep as if it had one system."""
    return Swept(
        replace(swept.summary, systems=(system,)),
        swept.table.filter(polars.col("system") == system),
    )


def changed(swept: Swept, **columns: object) -> Swept:
    return Swept(
        swept.summary,
        swept.table.with_columns(**{key: polars.lit(value) for key, value in columns.items()}),
    )


@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.parametrize("system", [None, LONG])
def test_all_text_is_inside_and_no_title_over_the_axes(swept, name, system):
    whole = swept[OF[name]]
    figure = SWEPT[name][1](only(whole, system) if system else whole)
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    texts = [figure._suptitle, figure._supxlabel]
    for axis in figure.axes:
        texts += [
            axis.xaxis.label,
            axis.yaxis.label,
            *axis.texts,
            *(axis.get_legend().get_texts() if axis.get_legend() else ()),
        ]
        assert "second" in axis.get_xlabel() + axis.get_ylabel() or axis.get_ylabel().endswith(
            (", ms", ", $", "million output tokens", "J for an output token")
        )
    for text in (text for text in texts if text.get_text()):
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()
    lines = len(figure.get_suptitle().rstrip("\n").split("\n"))
    key = figure.axes[0].get_legend().get_window_extent()
    bottom = (
        figure._suptitle.get_window_extent().y1
        - lines * 1.2 * figure._suptitle.get_fontsize() * figure.dpi / 72
    )
    assert key.y1 <= bottom + 6


def test_a_sweep_has_the_figures_that_it_has_points_for(swept):
    common = ["pareto", "energy", "card-price", "cost"]
    assert list(draw_swept(swept["rate"])) == ["latency-vs-load", *common]
    assert list(draw_swept(swept["users"])) == ["pareto", "users", *common[1:]]
    assert list(draw_swept(swept["chips"])) == ["strong-scaling"]
    failed = changed(swept["rate"], error="no", completed=None)
    assert draw_swept(failed) == {}


def test_with_pools_the_title_names_the_system_with_most_tokens_per_megawatt(swept):
    """A point with a faster user counts for slower ones as well."""
    pools = changed(
        swept["users"], **{"ffn.chips": 1, "ffn.chip": "h100-sxm", "ffn.engine": "vllm"}
    )
    assert "frontier" in draw_swept(pools)
    figure = frontier.draw(pools)
    lines = series.series(pools, "users")
    first = figure.axes[0].lines[0]
    assert list(first.get_ydata()) == [1e6 / j for j in lines[0].values(cost.JOULES)]
    parts = frontier.best_by_speed(lines)
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith(f"Most tokens per MW: {parts[0][1]}")
    assert [speed for speed, _ in parts] == sorted({speed for speed, _ in parts})
    for speed, label in parts:
        best = {
            line.label: max(
                (
                    tokens
                    for own, tokens in zip(line.speeds, frontier.per_megawatt(line), strict=True)
                    if own >= frontier.SPEED_TOLERANCE * speed
                ),
                default=0.0,
            )
            for line in lines
        }
        assert best[label] == max(best.values())
    assert (
        "lpu: 63 x groq-lpu-v1 + 1 x h100-sxm, ideal + vllm"
        in figure._supxlabel.get_text().replace("\n", " ")
    )


GRID = "{systems.lpu.max_sequences: [1, 2, 3, 4, 5], workload.prompt: [%s]}"
ANY = {
    "quantities": "{systems.lpu.chip.memory.sram.capacity: [200 MB, 0.5 GB]}",
    "texts": "{systems.lpu.engine: [ideal, groq-compiler]}",
    "two keys, one with few values": GRID % "64 token, 128 token",
    "two keys": GRID % ", ".join(f"{n} token" for n in (8, 16, 32, 64, 128)),
    "a list": "[{systems.lpu.kv_tokens: 100 token, seed: 1}, {systems.lpu.kv_tokens: 200 token}]",
}


@pytest.fixture(scope="module")
def any_swept(tmp_path_factory) -> dict[str, Swept]:
    folder: Path = tmp_path_factory.mktemp("any")
    done = {}
    for place, (name, lines) in enumerate(ANY.items()):
        file = folder / f"{place}.yaml"
        file.write_text(f"{BASE.replace('300', '2')}sweep: {lines}\n")
        done[name] = sweep(file, folder / name, jobs=1)
    return done


@pytest.mark.parametrize("name", ANY)
def test_any_sweep_draws(any_swept, name):
    swept = any_swept[name]
    for column, figure in draw_swept(swept).items():
        FigureCanvasAgg(figure).draw()
        assert figure.get_suptitle().startswith(column)
        drawn = [line for line in figure.axes[0].lines if len(line.get_xdata())]
        assert drawn or figure.axes[0].images
    assert list(draw_swept(swept)) == list(metric.DEFAULT_METRICS)
    assert list(draw_swept(swept, ["energy.joules_per_token"])) == ["energy.joules_per_token"]


def test_a_quantity_has_a_numeric_axis_in_si_units(any_swept):
    swept = any_swept["quantities"]
    key = "systems.lpu.chip.memory.sram.capacity"
    assert axis_column(swept.table, key) == f"{key} [B]"
    assert swept_key(f"{key} [B]") == key
    figure = metric.draw(swept, "chips")
    assert sorted(set(figure.axes[0].lines[0].get_xdata())) == [2e8, 5e8]


def test_a_heat_map_has_the_values_of_the_table(any_swept):
    swept = any_swept["two keys"]
    figure = metric.draw(swept, "median_ttft_ms")
    own = swept.table.filter(polars.col("system") == "lpu")
    assert figure.axes[0].images[0].get_array().ravel().tolist() == own["median_ttft_ms"].to_list()


def test_a_metric_is_found_by_the_end_of_its_name(any_swept):
    table = any_swept["texts"].table
    assert metric_column(table, "joules_per_token") == "energy.joules_per_token"
    with pytest.raises(UserError, match="did you mean 'median_tpot_ms'"):
        metric_column(table, "median_tpt_ms")


def test_the_band_of_a_token_price_is_that_of_the_cards_price(swept):
    """The file of the LPU gives $500 to $20,000 for a card, and the run uses $20,000."""
    (line, _) = series.series(swept["users"], "users")
    low, high = cost.price_band(line)
    assert high == pytest.approx(line.values(price.USD))
    first = swept["users"].table.filter(polars.col("system") == "lpu").row(0, named=True)
    assert low[0] == pytest.approx(usd(first, 500))


def test_a_system_keeps_its_colour(swept):
    for name, of in OF.items():
        for line in SWEPT[name][1](swept[of]).axes[0].lines[:1]:
            assert to_hex(line.get_color()) == MAKER_COLOURS["Groq"].lower()


def test_the_first_overloaded_rate_is_hollow_and_the_last_that_is_drawn(swept):
    table = swept["rate"].table
    full = (
        table.filter(polars.col("verdict") == "OVERLOADED")
        .group_by("system")
        .agg(polars.col("rate").min())
    )
    firsts = dict(full.iter_rows())
    assert set(firsts) == {"lpu", LONG}
    title = load.finding(series.series(swept["rate"], "rate"))
    assert f"lpu: full from {trimmed_number(firsts['lpu'])} request/s" in title
    rate = table.filter(polars.col("rate") < min(firsts.values()))["rate"].max()
    best, worst = sorted(table.filter(polars.col("rate") == rate)["p99_ttft_ms"])
    assert f"at {trimmed_number(rate)} the p99 TTFT of" in title
    assert style.times(worst / best) in title
    for axis in load.draw(swept["rate"]).axes:
        hollow = [
            line
            for line in axis.lines
            if line.get_markerfacecolor() == "white" and len(line.get_xdata())
        ]
        assert sorted(float(line.get_xdata()[0]) for line in hollow) == sorted(
            [*firsts.values(), *firsts.values()]
        )


def test_users_title_says_until_when_the_speed_holds(swept):
    table = swept["users"].table.filter(polars.col("system") == "lpu").sort("users")
    speeds = 1000 / table["median_tpot_ms"].to_numpy()
    held = [int(n) for n, v in zip(table["users"], speeds, strict=True) if v >= 0.9 * speeds[0]]
    line = next(each for each in series.series(swept["users"], "users") if each.system == "lpu")
    assert users.flat_until(line) == max(held)
    title = users.finding([line])
    wait = style.duration(table["median_ttft_ms"][-1])
    told = f"lpu: {trimmed_number(speeds[0])} token/s for a single user; within 10 % of that up to {max(held)} users"
    assert title == f"{told}; with {int(table['users'][-1])} a first token takes {wait}"


def test_the_speed_holds_only_where_the_system_keeps_up(swept):
    line = next(each for each in series.series(swept["users"], "users") if each.system == "lpu")
    numbers, held = line.values("users"), users.flat_until(line)
    verdict = polars.when(polars.col("users") == held).then(polars.lit("OVERLOADED"))
    table = line.table.with_columns(verdict=verdict.otherwise(polars.col("verdict")))
    assert users.flat_until(replace(line, table=table)) == numbers[numbers.index(held) - 1]


def test_the_wait_of_the_title_is_one_of_a_system_that_keeps_up(swept):
    line = next(each for each in series.series(swept["users"], "users") if each.system == "lpu")
    numbers, waits = line.values("users"), line.values("median_ttft_ms")
    verdict = polars.when(polars.col("users") == numbers[-1]).then(polars.lit("BACKLOGGED"))
    table = line.table.with_columns(verdict=verdict.otherwise(polars.lit("STABLE")))
    title = users.finding([replace(line, table=table)])
    wait = style.duration(waits[-2])
    assert title.endswith(f"; with {numbers[-2]} a first token takes {wait}")


def test_a_pipeline_is_busy_where_twice_the_users_get_no_more(tmp_path):
    """Prompts enter one token a beat: 64 + 16 tokens a request take all beats long before decodes alone would."""
    lines = "[" + ", ".join(CLOSED.replace("60", "200") % n for n in (1, 2, 64, 128)) + "]"
    (tmp_path / "mine.yaml").write_text(
        f"{BASE.replace('engine: ideal', 'engine: groq-compiler', 1)}sweep: {{workload: {lines}}}\n"
    )
    swept = sweep(tmp_path / "mine.yaml", tmp_path / "out", jobs=1)
    lpu, card = series.series(swept, "users")
    alone, _, full, fuller = lpu.values("output_throughput")
    assert fuller < 1.1 * full
    assert users.busy_from(lpu) == pytest.approx(full / alone, rel=0.2)
    assert users.busy_from(card) is None
    cached = lpu.table.with_columns(cached_tokens=polars.lit(1))
    assert users.busy_from(replace(lpu, table=cached)) is None


def test_the_frontier_is_throughput_over_speed_by_chip_and_by_kilowatt(swept):
    per_chip, per_kw, per_dollar = pareto.draw(swept["users"]).axes
    own = swept["users"].table.filter(polars.col("system") == "lpu").sort("users")
    for axis, divisor in ((per_chip, 64), (per_kw, 64 * 0.185)):
        x, y = axis.lines[0].get_data()
        assert np.allclose(x, 1000 / own["median_tpot_ms"].to_numpy())
        assert np.allclose(y, own["output_throughput"].to_numpy() / divisor)
    priced = swept["users"].table.filter(
        polars.col("economics.usd_per_mtok").is_not_null() & (polars.col("system") == "lpu")
    )
    assert np.allclose(
        per_dollar.lines[0].get_data()[1],
        1e6 / priced.sort("users")["economics.usd_per_mtok"].to_numpy(),
    )
    title = " ".join(pareto.draw(swept["users"]).get_suptitle().split())
    fastest = (
        1000 / swept["users"].table.filter(polars.col("system") == LONG)["median_tpot_ms"].min()
    )
    assert f"Only lpu gives a user more than {trimmed_number(fastest)} token/s" in title.replace(
        "- ", "-"
    )


def test_the_frontier_names_the_plans_that_its_title_is_about():
    """Two plans of LPUs beat the card's top speed; at its knee the second plan has more tokens."""

    lpus = [pareto_line("A", 8, [300, 290], [8, 16]), pareto_line("B", 8, [220, 210], [16, 40])]
    title = pareto.finding([*lpus, pareto_line("card", 1, [100, 50], [100, 400])])
    assert title == (
        "Only A and B give a user more than 100 token/s;"
        " at 50 token/s card makes 80.0 times the tokens per kW of B"
    )


def test_the_frontier_tells_chips_beside_other_chips_from_chips_alone():
    """As many chips, half of which hold the experts: these are no plan of the others."""
    alone, both = ("alone", 8, [300, 150], [8, 16]), ("both", 8, [200, 100], [80, 160])
    title = pareto.finding([pareto_line(*alone), pareto_line(*both, ffn=4)])
    assert title == (
        "Only alone gives a user more than 200 token/s;"
        " at 200 token/s both makes 10.0 times the tokens per kW of alone"
    )
    title = pareto.finding([pareto_line(*alone), pareto_line(*both)])
    assert "times" not in title


def test_no_point_that_is_drawn_contradicts_the_title_of_the_frontier():
    """At 200 token/s 'full' has more tokens than 'both', but does not keep up."""
    full = pareto_line("full", 8, [300, 200], [8, 400], verdicts=["STABLE", "BACKLOGGED"])
    title = pareto.finding([full, pareto_line("both", 8, [299, 200], [20, 160], ffn=4)])
    assert title == "full and both give a user up to 300 token/s"


def pareto_line(
    label: str,
    chips: int,
    speeds: list[float],
    tokens: list[float],
    ffn: int | None = None,
    verdicts: list[str] | None = None,
) -> series.Series:
    """A line of a sweep whose chips draw 100 W each. ffn: how many of them are an FFN pool."""
    table = polars.DataFrame(
        {
            "chip": [f"chip{chips}"] * len(speeds),
            "ffn.chip": ["other"] * len(speeds),
            "ffn.chips": [ffn] * len(speeds),
            "chips": [chips] * len(speeds),
            "verdict": verdicts or ["STABLE"] * len(speeds),
            "median_tpot_ms": [1000 / speed for speed in speeds],
            "output_throughput": tokens,
            "typical_watts": [100.0 * chips] * len(speeds),
        }
    )
    return series.Series(label, looks({label: Appearance(label)})[label], table)


def test_without_prices_there_is_no_panel_of_dollars(swept):
    unpriced = swept["users"].table.drop("economics.usd_per_mtok")
    assert len(pareto.draw(Swept(swept["users"].summary, unpriced)).axes) == 2


def test_the_joules_of_a_token_are_those_of_the_table_over_its_load(swept):
    figure = SWEPT["energy"][1](swept["rate"])
    own = swept["rate"].table.filter(polars.col("system") == "lpu").sort("rate")
    x, y = figure.axes[0].lines[0].get_data()
    assert np.allclose(x, own["rate"].to_numpy())
    assert np.allclose(y, own["energy.joules_per_token"].to_numpy())


def test_power_compares_like_with_like(swept):
    """Typical only where all chips have it; where one has none at all, the figure says so."""
    assert "power: typical of the chips" in " ".join(
        pareto.draw(swept["users"]).get_supxlabel().split()
    )
    table = swept["users"].table
    lpu = polars.when(polars.col("system") == "lpu").then(None)
    without = Swept(
        swept["users"].summary,
        table.with_columns(typical_watts=lpu.otherwise(polars.col("typical_watts"))),
    )
    assert "power: maximum of the chips" in " ".join(pareto.draw(without).get_supxlabel().split())
    columns = {key: lpu.otherwise(polars.col(key)) for key in ("typical_watts", "maximum_watts")}
    unknown = pareto.draw(Swept(swept["users"].summary, table.with_columns(**columns)))
    assert "not known of lpu" in " ".join(unknown.get_supxlabel().split())


def test_scaling_says_what_more_chips_gain_and_leaves_out_what_does_not_fit(swept):
    assert (
        "does not fit"
        in swept["chips"].table.row(
            by_predicate=(polars.col("point") == 2) & (polars.col("system") == "lpu"), named=True
        )["error"]
    )
    figure = scaling.draw(swept["chips"])
    chips, times = figure.axes[0].lines[0].get_data()
    assert list(chips) == [64, 128]
    best = int(np.argmin(times))
    bound = figure.axes[0].lines[3].get_ydata()
    title = " ".join(figure.get_suptitle().split())
    assert (
        f"lpu: {style.times(times[0] / times[best])} faster on {chips[best]} chips than on 64"
        in title
    )
    assert f"{style.times(times[best] / bound[best])} the bound" in title
    assert LONG not in title.replace(" ", "")  # one card is no scaling
    slower = swept["chips"].table.with_columns(
        polars.col("chips").cast(float).alias("lone_request.tpot_ms")
    )
    assert (
        "lpu: no faster on 128 chips than on 64"
        in scaling.draw(Swept(swept["chips"].summary, slower)).get_suptitle()
    )


def test_in_a_grid_other_keys_make_lines_of_their_own(tmp_path):
    lines = "{workload.rate: [1 request/s, 2 request/s], systems.lpu.max_sequences: [1, 2]}"
    (tmp_path / "mine.yaml").write_text(f"{BASE.replace('300', '5')}sweep: {lines}\n")
    found = series.series(sweep(tmp_path / "mine.yaml", tmp_path / "out", jobs=1), "rate")
    assert [(each.label, each.values("rate")) for each in found] == [
        ("lpu, max_sequences 1", [1.0, 2.0]),
        ("lpu, max_sequences 2", [1.0, 2.0]),
        (LONG, [1.0, 2.0]),
    ]


# Of runs and plans.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("run") / "mine.yaml"
    file.write_text(BASE.replace("rate: 1 r", "rate: 3000 r"))
    return run(file).saved()


def test_the_request_that_is_shown_is_one_of_all_systems(saved):
    shown = request.median_request(saved)
    for name, (first, tpot, count) in shown.items():
        rows = saved.requests.filter(polars.col("system") == name)
        ttft = 1000 * (rows["first_token"] - rows["arrival"])
        at = int((ttft - first).abs().arg_min())
        assert ttft[at] == pytest.approx(first)
        assert 1000 * (rows["last_token"] - rows["first_token"])[at] / (count - 1) == pytest.approx(
            tpot
        )
    title = " ".join(request.draw(saved).get_suptitle().split())
    best = min(shown, key=lambda name: shown[name][1])
    speed = trimmed_number(1000 / shown[best][1])
    assert title.startswith(f"{best}: {speed} token/s in this request")
    assert f"first token after {style.duration(shown[best][0])}" in title


def test_tokens_in_the_cache_and_requests_that_wait_are_those_of_the_rows(saved):
    """Against a count request by request, at some moments."""
    for name in saved.summary.systems:
        times, held, waiting = occupancy.occupancy_over_time(saved, name)
        rows = saved.requests.filter(polars.col("system") == name)
        start = rows["arrival"].min()
        for place in range(0, len(times), 97):
            now, tokens, queue = start + times[place], 0.0, 0
            for row in rows.iter_rows(named=True):
                if row["admitted"] <= now < row["last_token"]:
                    spread = (now - row["first_token"]) / (row["last_token"] - row["first_token"])
                    tokens += row["prompt_tokens"] + row["output_tokens"] * max(0.0, spread)
                queue += row["arrival"] <= now < row["admitted"]
            assert held[place] == pytest.approx(tokens, abs=1e-3 * max(1.0, tokens) + 1)
            assert abs(waiting[place] - queue) <= 1
        assert held[-1] == pytest.approx(0, abs=1e-6)


def test_what_was_not_served_is_drawn_empty(saved):
    nothing = type(saved)(saved.summary, saved.requests.clear())
    assert request.draw(nothing).get_suptitle() == "No request was answered with two tokens"
    assert occupancy.draw(nothing).get_suptitle() == "No request was finished"


def test_bars_of_memory_are_what_the_plan_says():
    told = plan(read("llama3-8b-lpu-vs-h100")).summary([4096])
    figure = memory.draw(told)
    lpu, capacity = told.systems["lpu"], told.systems["lpu"].bytes_per_chip.capacity
    stairs = [patch.get_data() for patch in figure.axes[0].patches]
    heights = np.array([data.values - data.baseline for data in stairs])
    assert heights.shape == (4, len(lpu.stages))
    assert np.allclose(heights[0], [stage.weights / 1e6 for stage in lpu.stages])
    assert np.allclose(heights.sum(axis=0), capacity / 1e6)
    weights = max(stage.weights for stage in lpu.stages) / capacity
    assert f"64 Groq LPUs {100 * weights:.0f} % weights" in figure.get_suptitle().replace("\n", " ")


def test_a_model_that_does_not_fit_stands_out_of_its_memory():
    figure = memory.draw(plan(read("does-not-fit")).summary([4096]))
    assert "does not fit" in " ".join(figure.get_suptitle().split())
    axis = figure.axes[0]
    top = max(patch.get_data().values.max() for patch in axis.patches)
    assert top > axis.lines[0].get_ydata()[0]


def test_names_too_long_for_a_key_keep_their_ends():
    assert re.fullmatch(r"a+…b+", style.short("a" * 50 + "b" * 50, 20))
    assert len(style.short("a" * 50 + "b" * 50, 20)) <= 20
    assert style.short("abc", 20) == "abc"


def usd(row, card):
    """Dollars for a million tokens of a row, if its cards cost so much."""
    cards = row["economics.usd_per_mtok_by_cause.chips"]
    return row["economics.usd_per_mtok"] + cards * (card / row["economics.card_usd"] - 1)


def test_at_the_price_of_a_card_tokens_cost_as_much(swept):
    """Under one load; and of those that are as fast, the cheapest of each."""
    (pair,) = price.against(swept["users"])
    rows = swept["users"].table.to_dicts()
    ours, theirs = (
        [row for row in rows if row["system"] == name]
        for name in (pair.mine.system, pair.others[0].system)
    )
    loaded, fast = pair.loaded("users"), pair.fast()
    assert sorted(loaded) == [1, 4, 16]
    for users_, (card, _) in loaded.items():
        mine, other = (
            next(row for row in each if row["users"] == users_) for each in (ours, theirs)
        )
        assert usd(mine, card) == pytest.approx(other["economics.usd_per_mtok"])
    assert len(fast) >= 3
    for speed, card in fast.items():
        quick = [
            [row for row in each if 1000 / row["median_tpot_ms"] >= speed * (1 - 1e-12)]
            for each in (ours, theirs)
        ]
        best = min(usd(row, row["economics.card_usd"]) for row in quick[1])
        assert min(usd(row, card) for row in quick[0]) == pytest.approx(best)


def test_who_waits_for_room_is_hollow_and_counts_for_no_speed(swept):
    waiting = changed(swept["users"], verdict="BACKLOGGED")
    (pair,) = price.against(waiting)
    assert pair.fast() == {}
    assert all(waits for _, waits in pair.loaded("users").values())
    assert price.draw(waiting).get_suptitle().strip() == "No cards are priced against another chip"


def test_the_title_of_cards_prices_says_from_which_speed_they_pay(swept):
    (pair,) = price.against(swept["users"])
    title = " ".join(price.draw(swept["users"]).get_suptitle().split())
    card, fast = pair.mine.values(price.CARD)[0], pair.fast()
    dearer = max(speed for speed, value in fast.items() if value < card)
    assert (f"where a user must get more than {trimmed_number(dearer)} token/s" in title) == (
        dearer < max(price.speeds(pair.mine))
    )


def test_a_card_is_priced_against_the_cheapest_plan_of_the_other_chips(swept):
    """A plan of the same chips whose tokens cost half as much halves what they are held against."""
    table = swept["users"].table
    plan = table.filter(polars.col("system") == LONG).with_columns(
        system=polars.lit("plan"), **{price.USD: polars.col(price.USD) / 2}
    )
    was = swept["users"].summary
    systems = was.origin.inputs["systems"]
    inputs = was.origin.inputs | {"systems": systems | {"plan": systems[LONG]}}
    origin = replace(was.origin, inputs=inputs)
    summary = replace(was, systems=(*was.systems, "plan"), origin=origin)
    both = Swept(summary, polars.concat([table, plan]))
    (pair,) = price.against(both)
    assert [each.system for each in pair.others] == [LONG, "plan"]
    (cheap,) = price.against(Swept(summary, both.table.filter(polars.col("system") != LONG)))
    assert pair.loaded("users") == cheap.loaded("users")
    assert pair.fast() == cheap.fast()


def test_points_too_short_to_tell_are_hollow(swept):
    short = changed(swept["rate"], verdict="TOO SHORT")
    for figure in (load.draw(short), pareto.draw(short)):
        faces = {
            line.get_markerfacecolor()
            for axis in figure.axes
            for line in axis.lines
            if line.get_marker() != "None" and len(line.get_xdata())
        }
        assert faces == {"white"}
        assert "too short to tell" in " ".join(
            text.get_text() for text in figure.axes[0].get_legend().get_texts()
        )


def test_without_prices_no_card_is_priced(swept):
    assert "card-price" not in draw_swept(changed(swept["users"], **{price.CARD: None}))
