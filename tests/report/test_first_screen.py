"""The first screen fits its width, names what it compares, and crowns only systems that are STABLE."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sim import read, run
from sim.report.answer import answer_sentence, condition_lines, opening_question
from sim.report.first_screen import (
    attainment_text,
    first_screen,
    key_rows,
    ratios,
    remarks,
)
from sim.results.verdict import Verdict


@pytest.fixture(scope="module")
def flagship():
    return run("llama2-70b-lpu-vs-h100")


def printed(result, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    screen = first_screen(result.summary, result.scenario.question, "mine.yaml", width)
    console.print(screen, markup=False, highlight=False)
    return console.file.getvalue().splitlines()


def judged(summary, **verdicts: Verdict):
    """The summary with other verdicts."""
    systems = {
        name: replace(s, metrics=replace(s.metrics, verdict=verdicts.get(name, s.metrics.verdict)))
        for name, s in summary.systems.items()
    }
    return replace(summary, systems=systems)


def test_it_is_thirty_lines_of_80_columns_at_most(flagship):
    lines = printed(flagship)
    text = " ".join(" ".join(lines).split())
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert text.startswith(flagship.scenario.question)
    assert "576 Groq LPUs: 576 x groq-lpu-v1, groq-compiler, int8 weights, 8 x 72 x 1" in lines
    assert "llama-2-70b: 50 requests at 0.1/s (poisson), 512 prompt + 128 output tokens." in lines
    assert answer_sentence(flagship.summary) in text
    assert "  sramsim run mine.yaml --all  # every row" in " ".join(lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_nothing_is_cut_at_any_width(flagship, width):
    """Six systems with long labels, and a word that is longer than a heading."""
    names = [f"a{number} {'label' * 4} of many words" for number in range(2)]
    summary = flagship.summary
    systems = dict(summary.systems)
    for number, name in enumerate([*names, "d"]):
        like = systems["h100x8"]
        systems[f"more{number}"] = replace(like, identity=replace(like.identity, label=name))
    console = Console(width=width, file=io.StringIO())
    screen = first_screen(replace(summary, systems=systems), "", "mine.yaml", width)
    console.print(screen, markup=False, highlight=False)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    first_tokens = next(row for row in key_rows(summary) if row.label.startswith("first token"))
    assert text.count(first_tokens.cells[2].plain) == 4


def test_ratios_are_to_the_first_system():
    cells = ratios([307.0, 34.2, 614.0, None, 307.1])
    assert [cell.plain for cell in cells] == [
        "307",
        "34.2 (1/9.0)",
        "614 (2.0x)",
        "-",
        "307 (1.00x)",
    ]
    assert [cell.plain for cell in ratios([None, 2.0])] == ["-", "2.00"]


def test_the_answer_names_the_fastest_on_both_tokens_with_price_and_load(flagship):
    summary = flagship.summary
    answer = answer_sentence(summary)
    assert answer.startswith(
        "A user gets the first token soonest from 8 H100 (1.5 times as soon as from 576 Groq "
        "LPUs), the whole answer from 576 Groq LPUs (2.1 times as soon), at 37 times the price of "
        "a token ("
    )
    assert answer.endswith(" times if always full) and <1 % of its capacity.")


def test_a_system_that_is_not_stable_is_never_the_fastest(flagship):
    answer = answer_sentence(judged(flagship.summary, lpu="OVERLOADED"))
    assert answer.startswith("8 H100 is fastest for a user")
    assert answer.endswith("; 576 Groq LPUs is OVERLOADED.")
    one = answer_sentence(judged(flagship.summary, lpu="TOO SHORT", h100x8="BACKLOGGED"))
    assert one.startswith("Only 1 H100 is STABLE under this load: the first token comes after ")
    none = judged(flagship.summary, **dict.fromkeys(flagship.systems, "REFUSED"))
    assert answer_sentence(none).startswith("No system is STABLE under this load: 576 Groq LPUs is")
    assert key_rows(none)[0].cells[0].plain == "REFUSED"
    assert key_rows(none)[1].cells[0].plain.endswith(" *")


def test_refused_requests_are_named_with_their_reason():
    """Of 30 requests, those beyond the context of 4,096 tokens."""
    lengths = "workload.prompt={uniform: [3600 token, 4400 token]}"
    result = run(read("llama2-70b-lpu-vs-h100", [lengths, "workload.requests=30"]))
    refused = result.summary.systems["h100"].metrics.refused
    assert refused > 0
    lines = [line for line in remarks(result.summary) if line.startswith("1 H100: ")]
    assert f"1 H100: {refused} requests unanswered: " in lines[0]
    assert "4096" in lines[0]


def test_loads_of_every_kind_are_described():
    few = "workload.requests=4"
    texts = {
        "scheduling": ([few], "4 requests at "),
        "users": (
            ["workload={kind: closed, users: 3, requests: 3, prompt: 8 token, output: 8 token}"],
            "3 requests of 3 users (closed)",
        ),
        "llama3-8b-lpu-vs-h100": (
            [
                "workload={kind: sessions, sessions: 2, rate: 1 request/s, turns: 2, think: 1 s, prompt: 8 token, output: 8 token}"
            ],
            "4 requests in 2 sessions, 1 new ones/s (sessions), 8-24 prompt (mean 16)",
        ),
        "llama2-70b-lpu-vs-h100": (
            [
                "workload={kind: listed, requests: [{arrival: 0 s, prompt: 8 token, output: 9 token}]}"
            ],
            "1 request (listed), 8 prompt + 9 output tokens.",
        ),
        "shared-prefix": ([few], "(1,024 of them shared by all) + "),
    }
    for name, (changes, text) in texts.items():
        assert text in " ".join(condition_lines(run(read(name, changes)).summary))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"),
        (1.0, "100 %"),
        (0.9999, "99.9 %"),
        (0.994, "99.4 %"),
        (0.5, "50 %"),
        (0.0, "0 %"),
    ],
)
def test_all_requests_are_within_the_slo_only_if_none_is_not(share, text):
    assert attainment_text(share) == text


def test_an_slo_with_a_percentile_names_who_misses_it(flagship):
    asked = "slo={ttft: 90 ms, tpot: 200 ms, percentile: 99}"
    summary = run(read("llama2-70b-lpu-vs-h100", [asked])).summary
    assert condition_lines(summary)[-1] == "SLO: TTFT 90 ms, TPOT 200 ms for 99 % of the requests."
    share = summary.systems["h100"].metrics.attainment
    assert 0.5 < share < 0.99
    assert remarks(summary) == [
        f"1 H100: {100 * share:.0f} % of the requests are within the SLO; expected 99 %."
    ]
    assert "percentile" not in summary.slo
    assert remarks(flagship.summary) == []


def test_a_replay_stands_beside_its_measured_times_and_faults_beside_availability():
    result = run("replay-vllm-rtx4090")
    lines = printed(result)
    assert any(line.startswith("E2E latency median, ms") for line in lines)
    assert max(map(len, lines)) <= 80
    faults = [
        f"systems.{name}.faults.samples=20" for name in ("no-spare", "pooled", "one-per-rack")
    ]
    spares = run(read("spares", ["workload.requests=4", *faults])).summary
    rows = {row.label: [cell.plain for cell in row.cells] for row in key_rows(spares)}
    assert all(cell.endswith("%") for cell in rows["availability"])


@pytest.mark.parametrize(
    ("comment", "question"),
    [
        ("How fast? It depends. Why?", "How fast?"),
        ("A test. More.", "A test."),
        ("A test of v1.5", "A test of v1.5"),
        ("", ""),
    ],
)
def test_the_question_is_the_first_of_the_comment(comment, question):
    assert opening_question(comment) == question


def test_a_pipe_gets_80_columns_or_those_of_the_environment(sramsim, monkeypatch):
    words = ("run", "llama3-8b-lpu-vs-h100", "--set", "workload.requests=2")
    for columns, widest in ((None, 80), ("60", 60)):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        status, out, _ = sramsim(*words)
        assert status == 0
        assert widest - 15 < max(map(len, out.splitlines())) <= widest
