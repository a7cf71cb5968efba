"""The record of one sweep point: for each system its flat results, or its error.

compute_record(point.document).systems["lpu"]["median_tpot_ms"]
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from sim import __version__
from sim.cost.layout import read_bytes
from sim.economics.owner_costs import OwnerCosts
from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.inputs.fields import own_code_error
from sim.inputs.key_paths import JsonObject, JsonValue, Scalar, scalar_values
from sim.planning.deployment import Deployment
from sim.results.encoding import OMIT_NONE, json_object
from sim.scenario.layout import deploy_members
from sim.scenario.pools import owned_chips
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario, scenario_from
from sim.studies.design import search_plans
from sim.studies.provenance import package_digest
from sim.studies.run import Result, serve_system
from sim.units import Seconds, parse_quantity

# Keys of a system's result without a column: no single number, a fleet's parts, or known from the
# values of the point.
LEFT_OUT = ("at_capacity", "no_capacity", "members", "published", "network", "tried", "changed")


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """The result of one point: the content of points/HASH.json.

    version, code: of the package that computed it. error: of the whole point; '' without one.
    systems: by name, the columns of the table with the system's error.
    again: whether an error came from something else than the scenario; None in a file.
    """

    version: str
    code: str = ""
    error: str
    systems: Mapping[str, Mapping[str, Scalar]]
    inputs: Mapping[str, JsonValue] = field(default_factory=dict)
    again: Annotated[bool | None, OMIT_NONE] = None


def compute_record(document: Document) -> PointRecord:
    """Return the record of one point: the result of each system, flat, or its error."""
    record = PointRecord(
        version=__version__, code=package_digest(), error="", systems={}, inputs=document.data
    )
    try:
        scenario = scenario_from(document)
        requests = scenario.workload.draw(scenario.seed)
    except (Exception, SystemExit) as error:
        return replace(record, error=error_line(error), again=not isinstance(error, UserError))
    systems: dict[str, Mapping[str, Scalar]] = {}
    again = False
    for name in scenario.systems:
        try:
            scenario = search_plans(scenario, systems=[name, *scenario.members(name)])
            members = deploy_members(scenario, name)
            result = Result(
                scenario, scenario.seed, {name: serve_system(scenario, name, members, requests)}
            )
            systems[name] = (
                {"error": ""}
                | _figure_values(scenario, members)
                | _card_price_range(scenario, name)
                | table_values(json_object(result.system_summary(name)))
            )
        except (Exception, SystemExit) as error:
            systems[name] = {"error": error_line(error)}
            again = again or not isinstance(error, UserError)
    return replace(record, systems=systems, again=again)


def error_line(error: BaseException) -> str:
    """Return an error as one line; with its class if it is not an error of the user."""
    text = " ".join(str(error).splitlines())
    if isinstance(error, UserError):
        return text
    return own_code_error(error) or f"{type(error).__name__}: {text}"


def table_values(system: JsonObject) -> dict[str, Scalar]:
    """Return the numbers and texts of a system's result by dotted key, such as 'plan.tensor'.

    Left out: lists, and the keys in LEFT_OUT.
    """
    return scalar_values({key: value for key, value in system.items() if key not in LEFT_OUT})


def _figure_values(scenario: Scenario, members: Mapping[str, Member]) -> dict[str, Scalar]:
    """Return what figures need in addition to a result: the load, the watts, and a bound of TPOT.

    Watts are None if one chip does not publish them.  A fleet has no bound, nor have chips of two
    kinds.
    """
    powers = []
    for member in members.values():
        deployment = member.deployment
        powers.append((member.copies * deployment.own_chips, deployment.layout.chip.power))
        powers += [
            (member.copies * other.chips, other.layout.chip.power) for other in deployment.others
        ]
    watts = {}
    for kind in ("typical", "maximum"):
        known = [
            chips * getattr(power, kind)
            for chips, power in powers
            if getattr(power, kind, None) is not None
        ]
        watts[f"{kind}_watts"] = sum(known) if len(known) == len(powers) else None
    fill = bound = None
    single = next(iter(members.values())).deployment
    if len(members) == 1 and not single.others:
        fill = single.limits.spread
        bound = 1000 * _tpot_bound(single)
    return {
        "rate": getattr(scenario.workload, "rate", None),
        "users": getattr(scenario.workload, "users", None),
        **watts,
        "fill": fill,
        "bound_tpot_ms": bound,
    }


def _card_price_range(scenario: Scenario, name: str) -> dict[str, Scalar]:
    """Return the least and the most that a card may cost by its chip's file [USD].

    Left out: fleets, attention and FFN pools, and systems with a price of their own in `economics`.
    """
    if name not in scenario.members(name) or name not in owned_chips(scenario.systems, name):
        return {}
    costs = scenario.money.systems.get(name, OwnerCosts())
    chip = scenario.plain(name).hardware[0]
    if costs.card is not None or costs.capital is not None or "price" not in chip.range:
        return {}
    least, most = sorted(parse_quantity(str(end), "USD") for end in chip.range["price"])
    return {"least_card_usd": least, "most_card_usd": most}


def _tpot_bound(deployment: Deployment) -> Seconds:
    """Return the least time of a token: its weights over the bandwidth of one stage's chips.

    Stages work one after another, so only the chips of one stage read at a time.  The bandwidth is
    that of a multiply on the chip.
    Left out: KV cache, computing, messages, overheads.
    """
    layout = deployment.layout
    plan, chip = layout.plan, layout.chip
    nbytes = sum(read_bytes(plan, block) for block in layout.model.blocks[1:])
    return nbytes / (chip.weight_bandwidth(layout.weights_memory, plan.weights) * plan.stage_size)
