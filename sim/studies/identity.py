"""What a result names beside a system's numbers: model, chips, engine, plan, precisions, published speeds of the same."""

from collections.abc import Mapping
from typing import Any

from sim.catalogue.measurements import published_speeds
from sim.planning.deployment import Deployment
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.system import System


def identity(scenario: Scenario, name: str, members: Mapping[str, Member]) -> dict[str, Any]:
    """What a result names beside a system's numbers; where it is a fleet, for each member."""
    if isinstance(scenario.systems[name], System):
        return describe(scenario, name, members[name].deployment)
    return together(
        {
            member: {"copies": of.copies} | describe(scenario, member, of.deployment)
            for member, of in members.items()
        }
    )


def together(members: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a fleet is, from what its members are."""
    model = next(iter(members.values()))["model"]
    return {
        "model": model,
        "chips": sum(told["copies"] * told["chips"] for told in members.values()),
        "members": members,
    }


def beat_of(deployment: Deployment) -> dict[str, Any] | None:
    """How long a compiled pipeline takes for what enters at once, and so the most tokens a second of a replica; else None."""
    if deployment.beat is None:
        return None
    tokens = deployment.limits.token_budget
    most = tokens / deployment.beat
    return {
        "us": 1e6 * deployment.beat,
        "tokens": tokens,
        "max_token_throughput": most,
        "fill": deployment.limits.fill,
    }


def describe(scenario: Scenario, name: str, deployment: Deployment) -> dict[str, Any]:
    """What a result names beside its numbers: model, chip, engine, plan, precisions; published speeds of the same.

    `speed_label` says what its speeds are where the engine was not measured on the chip.  `contended` says which
    collectives' times by stage are estimates.

    `changed` has the numbers that differ from the named entries.  Published speeds of a changed chip or model are left out: they
    are those of another one.
    """
    layout = deployment.layout
    plan = layout.plan
    changed = scenario.whole(name).changed
    same, chips = (
        not (layout.chip.changed or layout.model.changed),
        deployment.chips // plan.replicas,
    )
    return {
        "model": layout.model.id,
        "chip": layout.chip.id,
        "chips": deployment.chips,
        "engine": layout.engine.id,
        "speed_label": layout.engine.speed_label(layout.chip),
        "contended": deployment.contended or None,
        "plan": {
            **{
                key: getattr(plan, key)
                for key in ("tensor", "attention_data", "expert", "pipeline", "replicas", "balance")
            },
            "slots": deployment.limits.micro_batches,
        },
        **({"search": searched(scenario, name)} if name in scenario.searches else {}),
        "precision": {
            key: getattr(plan, key)
            for key in ("weights", "attention", "activations", "hidden", "dispatch", "kv", "head")
        },
        "memory": {"weights": plan.weights_in, "kv": plan.kv_in},
        "memories": list(layout.chip.memory),
        "weight_bandwidth": {
            "claimed": layout.chip.claimed_bandwidth or layout.weights_memory.bandwidth,
            "chip": layout.chip.weight_bandwidth(layout.weights_memory, plan.given("weights")),
        },
        "token_budget": layout.token_budget,
        "kv_tokens": deployment.limits.kv_tokens,
        "beat": beat_of(deployment),
        "load_s": deployment.load,
        "published": [
            {key: getattr(p, key) for key in ("id", "engine", "weights", "date", "source", "paced")}
            | {"tokens_per_second": p.speed}
            for p in (
                published_speeds(
                    layout.model.id, layout.chip.id, chips, layout.engine.id, plan.given("weights")
                )
                if same
                else ()
            )
        ],
        **(
            {"changed": {key: {"from": was, "to": value} for key, (was, value) in changed.items()}}
            if changed
            else {}
        ),
    }


def searched(scenario: Scenario, name: str) -> dict[str, Any]:
    """How the plan of a system was found, where `search: capacity` left it open."""
    search = scenario.searches[name]
    load = (
        {"max_goodput_users": round(search.load)}
        if scenario.workload.load_kind == "users"
        else {"max_goodput_rate": search.load}
    )
    return {
        "by": "capacity",
        "considered": search.considered,
        "simulated": search.simulated,
        **load,
    }
