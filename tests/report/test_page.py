"""The page holds what the run was, asks for nothing, and lets nothing out of a scenario's names."""

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import polars
import pytest

from plots import draw_all
from plots.causes import ENERGY_CAUSES, TOKEN_CAUSES
from plots.looks import MAKER_COLOURS, OTHER_MAKERS, shaded
from sim import read, run
from sim.catalogue.entries import scenario_sources
from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.report import page
from sim.report.answer import answer_sentence, condition_lines
from sim.report.findings import notes
from sim.results.saving import load_result, save_result
from sim.scenario.system import COLOUR_CODES

HOSTILE = """\
# Is <b>this</b> a "question"
# & no {{ 7 * 7 }} for `a < b`?
id: "</title><script>alert(1)</script>"
model: llama-2-7b
workload: {kind: poisson, rate: 1 request/s, requests: 3, prompt: 64 token, output: 8 token}
systems:
  "<img src=x onerror=alert(1)> $x_{$ [/b]": {chip: h100-sxm, chips: 1, engine: ideal}
  plain: {chip: h100-sxm, chips: 1, engine: ideal}
"""


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.within = tag if tag in ("script", "style") else self.within

    def handle_endtag(self, tag):
        self.within = "" if tag == self.within else self.within

    def handle_data(self, data):
        self.text += "" if self.within else data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with an assignment and a seed of its own."""
    folder = tmp_path_factory.mktemp("run")
    scenario = read(
        "llama3-8b-lpu-vs-h100",
        ["workload.requests=20", "measure={warmup: 1 s}", "systems.lpu.max_sequences=64"],
    )
    save_result(run(scenario, seed=7).saved(), folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    """The page of the run."""
    return page.html_page(folder)


@pytest.fixture(scope="module")
def told(text):
    return Elements(text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.yaml").write_text(HOSTILE)
    save_result(run(read(folder / "hostile.yaml")).saved(), folder)
    return Elements(page.html_page(folder))


def test_it_tells_question_verdict_tables_figures_and_version(told, folder):
    summary = load_result(folder).summary
    assert "What do 64 LPUs gain for a small model over the one H100" in told.text
    assert told.text.index(answer_sentence(summary)) < told.text.index("whole answer, median ms")
    for label in (
        "TPOT median / p99, ms",
        "published token/s of a user",
        "751 (paced)",
        "(paced): the service throttled this speed; the hardware is at least as fast.",
        "Counted: all systems from 1.00 ",
        "Speed of reading weights, 64 Groq LPUs over 1 H100: ",
    ):
        assert label in told.text
    for note in notes(summary):
        assert told.text.count(note.removesuffix(".")) == 1
    for figure in draw_all(load_result(folder)).values():
        assert " ".join(figure.get_suptitle().split()) in told.text
    assert len(told.named("svg")) == len(draw_all(load_result(folder)))
    assert f"sramsim {summary.origin.version}, seed 7." in told.text
    assert "sramsim run llama3-8b-lpu-vs-h100.yaml --out out" in told.text


def test_a_brief_page_has_answer_one_figure_key_rows_and_conditions(folder):
    brief = Elements(page.html_page(folder, brief=True))
    summary = load_result(folder).summary
    for text in (answer_sentence(summary), *condition_lines(summary), "$ per Mtok", "Counted: "):
        assert text in brief.text
    assert len(brief.named("svg")) == len(brief.named("table")) == 1
    assert "sramsim run llama3-8b-lpu-vs-h100.yaml" in brief.text


def test_it_names_the_source_of_every_number_of_every_part(told, folder):
    kept = load_result(folder).summary.origin.sources
    parts = [
        "model llama-3.1-8b",
        "chip groq-lpu-v1",
        "engine groq-compiler",
        "chip h100-sxm",
        "engine vllm",
    ]
    assert list(kept) == parts
    rows = "".join(told.text.split())
    for entry in kept.values():
        assert entry.facts
        for fact in entry.facts:
            assert "".join("".join(fact).split()) in rows


def test_a_cluster_and_what_is_written_in_place_have_sources_too(tmp_path):
    text = HOSTILE.replace(
        "plain: {chip: h100-sxm, chips: 1,", "plain: {cluster: dgx-a100, chips: 1,"
    )
    text = text.replace("systems:", "systems:\n  own: {chip: {memory: {hbm: {capacity: 80 GB, bandwidth: 3 TB/s}}, compute: "
                        "{kind: roofline, fp16: 1 PFLOP/s}, topology: {kind: ring, link: {latency: 1 us, bandwidth: 1 GB/s}}, "
                        "source: {memory: a guess}}, chips: 1, engine: ideal}")  # fmt: skip
    (tmp_path / "mine.yaml").write_text(text)
    kept = run(read(tmp_path / "mine.yaml")).saved().summary.origin.sources
    assert {"cluster dgx-a100", "chip a100-80gb", "chip systems.own.chip"} <= set(kept)
    assert ("memory.hbm.capacity", "80 GB", "a guess") in kept["chip systems.own.chip"].facts


def test_what_a_sweep_varies_has_sources_too():
    given = {
        "model": "llama-2-7b",
        "sweep": {"systems.lpu.engine": ("ideal", "groq-compiler"), "systems.lpu.chips": (8, 16)},
    }
    assert list(scenario_sources(given)) == [
        "model llama-2-7b",
        "engine ideal",
        "engine groq-compiler",
    ]


def test_the_scenario_that_it_offers_is_the_one_that_was_run(told, folder, tmp_path):
    (link,) = [attrs for attrs in told.named("a") if "download" in attrs]
    file = tmp_path / link["download"]
    file.write_bytes(base64.b64decode(link["href"].removeprefix("data:text/yaml;base64,")))
    assert file.read_text(encoding="utf-8") in told.text
    again = run(read(file)).saved().summary
    was = load_result(folder).summary
    assert Document(file).data["seed"] == 7
    assert again.systems == was.systems
    assert again.origin.question == was.origin.question


def test_it_fetches_nothing(told, hostile):
    for page_ in (told, hostile):
        for tag, attrs in page_.elements:
            for key in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
                assert attrs.get(key, "#").startswith(("#", "data:")), (tag, attrs)
            for value in attrs.values():
                assert set(re.findall(r"url\((.)", value or "")) <= {"#"}
        assert page_.named("link") == []
        policy = next(
            attrs["content"]
            for attrs in page_.named("meta")
            if attrs.get("http-equiv") == "Content-Security-Policy"
        )
        assert policy.startswith("default-src 'none';")


def test_names_of_a_scenario_are_text_and_nothing_else(hostile):
    assert len(hostile.named("script")) == 1
    assert hostile.named("img") == hostile.named("b") == []
    assert not any(key.startswith("on") for _, attrs in hostile.elements for key in attrs)
    assert '<b>this</b> a "question" & no {{ 7 * 7 }} for a < b?' in hostile.text
    assert (
        hostile.text.count("<img src=x onerror=alert(1)> $x_{$ [/b]") >= 5
    )  # tables, verdict, figures
    assert "sramsim run '</title><script>alert(1)</script>.yaml' --out out" in hostile.text


def test_ids_are_of_one_element_each_and_every_reference_has_one(told):
    ids = [attrs["id"] for _, attrs in told.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    values = [value or "" for _, attrs in told.elements for value in attrs.values()]
    referred = {
        name
        for value in values
        for name in re.findall(r"url\(#([^)]+)\)|^#([\w-]+)$", value)
        for name in name
        if name
    }
    assert referred
    assert referred <= set(ids)


@pytest.mark.slow
def test_the_same_folder_gives_the_same_bytes(folder, text):
    """Whatever the order of sets: the seed of hashes is 1 there, and a random one here."""
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from sim.report.page import html_page; "
               "sys.stdout.buffer.write(html_page(Path(sys.argv[1])).encode())", str(folder)]  # fmt: skip
    there = subprocess.run(
        command, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": "1"}
    ).stdout
    assert there == text.encode()


def luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_of_figures_are_seen_on_the_dark_page():
    """At the 3:1 that WCAG asks of graphics."""
    causes = [*TOKEN_CAUSES.values(), *ENERGY_CAUSES.values()]
    shades = [shaded(colour, -0.4) for colour in MAKER_COLOURS.values()]
    colours = {*COLOUR_CODES.values(), *OTHER_MAKERS, *shades, *(cause.colour for cause in causes)}
    ground = luminance(page.DARK_COLOURS["#ffffff"])
    dark = [page.DARK_COLOURS.get(colour.lower(), colour.lower()) for colour in colours]
    assert [c for c in dark if (luminance(c) + 0.05) / (ground + 0.05) < 3] == []
    assert len(set(dark)) == len(colours)


def test_a_run_of_an_older_version_is_shown_without_what_it_lacks(folder, tmp_path):
    saved = load_result(folder)
    save_result(replace(saved, summary=replace(saved.summary, origin=None)), tmp_path)
    text = Elements(page.html_page(tmp_path)).text
    assert "made in code" in text
    assert "sources were not kept" in text


@pytest.fixture
def swept(tmp_path):
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "scenario": "mine",
                "question": "How many?",
                "version": "1",
                "inputs": {},
                "sources": {},
                "keys": [],
                "points": [],
                "systems": [],
            }
        )
    )
    table = {
        "workload.rate": [1, 10],
        "system": ["a<b", "a<b"],
        "median_tpot_ms": [2.5, None],
        "error": ["", "does not fit"],
    }
    polars.DataFrame(table).write_parquet(tmp_path / "table.parquet")
    return tmp_path


def test_a_sweep_is_a_table_with_a_row_for_each_point(swept):
    told = Elements(page.html_page(swept))
    assert "2 rows, each a system under one set of values; 1 of them failed." in told.text
    words = " ".join(told.text.split())
    for word in ("How many?", "workload.rate", "a<b", "2.5", "does not fit"):
        assert word in words
    assert len(told.named("tr")) == 3


@pytest.mark.parametrize("text", ["[]", "{", "{}"])
def test_a_sweep_of_another_kind_is_refused(swept, text):
    (swept / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="holds no finished sweep"):
        page.html_page(swept)


def test_a_table_of_another_kind_is_refused(swept):
    polars.DataFrame({"rate": [1]}).write_parquet(swept / "table.parquet")
    with pytest.raises(UserError, match="holds no finished sweep"):
        page.html_page(swept)
