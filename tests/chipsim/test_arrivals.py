"""The event of the last arrival, whose time is known when the last message takes its last cable."""

import pytest
import simpy

from sim.chipsim.arrivals import LastArrival


@pytest.mark.parametrize("times", [(7.0, 4.0), (4.0, 7.0)])
def test_the_event_comes_with_the_last_arrival_whichever_is_known_last(times):
    env, went_on = simpy.Environment(), {}
    arrivals = LastArrival(env, 3)

    def chip(name, ready):
        yield env.timeout(ready)
        yield arrivals
        went_on[name] = env.now

    def sender(known, time, messages):
        yield env.timeout(known)
        arrivals.arrives_at(time, messages)

    for name, ready in (("early", 0.0), ("between", 5.0), ("late", 9.0)):
        env.process(chip(name, ready))
    env.process(sender(1.0, times[0], 2))
    env.process(sender(3.0, times[1], 1))
    env.run()
    assert went_on == {"early": 7.0, "between": 7.0, "late": 9.0}


def test_a_message_that_is_not_sent_yet_is_waited_for():
    env = simpy.Environment()
    arrivals = LastArrival(env, 2)
    arrivals.arrives_at(1.0)
    env.run(until=5.0)
    assert not arrivals.triggered
    arrivals.arrives_at(5.0)
    env.run()
    assert arrivals.processed
    assert env.now == 5.0
