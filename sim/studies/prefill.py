"""What replies show beyond floors: prompt time over prompt tokens, and the beat over numbers of chips."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sim.cost.plan import PlanError
from sim.inputs.files import UserError
from sim.scenario.layout import deploy_fitting
from sim.validation.points import MeasuredPoint
from sim.validation.validate import Table, asked, points_of, prompt_time, served, shipped

SHOWN = 6  # deployments, those with the most replies
LENGTHS = 6  # prompts that are simulated for a line
SAME = 0.02  # beats that differ by less are one: a floor is not known better


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt times of a deployment, each with its new prompt tokens [s]; `label` says what served it."""

    label: str
    provider: str
    measured: tuple[tuple[int, float], ...]
    simulated: tuple[tuple[int, float], ...]


def prefills(table: Table) -> list[Prefill]:
    """Return the prompt times of the deployments whose beat is scored, measured and simulated."""
    scored = [row.point for row in table.headline if row.metric == "beat"]
    shown = sorted(scored, key=lambda point: -len(point.prompts))[:SHOWN]
    return [prefill(point) for point in shown]


def prefill(point: MeasuredPoint) -> Prefill:
    """Return the prompt times of one deployment, simulated from its shortest to its longest prompt."""
    assert point.system is not None
    lengths = [tokens for tokens, _ in point.prompts]
    deployment = deploy_fitting(asked(point, 1), "measured")
    chosen = np.unique(
        np.geomspace(min(lengths), max(lengths), LENGTHS).round().astype(int)
    ).tolist()
    simulated = tuple((tokens, prompt_time(deployment, tokens)) for tokens in chosen)
    chip = point.system.chip.id if point.system.chip else ""
    label = f"{point.about['model']} {point.about['half_year']}: {point.system.chips} x {chip}"
    return Prefill(label, point.about["provider"], point.prompts, simulated)


def chip_counts(deployment: str) -> Iterator[tuple[int, float, float]]:
    """Yield numbers of chips that hold the model of a deployment, each with its beat and TPOT [s].

    They are those with whole stages of the system's plan, from the fewest stages to one for each block.
    Where several in a row have nearly one beat, the fewest chips stand for all.  Use: choose `chips` of the
    deployment's rule (scenarios/measurements/rules.yaml) again after its engine changed.

    Raises: UserError where sram-replies has no such deployment, or the catalogue not its model.
    """
    point = next(
        (point for point in points_of(shipped("sram-replies")) if point.id == deployment), None
    )
    if point is None:
        raise UserError(f"{deployment}: sram-replies has no such deployment")
    if point.system is None or point.system.model is None:
        raise UserError(f"{deployment}: {point.reason}")
    last = math.nan
    for stages in range(1, len(point.system.model.blocks) + 1):
        chips = stages * point.system.plan.stage_size
        try:
            times = served(replace(point, system=point.system.model_copy(update={"chips": chips})))
        except PlanError:
            continue
        if not math.isclose(times["beat"], last, rel_tol=SAME):
            last = times["beat"]
            yield chips, last, times["tpot"]
