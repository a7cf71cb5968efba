"""Published speed-ups by drafts, compared: `sramsim validate speculation`.

speculation_report().as_json()["median_ape"]  # in %

A speed-up is against the same engine without drafts. The time that it stands for is the simulated
time without drafts over the published speed-up. So errors are those of the speed-up alone.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.inputs.values import Entry, Value
from sim.scenario.system import System
from sim.units import Count, Tokens
from sim.validation.agreement import PointComparison, ValidationReport
from sim.validation.points import MeasuredPoint
from sim.validation.simulate import serve_point


class PublishedSpeedups(Value):
    """The speed-ups of one system with drafts, by the number of users of a closed loop."""

    id: str = Field(description="Name of the group; the number of users is added to it.")
    system: System = Field(description="System with its model and `speculate`.")
    prompt: Tokens = Field(description="Tokens of a prompt.")
    output: Tokens = Field(description="Tokens of an answer.")
    users: tuple[Count, ...] = Field(description="Numbers of users, or of sequences of a batch.")
    speedups: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="Token throughput over that without drafts, for each number of users."
    )
    status: Literal["fitted", "tested", "assumed"] = Field(
        description="`fitted`: a number of the engine was fitted to them; `tested`: none was; "
        "`assumed`: the acceptance is not published."
    )
    reason: str = Field(description="What is assumed, and what errors are expected.")
    source: str = Field(description="Where the speed-ups are published.")

    @model_validator(mode="after")
    def _as_many(self) -> "PublishedSpeedups":
        if len(self.users) != len(self.speedups):
            raise ValueError(
                f"got {len(self.speedups)} speedups for {len(self.users)} users; expected one each"
            )
        return self


class SpeculationMeasurements(Entry):
    """Published speed-ups by drafts."""

    note: str = Field(default="", description="Remark about the table, for people.")
    groups: tuple[PublishedSpeedups, ...] = Field(description="Speed-ups, by system.")


def speculation_report() -> ValidationReport:
    """Return the comparison of all speed-ups of the catalogue.

    Raises: PlanError if a system does not fit.
    """
    table = read_value(catalogue_names("measurements")["speculation"], SpeculationMeasurements)
    rows = [row for group in table.groups for row in _compared(group)]
    return ValidationReport("speculation", tuple(rows))


def _compared(group: PublishedSpeedups) -> list[PointComparison]:
    """Return the comparison of each speed-up of a group."""
    rows = []
    plain = group.system.model_copy(update={"speculate": None})
    for users, speedup in zip(group.users, group.speedups, strict=True):
        without, drafting = (_point(group, users, system) for system in (plain, group.system))
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
