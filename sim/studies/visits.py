"""The visits of micro-batches on an attention pool, an FFN pool and the links between them.

>>> first_visits(LayerTimes(2.0, 1.0, 3.0, 1.0, 1.0, 1.0), 2, 1)[-1].end  # S + (m - 1) b
10.0
"""

from dataclasses import dataclass
from typing import NamedTuple

from sim.cost.layer_cycle import POOLS_AND_LINKS, LayerTimes
from sim.cost.terms import weighted_sum
from sim.cost.work import decodes_at
from sim.inputs.errors import UserError
from sim.planning.deployment import Deployment
from sim.results.plan_summary import LayerCycle
from sim.scenario.layout import deploy_fitting
from sim.scenario.pools import member_system
from sim.scenario.scenario import Scenario
from sim.units import Seconds

SHOWN_LAYERS = 3


class Visit(NamedTuple):
    """The time for which a pool or link works on a micro-batch in a layer [s].

    resource: one of POOLS_AND_LINKS, a pool or link.
    """

    resource: str
    micro_batch: int
    layer: int
    start: Seconds
    end: Seconds


@dataclass(frozen=True)
class LayerVisits:
    """The visits in the first layers of a full step. system, identity: labels for figures."""

    system: str
    identity: str
    cycle: LayerCycle
    visits: tuple[Visit, ...]


def layer_visits(scenario: Scenario, name: str) -> LayerVisits:
    """Return the visits of a system with an attention pool and an FFN pool.

    Raises: UserError if it has no such pools; PlanError if it does not fit.
    """
    deployment = deploy_fitting(scenario, name)
    layer = full_layer(scenario, deployment)
    if layer is None or deployment.ffn is None:
        raise UserError(f"systems.{name}: got no FFN pool; expected attention and ffn")
    times, cycle = layer
    chips = f"{deployment.own_chips} x {deployment.layout.chip.id}"
    chips += f" + {deployment.ffn.chips} x {deployment.ffn.layout.chip.id}"
    return LayerVisits(
        member_system(scenario.systems, name).full_label or name,
        f"{deployment.layout.model.id} on {chips}; {cycle.sequences:,} sequences",
        cycle,
        tuple(first_visits(times, cycle.micro_batches, SHOWN_LAYERS)),
    )


def full_layer(scenario: Scenario, deployment: Deployment) -> tuple[LayerTimes, LayerCycle] | None:
    """Return a layer of a step with as many mean requests as fit; None without an FFN pool.

    The users of a closed loop may be fewer. The layer is of the most frequent kind.
    """
    costs, workload, limits = deployment.pools, scenario.workload, deployment.limits
    if costs is None:
        return None
    most = limits.max_concurrent(round(scenario.request_tokens))
    most = min(most, getattr(workload, "users", most))
    context = workload.mean_prompt + workload.mean_output / 2
    work = decodes_at(most, context, limits.window, limits.width)
    if drafting := deployment.drafting:
        work = drafting.micro_batch(work)[1]
    layers = costs.step_layers(work)
    times, critical = layers[max(layers, key=lambda pair: costs.layer_kinds[pair])]
    return times, LayerCycle(
        sequences=most,
        micro_batches=costs.micro_batch(work)[0],
        attention_us=1e6 * times.attention,
        out_us=1e6 * times.out,
        ffn_us=1e6 * times.ffn,
        overlapped_us=1e6 * times.overlapped,
        back_us=1e6 * times.back,
        cycle_us=1e6 * weighted_sum(times, critical.cycle),
        binds=critical.binds,
    )


def first_visits(times: LayerTimes, micro_batches: int, layers: int) -> list[Visit]:
    """Return the visits of the first layers of a step, ordered by layer and micro-batch.

    Each pool and link takes one micro-batch at a time, first come, first served.
    """
    delays = dict.fromkeys(POOLS_AND_LINKS, 0.0)
    delays |= {"out_busy": times.out - times.out_busy, "back_busy": times.back - times.back_busy}
    delays["ffn"] = times.overlapped
    arrival, free, visits = [0.0] * micro_batches, dict.fromkeys(POOLS_AND_LINKS, 0.0), []
    for layer in range(layers):
        for micro_batch in range(micro_batches):
            for resource in ("attention", "out_busy", "ffn", "back_busy"):
                start = max(arrival[micro_batch], free[resource])
                end = free[resource] = start + getattr(times, resource)
                visits.append(Visit(resource, micro_batch, layer, start, end))
                arrival[micro_batch] = end + delays[resource]
    return visits
