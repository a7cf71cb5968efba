"""Recorded conversations: a turn waits for the answer to the turn before it, as in drawn sessions."""

import json

import numpy as np
import pytest

from sim.inputs.errors import ScenarioError
from sim.serving.service import serve
from sim.workload.lengths import Length, Spread
from sim.workload.sessions import Sessions, Turns
from sim.workload.think import Think
from sim.workload.traces import Trace

BAILIAN = [  # chat, parent, time [s], prompt, output
    (7, -1, 10.0, 64, 16),
    (8, -1, 10.5, 64, 16),
    (9, 7, 12.0, 96, 16),
    (5, 9, 13.0, 128, 16),
    (4, 99, 14.0, 64, 16),  # its parent is not in the file
]


@pytest.fixture
def recorded(tmp_path):
    def trace(rows: list[dict[str, object]], **options: object) -> Trace:
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return Trace(path=path, **options)

    return trace


def bailian(**changes: object) -> list[dict[str, object]]:
    names = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")
    return [dict(zip(names, row, strict=True)) | changes for row in BAILIAN]


def aiperf(session: str, start: float, latency: float, prompt: int) -> dict[str, object]:
    """A record of AIPerf; times in s."""
    values = {"input_sequence_length": prompt, "output_sequence_length": 10}
    values |= {"time_to_first_token": 100 * latency, "request_latency": 1000 * latency}
    metadata = {"x_correlation_id": session, "request_start_ns": round(1e9 * start)}
    return {"metadata": metadata, "metrics": {key: {"value": v} for key, v in values.items()}}


def test_sessions_that_are_written_down_are_read_as_they_were_drawn(recorded):
    drawn = Sessions(
        sessions=20,
        rate=0.5,
        turns=Turns(uniform=(1, 4)),
        think=Think(exponential=3.0),
        prompt=Length(lognormal=Spread(mean=100, sigma=0.5)),
        output=Length(fixed=30),
    ).draw(1)
    first = drawn.after < 0
    said = np.where(first, 0, drawn.prompt[drawn.after] + drawn.output[drawn.after])
    rows = [
        {
            "session_id": str(session),
            **({"timestamp": 1000 * at} if at == at else {"delay": 1000 * think}),
            "input_length": int(added),
            "output_length": int(output),
        }
        for session, at, think, added, output in zip(
            drawn.sessions.tolist(),
            drawn.arrival.tolist(),
            drawn.think.tolist(),
            drawn.prompt - said,
            drawn.output,
            strict=True,
        )
    ]
    read = recorded(rows).draw(0)
    for column in ("prompt", "output", "after"):
        assert np.array_equal(getattr(read, column), getattr(drawn, column))
    np.testing.assert_allclose(read.think, drawn.think, rtol=1e-12)
    np.testing.assert_allclose(read.arrival, drawn.arrival - drawn.arrival[0], rtol=1e-9)
    same = [read.content(i) == read.content(i - 1) for i in range(1, len(first))]
    assert same == (~first[1:]).tolist()
    assert recorded(rows).turns_of_load == len(first) / 20


@pytest.mark.parametrize("slower", [1.0, 1e5])
def test_a_turn_is_sent_at_its_recorded_time_but_not_before_the_answer(
    recorded, make_deployment, make_chip, slower
):
    deployment = make_deployment(chip=make_chip(capacity=1e8, bandwidth=1e9 / slower))
    requests = recorded(bailian()).draw(0)
    rows = serve(requests, deployment.costs, deployment.limits)
    # Conversation by conversation: chats 7, 9, 5, then 8, then 4.
    assert requests.prompt.tolist() == [64, 96, 128, 64, 64]
    assert requests.after.tolist() == [-1, 0, 1, -1, -1]
    gaps = {1: 2.0, 2: 1.0}
    for number, gap in gaps.items():
        before = number - 1
        expected = max(rows.arrival[before] + gap, rows.last_token[before])
        assert rows.arrival[number] == pytest.approx(expected, rel=1e-12)
    assert rows.arrival[[0, 3, 4]].tolist() == [0.0, 0.5, 4.0]
    assert requests.note.endswith("answer: 2; turns without the answer before them in the file: 1")
    late = rows.arrival[1] > 2.0 + 1e-9
    assert late == (slower > 1)


def test_a_pause_of_aiperf_is_from_the_recorded_answer_on(recorded):
    rows = [
        aiperf("a", 100.0, 0.5, 50),
        aiperf("b", 100.2, 0.5, 50),
        aiperf("a", 102.0, 0.25, 90),
        aiperf("a", 102.25, 0.5, 130),
    ]
    requests = recorded(rows).draw(0)
    assert requests.after.tolist() == [-1, 0, 1, -1]
    np.testing.assert_allclose(requests.think, [0, 1.5, 0, 0], atol=1e-9)
    sent, first, last = requests.answered
    np.testing.assert_allclose(sent, [0, 2, 2.25, 0.2], atol=1e-9)
    np.testing.assert_allclose(last - sent, [0.5, 0.25, 0.5, 0.5], atol=1e-9)
    assert (first < last).all()


def test_a_record_without_a_latency_keeps_the_recorded_distance(recorded):
    rows = [aiperf("a", 100.0, 0.5, 50), aiperf("a", 102.0, 0.25, 90)]
    del rows[0]["metrics"]["request_latency"]
    requests = recorded(rows).draw(0)
    assert requests.after.tolist() == [-1, 0]
    assert (requests.think[1], requests.gap[1]) == (0.0, 2.0)


def test_without_conversations_all_requests_come_at_their_times(recorded):
    plain = recorded(bailian(), conversations=False).draw(0)
    assert plain.arrival.tolist() == [0.0, 0.5, 2.0, 3.0, 4.0]
    assert plain.after is None
    assert not recorded(bailian(), conversations=False).chained


def test_a_turn_whose_predecessor_is_outside_the_window_comes_at_its_time(recorded):
    requests = recorded(bailian(), start="1 s").draw(0)
    assert requests.after.tolist() == [-1, 0, -1]
    np.testing.assert_allclose(requests.arrival, [1.0, np.nan, 3.0])
    assert requests.gap[1] == 1.0


def test_blocks_tell_whole_prompts_from_added_text(recorded):
    turn = {"session_id": 1, "output_length": 10, "input_length": 1024}
    first = turn | {"timestamp": 0, "hash_ids": [1, 2]}
    whole = recorded([first, turn | {"delay": 5, "input_length": 1500, "hash_ids": [1, 2, 3]}])
    assert whole.draw(0).prompt.tolist() == [1024, 1500]
    assert whole.draw(0).hash_ids == [(1, 2), (1, 2, 3)]
    assert "no hash_ids" not in whole.draw(0).note
    added = recorded([first, turn | {"delay": 5, "input_length": 500, "hash_ids": [7]}])
    assert added.draw(0).prompt.tolist() == [1024, 1024 + 10 + 500]
    assert added.draw(0).hash_ids is None


def test_a_session_may_begin_with_turns_that_were_not_answered(recorded):
    """The next turn then comes after its pause, and counts from the time of the first one."""
    turn = {"session_id": 1, "input_length": 50, "output_length": 10}
    rows = [
        turn | {"timestamp": 1000, "session_id": 2},
        turn | {"timestamp": 3000, "output_length": 0},
        turn | {"delay": 500, "output_length": 0},
        turn | {"delay": 250},
        turn | {"delay": 100},
    ]
    requests = recorded(rows).draw(0)
    assert requests.after.tolist() == [-1, -1, 1]
    np.testing.assert_allclose(requests.arrival, [0.0, 2.75, np.nan])
    assert requests.think[2] == 0.1
    assert "requests without output left out: 2" in requests.note
    rows[2:4] = [turn | {"delay": 250}, turn | {"delay": 500, "output_length": 0}]
    requests = recorded(rows).draw(0)
    np.testing.assert_allclose(requests.arrival, [0.0, 2.25, np.nan])
    assert requests.think[2] == 0.6  # the pause before the turn without an answer counts, too


def test_the_first_requests_keep_their_turns(recorded):
    requests = recorded(bailian()).draw(0)
    part = requests.first(2)
    assert part.after.tolist() == [-1, 0]
    assert len(part.gap) == len(part.think) == len(part.prompt) == 2


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        (
            [{"session_id": 1, "delay": 5, "input_length": 5, "output_length": 5}],
            {},
            "timestamp: got nothing; expected timestamp, input_length, output_length in each line",
        ),
        (bailian(parent_chat_id=[7]), {}, "parent_chat_id: got [7]; expected a whole number or a"),
        (bailian(chat_id=True), {}, "chat_id: got true; expected a whole number or a text"),
        (
            [*bailian()[:-1], bailian(timestamp=1e30)[-1]],
            {"time_unit": "s"},
            "got times over 1e+30 s; expected 1e+09",
        ),
        (
            [
                {"session_id": 1, "timestamp": 5, "input_length": 5, "output_length": 5},
                {"session_id": 1, "delay": -5, "input_length": 5, "output_length": 5},
            ],
            {},
            ":2: delay: got -5; expected a number of milliseconds, at least 0",
        ),
        (
            [
                {"session_id": 1, "timestamp": 5, "input_length": 5, "output_length": 5},
                {"session_id": 1, "delay": 5, "input_length": 5, "output_length": 5},
            ],
            {"conversations": False},
            "conversations: got false, and turns with a delay in place of a timestamp",
        ),
    ],
)
def test_turns_that_cannot_be_replayed_are_refused(recorded, rows, options, reason):
    with pytest.raises(ScenarioError) as caught:
        recorded(rows, **options).draw(0)
    assert reason in str(caught.value)
