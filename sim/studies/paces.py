"""The pace at which a deployment serves equal requests, with k of them in each micro-batch.

    Paces(deployment, equal_requests(512, 128), 0, slo, loop).pace(together=False, k=16).tpot  # s

There are no gaps between steps. `sim.studies.bound` finds the highest load with it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

from sim.cost.system_costs import pass_times
from sim.cost.work import Work, decodes_at
from sim.planning.deployment import Deployment
from sim.studies.typical_request import TypicalRequest
from sim.units import Seconds
from sim.workload.arrivals import Workload
from sim.workload.slo import SLO


@dataclass(frozen=True)
class Loop:
    """A closed loop: the pause of a user between an answer and the next request.

    in_step: all users send equal requests, so all their prompts may come at one instant.
    """

    pause: Seconds
    in_step: bool = False


def loop_of(workload: Workload) -> Loop | None:
    """Return the closed loop of a workload; None for another kind of load."""
    return None if workload.pause is None else Loop(workload.pause, workload.in_step)


class Pace(NamedTuple):
    """The pace of requests with k of them in each micro-batch.

    time: in which the slowest stage advances k requests by a step [s]. work: of a step.
    in_step: whether the prompts of all users come together, in groups.
    first: time to the first token of a group, without other groups; 0 if not in step [s].
    wait: time that the last group waits for the prompts of the others [s].
    """

    time: Seconds
    work: Work
    tpot: Seconds
    in_step: bool = False
    first: Seconds = 0.0
    wait: Seconds = 0.0


@dataclass(frozen=True)
class Paces:
    """The paces of a deployment.

    cached: tokens of a prompt that are in the cache.
    """

    deployment: Deployment
    request: TypicalRequest
    cached: float
    slo: SLO
    loop: Loop | None

    @cached_property
    def steps(self) -> float:
        """The steps of a mean request."""
        return max(1.0, (self.request.output - 1) / self.deployment.layout.mean_tokens)

    @cached_property
    def computed(self) -> float:
        """The tokens of a prompt that are computed."""
        return max(1.0, self.request.prompt - self.cached)

    @cached_property
    def needed(self) -> float:
        """The tokens that the steps of a request compute."""
        return self.computed + self.deployment.limits.width * self.steps

    @cached_property
    def in_flight(self) -> int:
        """The micro-batches that hold sequences."""
        return min(self.deployment.limits.spread, max(1, self.concurrent))

    @cached_property
    def concurrent(self) -> int:
        """The most sequences of a replica."""
        return self.deployment.limits.max_concurrent(math.ceil(self.request.held)) or 0

    @cached_property
    def alone(self) -> Seconds:
        """The time to the first token of an unloaded request."""
        return first_token(self.deployment, self.request.prompt, self.cached)

    @property
    def in_step(self) -> bool:
        """Whether all users may be in step. With drafts, requests take unlike steps."""
        return self.loop is not None and self.loop.in_step and self.deployment.limits.width == 1

    def stay_in_step(self, users: float) -> bool:
        """Return whether users that pause stay in step, if none waits for room.

        They do if all prompts need fewer steps than an answer. Then each answer ends after the
        prompts of all users, so all users pause together again.
        """
        steps = users * self.computed / self.deployment.limits.token_budget
        return bool(self.in_step and self.loop and self.loop.pause) and steps < self.steps

    def most(self, together: bool) -> int:
        """Return the most sequences of a micro-batch, and at least one.

        A sequence takes `needed / steps` tokens of each step, with the prompts that replace it. The
        last one may take more than are left: `mixed` adds steps for these prompts. If sequences do
        not spread evenly, some micro-batches have one more.
        """
        limits = self.deployment.limits
        filling = min(limits.batch_sequences, limits.token_budget // limits.width)
        if together:
            return max(1, min(self.concurrent // self.in_flight, filling))
        filling = min(filling, math.ceil(limits.token_budget * self.steps / self.needed))
        return max(1, min(-(-self.concurrent // self.in_flight), filling))

    def allows(self, together: bool, k: int) -> bool:
        """Return whether the SLO allows the latencies with k sequences in each micro-batch."""
        pace = self.pace(together, k)
        early = pace.first + pace.wait <= (self.slo.ttft or math.inf)
        in_time = self.phases(pace)[0] + self.late_answer(pace) <= (self.slo.e2el or math.inf)
        return early and in_time and self.slo.allows_tpot(pace.tpot)

    def phases(self, pace: Pace) -> tuple[Seconds, Seconds]:
        """Return the time to the first token, and from it to the last, if no request waits."""
        answer = self.steps * self.deployment.layout.mean_tokens * pace.tpot
        return max(self.alone, pace.first), answer

    def late_answer(self, pace: Pace) -> Seconds:
        """Return the time from the first token to the last of the longest answer within the SLO."""
        return max(self.deployment.layout.mean_tokens, self.request.late_output - 1) * pace.tpot

    def choices(self) -> Iterator[tuple[Pace, int, int]]:
        """Yield the paces within the SLO, each with its k and the most that k may be.

        Users that may be in step are in step, unless some of them wait for room.
        """
        for together in (True, False) if self.in_step else (False,):
            most, allows = self.most(together), partial(self.allows, together)
            precision = 0.0 if together else 0.02  # users in step are a bound, not an estimate
            counts = decode_counts(most, allows, precision)
            # Users in step leave it only if some wait for room, so with the most sequences.
            for k in filter(allows, [most] if self.in_step and not together else counts):
                yield self.pace(together, k), k, most

    def pace(self, together: bool, k: int) -> Pace:
        """Return the pace with k sequences in each micro-batch."""
        return self.together(k) if together else self.mixed(k)

    def mixed(self, k: int) -> Pace:
        """Return the pace if each step has the prompts that replace the requests which end.

        Prompt tokens beyond the budget of the step take further steps, without decodes.
        If not all micro-batches can have k sequences, the time is that of Little's law: as many
        sequences as fit, each from its prompt to its last token.
        """
        limits = self.deployment.limits
        passes = max(1.0, k * self.needed / self.steps / limits.token_budget)
        room = max(0, limits.token_budget - k * limits.width)
        chunk = min(round(k * self.computed / self.steps), room)
        work = self._step(k, chunk)
        time, tpot = paced_step(self.deployment, work, limits.spread)
        if passes > 1:
            full = self._step(0, limits.token_budget)
            time += (passes - 1) * paced_step(self.deployment, full, limits.spread)[0]
        if k * limits.spread <= self.concurrent:
            return Pace(time, work, tpot)
        pace = Pace(time, work, paced_step(self.deployment, work, self.in_flight)[1])
        held = sum(self.phases(pace))
        return pace._replace(time=max(time, k * held / self.steps / max(1, self.concurrent)))

    def together(self, k: int) -> Pace:
        """Return the pace if the prompts of all users come together, in as few groups as possible.

        Prompts that take several steps share them with decodes of other groups.  Without a pause,
        groups come at different times, and there are as many as the SLO's TTFT requires.  With a
        pause, all groups come together, because the first users still pause when the last end.
        """
        work = self._step(k, 0)
        time, tpot = paced_step(self.deployment, work, self.in_flight)
        tokens, budget = k * self.computed, self.deployment.limits.token_budget
        groups = min(k, max(1, math.ceil(tokens / budget)))
        decodes = k - -(-k // groups)  # of other groups, beside the prompts of one
        chunk = min(max(1, budget - decodes), max(1, round(tokens)))
        costs = self.deployment.costs
        others = pass_times(costs, self._step(decodes, 0))[0] if decodes else 0.0
        longer = pass_times(costs, self._step(decodes, chunk))[0] - others
        seconds = tokens / chunk * longer
        # A request does not decode in the steps with its own prompt, but others do.
        own = self.computed / chunk * others
        first = self.in_flight * seconds
        pause = self.loop.pause if self.loop else 0.0
        if not pause:
            groups = min(k, max(groups, int(first / (self.slo.ttft or math.inf))))
        between = first * (1 - 1 / groups)
        tpot += between / (self.steps * self.deployment.layout.mean_tokens)
        wait = between if pause else 0.0
        first += self.in_flight * own - between
        return Pace(time + (seconds + own) / self.steps, work, tpot, True, first, wait)

    def _step(self, k: int, chunk: int) -> Work:
        prompt, context = self.request.prompt, self.request.context
        return mean_step(self.deployment, k, context, chunk, prompt, self.cached)


def decode_counts(most: int, within: Callable[[int], bool], precision: float = 0.02) -> list[int]:
    """Return the numbers of sequences to try: powers of the root of 2, and `most`.

    within: whether a number is within the SLO.  If one is not, no larger one is.  The largest one
    that is within it is also tried, to `precision`.
    """
    counts = {min(most, round(2 ** (n / 2))) for n in range(2 * most.bit_length() + 2)}
    refused = next((k for k in sorted(counts) if not within(k)), None)
    if refused is None:
        return sorted(counts)
    allowed = max((k for k in counts if k < refused), default=1)
    while refused - allowed > max(1, int(precision * refused)):
        middle = (allowed + refused) // 2
        allowed, refused = (middle, refused) if within(middle) else (allowed, middle)
    return sorted({*counts, allowed})


def first_token(deployment: Deployment, prompt: float, cached: float = 0.0) -> Seconds:
    """Return an estimate of the TTFT of an unloaded request.

    Its chunks enter one after another, and the last one passes all stages.
    """
    computed = max(1.0, prompt - cached)
    chunk = min(deployment.limits.prompt_budget, max(1, round(computed)))
    work = mean_step(deployment, 0, 0.0, chunk, prompt, cached)
    time, unloaded = pass_times(deployment.costs, work)
    return (computed / chunk - 1) * time + unloaded


def mean_step(
    deployment: Deployment,
    decodes: int,
    context: float,
    chunk: int,
    prompt: float,
    cached: float = 0.0,
) -> Work:
    """Return the work of a step.

    decodes: sequences that decode, each at `context` positions. chunk: prompt tokens of the step.
    cached: tokens at the start of each prompt that are not computed.
    """
    window = deployment.limits.window or math.inf
    work = decodes_at(decodes, context, deployment.limits.window, deployment.limits.width)
    if chunk:
        middle = (prompt + cached) / 2  # position of a mean computed token
        prompts = round(chunk / max(1.0, prompt - cached))
        work.chunks = max(1, prompts, -(-chunk // deployment.limits.prompt_budget))
        work.prompt_tokens, work.cached = chunk, chunk + middle
        work.rank_prompt = -(-chunk // min(work.chunks, deployment.limits.ranks))
        work.attended, work.windowed_attended = chunk * middle, chunk * min(middle, window)
        work.windowed_cached = min(work.cached, chunk + window)
    return work


def paced_step(deployment: Deployment, work: Work, in_flight: int) -> tuple[Seconds, Seconds]:
    """Return the time in which the slowest stage makes a step, and the TPOT of its sequences.

    The micro-batches in flight take turns on that stage, or wait for a pass through all of them.
    If they are too few to fill the pipeline, the slowest stage waits, too.
    """
    time, unloaded = pass_times(deployment.costs, work)
    turn = max(in_flight * time, unloaded)
    return turn / in_flight, turn / deployment.layout.mean_tokens
