"""Figures say their finding, name what they show, and are the same bytes each time."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plots import FIGURES, draw_all, style
from plots.cdf import latencies
from sim import read, run


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
    assert any(system in figure.get_suptitle() for system in saved.summary["systems"])
    for axis in figure.axes:
        label = axis.get_xlabel() + axis.get_ylabel()
        assert ", ms" in label or "per second" in label


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
    assert figure._suptitle.get_window_extent().y0 >= max(axis.get_window_extent().y1 for axis in figure.axes)


def test_latencies_of_the_figure_are_those_of_the_table(result, saved):
    for name, system in result.systems.items():
        for metric, sample in latencies(saved, name).items():
            assert np.median(sample) == pytest.approx(system.metrics[f"median_{metric}_ms"])


def test_a_bar_is_as_long_as_the_token_takes(saved):
    figure = FIGURES["token-time"](saved)
    for row, system in enumerate(saved.summary["systems"].values()):
        bars = [patch for patch in figure.axes[0].patches if round(patch.get_y() + patch.get_height() / 2) == row]
        end = max(patch.get_x() + patch.get_width() for patch in bars)
        assert end == pytest.approx(system["lone_request"]["tpot_ms"], rel=0.01)


def test_a_bar_too_thin_to_be_seen_keeps_its_place():
    """A system a thousand times faster than another has its row and its label inside the axes."""
    saved = run(read("llama3-8b-lpu-vs-h100", ["workload.requests=2"])).saved()
    slow = saved.summary["systems"]["h100"]["lone_request"]
    slow["terms_ms"] = {term: 1000 * time for term, time in slow["terms_ms"].items()}
    slow["tpot_ms"] *= 1000
    axis = FIGURES["token-time"](saved).axes[0]
    low, high = sorted(axis.get_ylim())
    assert all(low + 0.3 <= text.get_position()[1] <= high - 0.3 for text in axis.texts)
    assert {round(patch.get_y() + patch.get_height() / 2) for patch in axis.patches} == {0, 1}


def test_a_system_keeps_its_colour_in_every_figure(saved):
    from matplotlib.colors import to_hex

    colours = style.colours(saved.summary["systems"])
    lines = {line.get_label(): to_hex(line.get_color()) for line in FIGURES["latency-cdf"](saved).axes[0].lines}
    bars = [to_hex(patch.get_facecolor()) for patch in FIGURES["speed"](saved).axes[0].patches]
    assert {name: colour.lower() for name, colour in colours.items()} == lines
    assert bars == [colour.lower() for colour in colours.values()]


def test_a_fleet_is_drawn_beside_its_members():
    """By its rows; of a lone token's time it has none of its own."""
    saved = run(read("fleet", ["workload.requests=20"])).saved()
    labels = [label.get_text() for label in FIGURES["speed"](saved).axes[0].get_xticklabels()]
    assert labels[2:] == ["by-room\n1 lpus\n1 gpus", "short-to-lpus\n1 lpus\n1 gpus"]
    assert [label.get_text() for label in FIGURES["token-time"](saved).axes[0].get_yticklabels()] == ["lpus", "gpus"]
    assert len(FIGURES["latency-cdf"](saved).axes[0].lines) == 4


def test_colours_differ_in_lightness_for_those_who_see_no_hue():
    def lightness(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    first = [lightness(colour) for colour in style.PALETTE[:3]]
    assert min(abs(a - b) for i, a in enumerate(first) for b in first[:i]) > 0.02


def test_files_are_the_same_bytes_each_time(saved, tmp_path):
    for suffix in ("png", "svg"):
        files = []
        for turn in range(2):
            style.save(draw_all(saved)["speed"], tmp_path / f"{turn}.{suffix}")
            files.append((tmp_path / f"{turn}.{suffix}").read_bytes())
        assert files[0] == files[1]
