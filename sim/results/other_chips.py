"""The identity of chips that a system has beside its own: an FFN pool, or those of a drafter.

>>> Degrees(tensor=8, pipeline=72).text
'8 x 72 x 1'
"""

from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import OMIT_NONE


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """The degrees of a plan."""

    tensor: int
    attention_data: int = 1
    expert: int = 1
    pipeline: int
    replicas: int = 1

    @property
    def text(self) -> str:
        """'8 x 72 x 1': tensor, pipeline, replicas."""
        return f"{self.tensor} x {self.pipeline} x {self.replicas}"


@dataclass(frozen=True, kw_only=True)
class OtherChips:
    """Chips beside those of a system, with their engine and plan.

    weights: precision. weight_bytes, capacity: of the fullest chip [B].
    """

    vendor: Annotated[str | None, OMIT_NONE] = None
    chip: str
    chips: int
    engine: str
    speed_label: str | None = None
    plan: Degrees
    weights: str
    weight_bytes: float
    capacity: float


@dataclass(frozen=True, kw_only=True)
class FfnPoolIdentity(OtherChips):
    """The FFN pool of a system whose other chips have attention.

    micro_batches: parts of a step that take turns on both pools.
    """

    micro_batches: int

    @property
    def text(self) -> str:
        """'4 x gb200, fp8, tensor 4 x pipeline 1, expert 4'."""
        return f"{self.chips} x {self.chip}, {self.weights}, {self.degrees}"

    @property
    def degrees(self) -> str:
        """'tensor 4 x pipeline 1, expert 4'."""
        plan = self.plan
        return f"tensor {plan.tensor} x pipeline {plan.pipeline}, expert {plan.expert}"


@dataclass(frozen=True, kw_only=True)
class DrafterIdentity(OtherChips):
    """The chips that draft, if they are others than those that verify.

    kv: precision. kv_tokens: tokens that one replica of the drafter holds.
    groups: micro-batches that take turns. round_trip_us: of the drafts of one sequence.
    """

    kv: str
    kv_tokens: int
    groups: int
    round_trip_us: float

    @property
    def text(self) -> str:
        """'32 x groq-lp30, fp8, tensor 32 x pipeline 1 x replicas 1'."""
        plan = self.plan
        degrees = f"tensor {plan.tensor} x pipeline {plan.pipeline} x replicas {plan.replicas}"
        return f"{self.chips} x {self.chip}, {self.weights}, {degrees}"

    @property
    def turns(self) -> str:
        """'2 groups, round trip 10 us'."""
        groups = f"{self.groups} group" + "s" * (self.groups > 1)
        return f"{groups}, round trip {self.round_trip_us:.3g} us"
