"""Clauses of titles: the systems that a title may compare, and the ratios between them.

A system that does not keep up with the load is never the best one of a title.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plots import style
from sim.results.labels import system_label, trimmed_number
from sim.results.summary import SystemSummary
from sim.results.verdict import Verdict

# Verdicts of systems that do not keep up. A run that is too short to tell may be compared.
BEHIND: tuple[Verdict, ...] = ("BACKLOGGED", "OVERLOADED", "REFUSED")
NAMED = 2  # systems that a clause names beside the best one


def keeping_up(systems: Mapping[str, SystemSummary]) -> dict[str, SystemSummary]:
    """Return the systems that keep up with the load, by label."""
    return {
        system_label(name, system.identity): system
        for name, system in systems.items()
        if system.metrics.verdict not in BEHIND
    }


def behind(systems: Mapping[str, SystemSummary]) -> str:
    """Return 'overloaded: 1 H100', with all systems that do not keep up; '' if all do."""
    clauses = []
    for verdict in BEHIND:
        labels = [
            system_label(name, system.identity)
            for name, system in systems.items()
            if system.metrics.verdict == verdict
        ]
        if labels:
            clauses.append(f"{verdict.lower()}: {listed(labels)}")
    return "; ".join(clauses)


def listed(labels: Sequence[str]) -> str:
    """Return 'A', 'A and B', or 'A, B and 3 more'."""
    if len(labels) <= NAMED:
        return " and ".join(labels)
    return f"{', '.join(labels[:NAMED])} and {len(labels) - NAMED} more"


def multiples_of(best: str, values: Mapping[str, float]) -> str:
    """Return '2.3 times 8 H100, 10 times 1 H100': the next best and the last of other systems.

    values: the more, the better, by label. '' without other systems.
    """
    others = sorted((value, label) for label, value in values.items() if label != best)
    shown = others if len(others) <= NAMED else [others[0], others[-1]]
    return ", ".join(
        f"{style.times(values[best] / value)} {label}" for value, label in reversed(shown) if value
    )


@dataclass(frozen=True)
class Race:
    """The medians of systems that keep up, or the times of one request on them, by label.

    speeds: tokens per second of a user. first, last: times of the first and last token [ms].
    whose: 'for a user', or in which request the speed was.
    """

    speeds: Mapping[str, float]
    first: Mapping[str, float]
    last: Mapping[str, float]
    whose: str = "for a user"

    @property
    def finding(self) -> str:
        """The fastest system, and the systems with the earliest first and last token.

        A system whose answers end later than another's is not called the fastest.
        """
        best = max(self.speeds, key=lambda label: self.speeds[label])
        earliest = min(self.first, key=lambda label: self.first[label])
        done = min(self.last, key=lambda label: self.last[label])
        speed = f"{trimmed_number(self.speeds[best])} token/s {self.whose}"
        if self.last[done] < self.last[best]:
            ends, begins = (style.duration(x) for x in (self.last[done], self.first[earliest]))
            return (
                f"Whole answer: earliest from {done}, {ends} ({best}: "
                f"{style.duration(self.last[best])}); fastest stream: {best}, {speed}; "
                f"first token: earliest from {earliest}, {begins}"
            )
        others = multiples_of(best, self.speeds)
        first = f"first token after {style.duration(self.first[best])}"
        if earliest != best:
            first += f" ({earliest}: {style.duration(self.first[earliest])})"
        return joined(f"{best}: {speed}" + (f", {others}" if others else ""), first)


def joined(*clauses: str) -> str:
    """Return the clauses of a title that are not empty, the most important one first."""
    return "; ".join(filter(None, clauses))
