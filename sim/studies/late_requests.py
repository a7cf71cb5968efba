"""The share of unequal requests that meet the SLO at a rate: a closed form for estimates.

    LateRequests(paces, request.sample).met(0.0)  # below 1: too few meet the SLO even alone

A mean request may meet the SLO while too many long prompts, and answers beside them, miss it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sim.planning.deployment import Deployment
from sim.studies.paces import Paces, first_token, mean_step, paced_step
from sim.studies.typical_request import RequestSample
from sim.units import RequestsPerSecond, Seconds

Times = NDArray[np.float64]

# Shares of the prompts that are shorter than those whose times are computed.
NODES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
RATE_HALVINGS = 12  # of the rates between 0 and the highest one
ROUNDS = 8  # until the sequences of a micro-batch, or the wait, no longer change
RARE = 1e-9  # a tail of a normal distribution that floats cannot divide by


def first_tokens(sample: RequestSample) -> RequestSample:
    """Return requests that end with their first token, as a prefill pool has them."""
    endless = np.full(len(sample.output), math.inf)
    return replace(sample, output=np.ones(len(endless)), tpot=endless, e2el=endless)


@dataclass(frozen=True, slots=True)
class PromptTimes:
    """The times of prompts beside a number of decodes in each micro-batch: float[request], s.

    tpot: without prompts [s]. step: of the decodes, on the slowest stage [s].
    full: the mean step that computes a prompt [s].
    service: in which the slowest stage computes a prompt. added: what of it a step without prompts
        would not take, so that it delays decodes.
    delay: the same until the last chunk has passed all stages of a pipeline.
    """

    tpot: Seconds
    step: Seconds
    full: Seconds
    service: Times
    added: Times
    delay: Times


@dataclass(frozen=True, slots=True)
class LatePoint:
    """A replica at a rate. users: of a closed loop; 0 without one. sequences: of a micro-batch.

    shares: of the requests that meet the SLO, and of those that must, of the worst kind.
    """

    rate: RequestsPerSecond
    users: float
    sequences: int
    shares: tuple[float, float]

    @property
    def met(self) -> float:
        """The share that meets the SLO over the share that must."""
        return self.shares[0] / self.shares[1]


@dataclass(frozen=True)
class LateRequests:
    """Requests of which too many may miss the SLO, on one replica.

    A prompt waits for those before it, and delays all decodes while it is computed:

    * The wait is that of an M/G/1 queue: it is exponential, with the mean of Pollaczek and
      Khinchine. In a closed loop users that wait send nothing, so its tail is a normal one.
      Each attention rank has a queue of its own.
    * The delay of an answer by prompts is a compound Poisson sum, with the gamma distribution of
      the same mean and variance. With a pause that is shorter than the answer, prompts come with
      the steps of other answers, and not with time.

    Left out: room that requests wait for, and changes of the batch.
    Source: Kleinrock, Queueing Systems, volume 1, section 5.6; volume 2, section 2.7.
    """

    paces: Paces
    sample: RequestSample
    _times: dict[int, PromptTimes] = field(default_factory=dict)

    @property
    def deployment(self) -> Deployment:
        """The deployment of the replica."""
        return self.paces.deployment

    @cached_property
    def alone(self) -> Times:
        """The time to the first token of each request, unloaded: float[request], s."""
        return self._by_prompt(lambda prompt: first_token(self.deployment, prompt, self._cached))

    @cached_property
    def served(self) -> NDArray[np.bool_]:
        """Which requests are served. The others never fit, and are refused: bool[request]."""
        limits, tokens = self.deployment.limits, self.sample.prompt + self.sample.output
        return tokens <= min(limits.context, limits.kv_tokens)

    @cached_property
    def tokens(self) -> Times:
        """The tokens of each answer after the first: float[request]."""
        return np.maximum(self.sample.output - 1, 1)

    def most(self, rate: RequestsPerSecond) -> LatePoint | None:
        """Return the highest rate up to `rate` at which enough requests meet the SLO.

        None if too few do even alone.
        """
        if not self.served.any() or self.met(0.0) < 1:
            return None
        best = self.at(rate)
        if best.met >= 1:
            return best
        low, high = 0.0, rate
        for _ in range(RATE_HALVINGS):
            point = self.at((low + high) / 2)
            if point.met >= 1:
                best, low = point, point.rate
            else:
                high = point.rate
        return best if low else None

    def met(self, rate: RequestsPerSecond) -> float:
        """Return `LatePoint.met` at a rate of one replica; at 0 of single requests."""
        return self.at(rate).met

    def at(self, rate: RequestsPerSecond) -> LatePoint:
        """Return the replica at a rate."""
        few, answers, loop = self.served, self.tokens, self.paces.loop
        rate_served, mean_answer = rate * few.mean(), float(answers[few].mean())
        tpot, sequences, ranks = 0.0, 1, self.deployment.limits.ranks
        for _ in range(ROUNDS):
            times = self.times(sequences)
            busy = rate_served / ranks * times.service[few].mean()
            prompts = rate_served * max(tpot, times.full)  # that come during a step
            # Ranks without a prompt wait for those with one.
            alone = 1 / ranks + (1 - 1 / ranks) * -math.expm1(-prompts) / max(prompts, RARE)
            own = rate_served * alone * times.added[few].mean()
            if busy >= 1 or own >= 1:
                return LatePoint(rate, 0.0, sequences, (0.0, 1.0))
            # Prompts that are in a pipeline together delay decodes together.
            added = rate_served * alone * times.delay[few].mean()
            delayed = added / (1 + added - own)
            tpot = times.tpot / (1 - delayed)
            steps = rate_served * mean_answer * tpot
            sequences = max(1, math.ceil(steps / self.paces.deployment.limits.spread))
        phases = float((self.alone + answers * tpot)[few].mean()) + (loop.pause if loop else 0.0)
        users = rate_served * phases if loop else math.inf
        others = rate_served * max(0.0, 1 - 1 / users) if users else 0.0
        early, late = self._time_driven(tpot)
        in_step = others * (early + (1 - early) * min(1.0, tpot / times.full))
        wait, tail = self._waits(
            in_step / ranks, times.service[few], users / ranks if loop else math.inf
        )
        spare = np.minimum(
            self.sample.ttft - self.alone, self.sample.e2el - self.alone - answers * tpot
        )
        met = np.where(spare < times.step / 2, 0.0, 1 - tail(np.maximum(spare - times.step / 2, 0)))
        if added and others:
            delay = times.delay[few] * (alone * delayed / added)
            met = met * self._answers_in_time((times.tpot, tpot), others, delay, late)
        met = np.where(self.sample.tpot < times.tpot, 0.0, met) * few
        kinds = [(self.sample.kind == n, share) for n, share in enumerate(self.sample.shares)]
        shares = [(float(met[kind].mean()), share) for kind, share in kinds if kind.any()]
        worst = min(shares, key=lambda pair: pair[0] / pair[1])
        users = rate_served * (wait + phases) if loop else 0.0
        return LatePoint(rate, users, sequences, worst)

    def times(self, sequences: int) -> PromptTimes:
        """Return the times of prompts beside some sequences in each micro-batch."""
        if sequences not in self._times:
            self._times[sequences] = self._times_beside(sequences)
        return self._times[sequences]

    def _times_beside(self, sequences: int) -> PromptTimes:
        deployment, context = self.deployment, self.paces.request.context
        limits = deployment.limits
        room = limits.token_budget - sequences * limits.width  # of a step, for prompts
        decodes = sequences if room > 0 else 0  # or prompts have micro-batches of their own
        work = mean_step(deployment, sequences, context, 0, self.paces.request.prompt)
        step, tpot = paced_step(deployment, work, limits.spread)

        most = min(room if room > 0 else limits.token_budget, limits.prompt_budget)

        def chunk(prompt: float) -> float:
            return min(most, max(1.0, prompt - self._cached))

        def full(prompt: float) -> Seconds:
            work = mean_step(
                deployment, decodes, context, round(chunk(prompt)), prompt, self._cached
            )
            return paced_step(deployment, work, limits.spread)[0]

        chunks = self._by_prompt(lambda prompt: max(1.0, prompt - self._cached) / chunk(prompt))
        steps = self._by_prompt(full)
        added = chunks * (steps - step) * (room > 0)
        shared = self._by_prompt(lambda prompt: max(1.0, prompt - self._cached) / most)
        return PromptTimes(
            tpot=tpot,
            step=step,
            full=float(steps.mean()),
            service=added + shared * step if room > 0 else chunks * steps,
            added=added,
            delay=added * (1 + (limits.spread - 1) / np.ceil(chunks)),
        )

    @property
    def _cached(self) -> float:
        return self.paces.cached

    def _by_prompt(self, of: Callable[[float], float]) -> Times:
        """Return a function of each request's prompt, linear between some prompts."""
        prompts = np.unique(np.quantile(self.sample.prompt, NODES))
        times: Times = np.interp(self.sample.prompt, prompts, [of(float(p)) for p in prompts])
        return times

    def _time_driven(self, tpot: Seconds) -> tuple[Seconds, Times]:
        """Return the share of the prompts that come with time, while a request waits or decodes.

        The others come with steps: their users began to pause later than the request came.
        """
        if self.paces.loop is None or not self.paces.loop.pause:
            share = float(self.paces.loop is None)
            return share, np.full(len(self.tokens), share)
        pause, limits = self.paces.loop.pause, self.sample
        early = min(1.0, pause / float(np.minimum(limits.ttft, limits.e2el).min()))
        answer = self.tokens * np.where(np.isinf(limits.tpot), tpot, limits.tpot)
        return early, np.minimum(1.0, pause / answer)

    def _waits(
        self, rate: RequestsPerSecond, service: Times, users: float
    ) -> tuple[Seconds, Callable[[Times], Times]]:
        """Return the mean wait for other prompts, and the share that waits longer than a time."""
        busy, squares = rate * float(service.mean()), rate * float((service**2).mean())
        if not busy:
            return 0.0, lambda time: np.zeros_like(time)
        first = mean = squares / 2 / (1 - busy)
        deviation, normal = math.sqrt(squares * users / (2 * busy * rate)), NormalDist()
        for _ in range(ROUNDS):
            # The queue shrinks by 1 - busy, and by `busy * rate / users` for each second of a wait.
            start = (1 - busy) * users / (busy * rate) - mean
            waiting = 1 - normal.cdf(start / deviation) if users < math.inf else 0.0
            if waiting < RARE:  # the queue shrinks as if its users never ended
                return first, lambda time: busy * np.exp(-time * busy / first)
            longer = deviation * normal.pdf(start / deviation) / waiting - start
            mean = (mean + busy * longer) / 2
        from scipy.special import ndtr  # takes longer to load than most commands need

        return mean, lambda time: busy * (1 - ndtr((time + start) / deviation)) / waiting

    def _answers_in_time(
        self, tpot: tuple[Seconds, Seconds], rate: RequestsPerSecond, delay: Times, late: Times
    ) -> Times:
        """Return the probability that prompts delay an answer by no more than TPOT allows.

        tpot: without prompts, and its mean [s]. rate, delay: of prompts.
        late: share of the prompts that come with time.
        """
        limited = np.isfinite(self.sample.tpot) & (self.sample.output > 1)
        limit = np.where(limited, self.sample.tpot, tpot[1])
        prompts = rate * self.tokens * (late * limit + (1 - late) * tpot[1])
        mean, variance = prompts * delay.mean(), prompts * (delay**2).mean()
        spare = np.maximum(self.tokens * (limit - tpot[0]), 0.0)
        from scipy.special import gammainc  # loaded here for the same reason as `ndtr`

        within: Times = gammainc(mean**2 / variance, spare * mean / variance)
        return np.where(limited, within, 1.0)
