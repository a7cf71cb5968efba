"""The record of one sweep point: for each system its flat results, or its error.

compute_record(point.document)["systems"]["lpu"]["median_tpot_ms"]
"""

from collections.abc import Mapping
from typing import Any

from sim import __version__
from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.planning.deployment import Deployment
from sim.scenario.layout import deploy_members
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario, scenario_from
from sim.studies.design import search_plans
from sim.studies.provenance import package_digest
from sim.studies.run import Result, serve_system
from sim.units import Seconds

# Keys of a system's result without a column: no single number, a fleet's parts, or known from the
# values of the point.
LEFT_OUT = ("members", "published", "network", "tried", "changed")


def compute_record(document: Document) -> dict[str, Any]:
    """Return the record of one point: the result of each system, flat, or its error.

    `again` is true if an error came from something else than the scenario.
    """
    record: dict[str, Any] = {
        "version": __version__,
        "code": package_digest(),
        "error": "",
        "systems": {},
        "inputs": document.data,
        "again": False,
    }
    try:
        scenario = scenario_from(document)
        requests = scenario.workload.draw(scenario.seed)
    except Exception as error:
        record["error"], record["again"] = error_line(error), not isinstance(error, UserError)
        return record
    for name in scenario.systems:
        try:
            scenario = search_plans(scenario, systems=scenario.members(name))
            members = deploy_members(scenario, name)
            result = Result(
                scenario, scenario.seed, {name: serve_system(scenario, name, members, requests)}
            )
            record["systems"][name] = {
                "error": "",
                **flat_values(
                    _figure_values(scenario, members) | result.as_json()["systems"][name]
                ),
            }
        except Exception as error:
            record["systems"][name] = {"error": error_line(error)}
            record["again"] = record["again"] or not isinstance(error, UserError)
    return record


def error_line(error: Exception) -> str:
    """Return an error as one line; with its class if it is not an error of the user."""
    text = " ".join(str(error).splitlines())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def flat_values(result: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the numbers and texts of a result by dotted key, such as 'plan.tensor'.

    Left out: lists, and the keys in LEFT_OUT.
    """
    values: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Mapping) and key not in LEFT_OUT:
            values |= flat_values(value, f"{above}{key}.")
        elif not isinstance(value, Mapping | list | tuple):
            values[above + key] = value
    return values


def _figure_values(scenario: Scenario, members: Mapping[str, Member]) -> dict[str, Any]:
    """Return what figures need in addition to a result: the load, the watts, and a bound of TPOT.

    Watts are None if one chip does not publish them.  A fleet has no bound.
    """
    powers = [(member.chips, member.deployment.layout.chip.power) for member in members.values()]
    watts = {}
    for kind in ("typical", "maximum"):
        known = [
            chips * getattr(power, kind)
            for chips, power in powers
            if getattr(power, kind, None) is not None
        ]
        watts[f"{kind}_watts"] = sum(known) if len(known) == len(powers) else None
    single = next(iter(members.values())).deployment if len(members) == 1 else None
    return {
        "rate": getattr(scenario.workload, "rate", None),
        "users": getattr(scenario.workload, "users", None),
        **watts,
        "fill": single and (single.limits.fill or single.limits.micro_batches),
        "bound_tpot_ms": single and 1000 * _tpot_bound(single),
    }


def _tpot_bound(deployment: Deployment) -> Seconds:
    """Return the least time of a token: its weights over the bandwidth of one stage's chips.

    Stages work one after another, so only the chips of one stage read at a time.  The bandwidth is
    that of a multiply on the chip.
    Left out: KV cache, computing, messages, overheads.
    """
    layout = deployment.layout
    plan, chip = layout.plan, layout.chip
    nbytes = sum(block.active * plan.precision(block).bytes for block in layout.model.blocks[1:])
    return nbytes / (chip.weight_bandwidth(layout.weights_memory, plan.weights) * plan.stage_size)
