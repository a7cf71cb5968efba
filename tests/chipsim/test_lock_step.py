"""Waits that chips share: those that begin at one instant and take equally long."""

import simpy

from sim.chipsim.lock_step import LockStep


def test_only_equal_waits_of_one_instant_share_an_event():
    env, ended = simpy.Environment(), []
    waits = LockStep(env)

    def chip(name, begin, seconds):
        yield env.timeout(begin)
        event = waits.timeout(seconds)
        yield event
        ended.append((name, env.now, event))

    for name, begin, seconds in [("e", 1, 0), ("c", 1, 3), ("a", 1, 2), ("b", 1, 2), ("d", 2, 2)]:
        env.process(chip(name, begin, seconds))
    env.run()
    times = {name: now for name, now, _ in ended}
    assert times == {"a": 3, "b": 3, "c": 4, "d": 4, "e": 1}
    events = {name: event for name, _, event in ended}
    assert events["a"] is events["b"]
    assert len(set(events.values())) == 4


def test_a_wait_of_no_time_that_is_over_is_not_shared():
    env, counted = simpy.Environment(), []
    waits = LockStep(env)

    def chip():
        for _ in range(3):
            event = waits.timeout(0.0)
            event.callbacks.append(counted.append)
            yield event

    env.process(chip())
    env.run()
    assert len(counted) == 3
