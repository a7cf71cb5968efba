"""A system of two pools: one prefills prompts, the other one decodes."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo

from sim.inputs.values import Value
from sim.scenario.system import Fleet, Shown, System
from sim.serving.policy import Router, is_steady, ring
from sim.serving.transfer import Transfer
from sim.units import Count

POOLS = ("prefill", "decode")

# Keys of a system that pools do not simulate, by pool, and what to do instead.
_ALONE = "try leaving it out, or name a system without it"
_REFUSED = {
    "deadline": _ALONE,
    "outages": _ALONE,
    "faults": _ALONE,
    "speculate": _ALONE,
    "batch_wait": "try leaving it out: prompts wait for others only beside decodes",
}
_REFUSED_OF_DECODE = {
    "max_waiting": "try it in the prefill pool, whose queue requests meet first",
    "request_overhead": "try it in the prefill pool, or transfer.handover",
}


def _name_or_system(value: object, info: ValidationInfo) -> object:
    """Return a system for a mapping; a name as it is.

    Without this choice an error would list the problems of both.
    """
    if isinstance(value, Mapping):
        return System.model_validate(value, context=info.context)
    return value


PoolField = Annotated[str | System, BeforeValidator(_name_or_system)]


class PoolCopies(Value):
    """The copies of the system of each pool."""

    prefill: Count = Field(default=1, description="Copies of the prefill pool's system.")
    decode: Count = Field(default=1, description="Copies of the decode pool's system.")


class Pools(Shown):
    """A prefill pool and a decode pool, and the transfer of KV caches between them.

    A request goes to the prefill replica that the router of the prefill pool's system chooses.
    Its first token comes from there.  Then the router of the decode pool's system chooses a
    replica, which reserves room before the prompt's KV cache travels.  The prefill replica holds
    the KV cache until then.  With `overlap` the room is reserved when the prefill replica admits
    the request.  A request of one output token stays where it is.

    Both pools serve the same model.  The router of a system distributes requests over all copies.
    A preempted sequence is computed again on the decode replica.
    Left out: the energy of links between pools, and a change of layout or precision on the way.
    """

    prefill: PoolField = Field(
        description="Name of another system, or a system in place, that computes prompts."
    )
    decode: PoolField = Field(
        description="Name of another system, or a system in place, that decodes."
    )
    copies: PoolCopies = Field(default=PoolCopies(), description="Copies of each pool's system.")
    transfer: Transfer = Field(description="Links between the pools, and the hand-over.")

    @property
    def in_place(self) -> dict[str, System]:
        """The systems in place, by pool."""
        pools = {pool: getattr(self, pool) for pool in POOLS}
        return {pool: system for pool, system in pools.items() if isinstance(system, System)}

    @property
    def named(self) -> dict[str, str]:
        """The names of other systems, by pool."""
        pools = {pool: getattr(self, pool) for pool in POOLS}
        return {pool: name for pool, name in pools.items() if isinstance(name, str)}


def pool_problem(pool: str, system: System) -> tuple[str, str]:
    """Return the key of a pool's system that pools do not simulate, and why; ('', '') for none."""
    refused = _REFUSED | (_REFUSED_OF_DECODE if pool == "decode" else {})
    for key, advice in refused.items():
        if getattr(system, key) not in (None, (), 0.0):
            return key, f"expected none, because the {pool} pool does not simulate it; {advice}"
    policy = system.policies.batching
    if policy is ring:
        return "policy", "got ring; expected micro-batches in a pool; try policy: continuous"
    if pool == "decode" and not is_steady(policy):
        named = getattr(policy, "__name__", str(policy)).replace("_", "-")
        return "policy", (
            f"got {named}; expected a policy that always decodes, because no prompts are computed "
            "in the decode pool; try policy: continuous"
        )
    return "", ""


AnySystem = System | Fleet | Pools


def key_path(systems: Mapping[str, AnySystem], name: str) -> tuple[str, ...]:
    """Return the path of a system's keys below `systems`.

    That of 'pd.prefill' is ('pd', 'prefill') for a pool in place, else that of the named system.
    """
    if name in systems:
        return (name,)
    owner, pool = name.rsplit(".", 1)
    pools = systems[owner]
    assert isinstance(pools, Pools)
    return (pools.named[pool],) if pool in pools.named else (owner, pool)


def plain_system(systems: Mapping[str, AnySystem], name: str) -> System:
    """Return a system with chips of its own; 'pd.prefill' is the one of that pool."""
    first, *pool = key_path(systems, name)
    system = getattr(systems[first], pool[0]) if pool else systems[first]
    assert isinstance(system, System)
    return system


def plain_systems(systems: Mapping[str, AnySystem]) -> dict[str, System]:
    """Return the systems with chips of their own, by name; those in place as 'pd.prefill'."""
    plain: dict[str, System] = {}
    for name, system in systems.items():
        if isinstance(system, System):
            plain[name] = system
        elif isinstance(system, Pools):
            plain |= {f"{name}.{pool}": own for pool, own in system.in_place.items()}
    return plain


def pool_of(systems: Mapping[str, AnySystem], member: str) -> str | None:
    """Return 'prefill' for the member 'pd.prefill' of pools; None for other members."""
    return None if member in systems else member.rsplit(".", 1)[1]


def router_of(systems: Mapping[str, AnySystem], name: str) -> Router:
    """Return the router of a system; that of pools chooses the prefill replica."""
    system = systems[name]
    if isinstance(system, Pools):
        system = plain_system(systems, f"{name}.prefill")
    return system.router


def member_place(systems: Mapping[str, AnySystem], name: str, member: str) -> str:
    """Return the place of a member of a system below `systems`, as 'both.fleet.lpu'."""
    return f"{name}.fleet.{member}" if isinstance(systems[name], Fleet) else member
