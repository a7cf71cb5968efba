"""Checks of a scenario that involve several of its keys."""

from collections.abc import Iterator, Mapping

from sim.hardware.engine import default_limits
from sim.inputs.errors import error_at_path
from sim.inputs.key_paths import KeyPath
from sim.inputs.suggestions import spelling_hint
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.drafters import check_drafter
from sim.scenario.keys import ScenarioKeys
from sim.scenario.pools import (
    POOLS,
    AnySystem,
    Pools,
    both_pools,
    key_path,
    member_system,
    owned_chips,
    plain_systems,
    pool_problem,
)
from sim.scenario.speculate import DraftSystem
from sim.scenario.system import Fleet, System
from sim.serving.policy import ring
from sim.units import brief


def check_members(systems: Mapping[str, AnySystem]) -> None:
    """Check that there are systems, and that fleets and pools are made of those with chips.

    Raises: ValueError otherwise.
    """
    if not systems:
        raise ValueError("got none; expected one system or more")
    plain = [name for name, of in systems.items() if isinstance(of, System | AttentionFfn)]
    for name, system in systems.items():
        parts: dict[tuple[str, ...], str] = {}
        if isinstance(system, Fleet):
            parts = {(name, "fleet", member): member for member in system.fleet}
        elif isinstance(system, Pools):
            parts = {(name, pool): member for pool, member in system.named.items()}
        for path, member in parts.items():
            if member in plain:
                continue
            hint = spelling_hint(member, plain, f"try {' or '.join(plain) or 'chips of its own'}")
            whole = "a fleet" if isinstance(system, Fleet) else "a system of pools"
            other = "a fleet" if isinstance(systems.get(member), Fleet) else "a system of pools"
            what = f"{other} itself" if other == whole else other
            reason = f"got {brief(member)!r}, {what if member in systems else 'no system'};"
            reason += f" expected a system with chips; {hint}"
            raise error_at_path(path, member, reason)
    _check_drafters(systems)


def _check_drafters(systems: Mapping[str, AnySystem]) -> None:
    """Check that named drafters are systems whose chips can draft."""
    for name, system in systems.items():
        in_place = system.in_place if isinstance(system, Pools) else {}
        drafting = {(name,): system} | {(name, pool): of for pool, of in in_place.items()}
        for path, of in drafting.items():
            if isinstance(of, System):
                check_drafter(systems, path, of)
            elif isinstance(of, AttentionFfn):
                check_drafter(systems, (*path, "attention"), of.attention)


def check_scenario(scenario: ScenarioKeys) -> None:
    """Check that the keys of a scenario agree.

    Raises: ValueError for the first that does not.
    """
    _owned_systems(scenario)
    _what_an_order_needs(scenario)
    _what_only_chips_have(scenario)
    _what_a_ring_obeys(scenario)
    _budgets_within_beats(scenario)
    _what_speculation_obeys(scenario)
    _no_prefixes_of_states(scenario)
    _experts_to_sample(scenario)
    _refused_users_pause(scenario)
    _what_pools_simulate(scenario)
    _searched_within_limits(scenario)
    _searched_splits(scenario)


def _what_an_order_needs(scenario: ScenarioKeys) -> None:
    """Check that systems to be ordered serve the users of a closed loop."""
    if scenario.order_by and scenario.workload.load_kind != "users":
        reason = (
            f"got {scenario.order_by} with workload {scenario.workload.noun()}; expected users "
        )
        reason += "of a closed loop; try leaving order_by out"
        raise error_at_path(("order_by",), scenario.order_by, reason)


def _owned_systems(scenario: ScenarioKeys) -> None:
    """Check that owner costs are those of systems with chips, and that enough chips are bought."""
    systems = scenario.systems
    plain = [*plain_systems(systems), *both_pools(systems)]
    chips = {key: n for name in plain for key, (_, n) in owned_chips(systems, name).items()}
    for name, own in scenario.money.systems.items():
        if name not in chips:
            hint = spelling_hint(name, chips, f"try {' or '.join(chips) or 'leaving it out'}")
            reason = f"got {brief(name)!r}; expected a system with chips; {hint}"
            raise error_at_path(("economics", "systems", name), name, reason)
        serve = chips[name]
        if own.chips and own.chips < serve:
            reason = f"got {own.chips}; expected at least the {serve} that serve; try {serve}"
            raise error_at_path(("economics", "systems", name, "chips"), own.chips, reason)


def _what_only_chips_have(scenario: ScenarioKeys) -> None:
    """Check that keys of chip fidelity are used at chip fidelity only."""
    systems = scenario.systems
    parts = [(n, n, key_path(systems, n), system) for n, system in plain_systems(systems).items()]
    for name, both in both_pools(systems).items():
        of_both = f"{name}.attention"
        parts += [(name, of_both, (name, pool), system) for pool, system in both.pools.items()]
    for name, owner, path, system in parts:
        keys = [
            key
            for key in ("network", "jitter", "exceptions")
            if getattr(system, key) not in (None, ())
        ]
        if keys and not scenario.by_chip(name):
            reason = f"expected fidelity chip for this key; try systems.{owner}.fidelity: chip"
            value = getattr(system, keys[0])
            raise error_at_path(("systems", *path, keys[0]), value, reason)


def _what_a_ring_obeys(scenario: ScenarioKeys) -> None:
    """Check that systems with `policy: ring` have compiled pipelines and no key that it ignores."""
    for name, system in plain_systems(scenario.systems).items():
        if system.policies.batching is not ring:
            continue
        if problem := _ring_problem(system, scenario.by_chip(name)):
            key = "policy" if system.policy else "engine"
            reason = f"got policy ring with {problem}; try policy: continuous"
            path = ("systems", *key_path(scenario.systems, name), key)
            raise error_at_path(path, getattr(system, key), reason)


def _ring_problem(system: System, by_chip: bool) -> str:
    """Return what a ring of beats lacks or cannot simulate, and what is expected; or ''."""
    engine, tokens = system.engine.id, system.engine.tokens_per_beat
    if tokens != 1:
        has = f"{tokens} tokens per beat" if tokens else "no tokens_per_beat"
        return f"engine {engine}, which has {has}; expected one token per beat"
    problems = {
        "admission: prompt": not system.policies.reserve,
        "async_scheduling": system.async_scheduling,
        "batch_wait": system.batch_wait is not None,
        "deadline": system.deadline is not None,
        "fidelity: chip": by_chip,
        "link_errors": system.link_errors is not None,
        "micro_batch": system.micro_batch is not None,
        "outages": bool(system.outages),
        "plan.slots": system.plan.slots is not None,
        "prefix_caching": system.prefix_caching,
        "rank_wait": system.rank_wait is not None,
        "receive_every": system.receive_every is not None,
        "routing: sampled": system.routing == "sampled",
        "token_budget": system.token_budget is not None,
    }
    problem = next((key for key, has in problems.items() if has), "")
    return problem and f"{problem}; expected a system without it"


def _budgets_within_beats(scenario: ScenarioKeys) -> None:
    """Check that no compiled pipeline has a token budget that its beat makes useless.

    The budget is the system's, or else the engine's.
    With drafts, the beat is multiplied by the tokens of a sequence in a step. A compiled drafter
    takes what each of its passes needs, whatever its budget.
    """
    for path, system in _scheduled(scenario):
        drafts = system.speculate.tokens if system.speculate else 0
        _require_budget_within_beats(path, system, 1 + drafts)
        if drafter := system.drafter:
            _require_budget_within_beats((*path, "speculate", "draft", "system"), drafter, 0)


def _require_budget_within_beats(path: KeyPath, system: System | DraftSystem, beats: int) -> None:
    engine, own = system.engine, system.token_budget
    if not (beat := engine.tokens_per_beat):
        return
    budget = own or default_limits(engine, system.hardware[0])[1]
    ranks = system.plan.attention_data if engine.limits_per == "rank" else 1
    if budget and budget * ranks > beats * beat:
        most = beats * beat // ranks
        expected = f"at most {most} token" if most else "none"
        each_rank = f" for its {ranks} ranks together" if ranks > 1 else ""
        got = f"{budget} token" if own else f"{engine.id} with token_budget {budget} token"
        reason = (
            f"got {got}; expected {expected}, since engine {engine.id} takes {beat} token a beat"
            f"{each_rank}; try leaving token_budget out"
        )
        key = "token_budget" if own else "engine"
        raise error_at_path((*path, key), own or engine.id, reason)


def _what_speculation_obeys(scenario: ScenarioKeys) -> None:
    """Check that systems with `speculate` have no key with which drafts are not simulated."""
    prefills = [f"{name}.prefill" for name, of in scenario.systems.items() if isinstance(of, Pools)]
    both = both_pools(scenario.systems)
    for name in [*plain_systems(scenario.systems), *prefills, *both]:
        system = scenario.plain(name)
        if not (system.speculate and system.speculate.tokens):
            continue
        model, apart = system.model or scenario.model, system.speculate.draft.system is not None
        problems = {
            f"{model.id}, which has states of fixed size": (
                model.state_bytes() > 0,
                "states after rejected drafts are not simulated; try another model",
            ),
            "policy: ring": (
                system.policies.batching is ring,
                "a beat of the ring has one token of a sequence; try policy: continuous",
            ),
            "fidelity: chip": (
                apart and scenario.by_chip(name),
                "drafts on other chips are not simulated there; try fidelity: stage",
            ),
            "routing: sampled with groups: 2": (
                system.routing == "sampled" and system.speculate.draft.groups > 1,
                "both groups take equal times; try groups: 1, or routing: expected",
            ),
        }
        for key, (has, why) in problems.items():
            if has:
                reason = f"got {key}; expected a system without it, since {why}"
                pool = ("attention",) if name in both else ()
                path = ("systems", *key_path(scenario.systems, name), *pool, "speculate")
                raise error_at_path(path, system.speculate, reason)


def _no_prefixes_of_states(scenario: ScenarioKeys) -> None:
    """Check that no system keeps prefixes of a model that has states of fixed size.

    A state holds a whole prompt. A prefix would need a copy of the state at its end.
    """
    for path, system in _scheduled(scenario):
        if not system.prefix_caching:
            continue
        model = system.model or scenario.model
        if model.state_bytes():
            reason = (
                f"got true; expected false for {model.id}, since copies of its states at the ends "
                "of prefixes are not simulated; try leaving prefix_caching out"
            )
            raise error_at_path((*path, "prefix_caching"), True, reason)


def _experts_to_sample(scenario: ScenarioKeys) -> None:
    """Check that the models of systems with `routing: sampled` have routed experts."""
    for path, system in _scheduled(scenario):
        model = system.model or scenario.model
        if system.routing == "sampled" and not any(block.experts for block in model.blocks):
            reason = f"got sampled; expected a model with experts, and {model.id} has none"
            raise error_at_path((*path, "routing"), "sampled", f"{reason}; try leaving routing out")


def _refused_users_pause(scenario: ScenarioKeys) -> None:
    """Check that refused users pause.

    Without a pause a refused user sends again at the same instant, until no request is left.
    """
    workload = scenario.workload
    if workload.pause != 0:
        return
    users = getattr(workload, "users", 0)
    for path, system in _scheduled(scenario):
        most = system.max_waiting
        if most is not None and most < users:
            reason = (
                f"got {most} with {users} users who do not pause; expected a pause, "
                "as a refused user sends again at the same instant; try workload.think: 1 s, "
                "or leave max_waiting out"
            )
            raise error_at_path((*path, "max_waiting"), most, reason)


def _what_pools_simulate(scenario: ScenarioKeys) -> None:
    """Check that the systems of pools have no key that pools do not simulate."""
    for name, pools in scenario.systems.items():
        if not isinstance(pools, Pools):
            continue
        for pool in POOLS:
            key, reason = pool_problem(pool, member_system(scenario.systems, f"{name}.{pool}"))
            if pool == "prefill" and not key:
                key, reason = _drafts_problem(scenario, name)
            if not key:
                continue
            if system := pools.named.get(pool):
                reason = f"system {system}: {key}: {reason}"
                raise error_at_path(("systems", name, pool), system, reason)
            raise error_at_path(("systems", name, pool, *key.split(".")), key, reason)


def _drafts_problem(scenario: ScenarioKeys, name: str) -> tuple[str, str]:
    """Return the key and the problem of drafts of a prefill pool; ('', '') for none.

    A drafter that the decode pool does not use would be paid for nothing.
    """
    prefill, decode = (scenario.plain(f"{name}.{pool}").speculate for pool in POOLS)
    if not prefill or not (prefill.tokens or (decode and decode.tokens)):
        return "", ""
    if decode and prefill == decode.local:
        return "", ""
    of = f"{prefill.method} with {prefill.tokens} drafts"
    return "speculate", (
        f"got {of}; expected the drafts of the decode pool, whose KV cache is computed here; "
        "try leaving it out"
    )


def _scheduled(scenario: ScenarioKeys) -> Iterator[tuple[tuple[str, ...], System]]:
    """Yield the systems with the options of a scheduler, and the path of their keys."""
    for name, system in plain_systems(scenario.systems).items():
        yield ("systems", *key_path(scenario.systems, name)), system
    for name, pools in both_pools(scenario.systems).items():
        yield ("systems", *key_path(scenario.systems, name), "attention"), pools.attention


_IN_PLACE = "got capacity for a pool in place; expected a system that serves requests alone"


def _searched_within_limits(scenario: ScenarioKeys) -> None:
    """Check that each search by capacity has limits to meet and a load to vary."""
    for name, system in plain_systems(scenario.systems).items():
        if system.plan.search != "capacity":
            continue
        reason = _search_problem(scenario, system.fails, "search: speed")
        if name not in scenario.systems:
            reason = f"{_IN_PLACE}; try search: speed, and copies.search for the sizes of pools"
        if reason:
            path = ("systems", *key_path(scenario.systems, name), "plan", "search")
            raise error_at_path(path, "capacity", reason)
    for name, pools in scenario.systems.items():
        if isinstance(pools, Pools) and pools.copies.search:
            fails = any(scenario.plain(f"{name}.{pool}").fails for pool in POOLS)
            if reason := _search_problem(scenario, fails, "copies: {prefill: 1, decode: 1}"):
                path = ("systems", name, "copies", "search")
                raise error_at_path(path, "capacity", reason)


def _searched_splits(scenario: ScenarioKeys) -> None:
    """Check that each search for the sizes of attention and FFN pools has limits and a load."""
    for name, both in both_pools(scenario.systems).items():
        if not both.plan:
            continue
        reason = _search_problem(scenario, False, "leaving plan out")
        if name not in scenario.systems:
            reason = f"{_IN_PLACE}; try the name of a system with this search"
        if reason:
            path = ("systems", *key_path(scenario.systems, name), "plan", "search")
            raise error_at_path(path, "capacity", reason)


def _search_problem(scenario: ScenarioKeys, fails: bool, hint: str) -> str:
    """Return why a system cannot be searched for by capacity; empty if it can.

    fails: whether it has outages. hint: what to try instead.
    """
    slo = scenario.tightest_slo
    if slo is None or not slo.limits:
        return (
            "got capacity without an slo; expected limits to meet; "
            "try slo: {ttft: 2 s, tpot: 100 ms}"
        )
    if scenario.workload.load_kind is None:
        return (
            f"got capacity with workload {scenario.workload.noun()}; expected poisson, gamma, "
            f"trace, sessions or closed, whose load varies; try {hint}"
        )
    if fails:
        return f"got capacity with outages; expected a system that works; try {hint}"
    return ""
