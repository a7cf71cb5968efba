"""Timelines: valid Chrome trace events, no overlaps on a track, the times of the rows."""

import json
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

import sim
from plots import gantt
from sim.cost.work import decodes_at
from sim.inputs.errors import UserError
from sim.scenario.scenario import Scenario
from sim.studies.timeline import chrome_events, chrome_json, step_program, trace
from sim.studies.visit_timeline import trace_visits

PHASES = {"M", "X", "C", "i"}


@pytest.fixture(scope="module")
def scenario():
    """Nodes of eight LPUs: a small model on eight stages."""
    return sim.read("llama3-8b-lpu-vs-h100", ["workload.prompt=40 token"])


@pytest.fixture(scope="module")
def timeline(scenario):
    return trace(scenario, "lpu", tokens=2)


def test_every_event_keeps_to_the_format(timeline):
    """Assert keys by kind of event, order of times and named tracks.

    Source: Google, 'Trace Event Format'.
    """
    document = json.loads(chrome_json(timeline))
    assert set(document) == {"displayTimeUnit", "traceEvents"}
    events = document["traceEvents"]
    assert {event["ph"] for event in events} == PHASES
    named = {
        (e["pid"], e.get("tid"))
        for e in events
        if e["ph"] == "M" and e["name"] in ("process_name", "thread_name")
    }
    needed = {
        "X": {"pid", "tid", "ts", "dur", "name", "cat"},
        "C": {"pid", "ts", "name", "args"},
        "i": {"pid", "ts", "name", "s"},
        "M": {"pid", "name", "args"},
    }
    for event in events:
        assert needed[event["ph"]] <= set(event)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in named
        if event["ph"] == "C":
            assert all(isinstance(value, int) and value >= 0 for value in event["args"].values())
    times = [event["ts"] for event in events if "ts" in event]
    assert times == sorted(times)
    assert times[0] >= 0


POOLS = {
    "model": "gpt-oss-20b",
    "workload": {"kind": "closed", "users": 1, "requests": 1, "prompt": 40, "output": 8},
    "systems": {
        "afd": {
            "attention": {"chip": "gb200", "chips": 2, "engine": "ideal", "plan": {"tensor": 2}},
            "ffn": {
                "chip": "gb200",
                "chips": 4,
                "engine": "ideal",
                "plan": {"expert": 2, "pipeline": 2},
            },
            "micro_batches": 3,
            "transfer": {"bandwidth": "900 GB/s", "latency": "1 us", "copies": "rank"},
        }
    },
}


def test_pools_take_turns_with_one_request_for_each_micro_batch():
    scenario = Scenario.model_validate(POOLS)
    timeline = trace_visits(scenario, "afd", tokens=2)
    layers = scenario.model.num_hidden_layers
    seen = Counter((each.chip, each.label.split(":")[0]) for each in timeline.chips)
    turns = {f"layer {n}, micro-batch {m + 1}" for n in range(layers) for m in range(3)}
    assert {label for chip, label in seen if chip == 0} >= turns
    late = {f"layer {n}, micro-batch {m + 1}" for n in range(layers // 2, layers) for m in range(3)}
    assert {label for chip, label in seen if chip == 4} == late  # the second FFN stage
    costs = scenario.deploy("afd").costs
    gaps = np.diff(timeline.tokens)
    step = costs.step(decodes_at(3, 42.0, None)).time[0]
    assert gaps == pytest.approx([step, step], rel=0.02)
    assert timeline.end - timeline.start == pytest.approx(sum(gaps), rel=1e-9)
    no_overlaps(timeline)
    inside = {"prefill": {"chip": "gb200", "chips": 1, "engine": "ideal"}}
    inside |= {"decode": POOLS["systems"]["afd"], "transfer": {"bandwidth": "50 GB/s"}}
    other = Scenario.model_validate({**POOLS, "systems": {"pd": inside}})
    assert trace_visits(other, "pd.decode", tokens=2).tokens == timeline.tokens
    names = {link.name for link in timeline.links}
    assert {"attention: 0 -> switch", "FFN to attention, from chip 3"} <= names


def no_overlaps(timeline):
    """Assert that nothing overlaps on a track, and return the number of tracks."""
    tracks = defaultdict(list)
    for event in chrome_events(timeline):
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in tracks.values():
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))
    return len(tracks)


def test_nothing_overlaps_on_a_track(timeline):
    assert no_overlaps(timeline) > 64


def test_there_is_a_track_for_each_chip_and_each_link_that_was_used(scenario, timeline):
    chips = scenario.deploy("lpu").chips
    assert {each.chip for each in timeline.chips} == set(range(chips))
    names = [
        event["args"]["name"] for event in chrome_events(timeline) if event["name"] == "thread_name"
    ]
    assert sum(name.startswith("chip ") for name in names) == chips
    assert sum(" -> " in name for name in names) == len(timeline.links)


def test_the_slices_are_the_program_once_for_each_token(scenario, timeline):
    deployment, program = step_program(scenario, "lpu")
    per_chip = Counter(each.chip for each in timeline.chips)
    for stage, instructions in enumerate(program.stages):
        for place in range(deployment.layout.plan.stage_size):
            assert per_chip[stage * deployment.layout.plan.stage_size + place] == 2 * len(
                instructions
            )


def test_the_tokens_are_those_of_a_run(scenario, timeline):
    """The gap between two tokens is the closed form's for a lone request."""
    gaps = [b - a for a, b in pairwise(timeline.tokens)]
    lone = scenario.unloaded(scenario.deploy("lpu")).tpot
    assert len(gaps) == 2
    assert gaps == pytest.approx(
        [lone, lone], rel=0.02
    )  # at the beginning of the answer, when the KV cache is shorter


def test_the_counters_come_back_to_nothing(timeline):
    last = {}
    for event in chrome_events(timeline):
        if event["ph"] == "C":
            last[event["name"]] = event["args"]["count"]
    assert last["chips computing"] == last["messages on links"] == 0
    assert last["KV cache, tokens"] == 42


def test_prefill_adds_the_prompt_to_the_timeline(scenario, timeline):
    longer = trace(scenario, "lpu", tokens=2, prefill=True)
    assert longer.start == 0
    assert len(longer.chips) > len(timeline.chips)
    # Without it the prompt passes in one piece, so only the gaps are the same.
    assert np.diff(longer.tokens) == pytest.approx(np.diff(timeline.tokens), rel=1e-9)


@pytest.mark.parametrize(("system", "label"), [("lpu", "64 Groq LPUs"), ("h100", "1 H100")])
def test_the_figure_shows_where_the_time_goes(scenario, system, label):
    timeline = trace(scenario, system, tokens=1)
    figure = gantt.draw(timeline)
    title = " ".join(figure.get_suptitle().split())
    assert title.startswith(f"{label}: a token passes")
    assert "% computing" in title
    assert len(figure.axes) == (2 if len(timeline.stages) > 1 else 1)


def test_a_trace_that_is_too_long_or_of_no_system_is_an_error(scenario):
    with pytest.raises(UserError, match="--system: got 'tpu'; expected lpu or h100"):
        trace(scenario, "tpu", 1)
    with pytest.raises(
        UserError,
        match=r"trace: got about [0-9,]+ events in 9999 steps; expected at most 1,000,000",
    ):
        trace(scenario, "lpu", 9999)
