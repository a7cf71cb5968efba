"""The requests that all systems of a run get, as a result describes them.

offered_load(scenario.workload, requests).rate  # request/s
"""

import numpy as np
from numpy.typing import NDArray

from sim.results.summary import OfferedLoad, TokenLengths
from sim.studies.trials import measured_rate
from sim.workload.arrivals import Workload
from sim.workload.requests import RequestBatch


def offered_load(workload: Workload, requests: RequestBatch) -> OfferedLoad:
    """Return number, lengths and rate of requests. The rate is the scenario's, or else measured."""
    rate: float | None = getattr(workload, "rate", None)
    arrival = requests.arrival
    if rate is None and workload.load_kind == "rate" and arrival[-1] > arrival[0]:
        rate = measured_rate(requests)
    return OfferedLoad(
        requests=len(arrival),
        sessions=None if requests.sessions is None else len(np.unique(requests.sessions)),
        rate=rate,
        users=requests.users,
        shared_prefix=requests.shared_prefix or None,
        prompt=_lengths(requests.prompt),
        output=_lengths(requests.output),
    )


def _lengths(tokens: NDArray[np.int64]) -> TokenLengths:
    return TokenLengths(least=int(tokens.min()), mean=float(tokens.mean()), most=int(tokens.max()))
