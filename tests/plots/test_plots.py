"""Figures say their finding, name what they show, and are the same bytes each time."""

import math
import re
from dataclasses import replace

import numpy as np
import polars
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb

from plots import FIGURES, agreement, draw_all, energy, occupancy, style, tornado
from plots.causes import CHIP_CAUSES, ENERGY_CAUSES, MEMORY_PARTS, TOKEN_CAUSES
from plots.cdf import user_latencies
from plots.claims import Race
from plots.looks import MAKER_COLOURS, OTHER_MAKERS, Appearance, looks, system_looks
from sim import read, run
from sim.results.labels import system_labels
from sim.results.sensitivity_summary import (
    MetricBands,
    RequestMetrics,
    SensitivitySummary,
    SwingSummary,
    SystemSensitivity,
)
from sim.results.validation_summary import PointBound, PointRow
from sim.scenario.system import COLOUR_CODES
from sim.studies.sensitivity import sensitivity
from sim.validation.validate import validate_set


@pytest.fixture(scope="module")
def result():
    return run(read("llama3-8b-lpu-vs-h100", ["workload.requests=30"]))


@pytest.fixture(scope="module")
def saved(result):
    return result.saved()


@pytest.mark.parametrize("name", FIGURES)
def test_titles_say_the_finding_and_axes_their_units(saved, name):
    figure = FIGURES[name](saved)
    assert figure.get_suptitle()
    labels = system_labels(saved.summary.identities).values()
    assert any(label in figure.get_suptitle() for label in labels)
    for axis in figure.axes:
        label = axis.get_xlabel() + axis.get_ylabel()
        assert any(
            unit in label
            for unit in (", ms", ", s", ", %", "per second", "token (", "waiting", "$ per million")
        )


@pytest.mark.parametrize("name", FIGURES)
def test_text_stays_inside_and_titles_do_not_overlap_the_axes(saved, name):
    figure = FIGURES[name](saved)
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    texts = [figure._suptitle, figure._supxlabel]
    for axis in figure.axes:
        texts += [axis.xaxis.label, axis.yaxis.label, *axis.texts]
    for text in (text for text in texts if text.get_text()):
        box = text.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1, text.get_text()
        assert box.y1 <= height + 1
    assert figure._suptitle.get_window_extent().y0 >= max(
        axis.get_window_extent().y1 for axis in figure.axes
    )


def test_latencies_of_the_figure_are_those_of_the_table(result, saved):
    for name, system in result.systems.items():
        for metric, sample in user_latencies(saved, name).items():
            assert np.median(sample) == pytest.approx(system.metrics.latency(metric).median)


def test_a_bar_is_as_long_as_the_token_takes(saved):
    figure = FIGURES["token-time"](saved)
    for row, system in enumerate(saved.summary.systems.values()):
        bars = [
            patch
            for patch in figure.axes[0].patches
            if round(patch.get_y() + patch.get_height() / 2) == row
        ]
        end = max(patch.get_x() + patch.get_width() for patch in bars)
        assert end == pytest.approx(system.unloaded.tpot_ms, rel=0.01)


def test_a_bar_too_thin_to_be_seen_keeps_its_place():
    """A system a thousand times faster than another has its row and its label inside the axes."""
    saved = run(read("llama3-8b-lpu-vs-h100", ["workload.requests=2"])).saved()
    h100 = saved.summary.systems["h100"]
    terms = {term: 1000 * time for term, time in h100.unloaded.terms_ms.items()}
    slow = replace(h100.unloaded, terms_ms=terms, tpot_ms=1000 * h100.unloaded.tpot_ms)
    systems = dict(saved.summary.systems) | {"h100": replace(h100, unloaded=slow)}
    saved = replace(saved, summary=replace(saved.summary, systems=systems))
    axis = FIGURES["token-time"](saved).axes[0]
    low, high = sorted(axis.get_ylim())
    assert all(low + 0.3 <= text.get_position()[1] <= high - 0.3 for text in axis.texts)
    assert {round(patch.get_y() + patch.get_height() / 2) for patch in axis.patches} == {0, 1}


def test_a_system_keeps_its_colour_in_every_figure(saved):
    looked = system_looks(saved.summary.identities).values()
    colours = [look.colour.lower() for look in looked]
    lines = [to_hex(line.get_color()) for line in FIGURES["latency-cdf"](saved).axes[0].lines]
    bars = [to_hex(patch.get_edgecolor()) for patch in FIGURES["speed"](saved).axes[0].patches]
    assert lines == bars == colours
    assert colours == [MAKER_COLOURS["Groq"].lower(), MAKER_COLOURS["NVIDIA"].lower()]


def test_a_fleet_is_drawn_beside_its_members():
    """By its rows; of a lone token's time it has none of its own."""
    saved = run(read("fleet", ["workload.requests=20"])).saved()
    labels = [label.get_text() for label in FIGURES["speed"](saved).axes[0].get_xticklabels()]
    assert labels[2:] == [
        "fleet by room\n1 x 576 Groq LPUs\n1 x 32 H100",
        "fleet by length\n1 x 576 Groq LPUs\n1 x 32 H100",
    ]
    assert [
        label.get_text() for label in FIGURES["token-time"](saved).axes[0].get_yticklabels()
    ] == ["576 Groq LPUs", "32 H100"]
    assert len(FIGURES["latency-cdf"](saved).axes[0].lines) == 4


def distance(one: str, other: str) -> float:
    return math.dist(to_rgb(one), to_rgb(other))


def test_no_cause_has_a_colour_of_a_system_and_causes_of_a_figure_differ_in_hatch():
    systems = {*MAKER_COLOURS.values(), *OTHER_MAKERS, *COLOUR_CODES.values()}
    for causes in (TOKEN_CAUSES, CHIP_CAUSES, MEMORY_PARTS, ENERGY_CAUSES):
        for cause in causes.values():
            assert min(distance(cause.colour, colour) for colour in systems) > 0.1, cause
        assert len({cause.hatch for cause in causes.values()}) == len(causes)


def test_systems_of_one_colour_differ_in_line_style_and_marker():
    """Two plans of LPUs and four of GPUs: one colour for each kind of chip."""
    systems = {f"lpu{i}": Appearance("a", None, "Groq", "v1") for i in range(2)}
    systems |= {f"gpu{i}": Appearance("b", None, "NVIDIA", f"h{i % 2}") for i in range(4)}
    drawn = list(looks(systems).values())
    assert [look.colour.lower() for look in drawn[:2]] == [MAKER_COLOURS["Groq"].lower()] * 2
    assert len({look.colour for look in drawn}) == 3
    assert len({look.dashes for look in drawn}) == len({look.marker for look in drawn}) == 6


def test_systems_of_one_maker_have_a_colour_each_and_the_scenario_wins():
    systems = {f"v{i}": Appearance("a", None, "Google", f"v{i}") for i in range(4)}
    colours = [look.colour for look in looks(systems).values()]
    assert colours[0] == MAKER_COLOURS["Google"]
    assert len(set(colours)) == 4
    systems["v1"] = replace(systems["v1"], colour="#123456")
    assert [look.colour for look in looks(systems).values()] == [
        colours[0],
        "#123456",
        *colours[2:],
    ]


def test_every_lpu_has_the_colour_of_lpus_whoever_sells_it():
    systems = {
        "rubin": Appearance("a", None, "NVIDIA", "rubin-r200"),
        "lp30": Appearance("b", None, "NVIDIA", "groq-lp30"),
        "v1": Appearance("c", None, "Groq", "groq-lpu-v1"),
    }
    drawn = {name: look.colour.lower() for name, look in looks(systems).items()}
    assert drawn["rubin"] == MAKER_COLOURS["NVIDIA"].lower()
    assert drawn["lp30"] == MAKER_COLOURS["Groq"].lower()
    assert len(set(drawn.values())) == 3


@pytest.mark.parametrize("verdict", ["OVERLOADED", "BACKLOGGED", "REFUSED"])
@pytest.mark.parametrize("name", ["speed", "latency-cdf", "token-latency"])
def test_no_title_lets_a_system_win_that_does_not_keep_up(saved, name, verdict):
    """The LPUs are faster, but their users wait for room."""
    systems = dict(saved.summary.systems)
    metrics = replace(systems["lpu"].metrics, verdict=verdict)
    systems["lpu"] = replace(systems["lpu"], metrics=metrics)
    late = replace(saved, summary=replace(saved.summary, systems=systems))
    title = " ".join(FIGURES[name](late).get_suptitle().split())
    assert title.endswith(f"{verdict.lower()}: 64 Groq LPUs")
    assert title.count("64 Groq LPUs") == 1
    assert "64 Groq LPUs" in " ".join(FIGURES[name](saved).get_suptitle().split())


def test_the_system_whose_answers_end_late_is_not_called_the_fastest():
    race = Race({"a": 90.0, "b": 80.0}, {"a": 2000.0, "b": 50.0}, {"a": 4000.0, "b": 2500.0})
    assert race.finding.startswith("Whole answer: earliest from b, 2.5 s (a: 4 s)")


def test_a_title_has_at_most_two_lines():
    figure = style.figure()
    clause = "a clause that takes most of a line of the title of a narrow figure"
    style.title(figure, "; ".join([clause] * 4))
    assert len(figure.get_suptitle().splitlines()) == 2


def test_files_are_the_same_bytes_each_time(saved, tmp_path):
    for suffix in ("png", "svg", "pdf"):
        files = []
        for turn in range(2):
            style.save(FIGURES["speed"](saved), tmp_path / f"{turn}.{suffix}")
            files.append((tmp_path / f"{turn}.{suffix}").read_bytes())
        assert files[0] == files[1]


# Agreement and tornado: of points and swings, not of a result.


def compared(error: float, status: str, chip: str = "h100", bound: str | None = None) -> PointRow:
    return PointRow(
        point_id="one",
        metric="tpot",
        measured=10.0,
        simulated=10.0 * (1 + error / 100),
        error_pct=error,
        status=status,
        bounds=PointBound(bound=bound, bound_reason="", moe=False),
        reason="",
        chip=chip,
        engine="vllm",
    )


NOT_EXPRESSED = replace(
    compared(0.0, "not expressed", "z80"), measured=None, simulated=None, error_pct=None
)
POINTS = [
    compared(10, "tested"),
    compared(-30, "tested", "a100"),
    compared(2, "fitted"),
    NOT_EXPRESSED,
    compared(4, "tested", "lpu"),
    compared(90, "assumed"),
]


def drawn_inside(figure) -> None:
    """All text is within the figure, and the title above the axes."""
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    for axis in figure.axes:
        for text in (
            figure._suptitle,
            *([figure._supxlabel] if figure._supxlabel else []),
            axis.title,
            axis._left_title,
            axis.xaxis.label,
            axis.yaxis.label,
            *axis.texts,
        ):
            if text.get_text():
                box = text.get_window_extent()
                assert -1 <= box.x0 <= box.x1 <= width + 1, text.get_text()
                assert -1 <= box.y0 <= box.y1 <= height + 1, text.get_text()


def test_agreement_says_how_far_off_what_was_not_fitted_is():
    figure = agreement.draw(POINTS)
    assert figure.get_suptitle().replace("\n", " ") == (
        "Half of 3 times that no engine was fitted to are within 10.0 %, 67 % within the grey band"
    )
    drawn_inside(figure)
    free, fitted = figure.axes
    assert free.get_title(loc="left") == (  # counts what the title counts, and the fourth apart
        "3 times that engines were not fitted to: median error 10.0 %\nalso drawn: 1 with numbers taken over from a neighbour"
    )
    assert fitted.get_title(loc="left").startswith(
        "1 times that engines were fitted to: median error 2.0 %"
    )
    points = [pair for line in free.lines[1:] for pair in zip(*line.get_data(), strict=True)]
    assert sorted(points) == sorted((10.0, 10 * (1 + error / 100)) for error in (10, -30, 4, 90))


def test_agreement_of_nothing_or_of_what_was_fitted_says_so():
    for points in ([NOT_EXPRESSED], [compared(2, "fitted")]):
        figure = agreement.draw(points)
        assert (
            figure.get_suptitle().replace("\n", " ")
            == "Nothing here tests the simulator: engines were fitted to all of it"
        )
        drawn_inside(figure)


def swing(key: str, low: float | None, high: float | None) -> SwingSummary:
    ends = (at and RequestMetrics(tpot_ms=at, ttft_ms=9.0) for at in (low, high))
    low_end, high_end = ends
    return SwingSummary(key=key, value="1", ends=("1", "2"), low=low_end, high=high_end, source="")


def sensitive(tpot: float, band: tuple[float, float], *swings: SwingSummary) -> SystemSensitivity:
    return SystemSensitivity(
        base=RequestMetrics(tpot_ms=tpot, ttft_ms=9.0),
        bands=MetricBands(tpot_ms=band, ttft_ms=(9.0, 9.0)),
        swings=swings,
    )


def test_a_tornado_has_a_bar_to_each_end_that_moves_a_token():
    swings = [
        swing("engine.layer_overhead", 4.0, 7.0),
        swing("chip.memory.hbm.bandwidth", 5.5, None),
        swing("idle", 5.0, 5.0 + 1e-12),
    ]
    systems = {
        "card": sensitive(5.0, (4.0, 7.2), *swings),
        "still": sensitive(1.0, (1.0, 1.0)),
    }
    figure = tornado.draw(SensitivitySummary("mine", systems))
    assert figure.get_suptitle() == "TPOT depends most: card on layer overhead (60 %)"
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "chip.memory.hbm.bandwidth",
        "engine.layer_overhead",
    ]
    ends = [
        bar.get_x() + bar.get_width()
        for bar in axis.patches
        if bar.get_width() and bar.get_height() == pytest.approx(0.6)
    ]
    assert sorted(ends) == pytest.approx([4.0, 5.5, 7.0])
    drawn_inside(figure)


def test_a_tornado_of_nothing_that_moves_says_so():
    still = sensitive(1.0, (1.0, 1.0), swing("idle", 1.0, 1.0))
    figure = tornado.draw(SensitivitySummary("mine", {"still": still}))
    assert figure.get_suptitle() == "mine: no uncertain number moves TPOT"


def test_agreement_leaves_out_bounds_that_hold():
    """Their error of 0 would halve the median."""
    figure = agreement.draw([compared(20.0, "tested"), compared(0.0, "tested", bound="kept")])
    assert " ".join(figure.get_suptitle().split()).startswith(
        "Half of 1 times that no engine was fitted to are within 20.0 %"
    )
    assert (
        figure.axes[0]
        .get_title(loc="left")
        .startswith("1 times that engines were not fitted to: median error 20.0 %")
    )


def test_agreement_and_tornado_draw_real_results():
    drawn_inside(agreement.draw(validate_set("replay").summary.points))
    found = sensitivity(read("llama3-8b-lpu-vs-h100"))
    systems = {name: system.summary for name, system in found.items()}
    figure = tornado.draw(SensitivitySummary("llama3-8b", systems))
    assert "TPOT depends most: 64 Groq LPUs on" in figure.get_suptitle()
    drawn_inside(figure)


def test_the_crossover_is_where_a_token_costs_as_much():
    """At the price that a circle stands at, a run says that both systems' tokens cost the same."""
    saved = run(read("jia-2024", ["workload.requests=8", "workload.users=2"])).saved()
    figure = FIGURES["crossover"](saved)
    systems = saved.summary.priced_systems
    other = systems["h100x8"].usd_per_mtok
    price = systems["nodes"].break_even_card_price(systems["nodes"].usd_per_mtok, other)
    changed = [
        f"economics.systems.nodes.card={price} USD",
        "workload.requests=8",
        "workload.users=2",
    ]
    again = run(read("jia-2024", changed)).as_json()["systems"]
    assert again["nodes"]["economics"]["usd_per_mtok"] == pytest.approx(other, rel=1e-6)
    title = " ".join(figure.get_suptitle().split())
    assert re.search(
        r"costs as much as one of 8 H100 \(TP\d\) with one user at \$[\d,]+ a card", title
    )
    assert len(figure.axes[0].lines) >= 2 * len(systems)


def test_without_prices_there_is_no_crossover(saved):
    assert "crossover" in draw_all(saved)
    unpriced = {
        name: replace(system, costs=replace(system.costs, economics=None))
        for name, system in saved.summary.systems.items()
    }
    summary = replace(saved.summary, systems=unpriced)
    assert "crossover" not in draw_all(replace(saved, summary=summary))


def test_joules_against_load_add_up():
    def energies(load: float) -> dict[str, float]:
        work = {"compute": 1, "memory": 1, "links": 0.5}
        return {"idle": 4 / load, "server": 3 / load, "pue": 2 / load} | work

    points = [
        energy.TokenEnergy(name, load, energies(load))
        for name in ("a", "b")
        for load in (1, 10, 100)
    ]
    looked = looks({name: Appearance(name) for name in ("a", "b")})
    figure = energy.draw(points, looked)
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(11.5)
    assert figure.get_suptitle().strip().endswith("a from 11.5 to 2.59 J; b from 11.5 to 2.59 J")


def test_the_kv_caches_of_pools_and_of_a_fleets_members_are_drawn_apart():
    """A share of both pools together showed a decode pool that is full as half full."""
    pools = run(read("pd-goodput", ["workload.requests=200"])).saved()
    curves = occupancy.filled_over_time(pools, "apart")
    assert list(curves) == ["prefill", "decode"]
    room = pools.summary.systems["apart"].identity.members["apart.decode"].identity.kv_room()
    rows = pools.requests.filter(polars.col("system") == "apart")
    times, filled = curves["decode"]
    moment, held = rows["arrival"].min() + times[300], 0.0
    for row in rows.iter_rows(named=True):
        if row["transfer_start"] <= moment < row["last_token"]:
            span = row["last_token"] - row["decode_start"]
            share = max(0.0, moment - row["decode_start"]) / span
            held += row["prompt_tokens"] + share * row["output_tokens"]
    assert filled[300] == pytest.approx(held / room)
    assert held > 0
    title = occupancy.draw(pools).get_suptitle()
    assert f": decode {style.share_text(filled.max())}" in " ".join(title.split())

    one = "{chip: h100-sxm, chips: 1, engine: ideal, plan: {weights: fp8}}"
    fleet = run(
        {
            "model": "llama-3.1-8b",
            "workload": {"kind": "poisson", "rate": "5 request/s", "requests": 40}
            | {"prompt": "512 token", "output": "64 token"},
            "systems": {"a": yaml.safe_load(one), "b": yaml.safe_load(one)}
            | {"both": {"fleet": {"a": 1, "b": 3}}},
        }
    ).saved()
    assert list(occupancy.filled_over_time(fleet, "both")) == ["a", "b"]
    assert list(occupancy.filled_over_time(fleet, "a")) == [""]


def test_ticks_of_a_linear_axis_have_commas():
    figure = style.figure()
    axis = figure.subplots()
    axis.plot([0, 0.4], [-2000, 5000])
    style.title(figure, "A finding")
    FigureCanvasAgg(figure).draw()
    across, up = (
        {text.get_text() for text in ticks.get_ticklabels()} for ticks in (axis.xaxis, axis.yaxis)
    )
    assert {"0", "0.3"} <= across
    assert {"\N{MINUS SIGN}2,000", "5,000"} <= up


def test_no_line_of_a_title_begins_with_a_percent_sign():
    for width in range(8, 40):
        lines = style.title_lines("Half of the times are within 10 %, 67 % within the band", width)
        assert not any(line.startswith("%") for line in lines)
        assert " ".join(lines) == "Half of the times are within 10 %, 67 % within the band"
