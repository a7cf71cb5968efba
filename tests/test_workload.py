"""Requests as they are asked for: the means of what is drawn, and streams that do not disturb one another.

A mean is held to within three standard errors of what theory says, over the draws of twenty fixed seeds.
"""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from sim.workload import Closed, Length, Poisson, Spread, Workload

SEEDS = range(20)
N = 2000
DRAWS = N * len(SEEDS)
FIXED = Length(fixed=100)


def poisson(rate=5.0, prompt=FIXED, output=FIXED, requests=N) -> Poisson:
    return Poisson(requests=requests, rate=rate, prompt=prompt, output=output)


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
    assert sample.mean() == pytest.approx(mean + 0.5, abs=3 * error)  # whole tokens, rounded up: half a token more
    assert sample.min() >= 1


def test_lognormal_lengths_have_the_sigma_that_is_given():
    logarithms = np.log(lengths(Length(lognormal=Spread(mean=4000, sigma=0.5))))
    assert logarithms.std() == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(2 * DRAWS))


def test_a_lognormal_without_spread_is_its_mean():
    assert set(lengths(Length(lognormal=Spread(mean=512, sigma=0.0)))) <= {512, 513}  # up to a rounding of the logarithm


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

VARIED = {"prompt": Length(uniform=(1, 1000)), "output": Length(lognormal=Spread(mean=100, sigma=1.0))}


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
    closed = Closed(requests=N, users=4, **VARIED)
    for column in ("prompt", "output"):
        assert columns(closed)[column] == columns(poisson(**VARIED))[column]


def test_twice_the_rate_halves_every_gap():
    assert gaps(poisson(rate=10.0)) == pytest.approx(gaps(poisson(rate=5.0)) / 2)


def test_lengths_of_prompt_and_output_and_gaps_are_uncorrelated():
    wide = Length(uniform=(1, 1000))
    draws = [poisson(prompt=wide, output=wide).draw(seed) for seed in SEEDS]
    series = [np.diff([d.arrival for d in draws], prepend=0.0).ravel(), np.ravel([d.prompt for d in draws])]
    table = np.corrcoef([*series, np.ravel([d.output for d in draws])])
    assert np.abs(table - np.eye(3)).max() < 3 / math.sqrt(DRAWS)


# Closed loops, and what is refused.


def test_a_closed_loop_leaves_arrivals_to_its_users():
    requests = Closed(requests=10, users=4, prompt=FIXED, output=FIXED).draw(0)
    assert np.isnan(requests.arrival).all()
    assert requests.users == 4
    assert poisson().draw(0).users is None


@pytest.mark.parametrize("shapes", [{}, {"fixed": 5, "uniform": (1, 2)}])
def test_a_length_has_one_shape(shapes):
    with pytest.raises(ValidationError, match="a length is one of"):
        Length(**shapes)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"uniform": (6, 3)}, "uniform from 6 to 3 token is empty"),
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


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"rate": -1.0}, {"rate": float("inf")}, {"requests": 0}])
def test_a_workload_without_requests_or_pace_is_refused(changes):
    with pytest.raises(ValidationError):
        poisson(**changes)
