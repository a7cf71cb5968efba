"""Published acceptance of a drafter, by a catalogue name.

>>> chances_of((1.9, 2.6, 2.7))
(0.9, 0.7, 0.1)
"""

from typing import Annotated

from pydantic import Field

from sim.inputs.document import read_value
from sim.inputs.fields import Shorthand
from sim.inputs.names import find_entry
from sim.inputs.values import Sourced

Chance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
KIND = "acceptance"  # the catalogue's folder, and the kind that `sramsim show` takes


class AcceptanceCurve(Sourced):
    """The measured acceptance of one drafter on one kind of text, by the drafts of a step.

    A step with i drafts yields L_i tokens on average. The chance that the first i drafts are
    accepted is L_i - L_(i-1), with L_0 = 1.
    Left out: more drafts in a step may change the chance of earlier ones.
    """

    lengths: tuple[Annotated[float, Field(ge=1, allow_inf_nan=False)], ...] = Field(
        description="Mean tokens of a step with 1, 2, 3 drafts, the token of the model included."
    )

    @property
    def chances(self) -> tuple[float, ...]:
        """The chances that the first 1, 2, 3 drafts are accepted."""
        return chances_of(self.lengths)


def chances_of(lengths: tuple[float, ...]) -> tuple[float, ...]:
    """Return the chances that the first 1, 2, ... drafts are accepted, from mean lengths.

    Differences that increase are noise: each is replaced by the mean of its neighbours, until
    none increases (pool adjacent violators). Those below 0 count as 0.
    """
    pools: list[tuple[float, int]] = []  # sum and number of equal chances
    for before, length in zip((1.0, *lengths), lengths, strict=False):
        total, count = length - before, 1
        while pools and total / count > pools[-1][0] / pools[-1][1]:
            total, count = total + pools[-1][0], count + pools.pop()[1]
        pools.append((total, count))
    return tuple(
        round(min(1.0, max(0.0, total / count)), 6) for total, count in pools for _ in range(count)
    )


def _named_chances(value: object) -> object:
    """Return the chances of a curve for its name; any other value as it is."""
    if not isinstance(value, str):
        return value
    return read_value(find_entry(value, KIND), AcceptanceCurve).chances


AcceptanceField = Annotated[
    Chance | tuple[Chance, ...],
    Shorthand(
        _named_chances,
        {"type": "string", "description": f"a name among the catalogue's {KIND}, or a file's path"},
    ),
]
