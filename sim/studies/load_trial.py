"""The result of one trial of a capacity search: attainment, verdict, and what limits the load.

trial.met(0.9)  # whether 90 % of the requests met the SLO, and the system kept up
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.results.capacity_summary import TrialSummary
from sim.results.verdict import KEEPS_UP, Verdict
from sim.units import Seconds


@dataclass(frozen=True)
class KindTrial:
    """The requests of one kind in a trial.

    share: share that must meet the SLO. attainment: share that met it.
    missed: share that missed each limit, or were refused.
    """

    share: float
    attainment: float
    missed: dict[str, float]

    @property
    def met(self) -> bool:
        """Whether enough requests of the kind met their SLO."""
        return self.attainment >= self.share


@dataclass(frozen=True)
class LoadTrial:
    """A run of one system at one load.

    load: request/s, or users of a closed loop.
    attainment: share of the requests that met the SLO.
    kept: output tokens served, divided by those offered, in the counted part.
    missed: share of the requests that missed each limit, or were refused.
    counted: start and end of the counted part [s].
    pool: the pool whose requests wait more at the end; '' without pools.
    kinds: kinds of requests with an SLO, by name; empty without kinds.
    recorded: whether the requests are those of a trace, of which there are no more.
    """

    load: float
    attainment: float
    verdict: Verdict
    output_throughput: float
    kept: float
    missed: dict[str, float]
    counted: tuple[Seconds, Seconds]
    closed: bool = False
    pool: str = ""
    kinds: dict[str, KindTrial] = field(default_factory=dict)
    recorded: bool = False

    @property
    def summary(self) -> TrialSummary:
        """The trial as results store it."""
        return TrialSummary(
            load=self.load,
            attainment=self.attainment,
            verdict=self.verdict,
            output_throughput=self.output_throughput,
            kept=self.kept,
            missed=self.missed,
            closed=self.closed,
            kinds={name: kind.attainment for name, kind in self.kinds.items()} or None,
        )

    @property
    def keeps_up(self) -> bool:
        """Whether the system serves the offered load.

        The users of a closed loop wait for answers, so it keeps up unless it turns requests away.
        """
        return self.verdict != "OVERLOADED" and (self.closed or self.kept >= KEEPS_UP)

    @property
    def goodput(self) -> float:
        """The load, but never more requests per second than are served."""
        return self.load if self.closed else self.load * min(1.0, self.kept)

    def met(self, share: float) -> bool:
        """Return whether a share of the requests met the SLO and the system kept up.

        With kinds of requests, enough of each kind met their SLO.
        """
        return self.attained(share) and self.keeps_up

    def attained(self, share: float) -> bool:
        """Return whether enough requests, of each kind, met the SLO."""
        if self.kinds:
            return all(kind.met for kind in self.kinds.values())
        return self.attainment >= share

    def undecided(self, share: float) -> bool:
        """Return whether a trace is too short to tell whether the load is met.

        Enough requests met the SLO, and the system is not OVERLOADED. But too many answers were
        under way when the last request came.
        """
        short = self.recorded and self.verdict != "OVERLOADED" and not self.missed["refused"]
        return short and self.attained(share) and not self.keeps_up

    def binds(self, share: float) -> str:
        """Return why the load is not met: the limit that most requests miss, or 'refused'.

        It is 'overload' if the share is met, because the SLO allows long waits, and 'trace too
        short' if a trace cannot tell. With pools, it also
        names the pool that binds, as 'ttft (prefill)'. With kinds of requests, it names the kind
        with the lowest attainment, as 'ttft of rag'.
        """
        if self.kinds and not self.attained(share):
            name, worst = min(self.kinds.items(), key=lambda kind: kind[1].attainment)
            return f"{_most_missed(worst.missed)} of {name}"
        if self.undecided(share):
            return "trace too short"
        limit = "overload" if self.attained(share) else _most_missed(self.missed)
        pool = {"ttft": "prefill", "tpot": "decode"}.get(limit, self.pool) if self.pool else ""
        return f"{limit} ({pool})" if pool else limit


def _most_missed(missed: Mapping[str, float]) -> str:
    """Return the limit that most requests missed."""
    return max(missed, key=lambda limit: missed[limit])
