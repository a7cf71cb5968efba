"""Published speed-ups by drafts, compared: `sramsim validate speculation`.

speculation_report().as_json()["median_ape"]  # in %

A speed-up is against the same engine without drafts. The time that it stands for is the simulated
time without drafts over the published speed-up. So errors are those of the speed-up alone.
"""

from sim.catalogue.measurements import PublishedSpeedups, SpeculationMeasurements
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.scenario.system import System
from sim.validation.agreement import PointComparison, ValidationReport
from sim.validation.points import MeasuredPoint
from sim.validation.simulate import serve_point


def speculation_report() -> ValidationReport:
    """Return the comparison of all speed-ups of the catalogue.

    Raises: PlanError if a system does not fit.
    """
    table = read_value(catalogue_names("measurements")["speculation"], SpeculationMeasurements)
    rows = [row for group in table.points for row in _compared(group)]
    return ValidationReport("speculation", tuple(rows))


def _compared(group: PublishedSpeedups) -> list[PointComparison]:
    """Return the comparison of each speed-up of a group."""
    rows = []
    system = System.model_validate(group.system)
    plain = system.model_copy(update={"speculate": None})
    for users, speedup in zip(group.users, group.speedups, strict=True):
        without, drafting = (_point(group, users, which) for which in (plain, system))
        measured = serve_point(without)["tpot"] / speedup
        simulated = serve_point(drafting)["tpot"]
        reason = f"{speedup:g} times as fast as without drafts; {group.reason}"
        rows.append(PointComparison(drafting, "tpot", measured, simulated, group.status, reason))
    return rows


def _point(group: PublishedSpeedups, users: int, system: System) -> MeasuredPoint:
    """Return the point of a number of users of a group."""
    assert system.model is not None
    about = {"model": system.model.id, "chip": system.hardware[0].id, "source": group.source}
    return MeasuredPoint(
        f"{group.id}-{users}",
        about,
        {},
        "alone" if users == 1 else "users",
        users,
        group.prompt,
        group.output,
        system=system,
    )
