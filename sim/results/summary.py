"""The summary of a run, typed: the contract of `run --json`.

    >>> from sim.results.saving import load_result  # doctest: +SKIP
    >>> load_result(folder).summary.systems["lpu"].metrics.tpot.median  # doctest: +SKIP
    3.25

`sim.results.encoding` writes and reads them. None is a missing value; an `OMIT_NONE` field that is
None has no key in JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.economics.break_even import PricedSystem
from sim.economics.owner_costs import CostEstimate, EconomicTerms
from sim.economics.token_price import TokenPrice
from sim.inputs.key_paths import JsonValue
from sim.results.encoding import OMIT_NONE, SPLICED, Key
from sim.results.ordering import Ordering
from sim.results.sources import EntrySources
from sim.results.statistics import Metrics, TraceMetrics
from sim.results.system_identity import (
    FleetIdentity,
    FleetMember,
    Identity,
    UnloadedRequest,
)


@dataclass(frozen=True, kw_only=True)
class LinkUse:
    """A link of a chip-level run: its messages, the time they took, and the time they waited."""

    link: str
    messages: int
    busy_ms: float
    waited_ms: float


@dataclass(frozen=True, kw_only=True)
class NetworkUse:
    """The links of a chip-level run: messages, and the time that they waited for others.

    links_waited_for: the five with the longest waits.
    """

    messages: int
    waited_ms: float
    links_waited_for: tuple[LinkUse, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EnergyUse:
    """The energy of a system: J per output token, by cause, and mean power [W]. pue: no unit."""

    joules_per_token: float
    joules_per_token_by_cause: Mapping[str, float]
    mean_power_w: float
    pue: float


@dataclass(frozen=True, kw_only=True)
class TokenCosts:
    """The energy and money of a system's tokens, as far as they are known.

    busy_share: of its time, the mean over chips. All are None if the system gave no token.
    """

    busy_share: Annotated[float | None, OMIT_NONE] = None
    energy: Annotated[EnergyUse | None, OMIT_NONE] = None
    economics: Annotated[TokenPrice | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class CapacityEstimate:
    """An estimate of the highest load of a system within the SLO, without a simulation.

    load: request/s, or users of a closed loop. output_throughput, costs: at that load; tokens/s.
    """

    load: float
    output_throughput: float
    costs: Annotated[TokenCosts, SPLICED]


@dataclass(frozen=True, kw_only=True)
class TokenLengths:
    """The tokens of prompts or of outputs: least, mean and most."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True, kw_only=True)
class OfferedLoad:
    """The requests that every system gets.

    rate: request/s, or sessions/s of sessions. users: of a closed loop. None: it has none.
    shared_prefix: tokens with which all prompts begin; None without.
    """

    requests: int
    sessions: Annotated[int | None, OMIT_NONE] = None
    rate: Annotated[float | None, OMIT_NONE] = None
    users: Annotated[int | None, OMIT_NONE] = None
    shared_prefix: Annotated[int | None, OMIT_NONE] = None
    prompt: TokenLengths
    output: TokenLengths

    @property
    def varied(self) -> float | None:
        """The load that a search of capacity varies: users, or request/s."""
        return self.users if self.users is not None else None if self.sessions else self.rate


@dataclass(frozen=True, kw_only=True)
class SystemSummary:
    """One system: its identity, the metrics of its users, its costs.

    fidelity: 'stage' or 'chip'. network: None at stage fidelity.
    outages: start and end of each time when a replica is down [s]. unloaded: None for a fleet.
    at_capacity: None without an SLO, without a load to vary, or if no load meets the SLO.
    no_capacity: why no load meets the SLO; None if that is not known.
    """

    identity: Annotated[Identity, SPLICED]
    fidelity: str
    network: Annotated[NetworkUse | None, OMIT_NONE] = None
    metrics: Annotated[Metrics, SPLICED]
    costs: Annotated[TokenCosts, SPLICED]
    at_capacity: Annotated[CapacityEstimate | None, OMIT_NONE] = None
    no_capacity: Annotated[str | None, OMIT_NONE] = None
    outages: Annotated[tuple[tuple[float, float], ...] | None, OMIT_NONE] = None
    unloaded: Annotated[UnloadedRequest | None, OMIT_NONE, Key("lone_request")] = None

    @property
    def costs_at_capacity(self) -> TokenCosts:
        """The estimated costs of a token at capacity, as far as they are known."""
        return self.at_capacity.costs if self.at_capacity else TokenCosts()

    @property
    def by_chip(self) -> bool:
        """Whether every chip is a process."""
        return self.fidelity == "chip"

    @property
    def members(self) -> Mapping[str, FleetMember]:
        """The members of a fleet; empty for a plain system."""
        return self.identity.members if isinstance(self.identity, FleetIdentity) else {}

    @property
    def priced(self) -> PricedSystem | None:
        """The token price of a plain system, if it is known and more than zero; else None."""
        identity, price, metrics = self.identity.plain, self.costs.economics, self.metrics
        if not (identity and price and price.usd_per_mtok and self.unloaded):
            return None
        return PricedSystem(
            chip=identity.chip,
            card_usd=price.card_usd,
            usd_per_mtok=price.usd_per_mtok,
            cards_usd_per_mtok=price.usd_per_mtok_by_cause.get("chips", 0.0),
            throughput=metrics.output_throughput or 0.0,
            speed_alone=1000 / self.unloaded.tpot_ms,
            speed_loaded=metrics.user_speed,
        )


@dataclass(frozen=True, kw_only=True)
class RunOrigin:
    """The origin of a run in a folder: version, question, inputs and sources.

    question: the scenario file's opening comment. inputs: its data. sources: by entry.
    folders: by dotted key of an input that names a user's file, the folder of that name, relative
        to the folder of the result. None without such inputs.
    """

    version: Annotated[str | None, OMIT_NONE] = None
    question: Annotated[str | None, OMIT_NONE] = None
    inputs: Mapping[str, JsonValue]
    sources: Annotated[Mapping[str, EntrySources] | None, OMIT_NONE] = None
    folders: Annotated[Mapping[str, str] | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The summary of a run, and its origin.

    workload: its kind. load: its requests; None in results of earlier versions.
    note: the parts of a trace that were left out or cut.
    measured: latencies of the trace's own server.
    slo: limits by name [s]. slo_percentile: of the requests that must be within them; None: not
        judged. economics: None if the scenario has none.
    estimate: by system; None if no prices are known.
    order: of the systems, with bands; None unless the scenario has `order_by`.
    origin: None in `run --json`.
    """

    scenario: str
    seed: int
    workload: Annotated[str | None, OMIT_NONE] = None
    load: Annotated[OfferedLoad | None, OMIT_NONE] = None
    note: Annotated[str | None, OMIT_NONE] = None
    measured: Annotated[TraceMetrics | None, OMIT_NONE] = None
    slo: Annotated[Mapping[str, float] | None, OMIT_NONE, Key("slo_s")] = None
    slo_percentile: Annotated[float | None, OMIT_NONE] = None
    economics: Annotated[EconomicTerms | None, OMIT_NONE] = None
    estimate: Annotated[Mapping[str, CostEstimate] | None, OMIT_NONE] = None
    systems: Mapping[str, SystemSummary]
    order: Annotated[Ordering | None, OMIT_NONE] = None
    origin: Annotated[RunOrigin | None, SPLICED] = None

    @property
    def identities(self) -> dict[str, Identity]:
        """The identity of each system."""
        return {name: system.identity for name, system in self.systems.items()}

    def unloaded_of(self, name: str) -> UnloadedRequest | None:
        """Return the single request of a plain system, or of a pool in place: 'pd.decode'."""
        for owner, system in self.systems.items():
            if owner == name:
                return system.unloaded
            if name in system.members and name not in self.systems:
                return system.members[name].unloaded
        return None

    @property
    def priced_systems(self) -> dict[str, PricedSystem]:
        """The plain systems whose token price is known and more than zero, by name."""
        priced = {name: system.priced for name, system in self.systems.items()}
        return {name: system for name, system in priced.items() if system}
