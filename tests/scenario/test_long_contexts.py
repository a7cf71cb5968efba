"""The catalogue's page says what a state of fixed size gains: its table is what `long-contexts` gives."""

import re

import pytest

import sim
from sim.inputs.names import catalogue_folder
from sim.planning.loaded_speed import loaded_tpot

PAGE = (catalogue_folder() / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([\d,]+) \| (\d+), (\d+) \| ([\d,]+), ([\d,]+) \|$", PAGE, re.MULTILINE)


def test_the_page_has_every_point_of_the_sweep():
    assert [row[0] for row in ROWS] == ["512", "2,048", "8,192", "32,768", "130,048"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_sequences_and_speeds_of_the_page(row):
    prompt, *numbers = (int(text.replace(",", "")) for text in row)
    scenario = sim.read("long-contexts", [f"workload.prompt={prompt} token"])
    found = [scenario.deploy(name) for name in ("attention", "hybrid")]
    fitting = [each.sequences(prompt + 256)[0] for each in found]
    speeds = [round(1 / loaded_tpot(each, 1, prompt + 128)) for each in found]
    assert fitting + speeds == numbers
