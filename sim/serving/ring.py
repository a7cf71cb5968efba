"""The beats of a compiled pipeline as a ring, in closed form.

A token enters the first stage with each beat, and leaves the last stage an unloaded pass later.  A
lap is the number of beats from a token of a sequence to its next one.  A sequence decodes on one
beat of each lap, until its output ends.  Prompts take the free beats, one prompt after the other.

>>> ring = BeatRing(4)
>>> ring.enter(0, 3)
(0, 2)
>>> ring.hold(2, 5)
>>> ring.enter(0, 4)
(3, 7)
"""

import heapq
import math
from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.energy import Tally
from sim.cost.system_costs import SystemCosts, leave_times
from sim.cost.work import Work, decodes_at
from sim.results.histogram import Gaps
from sim.serving.event_order import CallAfter
from sim.serving.executors.executor import Executor
from sim.serving.limits import SchedulerLimits
from sim.serving.prompt_chunks import attended_positions
from sim.serving.replica import Replica
from sim.serving.replica_config import ReplicaWiring
from sim.serving.request import Request
from sim.units import Seconds

ROUNDING = 1e-6  # beats: a request that is later by less is on time, because clocks round


class BeatSchedule(NamedTuple):
    """The fixed times of a compiled pipeline.

    beat: time between two tokens at the first stage [s].
    unloaded: time of a token through all stages [s].
    lap: beats of the ring, from a token of a sequence to its next one.
    """

    beat: Seconds
    unloaded: Seconds
    lap: int

    @property
    def tpot(self) -> Seconds:
        """The time of a lap, in which each decoding sequence gets a token."""
        return self.lap * self.beat


def beat_schedule(costs: SystemCosts, context: float) -> BeatSchedule:
    """Return the schedule of one token a beat, each of which attends to `context` positions.

    Beat and pass are the longer ones of two tokens: a decode, and the last token of a prompt.
    lap = (pass + way back) / beat, rounded up.
    """
    window = costs.layout.model.window
    decode = decodes_at(1, context, window)
    seen = min(context, window or context)
    last = _prompt_token(context, (seen, seen), logits=1)
    (decode_beat, decode_time), (last_beat, last_time) = (
        leave_times(costs, work) for work in (decode, last)
    )
    beat, unloaded = max(decode_beat, last_beat), max(decode_time, last_time)
    return BeatSchedule(beat, unloaded, math.ceil((unloaded + costs.back) / beat - 1e-9))


def _prompt_token(context: float, windowed: tuple[float, float], logits: int) -> Work:
    """Return the work of one token of a prompt, which reads the positions that it attends to.

    windowed: positions attended and read, as layers with a window see them.
    """
    attended, read = windowed
    return Work(0, 0.0, 1, 1, context, context, logits, 0.0, attended, read)


def ring_schedule(
    costs: SystemCosts, limits: SchedulerLimits, request_tokens: float
) -> BeatSchedule:
    """Return the schedule of a replica, whose beats are those of a mean request's last token.

    request_tokens: of a mean request.  Tokens beyond the model's context are never served.
    """
    return beat_schedule(costs, min(request_tokens, limits.context))


class BeatRing:
    """The free beats of a ring, and the times when the others become free.

    A place is a beat's number modulo the lap.
    """

    def __init__(self, lap: int) -> None:
        self.lap = lap
        self.free = list(range(lap))  # places, sorted
        self.ends: list[int] = []  # a heap: the last beat of each sequence that has a place
        self.next = 0  # prompts take no earlier beat

    def enter(self, start: int, tokens: int) -> tuple[int, int]:
        """Return the first beat that a prompt may take, free or not, and that of its last token.

        start: the first beat after its admission.  Earlier prompts take all beats to their end.
        While no sequence ends, the free places stay the same.  So division gives the last beat.
        """
        free, ends, lap = self.free, self.ends, self.lap
        first = now = max(start, self.next)
        left = tokens
        while True:
            place = now % lap
            passed = bisect_left(free, place)
            if free:
                laps, index = divmod(passed + left - 1, len(free))
                last = now - place + lap * laps + free[index]
                if not ends or last < ends[0]:
                    break
            end = heapq.heappop(ends)
            freed = end % lap
            index = bisect_left(free, freed)
            if end >= now:
                laps = (end - now + place) // lap
                left -= laps * len(free) + index - passed
                now = end + 1
            free.insert(index, freed)
        self.next = last + 1
        return first, last

    def hold(self, beat: int, laps: int) -> None:
        """Give the place of this beat to a sequence that decodes `laps` tokens there."""
        del self.free[bisect_left(self.free, beat % self.lap)]
        heapq.heappush(self.ends, beat + laps * self.lap)


# A request: tokens of its prompt, how many of them have entered, and the decodes that have.
Entered = tuple[int, int, int]


def ring_tally(counted: Counter[Entered], window: int | None) -> Tally:
    """Return the tally of steps of one token each.

    counted: requests, by the tokens that entered.
    """
    tally = Tally()
    for (prompt, prefilled, decodes), times in counted.items():
        ended = prefilled == prompt
        tally.batch_steps[1] += times * (prefilled + decodes)
        tally.prompt_tokens += times * prefilled
        tally.prompt_steps += times * prefilled
        tally.steps_without_sampling += times * (prefilled - ended)
        tally.logits += times * (ended + decodes)
        tally.attended += times * attended_positions(0, prefilled, None)
        tally.context += times * attended_positions(prompt, decodes, None)
        if window:
            tally.windowed_attended += times * attended_positions(0, prefilled, window)
            tally.windowed_cached += times * attended_positions(0, prefilled, window + 1)
            tally.windowed_context += times * attended_positions(prompt, decodes, window)
    tally.cached = tally.attended  # a chunk of one token reads what it attends to
    return tally


def _decodes(counted: Counter[Entered]) -> int:
    return sum(times * decodes for (_, _, decodes), times in counted.items())


def ring_busy(costs: SystemCosts, counted: Counter[Entered], tally: Tally) -> NDArray[np.float64]:
    """Return float[stage]: the seconds of all tokens, each at the mean context of its kind."""
    busy = np.zeros(costs.stages)
    if decodes := _decodes(counted):
        windowed = tally.windowed_context / decodes
        work = Work(1, tally.context / decodes, logits=1, windowed_context=windowed)
        busy += decodes * costs.step(work).time
    tokens = tally.batch_steps[1] - decodes
    inner = tally.steps_without_sampling
    for steps, logits in ((inner, 0), (tokens - inner, 1)):
        if steps:
            seen = tally.windowed_attended / tokens, tally.windowed_cached / tokens
            work = _prompt_token(tally.attended / tokens, seen, logits)
            busy += steps * costs.step(work).time
    return busy


class BeatCounter(Executor):
    """An executor that only counts: the ring computes the times, so nothing is sent to it.

    counted: ended requests, by the tokens that entered.
    received: decodes whose gap is no lap, because the token before came from another replica.
    """

    def __init__(self, costs: SystemCosts, gaps: Gaps, schedule: BeatSchedule) -> None:
        super().__init__()
        self.costs, self.gaps, self.schedule = costs, gaps, schedule
        self.counted: Counter[Entered] = Counter()
        self.received = 0
        self.last_leave = -math.inf

    @property
    def busy(self) -> NDArray[np.float64]:
        """The seconds that each stage worked."""
        return ring_busy(self.costs, self.counted, self.tally)

    def flush(self) -> None:
        """Book the steps and the gaps between tokens.  Each gap is a lap."""
        self.tally = ring_tally(self.counted, self.costs.layout.model.window)
        if decodes := _decodes(self.counted) - self.received:
            self.gaps.add(self.schedule.tpot, decodes)

    @property
    def free_at(self) -> Seconds:
        """When the last counted token left the pipeline."""
        return self.last_leave


class RingReplica(Replica):
    """A replica whose sequences keep their beats.  A request needs one event after its arrival.

    Requests are admitted as in any replica, when KV cache and a sequence's place are free.  There
    are no more places than beats, so an admitted prompt always finds a free one.  Its times are
    known immediately, because the beats of all requests before it are.

    Prompts and laps start with a beat.  So a prompt waits up to one beat, and the time per output
    token is a whole number of beats.
    All beats are equal, as in a compiled program: those of a mean request's last token.
    Left out: stages that are faster at shorter contexts.
    """

    def __init__(self, wiring: ReplicaWiring) -> None:
        config = wiring.config
        costs, limits = config.costs, config.limits
        assert config.request_tokens is not None, "a ring needs the tokens of a mean request"
        self.schedule = schedule = ring_schedule(costs, limits, config.request_tokens)
        limits = replace(limits, sequences=min(limits.sequences, schedule.lap))
        self.counter = BeatCounter(costs, wiring.rows.gaps, schedule)
        super().__init__(wiring._replace(config=replace(config, limits=limits)), self.counter)
        self.ring = BeatRing(schedule.lap)
        # The first beat of the prompt and the beat of its last token, by admitted request.
        self.beats: dict[int, tuple[int, int]] = {}

    def on_submit(self) -> None:
        """Admit requests, and give them their beats."""
        self.admission.admit()
        while self.prefilling:
            self.schedule_request(self.prefilling.popleft())

    def schedule_request(self, request: Request) -> None:
        """Find the beats of an admitted request, and wait for its last token."""
        env, (beat, unloaded, lap) = self.env, self.schedule
        now, decodes = env.now, request.output - 1
        beats = self.ring.enter(math.ceil(now / beat - ROUNDING), request.prompt)
        last = beats[1]
        if decodes:
            self.ring.hold(last, decodes)
        self.beats[request.id] = beats
        self.rows.first_token[request.id] = last * beat + unloaded
        leave = (last + decodes * lap) * beat + unloaded
        CallAfter(env, leave - now, partial(self.answered, request, leave))

    def answered(self, request: Request, leave: Seconds, _: simpy.Event) -> None:
        """End a request whose last token left the pipeline, and admit others in its place."""
        beats = self.beats.pop(request.id)
        self.counter.counted[self.entered(request, beats, math.inf)] += 1
        self.counter.last_leave = leave
        self.admission.end(request, leave)
        if self.admission.waiting or self.prefilling:
            self.on_submit()

    def so_far(self) -> tuple[Tally, NDArray[np.float64]]:
        """Return the work of all tokens that entered up to now, and the seconds of each stage.

        Tokens of a prompt under way count in proportion to its beats.
        """
        costs, counted = self.counter.costs, self.counter.counted.copy()
        begun = math.floor(self.env.now / self.schedule.beat + ROUNDING) + 1  # beats so far
        for number, beats in self.beats.items():
            counted[self.entered(self.admission.requests[number], beats, begun)] += 1
        tally = ring_tally(counted, costs.layout.model.window)
        return tally, ring_busy(costs, counted, tally)

    def entered(self, request: Request, beats: tuple[int, int], begun: float) -> Entered:
        """Return the tokens of a request that entered in the first `begun` beats."""
        (first, last), prompt = beats, request.prompt
        if begun > last:
            laps = (begun - 1 - last) // self.schedule.lap
            return prompt, prompt, int(min(request.output - 1, laps))
        return prompt, max(0, int(prompt * (begun - first) // (last + 1 - first))), 0
