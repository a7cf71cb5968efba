"""The order of events at one instant. No other module uses SimPy's scheduler for it.

Results depend on this order wherever two events have the same simulated time. The rules:

1. Urgent events come first, in the order in which they were scheduled. These are arrivals,
   failures and repairs of replicas, and the bounds of the counted part of a run.
2. Returns of steps and deadlines follow, in the order in which they were scheduled. So a request
   that arrives as a step ends can join the next step.
3. A micro-batch that returns schedules its next step before the idle micro-batches for which it
   made room. These follow in the order of the queue.
4. Idle micro-batches wait for all arrivals of the instant (`is_instant_over`). Otherwise the first
   of several requests that arrive together would be scheduled alone.
5. A micro-batch whose step ended a request also waits for them. A closed-loop user without a pause
   sends the next request at that instant, and it comes first.

SimPy orders events by time, then by priority, then by the order of scheduling. It has no public
timeout with a priority, so `CallAfter` calls `Environment.schedule`.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import simpy
from simpy.events import NORMAL, URGENT

from sim.serving.replica_config import Outage
from sim.units import Seconds

Callback = Callable[[simpy.Event], None]


class CallAfter(simpy.Event):
    """A call of functions after `delay` [s], in the order in which such calls are scheduled.

    SimPy cannot cancel a call. Callers compare the event that they get, and ignore stale ones.
    """

    priority = NORMAL

    def __init__(self, env: simpy.Environment, delay: Seconds, *callbacks: Callback) -> None:
        assert delay >= 0, "a call in the past"
        self.env, self.callbacks, self._ok, self._value = env, [*callbacks], True, None
        env.schedule(self, self.priority, delay)


def call_at(env: simpy.Environment, time: Seconds, callback: Callback) -> None:
    """Call a function at a time, or now if that time has passed. Order: as with `CallAfter`."""
    CallAfter(env, max(0.0, time - env.now), callback)


class CallUrgently(CallAfter):
    """A call before all other events of its instant that are not urgent.

    A process may also wait for it.
    """

    priority = URGENT


class CallAtReturn(CallAfter):
    """A call when micro-batches return to the scheduler of their replica."""


def schedule_outages(
    env: simpy.Environment,
    outages: Iterable[Outage],
    down: Callable[[Outage], object],
    up_again: Callable[[Outage], object],
) -> None:
    """Schedule a failure and a repair for each outage.

    A repair is scheduled before the next failure. So at one instant it comes first.
    """

    def call(change: Callable[[Outage], object], outage: Outage, _: simpy.Event) -> None:
        change(outage)

    for outage in sorted(outages, key=lambda outage: outage.at):
        CallUrgently(env, outage.at, partial(call, down, outage))
        CallUrgently(env, outage.at + outage.lasts, partial(call, up_again, outage))


def next_event_time(env: simpy.Environment, independent: bool = False) -> Seconds:
    """Return the time of the next event; inf without one. Nothing can change before it.

    independent: whether nothing that returns at one replica changes another one. Returns are then
    left out. SimPy has no public list of events.
    """
    if not independent:
        return env.peek()
    times = (at for at, _, _, event in env._queue if not isinstance(event, CallAtReturn))
    return min(times, default=math.inf)


def is_instant_over(env: simpy.Environment) -> bool:
    """Return whether no other event is scheduled at the current time."""
    return env.peek() > env.now
