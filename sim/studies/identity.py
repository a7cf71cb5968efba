"""The identity of a system, from its deployment: model, chips, engine, plan, precisions.

>>> import sim
>>> scenario = sim.read("llama3-8b-lpu-vs-h100")
>>> identity = system_identity(scenario, "h100", sim.check(scenario)["h100"])
>>> identity.chips, identity.chip, identity.engine
(1, 'h100-sxm', 'vllm')
"""

from collections.abc import Mapping
from dataclasses import fields

from sim.catalogue.measurements import published_speeds
from sim.cost.plan import DEGREES
from sim.inputs.values import Change
from sim.planning.deployment import Deployment, PoolDeployment
from sim.results.other_chips import Degrees, DrafterIdentity, FfnPoolIdentity, OtherChips
from sim.results.system_identity import (
    Beat,
    ChangedValue,
    Drafts,
    FleetIdentity,
    FleetMember,
    Identity,
    MemoryPlacement,
    PlanDegrees,
    Precisions,
    RivalSystem,
    SearchedPlan,
    SpeedPoint,
    SystemIdentity,
    WeightBandwidth,
    max_goodput,
)
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.pools import member_system
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.units import Seconds

DEGREE_KEYS = ("tensor", "attention_data", "expert", "pipeline", "replicas", "balance")


def system_identity(scenario: Scenario, name: str, members: Mapping[str, Member]) -> Identity:
    """Return the identity of a system; of a fleet, with the identities of its members."""
    if isinstance(scenario.systems[name], System | AttentionFfn):
        return plain_identity(scenario, name, members[name].deployment)
    parts = {
        member: FleetMember(
            copies=of.copies, pool=of.pool, identity=plain_identity(scenario, member, of.deployment)
        )
        for member, of in members.items()
    }
    fleet = scenario.systems[name]
    return FleetIdentity(
        label=fleet.full_label,
        colour=fleet.colour,
        model=next(iter(parts.values())).identity.model,
        chips=sum(part.copies * part.identity.chips for part in parts.values()),
        search=_searched(scenario, name) if name in scenario.searches else None,
        members=parts,
    )


def plain_identity(scenario: Scenario, name: str, deployment: Deployment) -> SystemIdentity:
    """Return the identity of a plain system, with published speeds of its model on its chips.

    Left out: published speeds if the chip or the model is changed, because it is another one.
    """
    layout = deployment.layout
    plan, chip = layout.plan, layout.chip
    weights_memory, kv_memory = plan.weights_in, plan.kv_in
    assert weights_memory is not None  # a layout has chosen both
    assert kv_memory is not None
    shown = scenario.shown(name)
    return SystemIdentity(
        label=shown.full_label,
        colour=shown.colour,
        model=layout.model.id,
        vendor=chip.vendor or None,
        chip=chip.id,
        chips=deployment.chips,
        engine=layout.engine.id,
        speed_label=layout.engine.speed_label(chip),
        contended=deployment.contended or None,
        plan=PlanDegrees(
            **{key: getattr(plan, key) for key in DEGREE_KEYS},
            slots=deployment.limits.micro_batches,
        ),
        search=_searched(scenario, name) if name in scenario.searches else None,
        precision=Precisions(
            **{item.name: getattr(plan, item.name) for item in fields(Precisions)}
            | plan.format_names
        ),
        memory=MemoryPlacement(weights_memory, kv_memory),
        memories=tuple(chip.memory),
        weight_bandwidth=WeightBandwidth(
            claimed=chip.claimed_bandwidth or layout.weights_memory.bandwidth,
            chip=chip.weight_bandwidth(layout.weights_memory, plan.weights),
        ),
        token_budget=layout.token_budget,
        kv_tokens=deployment.limits.kv_tokens,
        beat=_beat(deployment),
        load_s=_load_time(deployment),
        published=_published(deployment),
        speculation=_drafts(deployment),
        ffn=ffn_pool(deployment),
        drafter=_drafter(deployment),
        changed={
            key: ChangedValue(was, now) for key, (was, now) in _changes(scenario, name).items()
        }
        or None,
    )


def _load_time(deployment: Deployment) -> Seconds | None:
    """Return the time to load the weights of all chips, also of an FFN pool or a drafter.

    They load at the same time, so the slowest part counts. None if a chip has no host link.
    """
    loads = [deployment.load, *(other.load for other in deployment.others)]
    known = [load for load in loads if load is not None]
    return max(known) if len(known) == len(loads) else None


def _changes(scenario: Scenario, name: str) -> dict[str, Change]:
    """Return the changes of the entries that a system's parts are like, also of an FFN pool."""
    pools, changes = member_system(scenario.systems, name), dict(scenario.whole(name).changed)
    if isinstance(pools, AttentionFfn):
        changes |= {f"ffn.{key}": change for key, change in pools.ffn.changed.items()}
    return changes


def _beat(deployment: Deployment) -> Beat | None:
    """Return the beat of a compiled pipeline, with its limit in tokens/s; None without one."""
    if (beat := deployment.beat) is None:
        return None
    limits = deployment.limits
    return Beat(
        us=1e6 * beat.seconds,
        tokens=limits.token_budget,
        max_token_throughput=limits.token_budget / beat.interval(limits.micro_batches),
        fill=limits.fill,
    )


def _drafts(deployment: Deployment) -> Drafts | None:
    """Return the speculation of a deployment; None without."""
    if (of := deployment.layout.speculation) is None:
        return None
    return Drafts(
        method=of.method,
        drafter=of.model.id,
        tokens=of.tokens,
        acceptance=of.acceptance,
        tokens_per_step=of.mean_tokens,
    )


def ffn_pool(deployment: Deployment) -> FfnPoolIdentity | None:
    """Return the FFN pool of a deployment; None without one."""
    costs, ffn = deployment.pools, deployment.ffn
    if ffn is None or costs is None:
        return None
    return FfnPoolIdentity(**vars(_other_chips(ffn)), micro_batches=costs.micro_batches)


def _drafter(deployment: Deployment) -> DrafterIdentity | None:
    """Return the chips that draft for a deployment; None without others than its own."""
    costs, drafter = deployment.drafting, deployment.drafter
    if drafter is None or costs is None:
        return None
    return DrafterIdentity(
        **vars(_other_chips(drafter)),
        kv=drafter.layout.plan.kv,
        kv_tokens=drafter.fit.kv_tokens,
        groups=costs.micro_batches,
        round_trip_us=1e6 * costs.trip(1),
    )


def _other_chips(pool: PoolDeployment) -> OtherChips:
    plan, engine, chip = pool.layout.plan, pool.layout.engine, pool.layout.chip
    return OtherChips(
        vendor=chip.vendor or None,
        chip=chip.id,
        chips=pool.chips,
        engine=engine.id,
        speed_label=engine.speed_label(chip),
        plan=Degrees(**{item.name: getattr(plan, item.name) for item in fields(Degrees)}),
        weights=plan.format_names["weights"],
        weight_bytes=pool.fit.weights,
        capacity=pool.fit.capacity,
    )


def _published(deployment: Deployment) -> tuple[SpeedPoint, ...]:
    layout = deployment.layout
    plan, chip, model = layout.plan, layout.chip, layout.model
    if chip.changed or model.changed:
        return ()
    if deployment.others:
        return ()
    chips = deployment.chips // plan.replicas
    points = published_speeds(model.id, chip.id, chips, layout.engine.id, plan.weights)
    return tuple(
        SpeedPoint(
            id=point.id,
            engine=point.engine,
            weights=point.weights,
            date=point.date,
            source=point.source,
            paced=point.paced,
            tokens_per_second=point.speed,
        )
        for point in points
    )


def _searched(scenario: Scenario, name: str) -> SearchedPlan:
    """Return the result of `search: capacity` for a system."""
    search, closed = scenario.searches[name], scenario.workload.load_kind == "users"
    rival = search.rival
    return SearchedPlan(
        by="capacity",
        considered=search.considered,
        simulated=search.simulated,
        most=max_goodput(search.load, closed),
        rival=RivalSystem(
            chip=rival.chip,
            chips=rival.chips,
            plan=Degrees(**{key: getattr(rival.plan, key) for key in DEGREES}),
            most=max_goodput(rival.load, closed, rival.chips),
        )
        if rival
        else None,
    )
