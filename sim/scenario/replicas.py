"""The replicas of a laid-out system, and the service of requests on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sim.chipsim.exceptions import Irregularities, replica_irregularities
from sim.chipsim.machine import MachineFactory, machine_factory
from sim.chipsim.visits import visit_factory
from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.step import Costs
from sim.cost.system_costs import SystemCosts
from sim.inputs.errors import errors_below
from sim.planning.deployment import Deployment
from sim.reliability.link_errors import LinkErrorSampler
from sim.results.rows import Rows
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.pools import Pools, attention_ffn, router_of
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.front_end import FrontEndTimes
from sim.serving.replica_config import PoolOutages, ReplicaConfig
from sim.serving.service import serve_fleet
from sim.serving.step_draws import StepDraws
from sim.serving.transfer import PoolConfig, Transfer
from sim.workload.requests import RequestBatch, stream_seed


@dataclass(frozen=True, eq=False)
class Member:
    """Copies of a laid-out system in a fleet or a pool.  A plain system is its own only member.

    pool: 'prefill' or 'decode'; None outside pools.
    """

    deployment: Deployment
    copies: int = 1
    pool: str | None = None

    @property
    def chips(self) -> int:
        """The chips of all copies."""
        return self.copies * self.deployment.chips

    @property
    def replicas(self) -> int:
        """The replicas of all copies."""
        return self.copies * self.deployment.layout.plan.replicas


def chip_machines(
    scenario: Scenario,
    name: str,
    deployment: Deployment,
    recording: bool = False,
    costs: Sequence[SystemCosts] = (),
    first: int = 0,
) -> MachineFactory:
    """Return the factory of the machines of a plain system: one for each replica of all copies.

    Each copy has the same exceptions.
    costs: by replica, of all copies; empty for one copy, which has the deployment's costs.
    first: number of the first replica in its fleet.
    Raises: PlanError if an exception names a chip or link that the system does not have.
    """
    if pools := deployment.pools:
        return _visit_machines(scenario, name, pools, recording, first)
    system, layout = scenario.plain(name), deployment.layout
    scheduled = (system.network or layout.engine.network) == "scheduled"
    jitter = (layout.engine.jitter or 0.0) if system.jitter is None else system.jitter
    usual = Irregularities(scheduled=scheduled, jitter=jitter)
    try:
        parts = [
            replica_irregularities(
                layout,
                system.exceptions,
                replica,
                usual,
                scenario.request_tokens,
                deployment.limits.kv_tokens,
            )
            for replica in range(layout.plan.replicas)
        ]
    except ValueError as error:
        raise scenario.plan_error(name, error) from error
    seed, factories = stream_seed(scenario.seed, "jitter"), list[MachineFactory]()
    costs = costs or [deployment.costs] * len(parts)
    parts *= len(costs) // len(parts)
    for own in costs:
        assert isinstance(own, Costs)  # drafts on other chips are refused at chip fidelity
        factories.append(machine_factory(own, parts, seed, recording, first))
    return lambda env, replica: factories[replica](env, replica)


def _visit_machines(
    scenario: Scenario, name: str, costs: AttentionFfnCosts, recording: bool, first: int
) -> MachineFactory:
    """Return the factory of the machines of a system with an attention pool and an FFN pool.

    Raises: PlanError if an exception names a chip or link that its pool does not have.
    """
    system = attention_ffn(scenario.systems, name)
    assert system
    layouts, parts = (costs.layout, costs.ffn.layout), list[Irregularities]()
    for (pool, own), layout in zip(system.pools.items(), layouts, strict=True):
        usual = (layout.engine.jitter or 0.0) if own.jitter is None else own.jitter
        irregular = Irregularities(jitter=usual)
        try:
            with errors_below(pool):
                parts.append(replica_irregularities(layout, own.exceptions, 0, irregular, 0.0, 0))
        except ValueError as error:
            raise scenario.plan_error(name, error) from error
    seed = stream_seed(scenario.seed, "jitter")
    return visit_factory(costs, (parts[0], parts[1]), seed, recording, first)


def serve_requests(
    scenario: Scenario,
    name: str,
    members: Mapping[str, Member],
    requests: RequestBatch,
    progress: Callable[[int, int], None] = lambda done, total: None,
    front_end: FrontEndTimes | None = None,
) -> Rows:
    """Serve requests on one system.

    progress: called with the number of ended requests and of all.
    front_end: the process that requests of a closed loop wait for; None without waiting.
    """
    configs: list[ReplicaConfig] = []
    for member_name, member in members.items():
        configs += replica_configs(scenario, member_name, member, first=len(configs))
    pools = None
    if isinstance(scenario.systems[name], Pools):
        pools = PoolConfig(members[f"{name}.prefill"].replicas, pool_transfer(scenario, name))
    return serve_fleet(
        requests,
        configs,
        router_of(scenario.systems, name),
        pools=pools,
        think=scenario.workload.pause or 0.0,
        progress=progress,
        counted=scenario.measure.bounds if scenario.measure else None,
        front_end=front_end,
    )


def pool_transfer(scenario: Scenario, name: str) -> Transfer:
    """Return the transfer of a system of pools; its hand-over is the decode engine's by default."""
    pools = scenario.systems[name]
    assert isinstance(pools, Pools)
    if pools.transfer.handover is not None:
        return pools.transfer
    handover = scenario.plain(f"{name}.decode").engine.handover
    return pools.transfer.model_copy(update={"handover": handover})


def replica_costs(scenario: Scenario, name: str, member: Member, first: int) -> list[SystemCosts]:
    """Return the costs of each replica of all copies of a plain system.

    Where experts are sampled, each replica has a stream of its own, which begins with the run.
    first: number of the first replica in its fleet.
    """
    costs = member.deployment.costs
    if scenario.plain(name).routing == "expected":
        return [costs] * member.replicas
    seeds = (stream_seed(scenario.seed, "experts", first + n) for n in range(member.replicas))
    return [costs.on(replace(costs.layout, expert_seed=tuple(seed))) for seed in seeds]


def _pool_outages(system: System | AttentionFfn, replicas: int) -> list[PoolOutages | None]:
    """Return the outages of a system's pools, or of its drafter, for each replica of a copy."""
    if isinstance(system, AttentionFfn):
        drafter = system.attention.drafter
        stops = (*system.ffn.outages, *(drafter.outages if drafter else ()))
        own = PoolOutages(system.attention.outages, stops) if system.fails else None
        return [own] * replicas
    failing = system.drafter.outages if system.drafter else ()
    of_replicas = [tuple(o for o in failing if o.replica == n) for n in range(replicas)]
    return [PoolOutages(other=own) if own else None for own in of_replicas]


def replica_configs(
    scenario: Scenario, name: str, member: Member, first: int = 0
) -> list[ReplicaConfig]:
    """Return the configuration of each replica of all copies of a plain system.

    first: number of the first replica in its fleet.
    """
    system, deployment = scenario.plain(name), member.deployment
    costs = replica_costs(scenario, name, member, first)
    machine = (
        chip_machines(scenario, name, deployment, costs=costs, first=first)
        if scenario.by_chip(name)
        else None
    )
    shared = (
        deployment.limits,
        system.policies,
        system.request_overhead,
        machine,
        name,
    )
    per_copy, draws = deployment.layout.plan.replicas, None
    if system.speculate and (of := deployment.layout.speculation):
        seed = scenario.seed if system.speculate.sampling == "sampled" else None
        draws = StepDraws(of.acceptance, seed)
    both = attention_ffn(scenario.systems, name)
    # An outage is of one replica of each copy.
    outages = [
        tuple(o for o in system.outages if o.replica == number and not both)
        for number in range(per_copy)
    ]
    pool_outages = _pool_outages(both or system, per_copy)
    error_sampler: list[LinkErrorSampler | None] = [None] * member.replicas
    if errors := system.link_errors:
        error_sampler = [
            LinkErrorSampler(
                errors, deployment.costs, stream_seed(scenario.seed, "link errors", first + number)
            )
            for number in range(member.replicas)
        ]
    return [
        ReplicaConfig(
            costs[number],
            *shared,
            number,
            outages[number % per_copy],
            error_sampler[number],
            scenario.request_tokens,
            draws,
            pool_outages[number % per_copy],
        )
        for number in range(member.replicas)
    ]
