"""Prompt times as a figure, and the beat over numbers of chips."""

import pytest

from plots import prefill as drawing
from sim.inputs.errors import UserError
from sim.studies.prefill import Prefill, chip_counts, prefills
from sim.validation.validate import validate_file


def test_the_figure_has_a_panel_for_each_scored_beat(sramsim, make_table, tmp_path):
    path = make_table(
        "replies",
        *([{}] * 10),
        *({"date": "2025-03", "prompt_tokens": 100 + 30 * n} for n in range(10)),
        {"date": "2024-01"},
    )
    found = prefills(validate_file(path))
    assert [each.label for each in found] == [
        f"llama-3.1-8b {half}: 136 x groq-lpu-v1" for half in ("2025-H1", "2026-H1")
    ]
    figure = drawing.draw(found)
    assert [axis.get_title(loc="left").partition("\n")[0] for axis in figure.axes] == [
        "llama-3.1-8b 2025-H1",
        "llama-3.1-8b 2026-H1",
    ]
    dots, line = figure.axes[0].lines
    assert list(dots.get_xdata()) == [100 + 30 * n for n in range(10)]
    assert list(dots.get_ydata()) == pytest.approx([12.0] * 10)  # ms
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (100, 370)
    assert list(line.get_ydata()) == pytest.approx(
        [1000 * seconds for _, seconds in found[0].simulated]
    )
    status, _, err = sramsim(
        "validate", "--points", str(path), "--figure", str(tmp_path / "prefill.svg")
    )
    assert (status, err) == (0, f"{tmp_path / 'prefill.svg'}: written\n")
    assert "prompt time, ms" in (tmp_path / "prefill.svg").read_text()


def test_the_title_has_the_time_of_a_token():
    line = Prefill(
        "a 2024-H1: 8 x lpu", "Here", ((100, 5e-3), (200, 2e-2)), ((100, 6e-3), (200, 11e-3))
    )
    assert drawing.finding([line]) == (
        "Prompt time grows with the prompt's tokens: the fastest replies of Here take 50 us a token, simulated chips 50"
    )
    other = Prefill("b 2024-H1: 8 x lpu", "There", ((100, 1e-2),), ((100, 2e-3),))
    assert drawing.finding([line, other]) == (
        "Prompt time grows with the prompt's tokens: the fastest replies of Here and There take 50 to 100 us a token, "
        "simulated chips 20 to 50"
    )
    assert drawing.finding([]) == "No deployment has enough replies for a beat"


def test_chip_counts_are_the_plans_that_fit_with_their_beats():
    found = list(chip_counts("GroqCloud llama-3.1-8b 2026-H1"))
    counts = [chips for chips, _, _ in found]
    assert counts == sorted(counts)
    assert all(chips % 8 == 0 and chips <= 8 * 66 for chips in counts)
    assert all(0 < beat < tpot for _, beat, tpot in found)
    assert 8.03e9 < counts[0] * 230.7e6 < 1.5 * 8.03e9  # the first that hold INT8 weights
    assert any(chips % 16 for chips in counts)  # any whole number of nodes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Here llama", "expected "),
        ("GroqCloud compound 2025-H1", "'compound' is not among"),
    ],
)
def test_chip_counts_of_an_unknown_deployment_are_an_error(name, reason):
    with pytest.raises(UserError, match=f"{name}.*{reason}"):
        list(chip_counts(name))
