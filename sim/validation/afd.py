"""The comparison with measured decode steps of attention and FFN pools: `sramsim validate afd`.

attention_ffn_report().as_json()["median_ape"]  # in %

Single steps are computed, without requests, because the sources measured decoding alone.
"""

from collections import defaultdict
from typing import NamedTuple

from sim.catalogue.measurements import PublishedSteps, StepMeasurements
from sim.cost.work import decodes_at
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.scenario.scenario import Scenario
from sim.validation.agreement import PointComparison, ValidationReport
from sim.validation.points import MeasuredPoint


class RatioPoint(NamedTuple):
    """The speed with a ratio of attention chips to FFN chips: token/s of each chip of both pools.

    ratio: 0 without an FFN pool.
    """

    ratio: float
    measured: float
    simulated: float


class RatioPanel(NamedTuple):
    """The points of one model and context, by rising ratio.

    kernels: those that count, with experts as they were timed alone. light: those that are only
    listed, at the speed of light. ordinary: one system of attention chips, without an FFN pool.
    """

    model: str
    context: int
    kernels: tuple[RatioPoint, ...]
    light: tuple[RatioPoint, ...]
    ordinary: tuple[RatioPoint, ...]


def attention_ffn_report() -> ValidationReport:
    """Return the comparison of all steps of the catalogue."""
    rows = [row for group in _measured_groups() for row in _compared_steps(group)]
    return ValidationReport("afd", tuple(rows))


def ratio_panels() -> list[RatioPanel]:
    """Return the measured and simulated speeds of every model and context of the catalogue."""
    kinds: defaultdict[tuple[str, int], defaultdict[str, list[RatioPoint]]]
    kinds = defaultdict(lambda: defaultdict(list))
    for group in _measured_groups():
        kind = "light" if group.status == "listed" else "kernels"
        kind = kind if "attention" in group.system else "ordinary"
        kinds[group.model, group.context][kind] += _speeds(group)
    return [
        RatioPanel(*key, *(tuple(sorted(of[kind])) for kind in ("kernels", "light", "ordinary")))
        for key, of in kinds.items()
    ]


def _measured_groups() -> tuple[PublishedSteps, ...]:
    return read_value(catalogue_names("measurements")["afd"], StepMeasurements).points


def _speeds(group: PublishedSteps) -> list[RatioPoint]:
    """Return the speeds of a group: the tokens of a step over its time and all chips."""
    pool = group.system.get("ffn")
    other = pool["chips"] if isinstance(pool, dict) else 0
    points = []
    for chips, sequences, row in zip(
        group.chips, group.sequences, _compared_steps(group), strict=True
    ):
        assert row.measured is not None
        assert row.simulated is not None
        tokens = chips * sequences / (chips + other)
        points.append(
            RatioPoint(
                chips / other if other else 0.0, tokens / row.measured, tokens / row.simulated
            )
        )
    return points


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
