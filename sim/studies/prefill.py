"""Prompt times of SRAM services: over prompt tokens, and over numbers of chips.

prefills(validate_set("sram-replies"))[0].simulated  # prompt tokens, prompt time [s]
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sim.cost.plan import PlanError
from sim.inputs.errors import UserError
from sim.inputs.suggestions import unknown_name
from sim.scenario.layout import deploy_fitting
from sim.validation.agreement import ValidationReport
from sim.validation.points import MeasuredPoint
from sim.validation.simulate import point_scenario, prompt_time, serve_point
from sim.validation.validate import points_of, shipped_table

SHOWN = 6  # deployments with the most replies
LENGTHS = 6  # simulated prompt lengths of a line
SAME_BEAT = 0.02  # beats that differ by less are equal, because a floor is not known better


@dataclass(frozen=True, slots=True)
class Prefill:
    """A deployment's prompt times, measured and simulated.

    measured, simulated: new prompt tokens, and prompt time [s].
    label: the model, half-year and chips that served it. vendor: maker of the chips.
    """

    label: str
    provider: str
    measured: tuple[tuple[int, float], ...]
    simulated: tuple[tuple[int, float], ...]
    vendor: str = ""


def prefills(report: ValidationReport) -> list[Prefill]:
    """Return the prompt times of the deployments with the most replies whose beat is scored."""
    scored = [row.point for row in report.headline if row.metric == "beat"]
    shown = sorted(scored, key=lambda point: -len(point.prompts))[:SHOWN]
    return [prompt_times(point) for point in shown]


def prompt_times(point: MeasuredPoint) -> Prefill:
    """Return the prompt times of one deployment, from its shortest to its longest prompt."""
    assert point.system is not None
    lengths = [tokens for tokens, _ in point.prompts]
    deployment = deploy_fitting(point_scenario(point, 1), "measured")
    chosen = np.unique(
        np.geomspace(min(lengths), max(lengths), LENGTHS).round().astype(int)
    ).tolist()
    simulated = tuple((tokens, prompt_time(deployment, tokens)) for tokens in chosen)
    chip = point.system.hardware[0]
    label = f"{point.about['model']} {point.about['half_year']}: {point.system.chips} x {chip.id}"
    return Prefill(label, point.about["provider"], point.prompts, simulated, chip.vendor)


def chip_counts(deployment: str) -> Iterator[tuple[int, float, float]]:
    """Yield numbers of chips that hold the model of a deployment, with beat and TPOT [s].

    They have whole stages of the system's plan, from the fewest stages to one for each block.  If
    several in a row have nearly the same beat, the fewest chips stand for all.
    Use: choose `chips` of the deployment's rule (scenarios/measurements/rules.yaml) again after
    its engine changed.
    Raises: UserError if sram-replies has no such deployment, or the catalogue not its model.
    """
    points = {point.id: point for point in points_of(shipped_table("sram-replies"))}
    if deployment not in points:
        raise unknown_name("chip_counts", deployment, points)
    point = points[deployment]
    if point.system is None or point.system.model is None:
        raise UserError(f"{deployment}: {point.reason}")
    last = math.nan
    for stages in range(1, len(point.system.model.blocks) + 1):
        chips = stages * point.system.plan.stage_size
        try:
            times = serve_point(
                replace(point, system=point.system.model_copy(update={"chips": chips}))
            )
        except PlanError:
            continue
        if not math.isclose(times["beat"], last, rel_tol=SAME_BEAT):
            last = times["beat"]
            yield chips, last, times["tpot"]
