"""A system of two pools: one prefills prompts, the other one decodes."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from sim.hardware.chip import Chip
from sim.inputs.errors import error_at_path
from sim.inputs.values import Value
from sim.planning.remote_draft import DRAFTER_PATH
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.drafters import with_drafter
from sim.scenario.speculate import DraftSystem
from sim.scenario.system import Fleet, Shown, System
from sim.serving.policy import Router, is_steady, ring
from sim.serving.transfer import Transfer
from sim.units import Count, JoulesPerByte, format_quantity

POOLS = ("prefill", "decode")

# Keys of a system that pools do not simulate, and what to do instead.
_REFUSED = {
    "async_scheduling": "try leaving it out: pools choose a step when the one before it is over",
    "batch_wait": "try leaving it out: prompts wait only while sequences decode",
    "rank_wait": "try leaving it out: prompts wait only while sequences decode",
    "receive_every": "try leaving it out: it counts steps with decodes between prompts",
}
# Keys of a system that a decode pool does not simulate, and what to do instead.
_REFUSED_OF_DECODE = {
    "max_waiting": "try it in the prefill pool, whose queue requests meet first",
    "request_overhead": "try it in the prefill pool, or transfer.handover",
}


def _name_or_system(value: object, info: ValidationInfo) -> object:
    """Return a system for a mapping; a name as it is.

    Without this choice an error would list the problems of both.
    """
    if isinstance(value, Mapping):
        parts = {"attention", "ffn"} & set(value)
        kind: type[System | AttentionFfn] = AttentionFfn if parts else System
        return kind.model_validate(value, context=info.context)
    return value


PoolSystem = System | AttentionFfn
PoolField = Annotated[str | PoolSystem, BeforeValidator(_name_or_system)]


class PoolCopies(Value):
    """The number of copies of each pool's system, given or searched for.

    `{search: capacity, chips: 64}` finds the numbers with the highest goodput under the SLO.
    """

    prefill: Count = Field(default=1, description="Copies of the prefill pool's system.")
    decode: Count = Field(default=1, description="Copies of the decode pool's system.")
    search: Literal["capacity"] | None = Field(
        default=None,
        description="Search for the copies of both pools, by goodput within the SLO; default: no "
        "search.",
    )
    chips: Count | None = Field(
        default=None, description="Most chips of both pools together, with `search`."
    )

    @model_validator(mode="after")
    def _given_or_searched(self) -> "PoolCopies":
        sizes = self.model_fields_set & set(POOLS)
        if self.search and sizes:
            key = min(sizes)
            reason = f"got {getattr(self, key)} with search: {self.search}, which finds it; "
            raise error_at_path((key,), getattr(self, key), f"{reason}try leaving it out")
        if self.search and not self.chips:
            reason = "got a search without chips; expected the most chips of both pools; "
            raise error_at_path(("search",), self.search, f"{reason}try chips: 16")
        if self.chips and not self.search:
            reason = f"got {self.chips} without a search; expected copies, or search: capacity; "
            raise error_at_path(("chips",), self.chips, f"{reason}try search: capacity")
        return self


class Pools(Shown):
    """A prefill pool and a decode pool, and the transfer of KV caches between them.

    A request goes to the prefill replica that the router of the prefill pool's system chooses.
    Its first token comes from there.  Then the router of the decode pool's system chooses a
    replica, which reserves room before the prompt's KV cache travels.  The prefill replica holds
    the KV cache until then.  With `overlap` the room is reserved when the prefill replica admits
    the request.  A request of one output token stays where it is.

    Both pools serve the same model.  The router of a system distributes requests over its copies.
    A preempted sequence is computed again on the decode replica.

    The deadline of the prefill pool's system is for the first token, and that of the decode pool's
    system for the last one.  A request begins again if the replica with its only KV cache
    fails.  If its decode replica fails before the hand-over, its prompt travels to another one.
    The availability is the product of both pools' availabilities.

    With drafts in the decode pool, the prefill pool computes the drafter's KV cache as well, and
    it travels with that of the prompt, also to a drafter on other chips.
    A pool may be a system of attention and FFN pools, whose attention pool holds the KV cache.
    Left out: a change of layout or precision on the way.
    """

    prefill: PoolField = Field(
        description="Name of another system, or a system in place, that computes prompts; it may "
        "have `attention` and `ffn`."
    )
    decode: PoolField = Field(
        description="Name of another system, or a system in place, that decodes; it may have "
        "`attention` and `ffn`."
    )
    copies: PoolCopies = Field(default=PoolCopies(), description="Copies of each pool's system.")
    transfer: Transfer = Field(description="Links between the pools.")

    @property
    def in_place(self) -> dict[str, PoolSystem]:
        """The systems in place, by pool."""
        pools = {pool: getattr(self, pool) for pool in POOLS}
        return {pool: system for pool, system in pools.items() if isinstance(system, PoolSystem)}

    @property
    def named(self) -> dict[str, str]:
        """The names of other systems, by pool."""
        pools = {pool: getattr(self, pool) for pool in POOLS}
        return {pool: name for pool, name in pools.items() if isinstance(name, str)}


def pool_problem(pool: str, system: PoolSystem) -> tuple[str, str]:
    """Return the key of a pool's system that pools do not simulate, and why; ('', '') for none."""
    if isinstance(system, AttentionFfn):
        if system.attention.outages:
            reason = "got a list; expected none, because outages of attention ranks are not "
            reason += f"simulated in a {pool} pool; try leaving outages out"
            return "attention.outages", reason
        key, reason = pool_problem(pool, system.attention)
        return key and f"attention.{key}", reason
    refused = _REFUSED | (_REFUSED_OF_DECODE if pool == "decode" else {})
    for key, advice in refused.items():
        if (value := getattr(system, key)) not in (None, (), 0.0):
            got = format_quantity(value, "s") if isinstance(value, float) else str(value)
            got = "a mapping" if isinstance(value, Value) else got
            reason = f"got {got}; expected none, because the {pool} pool does not simulate it"
            return key, f"{reason}; {advice}"
    policy = system.policies.batching
    if pool == "prefill" and system.speculate and system.speculate.draft.system:
        return "speculate", (
            "got a drafter on other chips; expected the drafts of the decode pool, whose KV cache "
            "is computed here; try leaving speculate out"
        )
    if pool == "decode" and not (is_steady(policy) or policy is ring):
        named = getattr(policy, "__name__", str(policy)).replace("_", "-")
        return "policy", (
            f"got {named}; expected a policy that always decodes, because no prompts are computed "
            "in the decode pool; try policy: continuous"
        )
    return "", ""


AnySystem = System | Fleet | Pools | AttentionFfn


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


def member_system(systems: Mapping[str, AnySystem], name: str) -> PoolSystem:
    """Return a system that is no fleet and no pools; 'pd.prefill' is the one of that pool."""
    first, *pool = key_path(systems, name)
    system = getattr(systems[first], pool[0]) if pool else systems[first]
    assert isinstance(system, PoolSystem)
    if isinstance(system, AttentionFfn):
        return _pools_with_drafter(systems, system)
    return with_drafter(systems, system)


def plain_system(systems: Mapping[str, AnySystem], name: str) -> System:
    """Return a system with chips of its own; 'pd.prefill' is the one of that pool.

    With an attention pool and an FFN pool it is the first, which has the scheduler.
    A prefill pool has the drafts of its decode pool, because it computes the drafter's KV cache.
    A named drafter is in place.
    """
    member = member_system(systems, name)
    system = member.attention if isinstance(member, AttentionFfn) else member
    if pool_of(systems, name) == "prefill" and system.speculate is None:
        drafts = plain_system(systems, f"{name.rsplit('.', 1)[0]}.decode").speculate
        return system.model_copy(update={"speculate": drafts.local}) if drafts else system
    return system


def attention_ffn(systems: Mapping[str, AnySystem], name: str) -> AttentionFfn | None:
    """Return a system with an attention pool and an FFN pool, also if it is a pool of another one.

    None for other systems.
    """
    return both_pools(systems).get(".".join(key_path(systems, name)))


def parts_with_chips(
    systems: Mapping[str, AnySystem], name: str
) -> dict[tuple[str, ...], System | DraftSystem]:
    """Return the parts of a plain system that have chips of their own, by the path of their keys.

    They are the system itself, or both pools, and then a drafter on other chips.
    """
    plain, both = plain_system(systems, name), attention_ffn(systems, name)
    own: tuple[str, ...] = ("attention",) if both else ()
    parts: dict[tuple[str, ...], System | DraftSystem] = {own: plain}
    if both:
        parts["ffn",] = both.ffn
    if drafter := plain.drafter:
        parts[(*own, *DRAFTER_PATH)] = drafter
    return parts


def plain_systems(systems: Mapping[str, AnySystem]) -> dict[str, System]:
    """Return the systems with chips of their own, by name; those in place as 'pd.prefill'.

    Named drafters are in place.
    """
    own = _with_those_in_place(systems)
    return {
        name: with_drafter(systems, system)
        for name, system in own.items()
        if isinstance(system, System)
    }


def both_pools(systems: Mapping[str, AnySystem]) -> dict[str, AttentionFfn]:
    """Return the systems that have an attention pool and an FFN pool, by name.

    Named drafters are in place.
    """
    own = _with_those_in_place(systems)
    return {
        name: _pools_with_drafter(systems, system)
        for name, system in own.items()
        if isinstance(system, AttentionFfn)
    }


def _pools_with_drafter(systems: Mapping[str, AnySystem], system: AttentionFfn) -> AttentionFfn:
    """Return a system of two pools whose named drafter is in place."""
    own = with_drafter(systems, system.attention)
    return system.model_copy(update={"attention": own})


def _with_those_in_place(systems: Mapping[str, AnySystem]) -> dict[str, AnySystem]:
    own = dict(systems)
    for name, system in systems.items():
        if isinstance(system, Pools):
            own |= {f"{name}.{pool}": part for pool, part in system.in_place.items()}
    return own


def why_plan_is_kept(system: AnySystem) -> str:
    """Return why `capacity --plans` tries no other plan of a system, and what to try; or ''."""
    if isinstance(system, Pools):
        return "its pools keep their plans; try copies: {search: capacity, chips: 64}"
    if isinstance(system, Fleet):
        return "its members have plans of their own"
    if isinstance(system, AttentionFfn) and system.attention.drafts_apart:
        return (
            "a search of both pools does not count the chips of its drafter; try a drafter on the "
            "attention pool"
        )
    return ""


def pool_of(systems: Mapping[str, AnySystem], member: str) -> str | None:
    """Return 'prefill' for the member 'pd.prefill' of pools; None for other members."""
    return None if member in systems else member.rsplit(".", 1)[1]


def owned_chips(systems: Mapping[str, AnySystem], name: str) -> dict[str, tuple[Chip, int]]:
    """Return the kind and number of chips of a plain system, by the key of their owner costs.

    A system of attention and FFN pools has two keys, such as 'afd.attention' and 'afd.ffn'. The
    chips of a drafter have the key 'spec.draft', or the name of their system.
    """
    key, chips = ".".join(key_path(systems, name)), {}
    for path, part in parts_with_chips(systems, name).items():
        own = ".".join((key, *path))
        if isinstance(part, DraftSystem):
            own = part.name or f"{key}.draft"
        chips[own] = part.hardware[:2]
    return chips


def link_energy(systems: Mapping[str, AnySystem], member: str) -> JoulesPerByte:
    """Return the energy of a byte that leaves a member for another pool; 0 outside pools [J/B]."""
    pools = None if member in systems else systems[member.rsplit(".", 1)[0]]
    return (pools.transfer.energy or 0.0) if isinstance(pools, Pools) else 0.0


def router_of(systems: Mapping[str, AnySystem], name: str) -> Router:
    """Return the router of a system; that of pools chooses the prefill replica."""
    system = systems[name]
    if isinstance(system, Pools):
        system = plain_system(systems, f"{name}.prefill")
    return system.router


def member_place(systems: Mapping[str, AnySystem], name: str, member: str) -> str:
    """Return the place of a member of a system below `systems`, as 'both.fleet.lpu'."""
    return f"{name}.fleet.{member}" if isinstance(systems[name], Fleet) else member
