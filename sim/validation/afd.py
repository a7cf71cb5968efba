"""The comparison with measured decode steps of attention and FFN pools: `sramsim validate afd`.

attention_ffn_report().as_json()["median_ape"]  # in %

Single steps are computed, without requests, because the sources measured decoding alone.
"""

from sim.catalogue.measurements import PublishedSteps, StepMeasurements
from sim.cost.work import decodes_at
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.scenario.scenario import Scenario
from sim.validation.agreement import PointComparison, ValidationReport
from sim.validation.points import MeasuredPoint


def attention_ffn_report() -> ValidationReport:
    """Return the comparison of all steps of the catalogue."""
    table = read_value(catalogue_names("measurements")["afd"], StepMeasurements)
    rows = [row for group in table.points for row in _compared_steps(group)]
    return ValidationReport("afd", tuple(rows))


def _compared_steps(group: PublishedSteps) -> list[PointComparison]:
    """Return the comparison of each step of a group."""
    rows = []
    for chips, sequences, measured in zip(group.chips, group.sequences, group.times, strict=True):
        scenario = _scenario_of(group, chips)
        work = decodes_at(chips * sequences, float(group.context), scenario.model.window)
        simulated = float(scenario.deploy(group.id).costs.step(work).time.sum())
        system = scenario.whole(group.id)
        about = {
            "model": scenario.model.id,
            "chip": system.hardware[0].id,
            "source": group.source,
        }
        users = chips * sequences
        identity = f"{group.id}-{chips}"
        point = MeasuredPoint(identity, about, {}, "users", users, group.context, system=system)
        rows.append(PointComparison(point, "tpot", measured, simulated, group.status, group.reason))
    return rows


def _scenario_of(group: PublishedSteps, chips: int) -> Scenario:
    """Return the scenario of a group's system with a number of chips."""
    pool = group.system.get("attention", group.system)
    assert isinstance(pool, dict)
    sized = {**pool, "chips": chips, "plan": {**pool["plan"], "attention_data": chips}}
    system = {**group.system, "attention": sized} if "attention" in group.system else sized
    # The step is computed at the group's context: the workload only sizes the plan.
    workload = {"kind": "closed", "users": 1, "requests": 1}
    lengths = {"prompt": group.context, "output": 1}
    return Scenario.model_validate(
        {"model": group.model, "workload": workload | lengths, "systems": {group.id: system}}
    )
