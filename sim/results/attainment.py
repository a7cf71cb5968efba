"""Requests that meet their SLO: each limit, and all limits.

meets_slo(rows, slo).mean()  # attainment
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sim.results.rows import Rows
from sim.units import Seconds
from sim.workload.requests import RequestBatch
from sim.workload.slo import LIMITS, SLO

_Column = NDArray[np.float64]


def count_good(rows: Rows, slo: SLO | None) -> int:
    """Return the number of requests that meet all their limits."""
    return int(meets_slo(rows, slo).sum())


def meets_slo(rows: Rows, slo: SLO | None) -> NDArray[np.bool_]:
    """Return bool[request]: meets all its limits. A refused request meets none."""
    return all_limits_met(rows, limits_met(rows, slo))


def all_limits_met(rows: Rows, limits: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return bool[request]: finished, and meets each of the limits. limits: bool[request]."""
    ok = rows.finished
    for within_limit in limits.values():
        ok = ok & within_limit
    return ok


def limits_met(rows: Rows, slo: SLO | None) -> dict[str, NDArray[np.bool_]]:
    """Return bool[request] for each limit of the SLOs: see `limits_met_in_columns`."""
    requests = rows.requests
    limits = request_limits(requests.kind, requests.kinds, slo)
    return limits_met_in_columns(
        limits, rows.arrival, rows.first_token, rows.last_token, requests.output
    )


def request_limits(
    kind: NDArray[np.int64] | None, kinds: Mapping[str, SLO | None], slo: SLO | None
) -> dict[str, Seconds | _Column]:
    """Return each limit [s]: one for all requests, or float[request] if there are kinds.

    kind, kinds: as in `RequestBatch`. slo: the scenario's, for kinds without their own.
    A kind without a limit has inf. Limits that no request has are left out.
    """
    if kind is None:
        return {**slo.limits} if slo else {}
    slos = [own or slo or SLO() for own in kinds.values()]
    return {
        name: np.array([of.limits.get(name, math.inf) for of in slos])[kind]
        for name in LIMITS
        if any(name in of.limits for of in slos)
    }


def has_limits(requests: RequestBatch, slo: SLO | None) -> bool:
    """Return whether there is an SLO: the scenario's, or that of a kind."""
    return slo is not None or any(requests.kinds.values())


def limits_met_in_columns(
    limits: Mapping[str, Seconds | _Column],
    arrival: _Column,
    first: _Column,
    last: _Column,
    output: NDArray[np.int64],
) -> dict[str, NDArray[np.bool_]]:
    """Return bool[request] for each limit: the request meets it.

    limits: see `request_limits`. arrival, first, last: float[request] [s].
    output: int[request], tokens. A request of one token always meets a TPOT limit, because it has
    no gaps.
    """
    ttft, e2el = first - arrival, last - arrival
    tpot = (e2el - ttft) / np.maximum(output - 1, 1)
    values = dict(zip(LIMITS, (ttft, tpot, e2el), strict=True))
    return {name: values[name] <= limit for name, limit in limits.items()}
