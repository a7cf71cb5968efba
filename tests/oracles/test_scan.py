"""The turns of a passage, computed by one scan, against the same physics told twice otherwise."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from sim.serving.executors.stepwise import Pipeline
from sim.serving.executors.waiting_stages import stages_with_waits

SECONDS = st.floats(0, 10, allow_subnormal=False)


@st.composite
def batch_steps(draw):
    """(entries, hops, times): when passages join the first queue, and each one's hops and times at the stages."""
    stages, count = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    row = st.lists(SECONDS, min_size=stages, max_size=stages)
    entries = sorted(draw(st.lists(SECONDS, min_size=count, max_size=count)))
    return entries, [[0.0, *draw(row)[1:]] for _ in range(count)], [draw(row) for _ in range(count)]


def scan(entries, hops, times):
    """When each passage leaves the last stage, and how long each stage was busy."""
    pipeline = Pipeline(len(times[0]))
    leaves = [
        now + pipeline.enter(now, np.array(h), np.array(t))
        for now, h, t in zip(entries, hops, times, strict=True)
    ]
    return leaves, pipeline.busy


def processes(entries, hops, times):
    """A process for each passage, a resource for each stage.  Hops are the stages' own: with others passages would overtake."""
    env = simpy.Environment()
    stages = [simpy.Resource(env) for _ in hops]
    leaves = [0.0] * len(entries)

    def passage(number):
        yield env.timeout(entries[number])
        for hop, time, stage in zip(hops, times[number], stages, strict=True):
            yield env.timeout(hop)
            with stage.request() as turn:
                yield turn
                yield env.timeout(time)
        leaves[number] = env.now

    for number in range(len(entries)):
        env.process(passage(number))
    env.run()
    return leaves


def loops(entries, hops, times):
    """start[j,s] = max(leave[j,s-1] + hop[j,s], leave[j-1,s]) and leave[j,s] = start[j,s] + time[j,s]."""
    before, leaves = [0.0] * len(times[0]), []
    for leave, own_hops, own_times in zip(entries, hops, times, strict=True):
        for s, (hop, time) in enumerate(zip(own_hops, own_times, strict=True)):
            leave = before[s] = max(leave + hop, before[s]) + time
        leaves.append(leave)
    return leaves


@given(batch_steps())
def test_the_scan_is_a_process_for_each_passage(drawn):
    entries, hops, times = drawn
    leaves, _ = scan(entries, [hops[0]] * len(entries), times)
    assert leaves == pytest.approx(processes(entries, hops[0], times), rel=0, abs=1e-9)


@given(batch_steps())
def test_the_scan_is_the_max_plus_recurrence(drawn):
    leaves, busy = scan(*drawn)
    assert leaves == pytest.approx(loops(*drawn), rel=0, abs=1e-9)
    assert busy == pytest.approx(np.sum(drawn[2], axis=0), rel=0, abs=1e-9)


def test_a_convoy_by_hand():
    """Three passages of 1 s at two stages and a hop of 0.5 s; the second is slow, and the third waits behind it."""
    leaves, busy = scan([0.0, 0.2, 0.4], [[0.0, 0.5]] * 3, [[1.0, 1.0], [3.0, 1.0], [1.0, 1.0]])
    assert leaves == pytest.approx([2.5, 5.5, 6.5])
    assert list(busy) == [5.0, 3.0]


@st.composite
def steps_alike(draw):
    """(entries, hops, times) of steps whose times differ only in attention, so that few stages make a step wait."""
    stages, count = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    numbers = st.integers(0, 8)
    body, layers, hops = (
        np.array(draw(st.lists(numbers, min_size=stages, max_size=stages))) for _ in range(3)
    )
    attention = draw(st.lists(st.sampled_from([0, 1 / 16, 1 / 4]), min_size=count, max_size=count))
    entries = sorted(draw(st.lists(st.integers(0, 40), min_size=count, max_size=count)))
    hops[0] = 0
    return entries, hops, [body + layers * seconds for seconds in attention]


@given(steps_alike())
def test_stages_at_which_no_step_waits_longest_may_be_left_out(drawn):
    entries, hops, times = drawn
    ends = np.cumsum(hops + times, axis=1)
    starts = ends - times
    kept = stages_with_waits(starts, ends)
    before = np.c_[np.zeros(len(ends)), ends[:, kept[:-1]]]
    leaves = loops(entries, starts[:, kept] - before, (ends - starts)[:, kept])
    assert leaves == loops(entries, [hops] * len(entries), times)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_equal_steps_wait_at_the_slowest_stage(times):
    """The slowest stage's time is the beat. The pipeline is then one queue, and a path to the end."""
    ends = np.cumsum([times], axis=1)
    kept = stages_with_waits(ends - times, ends)
    assert kept[-1] == len(times) - 1
    assert len(kept) <= 2
    assert times[kept[0]] == max(times)
