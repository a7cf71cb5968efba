"""The configuration of one replica: costs, limits, policies, and its failures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import simpy
from pydantic import Field

from sim.chipsim.machine import MachineFactory
from sim.cost.system_costs import SystemCosts
from sim.inputs.values import Value
from sim.reliability.link_errors import LinkErrorSampler
from sim.results.rows import Rows
from sim.serving.limits import SchedulerLimits
from sim.serving.policy import DEFAULT, Policies
from sim.serving.request import Request
from sim.serving.step_draws import StepDraws
from sim.units import Seconds


class Outage(Value):
    """A time in which a replica is down. All that it holds is lost.

    With `requests: retry` its requests begin again from their prompts on another replica. Without
    another replica they wait for the first that is up again.
    Copies of a system in a fleet, or in a pool with `copies`, have its outages at the same time.
    In an attention pool one rank is down, a copy of its weights. An FFN pool is down as a whole.
    While an FFN pool or a drafter on other chips is down, no step is made, and sequences wait.
    """

    at: Seconds = Field(description="Start of the outage [s].")
    lasts: Annotated[Seconds, Field(gt=0)] = Field(
        description="Time until the spare is in place and the weights are loaded, detection "
        "included [s]."
    )
    replica: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Number of the replica, from 0."
    )
    requests: Literal["retry", "fail"] = Field(
        default="retry",
        description="Fate of its requests: begin again on another replica, or fail.",
    )


@dataclass(frozen=True, slots=True)
class PoolOutages:
    """The outages of an attention pool, and of chips that each step of a replica needs.

    attention: each is of one rank, whose number is `replica`.
    other: of an FFN pool as a whole, or of a drafter on other chips.
    """

    attention: tuple[Outage, ...] = ()
    other: tuple[Outage, ...] = ()

    @property
    def times(self) -> list[Seconds]:
        """The times of all failures and repairs, ascending [s]."""
        both = (*self.attention, *self.other)
        return sorted(time for of in both for time in (of.at, of.at + of.lasts))


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """One replica. Equal replicas share all but their numbers.

    overhead: time of a request before the scheduler sees it: client, HTTP, tokenizer [s].
    machine: makes its chips, if every chip is to be a process; None computes stages.
    system: the system that it is a copy of. number: its number among the copies.
    outages: when it is down. pool_outages: when its pools are; None without pools that fail.
    error_sampler: samples the steps that fail from link errors; None without link errors.
    request_tokens: tokens of a mean request. A ring needs them for its beat.
    draws: the steps of requests with speculation; None without.
    """

    costs: SystemCosts
    limits: SchedulerLimits
    policies: Policies = DEFAULT
    overhead: Seconds = 0.0
    machine: MachineFactory | None = None
    system: str = ""
    number: int = 0
    outages: tuple[Outage, ...] = ()
    error_sampler: LinkErrorSampler | None = None
    request_tokens: float | None = None
    draws: StepDraws | None = None
    pool_outages: PoolOutages | None = None


class ReplicaWiring(NamedTuple):
    """The connections of a replica to its run.

    number: its place in the fleet. rows: the results that it writes.
    on_end: called with a request that ends, and the time [s].
    """

    env: simpy.Environment
    number: int
    config: ReplicaConfig
    rows: Rows
    on_end: Callable[[Request, Seconds], None]
