"""The systems of a scenario laid out on their chips, and checked."""

from collections.abc import Sequence

from sim.cost.plan import PlanError
from sim.inputs.errors import error_at_path, errors_below
from sim.planning.deployment import Deployment
from sim.planning.fit_error import require_fit
from sim.reliability.availability import require_simulable
from sim.results.labels import percent_text
from sim.scenario.outages import failing_units
from sim.scenario.pools import parts_with_chips, pool_of
from sim.scenario.replicas import Member, chip_machines
from sim.scenario.scenario import Scenario
from sim.scenario.sources import ScenarioSource, as_scenario
from sim.scenario.unused_keys import unused_keys
from sim.serving.policy import ring
from sim.serving.replica_config import Outage
from sim.serving.ring import ring_schedule

RING_TOLERANCE = 0.02  # relative difference of beats that `policy: ring` neglects in silence


def deploy_fitting(scenario: Scenario, name: str) -> Deployment:
    """Return the deployment of a plain system.

    Raises: PlanError if it does not fit, or its exceptions, faults, outages, link errors or
    `async_scheduling` are wrong.
    """
    deployment = scenario.deploy(name)
    try:
        require_fit(deployment)
    except PlanError as error:
        raise PlanError(f"{scenario.where(name)}: {error}") from None
    if scenario.by_chip(name):
        chip_machines(scenario, name, deployment)  # checks its exceptions
    try:
        for unit in failing_units(scenario, name, deployment):
            with errors_below(*unit.path):
                require_simulable(unit.faults, unit.chips, unit.load)
        require_valid_outages(scenario, name, deployment)
        require_ring_places(scenario, name, deployment)
        require_one_micro_batch(scenario, name, deployment)
        if errors := scenario.plain(name).link_errors:
            pool = ("attention",) if deployment.ffn else ()
            with errors_below(*pool):
                errors.require_finite_retries(deployment.costs)
    except ValueError as error:
        raise scenario.plan_error(name, error) from None
    return deployment


def require_valid_outages(scenario: Scenario, name: str, deployment: Deployment) -> None:
    """Check the outages of a system's replicas, its drafter, or its attention ranks and FFN pool.

    Raises: ValueError if a replica or rank does not exist, or an outage begins during another one.
    """
    plan = deployment.layout.plan
    for path, system in parts_with_chips(scenario.systems, name).items():
        with errors_below(*path):
            if path != ("attention",):
                _require_apart(system.outages, plan.replicas, "replica")
                continue
            if system.outages and plan.attention_data > 1 and scenario.by_chip(name):
                reason = "got outages of ranks at fidelity chip; expected fidelity stage; "
                raise error_at_path(("outages",), None, f"{reason}try leaving fidelity out")
            _require_apart(system.outages, plan.attention_data, "rank")


def _require_apart(outages: Sequence[Outage], count: int, noun: str) -> None:
    """Raise ValueError if an outage is of none of `count` parts, or begins during another one."""
    free = dict.fromkeys(range(count), 0.0)
    for number, outage in sorted(enumerate(outages), key=lambda pair: pair[1].at):
        if outage.replica not in free:
            allowed = f"0 to {count - 1}" if count > 1 else f"0, the only {noun}"
            reason = f"got {outage.replica}; expected {allowed}; try {count - 1}"
            raise error_at_path(("outages", number, "replica"), outage.replica, reason)
        if outage.at < free[outage.replica] * (1 - 1e-12):  # sums of floats have rounding errors
            end = f"{free[outage.replica]:g} s"
            reason = (
                f"got {outage.at:g} s; expected at least {end}, since {noun} {outage.replica} "
                f"is down until then; try {end}"
            )
            raise error_at_path(("outages", number, "at"), outage.at, reason)
        free[outage.replica] = outage.at + outage.lasts


def require_ring_places(scenario: Scenario, name: str, deployment: Deployment) -> None:
    """Check that the ring of a system with `policy: ring` has a beat for each sequence.

    Raises: ValueError if `max_sequences` of the system is more than the beats.
    """
    system = scenario.plain(name)
    if system.policies.batching is not ring or not (most := system.max_sequences):
        return
    lap = ring_schedule(deployment.costs, deployment.limits, scenario.request_tokens).lap
    if most > lap:
        reason = f"got {most}; expected at most {lap}, one a beat of policy ring; try {lap}"
        raise error_at_path(("max_sequences",), most, reason)


def require_one_micro_batch(scenario: Scenario, name: str, deployment: Deployment) -> None:
    """Check that a system with `async_scheduling` has one micro-batch in flight.

    Raises: ValueError if it has several, because the step that begins next is then one of another
    micro-batch.
    """
    several = deployment.limits.micro_batches
    if scenario.plain(name).async_scheduling and several > 1:
        reason = f"got true with {several} micro-batches in flight; expected one micro-batch; "
        raise error_at_path(("async_scheduling",), True, f"{reason}try leaving it out")


def system_warnings(scenario: Scenario, name: str, deployment: Deployment) -> list[str]:
    """Return the warnings of a plain system's deployment, requests, policy and unused keys.

    Requests beyond the model's context are refused. A warning says so if a mean one is.
    A decode pool may keep its KV cache in another precision than the prefill pool sends.
    Beats of `policy: ring` are those of a mean request.  A warning names the error for the
    longest sequence that the system holds, above 2 %.
    """
    lines = deployment.warnings + unused_keys(scenario, name, deployment)
    limits, tokens = deployment.limits, scenario.request_tokens
    if tokens > limits.context:
        lines.append(
            f"a mean request has {tokens:g} tokens, and the model's context is {limits.context}: "
            "longer requests are refused"
        )
    if pool_of(scenario.systems, name) == "decode":
        lines += _conversion(scenario, name, deployment)
    if scenario.plain(name).policies.batching is not ring:
        return lines
    longest = min(limits.context, limits.kv_tokens - limits.state_tokens)
    assumed, slowest = (ring_schedule(deployment.costs, limits, n) for n in (tokens, longest))
    longer = max(slowest.beat / assumed.beat, slowest.unloaded / assumed.unloaded) - 1
    if longer > RING_TOLERANCE:
        lines.append(
            f"policy ring: all beats take {1e6 * assumed.beat:.4g} us, as for {tokens:g} tokens; "
            f"for {longest} tokens they would take {percent_text(longer, 1)} more"
            " (policy continuous counts it)"
        )
    return lines


def _conversion(scenario: Scenario, name: str, decode: Deployment) -> list[str]:
    """Return the warning that the KV cache changes its precision between the pools, if it does."""
    prefill = scenario.deploy(f"{name.rpartition('.')[0]}.prefill")
    sent, kept = prefill.layout.plan.kv, decode.layout.plan.kv
    if sent == kept:
        return []
    return [
        f"the prefill pool sends its KV cache in {sent}, and this pool keeps it in {kept}: "
        "the conversion takes no time here"
    ]


def check(scenario: ScenarioSource, **changes: object) -> dict[str, dict[str, Member]]:
    """Return the members of every system, by name.

    scenario: a path, a name of the catalogue, a mapping, or a scenario.
    changes: values by key, as in `sim.run`.
    A fleet's members are deployed again.
    Raises: PlanError for the first system that does not fit, or serves several models;
    ScenarioError if there is no such file or a value is wrong.
    """
    scenario = as_scenario(scenario, changes)
    return {name: deploy_members(scenario, name) for name in scenario.systems}


def deploy_members(scenario: Scenario, name: str) -> dict[str, Member]:
    """Return the members of a system, deployed.

    Raises: PlanError if one does not fit, or if they serve several models or have too many
    replicas together.
    """
    copies = scenario.members(name)
    deployments = {member: deploy_fitting(scenario, member) for member in copies}
    scenario.require_few(name, deployments)
    return {
        member: Member(deployment, copies[member], pool_of(scenario.systems, member))
        for member, deployment in deployments.items()
    }
