"""The plan of a scenario, typed: memory, sequences and speed of each system (`plan --json`).

    >>> SequenceCounts(fullest_stage=6, all_memory=7).fullest_stage
    6

`sim.results.encoding` writes and reads these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from sim.results.encoding import OMIT_NONE, SPLICED, Key
from sim.results.system_identity import (
    FleetIdentity,
    FleetMember,
    SystemIdentity,
    UnloadedRequest,
)


class StageWeights(NamedTuple):
    """The blocks of a stage, from first to last, and the weights on each of its chips [B]."""

    first: int
    last: int
    weights: float


@dataclass(frozen=True, kw_only=True)
class ChipMemory:
    """The memory of the fullest chip [B]. kv: of one request. capacity: of usable memory."""

    weights: float
    kv: float
    activations: float
    reserve: float
    capacity: float


@dataclass(frozen=True)
class SequenceCounts:
    """Sequences of one length that fit: in the fullest stage, and in all memory together."""

    fullest_stage: int
    all_memory: int


@dataclass(frozen=True, kw_only=True)
class TriedPlan:
    """A plan that the search tried. tpot: of a single request [s]; None if it does not fit."""

    chips: int
    tensor: int
    attention_data: int
    expert: int
    pipeline: int
    replicas: int
    fits: bool
    tpot: float | None


@dataclass(frozen=True, kw_only=True)
class SpeculationGain:
    """The gain of drafts for a single request, whose step without drafts takes 1.

    tokens_per_step: mean output of a step. verify, draft: times of its parts. speedup: their use.
    break_even: chance of each draft from which drafts pay; None if they never do.
    """

    tokens_per_step: float
    verify: float
    draft: float
    speedup: float
    break_even: float | None


@dataclass(frozen=True, kw_only=True)
class LayerCycle:
    """A layer of a full step on an attention pool and an FFN pool [us].

    The layer is of the most frequent kind. sequences: of the step. micro_batches: its parts.
    attention, out, ffn, back: times of one part. cycle: time of the layer for all parts.
    overlapped: time of its exchanges in the FFN pool while the chips compute another part.
    binds: the pool or link that never waits; 'latency' if all of them wait.
    """

    sequences: int
    micro_batches: int
    attention_us: float
    out_us: float
    ffn_us: float
    overlapped_us: float
    back_us: float
    cycle_us: float
    binds: str


@dataclass(frozen=True, kw_only=True)
class PlannedSystem:
    """A plain system: its memory, and the speed of a single request if the model fits.

    minimum_chips: None if no number of chips is enough.
    max_sequences: by length in tokens. unloaded: None if the model does not fit.
    draft_gain: None without speculation, or if the model does not fit.
    layer_cycle: None without an FFN pool, or if the model does not fit.
    """

    identity: Annotated[SystemIdentity, SPLICED]
    fits: bool
    weights_only_chips: int
    minimum_chips: int | None
    bytes_per_chip: ChipMemory
    stages: tuple[StageWeights, ...]
    max_sequences: Mapping[str, SequenceCounts]
    unloaded: Annotated[UnloadedRequest | None, Key("lone_request")]
    tried: Annotated[tuple[TriedPlan, ...] | None, OMIT_NONE] = None
    draft_gain: Annotated[SpeculationGain | None, OMIT_NONE] = None
    layer_cycle: Annotated[LayerCycle | None, OMIT_NONE] = None

    @property
    def plain(self) -> "PlannedSystem | None":
        """The system itself; None for a fleet."""
        return self


@dataclass(frozen=True, kw_only=True)
class PlannedMember:
    """A member of a fleet: its copies, and the plan of one copy.

    pool: 'prefill' or 'decode'; None outside pools.
    """

    copies: int
    pool: Annotated[str | None, OMIT_NONE] = None
    system: Annotated[PlannedSystem, SPLICED]


@dataclass(frozen=True, kw_only=True)
class PlannedFleet:
    """A fleet: the plans of its members. label, colour: None if the scenario leaves them out."""

    label: Annotated[str | None, OMIT_NONE] = None
    colour: Annotated[str | None, OMIT_NONE] = None
    model: str
    chips: int
    members: Mapping[str, PlannedMember]
    fits: bool

    @property
    def identity(self) -> FleetIdentity:
        """The identity of the fleet: model, chips and members."""
        members = {
            name: FleetMember(
                copies=member.copies, pool=member.pool, identity=member.system.identity
            )
            for name, member in self.members.items()
        }
        return FleetIdentity(
            label=self.label,
            colour=self.colour,
            model=self.model,
            chips=self.chips,
            members=members,
        )

    @property
    def plain(self) -> PlannedSystem | None:
        """None: a fleet has no plan of its own."""
        return None


@dataclass(frozen=True)
class PlanSummary:
    """The plans of all systems of a scenario: the contract of `plan --json`."""

    scenario: str
    systems: Mapping[str, PlannedSystem | PlannedFleet]
