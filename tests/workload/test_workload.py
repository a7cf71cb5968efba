"""Requests as they are asked for: the means of what is drawn, and streams that do not disturb one another.

A mean is held to within three standard errors of what theory says, over the draws of twenty fixed seeds.
"""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.values import Value
from sim.scenario.scenario import read
from sim.workload.arrivals import ClosedLoop, Gamma, Listed, ListedRequest, Poisson, Workload
from sim.workload.kinds import WorkloadField
from sim.workload.lengths import Length, Spread
from sim.workload.sessions import Sessions, Turns
from sim.workload.think import Pauses, Think
from sim.workload.traces import Trace

SEEDS = range(20)
N = 2000
DRAWS = N * len(SEEDS)
FIXED = Length(fixed=100)


def poisson(rate=5.0, prompt=FIXED, output=FIXED, requests=N, **options) -> Poisson:
    return Poisson(requests=requests, rate=rate, prompt=prompt, output=output, **options)


def lengths(length: Length) -> np.ndarray:
    """Prompts of all seeds."""
    return np.concatenate([poisson(prompt=length).draw(seed).prompt for seed in SEEDS])


def gaps(workload: Workload) -> np.ndarray:
    return np.concatenate([np.diff(workload.draw(seed).arrival, prepend=0.0) for seed in SEEDS])


# What is drawn.


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential():
    sample = gaps(poisson(rate=5.0))
    assert sample.mean() == pytest.approx(0.2, abs=3 * 0.2 / math.sqrt(DRAWS))
    assert sample.std() == pytest.approx(0.2, abs=3 * 0.2 * math.sqrt(2 / DRAWS))


def test_poisson_requests_come_in_order_and_after_the_start():
    arrival = poisson().draw(0).arrival
    assert arrival[0] > 0
    assert (np.diff(arrival) >= 0).all()


@pytest.mark.parametrize(("mean", "sigma"), [(512, 0.5), (128, 1.0), (4000, 0.2)])
def test_lognormal_lengths_have_the_mean_that_is_given(mean, sigma):
    sample = lengths(Length(lognormal=Spread(mean=mean, sigma=sigma)))
    error = mean * math.sqrt(math.expm1(sigma**2) / DRAWS)
    assert sample.mean() == pytest.approx(
        mean + 0.5, abs=3 * error
    )  # whole tokens, rounded up: half a token more
    assert sample.min() >= 1


def test_lognormal_lengths_have_the_sigma_that_is_given():
    logarithms = np.log(lengths(Length(lognormal=Spread(mean=4000, sigma=0.5))))
    assert logarithms.std() == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(2 * DRAWS))


def test_a_lognormal_without_spread_is_its_mean():
    assert set(lengths(Length(lognormal=Spread(mean=512, sigma=0.0)))) <= {
        512,
        513,
    }  # up to a rounding of the logarithm


def test_however_short_the_mean_and_wide_the_spread_a_length_is_a_token_at_least():
    assert lengths(Length(lognormal=Spread(mean=1, sigma=10.0))).min() == 1


def test_uniform_lengths_reach_both_bounds_and_lie_evenly_between():
    sample = lengths(Length(uniform=(3, 6)))
    assert set(sample) == {3, 4, 5, 6}
    assert sample.mean() == pytest.approx(4.5, abs=3 * math.sqrt((4**2 - 1) / 12 / DRAWS))


def test_a_fixed_length_is_always_the_same():
    assert set(lengths(FIXED)) == {100}


@pytest.mark.parametrize(
    ("length", "mean"),
    [(FIXED, 100), (Length(uniform=(3, 6)), 4.5), (Length(lognormal=Spread(mean=7, sigma=1.0)), 7)],
)
def test_a_length_knows_its_mean(length, mean):
    assert length.mean == mean


# Seeds and streams.

VARIED = {
    "prompt": Length(uniform=(1, 1000)),
    "output": Length(lognormal=Spread(mean=100, sigma=1.0)),
}


def columns(workload: Workload, seed: int = 0) -> dict[str, bytes]:
    requests = workload.draw(seed)
    return {name: getattr(requests, name).tobytes() for name in ("arrival", "prompt", "output")}


def test_the_same_seed_draws_the_same_bytes_and_another_draws_others():
    first, again, other = (columns(poisson(**VARIED), seed) for seed in (3, 3, 4))
    assert first == again
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"rate": 50.0}, "arrival"),
        ({"prompt": Length(lognormal=Spread(mean=9, sigma=2.0))}, "prompt"),
        ({"output": Length(uniform=(1, 9))}, "output"),
    ],
)
def test_what_changes_one_stream_leaves_the_others(changes, column):
    before, after = columns(poisson(**VARIED)), columns(poisson(**(VARIED | changes)))
    assert [name for name in before if before[name] != after[name]] == [column]


def test_a_closed_loop_asks_the_same_lengths_as_an_open_one():
    closed = ClosedLoop(requests=N, users=4, **VARIED)
    for column in ("prompt", "output"):
        assert columns(closed)[column] == columns(poisson(**VARIED))[column]


def test_twice_the_rate_halves_every_gap():
    assert gaps(poisson(rate=10.0)) == pytest.approx(gaps(poisson(rate=5.0)) / 2)


def test_lengths_of_prompt_and_output_and_gaps_are_uncorrelated():
    wide = Length(uniform=(1, 1000))
    draws = [poisson(prompt=wide, output=wide).draw(seed) for seed in SEEDS]
    series = [
        np.diff([d.arrival for d in draws], prepend=0.0).ravel(),
        np.ravel([d.prompt for d in draws]),
    ]
    table = np.corrcoef([*series, np.ravel([d.output for d in draws])])
    assert np.abs(table - np.eye(3)).max() < 3 / math.sqrt(DRAWS)


# Closed loops, and what is refused.


def test_a_closed_loop_leaves_arrivals_to_its_users():
    requests = ClosedLoop(requests=10, users=4, prompt=FIXED, output=FIXED).draw(0)
    assert np.isnan(requests.arrival).all()
    assert requests.users == 4
    assert poisson().draw(0).users is None


@pytest.mark.parametrize("shapes", [{}, {"fixed": 5, "uniform": (1, 2)}])
def test_a_length_has_one_shape(shapes):
    with pytest.raises(
        ValidationError, match=r"got (none|fixed and uniform); expected one; try one of"
    ):
        Length(**shapes)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (
            {"uniform": (6, 3)},
            "uniform: got 6 to 3 token; expected the lowest number first; try \\[3 token, 6 token\\]",
        ),
        ({"uniform": (0, 3)}, "greater than or equal to 1"),
        ({"fixed": 0}, "greater than or equal to 1"),
        ({"lognormal": {"mean": 0, "sigma": 1.0}}, "greater than or equal to 1"),
        ({"lognormal": {"mean": 10, "sigma": -1.0}}, "greater than or equal to 0"),
        ({"lognormal": {"mean": 10, "sigma": 11.0}}, "less than or equal to 10"),
    ],
)
def test_lengths_that_cannot_be_drawn_are_refused(shapes, reason):
    with pytest.raises(ValidationError, match=reason):
        Length(**shapes)


@pytest.mark.parametrize(
    "changes", [{"rate": 0.0}, {"rate": -1.0}, {"rate": float("inf")}, {"requests": 0}]
)
def test_a_workload_without_requests_or_pace_is_refused(changes):
    with pytest.raises(ValidationError):
        poisson(**changes)


# Bursts.


def gamma(burstiness: float, rate: float = 5.0, **changes: object) -> Gamma:
    return Gamma(
        **(
            {
                "requests": N,
                "rate": rate,
                "burstiness": burstiness,
                "prompt": FIXED,
                "output": FIXED,
            }
            | changes
        )
    )


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_mean_of_the_rate_and_the_variance_of_the_burstiness(burstiness):
    sample = gaps(gamma(burstiness)) * 5
    variance = 1 / burstiness
    fourth = 3 * variance**2 + 6 * variance**3  # the fourth central moment of a gamma of mean 1
    assert sample.mean() == pytest.approx(1, abs=3 * math.sqrt(variance / DRAWS))
    assert sample.var() == pytest.approx(
        variance, abs=3 * math.sqrt((fourth - variance**2) / DRAWS)
    )


def test_gamma_of_burstiness_one_is_poisson():
    sample = gaps(gamma(1.0))
    for gap in (0.01, 0.1, 0.2, 0.5, 1.0):
        share = math.exp(-5 * gap)
        assert (sample > gap).mean() == pytest.approx(
            share, abs=3 * math.sqrt(share * (1 - share) / DRAWS)
        )


def test_bursts_ask_the_same_lengths_as_a_poisson_stream():
    for column in ("prompt", "output"):
        assert columns(gamma(0.5, **VARIED))[column] == columns(poisson(**VARIED))[column]


@pytest.mark.parametrize("burstiness", [0.0, -1.0, math.inf, math.nan])
def test_a_burstiness_that_no_gamma_has_is_refused(burstiness):
    with pytest.raises(ValidationError):
        gamma(burstiness)


# Lists.


def test_listed_requests_are_numbered_by_arrival_ties_as_they_stand():
    late, early, same = (
        ListedRequest(arrival=a, prompt=p, output=p + 1, priority=p)
        for a, p in ((2.0, 10), (1.0, 20), (2.0, 30))
    )
    requests = Listed(requests=(late, early, same)).draw(0)
    assert requests.arrival.tolist() == [1.0, 2.0, 2.0]
    assert requests.prompt.tolist() == [20, 10, 30]
    assert requests.output.tolist() == [21, 11, 31]
    assert requests.priority.tolist() == [20, 10, 30]


def test_a_list_without_priorities_has_none():
    assert (
        Listed(requests=(ListedRequest(arrival=0.0, prompt=1, output=1),)).draw(0).priority is None
    )


# A shared prefix.


@pytest.mark.parametrize(
    "kind",
    [
        poisson(prompt=Length(uniform=(50, 150))),
        gamma(0.5),
        ClosedLoop(requests=N, users=3, prompt=FIXED, output=FIXED),
        Listed(requests=(ListedRequest(arrival=0.0, prompt=7, output=1),)),
        Sessions(
            sessions=N,
            rate=5.0,
            turns=Turns(fixed=3),
            think=Think(fixed=1.0),
            prompt=FIXED,
            output=FIXED,
        ),
    ],
    ids=lambda kind: kind.noun(),
)
def test_a_shared_prefix_makes_every_prompt_longer_and_changes_nothing_else(kind):
    prefixed = kind.model_copy(update={"shared_prefix": 1000})
    plain, longer = kind.draw(3), prefixed.draw(3)
    assert (longer.prompt == plain.prompt + 1000).all()
    assert prefixed.mean_prompt == kind.mean_prompt + 1000
    assert (longer.output == plain.output).all()
    assert np.array_equal(longer.arrival, plain.arrival, equal_nan=True)
    assert (plain.has_prefixes, longer.has_prefixes) == (kind.noun() == "sessions", True)
    for number in (0, len(plain.prompt) - 1):
        assert longer.content(number) == (("shared prefix", 1000), *plain.content(number))


def test_a_prompt_that_is_cut_within_the_shared_prefix_has_no_more_of_it():
    synthetic = poisson(shared_prefix=1000)
    assert synthetic.draw(0).content(5)[0] == ("shared prefix", 1000)
    cut = Trace(synthetic=synthetic, max_prompt=600).draw(0)
    assert cut.content(5)[0] == ("shared prefix", 600)


def test_turns_of_a_session_have_one_content_and_other_requests_their_own():
    turns = sessions(Turns(fixed=2)).draw(0)
    contents = [turns.content(number) for number in range(4)]
    assert contents[0] == contents[1] != contents[2] == contents[3]
    plain = poisson().draw(0)
    assert plain.content(0) != plain.content(1)


# Sessions.


def sessions(turns=None, think=None, **changes: object) -> Sessions:
    parts = {
        "sessions": N // 10,
        "rate": 5.0,
        "turns": turns or Turns(fixed=3),
        "think": think or Think(fixed=7.0),
        **VARIED,
    }
    return Sessions(**(parts | changes))


TURNS = [Turns(fixed=3), Turns(uniform=(1, 5)), Turns(geometric=2.5), Turns(geometric=1.0)]


@pytest.mark.parametrize("turns", TURNS)
def test_a_turns_prompt_is_the_conversation_so_far_and_what_is_added(turns):
    requests = sessions(turns, prompt=Length(fixed=10)).draw(1)
    for number, before in enumerate(requests.after.tolist()):
        said = 0 if before < 0 else requests.prompt[before] + requests.output[before]
        assert requests.prompt[number] == said + 10


@pytest.mark.parametrize("turns", TURNS)
def test_a_session_starts_by_its_arrival_and_goes_on_by_its_answers(turns):
    requests = sessions(turns).draw(1)
    first = requests.after < 0
    assert first.sum() == N // 10
    assert (np.isnan(requests.arrival) == ~first).all()
    assert (np.diff(requests.arrival[first]) >= 0).all()
    assert (requests.after[~first] == np.arange(len(first))[~first] - 1).all()
    assert (requests.think[~first] == 7).all()


def test_a_fixed_number_of_turns_is_that_number():
    assert sessions(Turns(fixed=3)).draw(0).after.tolist()[:6] == [-1, 0, 1, -1, 3, 4]


@pytest.mark.parametrize("turns", TURNS)
def test_the_mean_request_of_sessions_is_that_of_what_they_draw(turns):
    workload = sessions(turns, prompt=Length(fixed=100), output=Length(fixed=20))
    draws = [workload.draw(seed) for seed in SEEDS]
    means = np.array([draw.prompt.mean() for draw in draws])
    error = max(means.std(ddof=1) / math.sqrt(len(means)), 1e-9)
    assert means.mean() == pytest.approx(workload.mean_prompt, abs=3 * error)
    counts = np.array([(draw.after < 0).mean() for draw in draws])
    error = max(counts.std(ddof=1) / math.sqrt(len(counts)), 1e-9)
    assert counts.mean() == pytest.approx(1 / turns.moments[0], abs=3 * error)
    assert workload.mean_output == 20


def test_sessions_start_at_their_rate():
    starts = [sessions().draw(seed).arrival for seed in SEEDS]
    sample = np.concatenate([np.diff(start[~np.isnan(start)], prepend=0.0) for start in starts])
    assert sample.mean() == pytest.approx(0.2, abs=3 * 0.2 / math.sqrt(len(sample)))


def test_lognormal_pauses_have_the_mean_that_is_given():
    workload = sessions(think=Think(lognormal=Pauses(mean=30.0, sigma=0.8)))
    draws = [workload.draw(seed) for seed in SEEDS]
    sample = np.concatenate([draw.think[draw.after >= 0] for draw in draws])
    assert sample.mean() == pytest.approx(
        30, abs=3 * 30 * math.sqrt(math.expm1(0.8**2) / len(sample))
    )


@pytest.mark.parametrize(
    ("shape", "fields", "reason"),
    [
        (Turns, {}, "got none; expected one; try one of 5, "),
        (Turns, {"fixed": 1, "geometric": 2.0}, "got fixed and geometric; expected one"),
        (Turns, {"uniform": (3, 2)}, "uniform: got 3 to 2; expected the lowest number first"),
        (Turns, {"geometric": 0.5}, "greater than or equal to 1"),
        (Think, {}, "got none; expected one; try one of '10 s'"),
        (Think, {"fixed": -1.0}, "greater than or equal to 0"),
        (Think, {"lognormal": {"mean": 0.0, "sigma": 1.0}}, "greater than 0"),
    ],
)
def test_sessions_that_cannot_be_drawn_are_refused(shape, fields, reason):
    with pytest.raises(ValidationError, match=reason):
        shape(**fields)


# Traces.

RECORDED = [(0.0, 100, 10), (1.0, 200, 20), (2.5, 1500, 30), (4.0, 50, 400)]
MOONCAKE = "".join(
    f'{{"timestamp": {1000 * at}, "input_length": {p}, "output_length": {o}, "hash_ids": {list(range(-(-p // 512)))}}}\n'
    for at, p, o in RECORDED
)
FORMAT = "Mooncake, times in ms, blocks of 512 token"


@pytest.fixture
def recorded(tmp_path):
    """Makes a trace workload over the four requests above, with cuts."""
    path = tmp_path / "recorded"
    path.write_text(MOONCAKE)
    return lambda **cuts: Trace(path=path, **cuts)


def test_a_trace_is_replayed_whole_and_the_same_for_every_seed(recorded):
    requests = recorded().draw(0)
    assert list(zip(requests.arrival, requests.prompt, requests.output, strict=True)) == RECORDED
    assert requests.hash_ids == [(0,), (0,), (0, 1, 2), (0,)]
    assert requests.note == FORMAT
    assert columns(recorded(), 0) == columns(recorded(), 1)


def test_a_trace_knows_its_mean_request(recorded):
    assert recorded().mean_prompt == 1850 / 4
    assert recorded().mean_output == 460 / 4
    assert recorded(max_prompt=100).mean_prompt == 350 / 4


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_time_scale_multiplies_every_gap_and_nothing_else(recorded, scale):
    plain, scaled = recorded().draw(0), recorded(time_scale=scale).draw(0)
    assert np.diff(scaled.arrival) == pytest.approx(scale * np.diff(plain.arrival))
    assert (scaled.prompt == plain.prompt).all()


@pytest.mark.parametrize(
    ("cuts", "kept", "arrivals"),
    [
        ({"start": 1.0}, [1, 2, 3], [0.0, 1.5, 3.0]),
        ({"end": 2.5}, [0, 1], [0.0, 1.0]),
        ({"start": 0.5, "end": 2.6}, [1, 2], [0.5, 2.0]),
        ({"requests": 3}, [0, 1, 2], [0.0, 1.0, 2.5]),
        ({"start": 0.5, "requests": 1}, [1], [0.5]),
        ({"start": 0.5, "time_scale": 2.0, "requests": 1}, [1], [1.0]),
        ({"requests": 100}, [0, 1, 2, 3], [0.0, 1.0, 2.5, 4.0]),
    ],
)
def test_a_window_keeps_what_comes_in_it_and_counts_from_its_start(recorded, cuts, kept, arrivals):
    requests = recorded(**cuts).draw(0)
    assert requests.prompt.tolist() == [RECORDED[i][1] for i in kept]
    assert requests.arrival == pytest.approx(arrivals)
    assert len(requests.hash_ids) == len(kept)


def test_caps_cut_what_is_longer_with_its_blocks_and_say_how_many(recorded):
    requests = recorded(max_prompt=600, max_output=25).draw(0)
    assert requests.prompt.tolist() == [100, 200, 600, 50]
    assert requests.output.tolist() == [10, 20, 25, 25]
    assert requests.hash_ids[2] == (0, 1)
    assert requests.note == f"{FORMAT}; prompts cut to 600 token: 1; outputs cut to 25 token: 2"
    assert recorded(max_prompt=1500).draw(0).note == FORMAT


def test_blocks_of_a_trace_have_the_size_of_its_format(tmp_path):
    """Bailian's are 16 tokens: 40 tokens are two full blocks and a part, and 20 are one and a part."""
    path = tmp_path / "recorded"
    row = {"chat_id": 1, "timestamp": 0.5, "input_length": 40, "output_length": 5}
    path.write_text(json.dumps(row | {"hash_ids": [7, 8, 9]}))
    whole, cut = Trace(path=path).draw(0), Trace(path=path, max_prompt=20).draw(0)
    assert whole.content(0)[:-1] == ((7, 16), (8, 32), (9, 40))
    assert cut.content(0)[:-1] == ((7, 16), (8, 20))
    halves = Trace(path=path, hash_block=20, max_prompt=25)
    with pytest.raises(ScenarioError, match="got 3 ids; expected 2 for 40 tokens, one for each 20"):
        halves.draw(0)


def test_requests_that_failed_where_they_were_recorded_are_counted(tmp_path):
    path = tmp_path / "recorded"
    path.write_text("Timestamp,Request tokens,Response tokens\n1,10,5\n2,10,0\n3,10,5\n")
    requests = Trace(path=path).draw(0)
    assert len(requests.arrival) == 2
    assert requests.note == "BurstGPT, times in s; requests without output left out: 1"


def test_a_window_in_which_nothing_comes_is_refused(recorded):
    with pytest.raises(
        ScenarioError,
        match=r"recorded: got no request from start to end; expected some; the last one comes after 4 s",
    ):
        recorded(start=5.0).draw(0)


def test_without_a_path_the_synthetic_workload_stands_for_the_trace():
    synthetic = gamma(0.8, **VARIED)
    trace = Trace(synthetic=synthetic)
    assert columns(trace, 3) == columns(synthetic, 3)
    assert (trace.mean_prompt, trace.mean_output) == (synthetic.mean_prompt, synthetic.mean_output)
    assert Trace(synthetic=synthetic, time_scale=0.5).draw(0).arrival == pytest.approx(
        synthetic.draw(0).arrival / 2
    )
    assert Trace(synthetic=synthetic, max_prompt=9).draw(0).prompt.max() == 9


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "got neither path nor synthetic; expected one of them"),
        (
            {
                "synthetic": {
                    "kind": "poisson",
                    "rate": 1,
                    "requests": 1,
                    "prompt": 1,
                    "output": 1,
                },
                "time_unit": "s",
            },
            "without a path; expected a file; try leaving",
        ),
        (
            {"synthetic": gamma(1.0), "start": 5.0, "end": 5.0},
            "got start 5 s and end 5 s; expected a later end",
        ),
        ({"synthetic": gamma(1.0), "time_scale": 0.0}, "greater than 0"),
    ],
)
def test_traces_that_cannot_be_cut_are_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        Trace(**fields)


@pytest.mark.parametrize(
    "kind", [poisson(**VARIED), gamma(0.5, **VARIED), sessions(), sessions(Turns(geometric=3.0))]
)
def test_every_kind_draws_the_same_bytes_for_the_same_seed(kind):
    first, again, other = (columns(kind, seed) for seed in (3, 3, 4))
    assert first == again
    assert all(first[name] != other[name] for name in first)


# As files say them.


class File(Value):
    """A file that holds a workload and nothing else."""

    workload: WorkloadField


def workload_of(tmp_path, text: str) -> Workload:
    path = tmp_path / "file.yaml"
    path.write_text(f"workload:\n{text}")
    return read_value(path, File).workload


@pytest.mark.parametrize(
    ("text", "workload"),
    [
        (
            "  {kind: gamma, rate: 5 request/s, burstiness: 1, requests: 2000, prompt: 100 token, output: 100 token}",
            gamma(1.0),
        ),
        (
            "  kind: listed\n  requests:\n    - {arrival: 1 s, prompt: 1 token, output: 2 token, priority: -3}\n",
            Listed(requests=(ListedRequest(arrival=1.0, prompt=1, output=2, priority=-3),)),
        ),
        (
            "  {kind: poisson, rate: 5 request/s, requests: 2000, shared_prefix: 1 ktoken, prompt: 100 token, output: 100 token}",
            poisson(shared_prefix=1000),
        ),
        (
            "  {kind: sessions, sessions: 2, rate: 5 request/s, turns: 3, think: 7 s, prompt: 1 token, output: 2 token}",
            sessions(sessions=2, prompt=Length(fixed=1), output=Length(fixed=2)),
        ),
        (
            "  {kind: sessions, sessions: 2, rate: 5 request/s, turns: {geometric: 3}, prompt: 1 token, output: 2 token,\n"
            "   think: {lognormal: {mean: 30 s, sigma: 0.8}}}",
            sessions(
                Turns(geometric=3.0),
                Think(lognormal=Pauses(mean=30.0, sigma=0.8)),
                sessions=2,
                prompt=Length(fixed=1),
                output=Length(fixed=2),
            ),
        ),
    ],
)
def test_kinds_are_read_from_files(tmp_path, text, workload):
    assert workload_of(tmp_path, text) == workload


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "  kind: gama\n",
            "file.yaml:2: got 'gama'; expected a kind of workload; did you mean 'gamma'?",
        ),
        (
            "  kind: listed\n  requests: []\n",
            "file.yaml:3: workload.requests: got an empty list; expected one request or more",
        ),
        (
            "  kind: listed\n  requests:\n  - {arrival: 1 s, prompt: 1 token}\n",
            "file.yaml:4: workload.requests.0.output: got nothing; expected length of the output",
        ),
        (
            "  kind: trace\n  time_scale: 2\n",
            "file.yaml:1: workload: got neither path nor synthetic; expected one of them",
        ),
        ("  kind: trace\n  path: gone.csv\n", "file.yaml:3: gone.csv: no such file"),
        ("  kind: trace\n  path: .\n", "file.yaml:3: .: is a directory; expected a file"),
        ("  kind: trace\n  path: 5\n", "file.yaml:3: workload.path: got 5; "),
        (
            "  kind: trace\n  synthetic: {kind: closed}\n",
            "file.yaml:3: got 'closed'; expected a kind of workload; choose from gamma, poisson",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named_by_its_line(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError) as error:
        workload_of(tmp_path, text)
    assert str(error.value).startswith(says)


def test_a_path_is_relative_to_the_file_and_with_set_to_the_working_folder(tmp_path, monkeypatch):
    for folder, prompt in (("there", 100), ("here", 200)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trace.csv").write_text(
            f"arrived_at,num_prefill_tokens,num_decode_tokens\n0,{prompt},1\n"
        )
    scenario = tmp_path / "there" / "mine.yaml"
    scenario.write_text(
        "model: llama-3.1-8b\nworkload: {kind: trace, path: trace.csv}\n"
        "systems: {h100: {chip: h100-sxm, chips: 1, engine: ideal, plan: {weights: fp8, activations: fp8, kv: fp16}}}\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    assert read(scenario).request_tokens == 101
    assert read(scenario, ["workload.path=trace.csv"]).request_tokens == 201
    with pytest.raises(ScenarioError, match=r"--set workload.path: gone.csv: no such file"):
        read(scenario, ["workload.path=gone.csv"])


def test_a_malformed_row_stops_a_scenario_by_the_line_of_the_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.csv").write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,1\n1,many,1\n"
    )
    scenario = read("azure-conversation", ["workload.path=trace.csv"])
    with pytest.raises(
        ScenarioError,
        match=r"^trace.csv:3: num_prefill_tokens: got 'many'; expected a whole number of tokens",
    ):
        _ = scenario.request_tokens


ANSWERED = """arrived_at_s,input_tokens,output_tokens,first_token_s,last_token_s
0,10,5,1,3
2,20,5,4,8
3,30,5,5,9
"""


@pytest.fixture
def answered(tmp_path):
    """When the requests of a cut trace were sent and got their first and last tokens; none where it no longer says so."""

    def cut(**options):
        path = tmp_path / "answered.csv"
        path.write_text(ANSWERED)
        told = Trace(path=path, **options).draw(0).answered
        return None if told is None else [column.tolist() for column in told]

    return cut


def test_a_window_keeps_the_answers_of_its_requests_on_its_own_clock(answered):
    assert answered() == [[0, 2, 3], [1, 4, 5], [3, 8, 9]]
    assert answered(requests=2) == [[0, 2], [1, 4], [3, 8]]
    assert answered(start=1.5) == [[0.5, 1.5], [2.5, 3.5], [6.5, 7.5]]
    assert answered(start=1.5, end=3.0) == [[0.5], [2.5], [6.5]]


@pytest.mark.parametrize("change", [{"time_scale": 0.5}, {"max_prompt": 15}, {"max_output": 3}])
def test_other_requests_than_those_that_were_answered_have_no_answers(answered, change):
    assert answered(**change) is None
