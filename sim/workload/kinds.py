"""The kinds of workload, by the name that a scenario gives to them."""

from typing import Annotated

from sim.inputs.fields import OfKind
from sim.workload.arrivals import ClosedLoop, Gamma, Listed, Poisson, Workload
from sim.workload.sessions import Sessions
from sim.workload.traces import Trace

WORKLOAD_KINDS: dict[str, type[Workload]] = {
    "closed": ClosedLoop,
    "gamma": Gamma,
    "listed": Listed,
    "poisson": Poisson,
    "sessions": Sessions,
    "trace": Trace,
}
WorkloadField = Annotated[Workload, OfKind(WORKLOAD_KINDS, Workload)]
