"""The effect of uncertain numbers, typed: the contract of `sensitivity --json`.

>>> RequestMetrics(tpot_ms=2.5, ttft_ms=40.0).joules_per_token is None
True

`sim.results.encoding` writes these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import OMIT_NONE, SPLICED, Key

Band = tuple[float, float]  # least and most


@dataclass(frozen=True, kw_only=True)
class RequestMetrics:
    """The speed and cost of an unloaded request. Joules and dollars: None if they are unknown."""

    tpot_ms: float
    ttft_ms: float
    joules_per_token: Annotated[float | None, OMIT_NONE] = None
    usd_per_mtok: Annotated[float | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class MetricBands:
    """The bands of an unloaded request's metrics, if all uncertain numbers are independent."""

    tpot_ms: Annotated[Band, Key("tpot_band_ms")]
    ttft_ms: Annotated[Band, Key("ttft_band_ms")]
    joules_per_token: Annotated[Band | None, OMIT_NONE, Key("joules_per_token_band")] = None
    usd_per_mtok: Annotated[Band | None, OMIT_NONE, Key("usd_per_mtok_band")] = None


@dataclass(frozen=True, kw_only=True)
class SwingSummary:
    """An uncertain number, and the metrics at the two ends of its range.

    key: such as 'engine.layer_overhead'. value, ends: as written.
    low, high: None if the model does not fit there.
    """

    key: str
    value: str
    ends: Annotated[tuple[str, str], Key("range")]
    low: RequestMetrics | None
    high: RequestMetrics | None
    source: str


@dataclass(frozen=True, kw_only=True)
class SystemSensitivity:
    """The metrics of a system's requests, their bands, and the swings behind them.

    label, colour: in tables and figures; None if the scenario leaves them out.
    vendor, chip: maker and kind of the chips.
    """

    label: Annotated[str | None, OMIT_NONE] = None
    colour: Annotated[str | None, OMIT_NONE] = None
    vendor: Annotated[str | None, OMIT_NONE] = None
    chip: Annotated[str | None, OMIT_NONE] = None
    base: Annotated[RequestMetrics, SPLICED]
    bands: Annotated[MetricBands, SPLICED]
    swings: tuple[SwingSummary, ...]


@dataclass(frozen=True)
class SensitivitySummary:
    """The sensitivity of each plain system of a scenario.

    loaded: whether the metrics are medians of the scenario's requests, not of a single one.
    """

    scenario: str
    systems: Mapping[str, SystemSensitivity]
    loaded: bool = False

    @property
    def requests(self) -> str:
        """The requests that the metrics are of, for headings."""
        return "the scenario's requests" if self.loaded else "a single request"
