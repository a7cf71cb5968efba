"""Why a token takes its time, typed: the contract of `explain --json`.

    >>> ChangeEffect(key="engine.layer_overhead", change_pct=10.0, tpot_pct=4.8).tpot_pct
    4.8

`sim.results.encoding` writes these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import OMIT_NONE


@dataclass(frozen=True, kw_only=True)
class NumberSource:
    """A number of a file. kind: fitted, assumed or sourced. source: the words of the file."""

    value: str
    kind: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ExplainedLine:
    """A part of a time: formula with its values, what binds, and the keys of its numbers.

    term: weights, kv, activations, compute, collectives, hops or overhead.
    binds: memory, compute, link, host or software. share: of the whole time.
    engine_ms: the part that engine `ideal` would not need.
    """

    term: str
    part: str
    what: str
    formula: str
    binds: str
    ms: float
    share: float
    engine_ms: float
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExplainedTime:
    """A time of a single request, its sums by term, and its lines, the longest first.

    simulated_ms: the same time in the simulation of one request.
    """

    ms: float
    simulated_ms: float
    terms_ms: Mapping[str, float]
    lines: tuple[ExplainedLine, ...]


@dataclass(frozen=True, kw_only=True)
class ChangeEffect:
    """The change of TPOT when one number changes, both in percent. The plan stays."""

    key: str
    change_pct: float
    tpot_pct: float


@dataclass(frozen=True, kw_only=True)
class ExplainedSystem:
    """A system: the time of an output token and of the first token, by cause.

    context: positions that the mean token attends to. prompt: tokens.
    fitted_share, assumed_share: of the token's time, from numbers that are fitted or assumed.
    effects: the numbers that change the token's time most.
    sources: of the numbers of all lines, by key.
    saved_tpot_ms: of the saved result; None for a scenario.
    """

    hardware: str
    plan: str
    precision: str
    speed_label: str | None
    context: float
    prompt: int
    token: ExplainedTime
    first_token: ExplainedTime
    fitted_share: float
    assumed_share: float
    effects: tuple[ChangeEffect, ...]
    sources: Mapping[str, NumberSource]
    saved_tpot_ms: Annotated[float | None, OMIT_NONE] = None


@dataclass(frozen=True)
class ExplanationSummary:
    """The explanation of each plain system of a scenario."""

    scenario: str
    systems: Mapping[str, ExplainedSystem]
