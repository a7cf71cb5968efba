"""Availability over months, simulated on SimPy.

A system is down while fewer parts are good than it needs.  It is also down while a spare takes
a part's place: SRAM is volatile, so the weights are loaded again.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from sim.inputs.errors import error_at_path
from sim.reliability.closed_forms import (
    ClosedFormAvailability,
    closed_form_availability,
    mtbf,
    series_availability,
)
from sim.reliability.failures import Failures, Faults, PartGroup, part_groups
from sim.results.statistics import AvailabilityMetrics, FaultMetrics
from sim.units import HOUR, YEAR, Fraction, Seconds, format_quantity

FailureProcess = Generator[simpy.Event, Any, None]
WARM_UP_LIVES = 5  # relaxation times, or swaps
MOST_LIVES = 1e7  # of parts, over all samples: some minutes
ROUNDED = 1e-9  # below this an availability is rounding error and counts as 0


@dataclass(frozen=True)
class Availability:
    """The availability of a system in each sample, and the rate of its outages.

    samples: float[sample], the share of time that the system works.
    swap: duration of a swap of parts [s].
    mtbf: mean time between failures of the parts at work [s].
    without_spares: availability in closed form without spares.
    model_swaps: share of time of model swaps.
    closed: None if there is no closed form.
    """

    samples: tuple[float, ...]
    outages_per_second: float
    swap: Seconds
    mtbf: Seconds
    without_spares: Fraction
    model_swaps: Fraction
    closed: ClosedFormAvailability | None

    @property
    def mean(self) -> float:
        """The mean availability of the samples."""
        return float(np.mean(self.samples))

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return float(np.std(self.samples, ddof=1)) / math.sqrt(len(self.samples))

    @property
    def half_width(self) -> float:
        """The half width of the 95 % interval of the mean, by Student's t."""
        from scipy.stats import t

        return float(t.ppf(0.975, len(self.samples) - 1)) * self.standard_error

    @property
    def metrics(self) -> AvailabilityMetrics:
        """The metrics for a result."""
        closed = self.closed
        faults = FaultMetrics(
            p5_availability=float(np.percentile(self.samples, 5)),
            closed_form_availability=closed.availability if closed else None,
            closed_form_availability_without_swaps=closed.parts if closed else None,
            series_availability=self.without_spares,
            mtbf_h=self.mtbf / HOUR,
            swap_s=self.swap,
            lost_to_model_swaps=self.model_swaps,
            outages_per_year=self.outages_per_second * YEAR,
        )
        return AvailabilityMetrics(
            availability=self.mean, ci95_availability=self.half_width, faults=faults
        )


def require_simulable(faults: Faults, chips: int, load: Seconds | None) -> None:
    """Check that the availability of a system can be simulated.

    load: time to load the weights; None if the chip's file has no host link.
    Raises: ValueError if parts cannot be counted or are too many to simulate, or if a model
    cannot be loaded in time.
    """
    groups = part_groups(faults, chips)
    start = warm_up_time(faults, groups, faults.detection + (load or 0.0))
    lives = sum(group.parts * (1 + (start + faults.horizon) * group.rate) for group in groups)
    if faults.samples * lives > MOST_LIVES:
        reason = (
            f"got {faults.samples}, with {faults.samples * lives:,.0f} lives of parts to simulate; "
            f"expected at most {MOST_LIVES:,.0f} lives; try a shorter horizon, or fewer samples"
        )
        raise error_at_path(("faults", "samples"), faults.samples, reason)
    if every := faults.model_swap_every:
        at = ("faults", "model_swap_every")
        if load is None:
            reason = (
                "got a chip without host_link; expected the link that loads the weights; "
                "try chip: {like: …, host_link: 32 GB/s}"
            )
            raise error_at_path(at, every, reason)
        if load >= every:
            reason = (
                f"got {format_quantity(every, 's')}; expected more than the "
                f"{format_quantity(load, 's')} that a model takes to load; "
                f"try {format_quantity(10 * load, 's')}"
            )
            raise error_at_path(at, every, reason)


class DownTimes:
    """The times at which a system is down.

    It is down from a failure until no place is empty and the last swap is over.
    It is also down while it loads a model.
    """

    def __init__(self, swap: Seconds) -> None:
        self.swap = swap
        self.empty = 0  # places without a working part
        self.ready = 0.0  # end of the last swap [s]
        self.began: list[Seconds] = []
        self.ended: list[Seconds] = []
        self.failed: list[bool] = []  # whether the outage began with a failure

    def part_failed(self, now: Seconds, replaced: bool) -> None:
        """Record the failure of a part at work, and whether a spare takes its place."""
        self.start(now, self.swap, failed=True)
        self.empty += not replaced

    def start(self, now: Seconds, lasts: Seconds, failed: bool) -> None:
        """Record an outage of at least `lasts`; extend one that is under way."""
        if not self.empty and now >= self.ready:
            if self.began:
                self.ended.append(self.ready)
            self.began.append(now)
            self.failed.append(failed)
        self.ready = max(self.ready, now + lasts)

    def place_filled(self, now: Seconds) -> None:
        """Record that a repaired part takes an empty place."""
        self.empty -= 1
        self.ready = max(self.ready, now + self.swap)

    def between(self, start: Seconds, end: Seconds) -> tuple[Seconds, int]:
        """Return the time down, and the number of outages that began with a failure.

        start, end: the interval [s]; `end` is now.
        """
        last = [end if self.empty else self.ready] if self.began else []
        began, ended = np.array(self.began), np.array([*self.ended, *last])
        down = np.clip(ended, start, end) - np.clip(began, start, end)
        return float(down.sum()), int((began >= start)[np.array(self.failed, bool)].sum())


class SparePool:
    """The idle spares of a group, and the number of its empty places."""

    def __init__(self) -> None:
        self.idle: list[FailingPart] = []
        self.empty = 0


class FailingPart:
    """A part that is at work or idle, fails, and is repaired, again and again.

    The component that failed is new after the repair.  The others keep their age.
    left: float[cause], the residual life of each component [s].
    """

    def __init__(
        self, causes: Sequence[Failures], left: Sequence[Seconds], pool: SparePool, at_work: bool
    ) -> None:
        self.causes, self.left = causes, np.array(left)
        self.pool, self.at_work = pool, at_work
        if not at_work:
            pool.idle.append(self)

    def life(
        self,
        env: simpy.Environment,
        down_times: DownTimes,
        crews: simpy.Resource,
        repair: Seconds,
        rng: np.random.Generator,
    ) -> FailureProcess:
        """Run the part: it fails, waits for a crew, is repaired, and returns."""
        left = self.left
        while True:
            first = int(left.argmin())
            lasted = float(left[first])
            yield env.timeout(lasted)
            left -= lasted
            left[first] = self.causes[first].life(rng)
            self.fail(env.now, down_times)
            with crews.request() as turn:
                yield turn
                yield env.timeout(rng.exponential(repair))
            self.come_back(env.now, down_times)

    def fail(self, now: Seconds, down_times: DownTimes) -> None:
        """Leave the pool, or leave the place at work to a spare."""
        pool = self.pool
        if not self.at_work:
            pool.idle.remove(self)
            return
        self.at_work = False
        if pool.idle:
            pool.idle.pop().at_work = True
            down_times.part_failed(now, replaced=True)
        else:
            pool.empty += 1
            down_times.part_failed(now, replaced=False)

    def come_back(self, now: Seconds, down_times: DownTimes) -> None:
        """Take an empty place, or join the pool of spares."""
        pool = self.pool
        if pool.empty:
            pool.empty -= 1
            self.at_work = True
            down_times.place_filled(now)
        else:
            pool.idle.append(self)


def swap_models(
    env: simpy.Environment, down_times: DownTimes, every: Seconds, load: Seconds, first: Seconds
) -> FailureProcess:
    """Swap the model every `every` seconds, for the first time after `first`."""
    yield env.timeout(first)
    while True:
        down_times.start(env.now, load, failed=False)
        yield env.timeout(every)


def sample_availability(
    faults: Faults, groups: Sequence[PartGroup], load: Seconds, rng: np.random.Generator
) -> tuple[float, int]:
    """Simulate one system over the horizon; return its availability and its number of outages.

    Settled parts get a warm-up before the horizon begins.
    """
    env, down_times = simpy.Environment(), DownTimes(faults.detection + load)
    crews = simpy.Resource(env, faults.crews or sum(group.parts for group in groups))
    settled = faults.age == "settled"
    if every := faults.model_swap_every:
        env.process(swap_models(env, down_times, every, load, every * rng.random()))
    for group in groups:
        pool = SparePool()
        for number in range(group.parts):
            left = [cause.rest(rng) if settled else cause.life(rng) for cause in group.causes]
            part = FailingPart(group.causes, left, pool, number < group.needed)
            env.process(part.life(env, down_times, crews, faults.repair, rng))
    start = warm_up_time(faults, groups, down_times.swap)
    env.run(until=start + faults.horizon)
    down, count = down_times.between(start, start + faults.horizon)
    up = 1 - down / faults.horizon
    return up if up > ROUNDED else 0.0, count


def warm_up_time(faults: Faults, groups: Sequence[PartGroup], swap: Seconds) -> Seconds:
    """Return the time until the usual number of repairs and swaps is under way.

    0 if the horizon begins with new parts.
    """
    if faults.age == "new":
        return 0.0
    crews = faults.crews or sum(group.parts for group in groups)
    return WARM_UP_LIVES * max(relaxation_time(groups, faults.repair, crews), swap)


def relaxation_time(groups: Sequence[PartGroup], repair: Seconds, crews: int) -> Seconds:
    """Return how long the initial state matters: repair / (1 - sqrt(load))^2.

    load: parts x rate x repair / crews, as for a queue, and at most 0.8.  Above that the parts
    that are out, which do not fail, reduce the load.
    Source: Morse, "Queues, Inventories and Maintenance", 1958, for M/M/1.
    """
    load = sum(group.parts * group.rate for group in groups) * repair / crews
    return repair / (1 - math.sqrt(min(load, 0.8))) ** 2


def simulate_availability(
    faults: Faults, chips: int, load: Seconds, seed: Sequence[int]
) -> Availability:
    """Return the availability of a system, simulated and in closed form.

    chips: chips that the model needs.  load: time to load its weights [s].
    Raises: ValueError if the parts cannot be counted.
    """
    groups, swap = part_groups(faults, chips), faults.detection + load
    model_swaps = load / faults.model_swap_every if faults.model_swap_every else 0.0
    rng = np.random.default_rng(seed)
    runs = [sample_availability(faults, groups, load, rng) for _ in range(faults.samples)]
    shares, counts = zip(*runs, strict=True)
    often = sum(counts) / len(runs) / faults.horizon
    closed = (
        closed_form_availability(groups, faults.repair, swap, faults.crews, model_swaps)
        if faults.age == "settled"
        else None
    )
    between = mtbf(groups)
    without_spares = series_availability(between, faults.repair)
    return Availability(shares, often, swap, between, without_spares, model_swaps, closed)
