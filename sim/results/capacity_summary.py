"""The capacity of every system of a scenario, typed: the contract of `capacity --json`.

>>> TraceScale(None)
TraceScale(time_scale=None)

`sim.results.encoding` writes and reads these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import OMIT_NONE, SPLICED, Key
from sim.results.other_chips import Degrees, FfnPoolIdentity
from sim.results.summary import TokenCosts
from sim.results.system_identity import Identity, MaxGoodput
from sim.results.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """A trial of a system at one load.

    load: request/s, or users of a closed loop.
    attainment: share of the requests that met the SLO.
    output_throughput: tokens/s.
    kept: output tokens that came out over those offered, in the counted part.
    missed: share of the requests that missed each limit, or were refused.
    kinds: attainment of each kind of requests with an SLO; None without kinds.
    """

    load: float
    attainment: float
    verdict: Verdict
    output_throughput: float
    kept: float
    missed: Mapping[str, float]
    closed: bool = False
    kinds: Annotated[Mapping[str, float] | None, OMIT_NONE] = None


@dataclass(frozen=True)
class TraceScale:
    """The `time_scale` of a trace for the highest goodput; None if no load is met."""

    time_scale: float | None


@dataclass(frozen=True, kw_only=True)
class BestDegrees(Degrees):
    """The degrees of the best plan, and the precision of its KV cache."""

    kv: str | None = None


@dataclass(frozen=True, kw_only=True)
class BestPlanSummary:
    """The plan with the highest goodput of a system's chips: `capacity --plans`.

    considered: plans that fit. attainment: None if no load is met.
    ffn: the FFN pool, whose attention pool then has `plan`; None without one.
    """

    plan: BestDegrees
    ffn: Annotated[FfnPoolIdentity | None, OMIT_NONE] = None
    most: Annotated[MaxGoodput, SPLICED]
    attainment: float | None
    considered: int
    simulated: int


@dataclass(frozen=True, kw_only=True)
class CapacityOfSystem:
    """The capacity of one system.

    trace: None if the workload is no trace.
    attainment, verdict, output_throughput: at the highest load that is met; None without one.
    binds: the limit that keeps higher loads from being met; None without a higher load.
    above: the trial at the lowest load that is not met; None without one.
    kinds: attainment of each kind of requests there; None without kinds.
    sessions: sessions/s that start at the highest load; None without sessions.
    requests: of a trial.
    reason: why no load is met, why each load is met, or why loads above the highest may be met.
    best: None unless plans were searched.
    """

    identity: Annotated[Identity, SPLICED]
    most: Annotated[MaxGoodput, SPLICED]
    trace: Annotated[TraceScale | None, SPLICED] = None
    attainment: float | None
    kinds: Annotated[Mapping[str, float] | None, OMIT_NONE] = None
    sessions: Annotated[float | None, OMIT_NONE, Key("max_session_rate")] = None
    verdict: Verdict | None
    output_throughput: float | None
    binds: str | None
    above: TrialSummary | None
    trials: int
    requests: int
    reason: str
    costs: Annotated[TokenCosts, SPLICED]
    best: Annotated[BestPlanSummary | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class CapacitySummary:
    """The capacities of a scenario's systems.

    slo: limits by name [ms]. attainment: share of the requests that must meet them.
    kinds: the same limits of each kind of requests; None without kinds.
    """

    scenario: str
    seed: int
    slo: Mapping[str, float]
    kinds: Annotated[Mapping[str, Mapping[str, float]] | None, OMIT_NONE] = None
    attainment: float
    systems: Mapping[str, CapacityOfSystem]

    @property
    def identities(self) -> dict[str, Identity]:
        """The identity of each system."""
        return {name: system.identity for name, system in self.systems.items()}
