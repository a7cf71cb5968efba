"""Texts of numbers: the same rule in tables and figures."""

import pytest

import sim
from sim.inputs.errors import UserError
from sim.results.labels import format_number, sortable_text, system_labels, trimmed_number


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        (["systems.h100.chip=b200"], "1 H100 (now b200)"),
        (["systems.h100.chip=h100-sxm"], "1 H100"),
        (["systems.h100.chips=4"], "4 H100"),
        (["systems.h100.label=one card", "systems.h100.chip=b200"], "one card"),
        (["systems.h100.chip.price=1 USD"], "1 H100"),
        (["systems.h100.chip={like: b200, price: 1 USD}"], "1 H100 (now b200)"),
    ],
)
def test_a_label_says_which_other_chips_a_system_has(changes: list[str], label: str) -> None:
    """Figures called a B200 an H100."""
    scenario = sim.read("llama2-70b-lpu-vs-h100", changes)
    assert scenario.plain("h100").full_label == label


def test_a_long_label_and_that_of_pools_say_it_too() -> None:
    changes = ["systems.apart.prefill.chip=h100-sxm", "systems.together.chips=2"]
    labels = {name: of.full_label for name, of in sim.read("pd-goodput", changes).systems.items()}
    assert labels["apart"] == "2 A100, then 1 (now prefill h100-sxm)"
    assert labels["together"] == "1 A100, both phases (now 2 chips)"
    label = (
        sim.read("kimi-k2-afd", ["systems.afd-40.ffn.chip=b200", "systems.afd-40.ffn.chips=72"])
        .systems["afd-40"]
        .full_label
    )
    assert label == "the same,… (now ffn b200, ffn 72 chips)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0, "0"),
        (2.0, "2.00"),
        (0.01234, "0.0123"),
        (12.34, "12.3"),
        (99.94, "99.9"),
        (99.96, "100"),  # three digits, once rounded
        (123.4, "123"),
        (999.6, "1,000"),
        (-999.6, "-1,000"),
        (1234.5, "1,234"),
        (26330, "26,330"),
        (7, "7"),
        (1e12, "1e+12"),
        (1e-5, "1.00e-05"),
    ],
)
def test_a_number_of_a_table_has_three_digits(value, text):
    assert format_number(value) == text


def test_fewer_digits_are_rounded_in_the_same_way():
    assert [format_number(x, 2) for x in (0.123, 1.0, 9.96, 12.3)] == ["0.12", "1.0", "10", "12"]


@pytest.mark.parametrize("value", [0.0001, 0.5, 1.0, 2.0, 20.0, 99.96, 100.0, 999.6, 1e6, 0.0])
def test_a_number_of_a_figure_is_that_of_a_table_without_zeros_at_its_end(value):
    of_table = format_number(value)
    zeros = of_table.rstrip("0").rstrip(".") if "." in of_table else of_table
    assert trimmed_number(value) == zeros


def test_a_sortable_number_has_no_commas():
    texts = [sortable_text(x) for x in (1234567, 1234.5678, "STABLE", None)]
    assert texts == ["1234567", "1234.57", "STABLE", "-"]


def test_a_label_replaces_the_name_of_a_system() -> None:
    sizes = ["systems.lpu.label='{chips} LPUs'", "systems.lpu.colour=green", "workload.requests=2"]
    identities = sim.run(sim.read("llama2-70b-lpu-vs-h100", sizes)).summary.identities
    assert system_labels(identities) == {"lpu": "576 LPUs", "h100": "1 H100", "h100x8": "8 H100"}
    assert identities["lpu"].colour == "#009E73"
    assert identities["h100"].colour is None


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("label=" + 41 * "a", "1 to 40 characters"),
        ("colour=grey", "expected one of blue, vermilion"),
        ("colour='#12345'", "expected one of blue, vermilion"),
    ],
)
def test_a_wrong_label_or_colour_is_refused(change: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        sim.read("llama2-70b-lpu-vs-h100", [f"systems.lpu.{change}"])


def test_the_label_of_a_fleet_has_no_number_of_chips() -> None:
    fleet = "systems.fleet={fleet: {h100: 1}, label: '{chips} H100'}"
    with pytest.raises(UserError, match="expected a label without"):
        sim.read("llama2-70b-lpu-vs-h100", [fleet])
