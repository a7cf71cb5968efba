"""The identity of a system in a result, typed: model, chips, engine, plan, precisions.

    >>> WeightBandwidth(claimed=80e12, chip=9.2e12).chip
    9200000000000.0

A fleet has an identity too. Its parts are those of its members.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from sim.results.encoding import OMIT_NONE, SPLICED, Key
from sim.results.other_chips import Degrees, DrafterIdentity, FfnPoolIdentity
from sim.results.statistics import MemberMetrics


@dataclass(frozen=True, kw_only=True)
class PlanDegrees(Degrees):
    """The layout of a model on the chips. slots: micro-batches in flight."""

    balance: str | None = None
    slots: int | None = None


@dataclass(frozen=True, kw_only=True)
class MaxGoodput:
    """The highest goodput: users of a closed loop, or else requests/s of arrivals."""

    users: Annotated[int | None, OMIT_NONE, Key("max_goodput_users")] = None
    users_per_chip: Annotated[float | None, OMIT_NONE, Key("max_goodput_users_per_chip")] = None
    rate: Annotated[float | None, OMIT_NONE, Key("max_goodput_rate")] = None
    rate_per_chip: Annotated[float | None, OMIT_NONE, Key("max_goodput_rate_per_chip")] = None

    @property
    def unit(self) -> str:
        """'users' or 'request/s'."""
        return "request/s" if self.users is None else "users"

    @property
    def load(self) -> float | None:
        """The number of users, or the request/s."""
        return self.rate if self.users is None else self.users

    @property
    def load_per_chip(self) -> float | None:
        """The load over the number of chips; None where the chips are not counted."""
        return self.rate_per_chip if self.users is None else self.users_per_chip


def max_goodput(load: float, closed: bool, chips: int | None = None) -> MaxGoodput:
    """Return the highest goodput as a result has it. chips: None leaves out the load per chip."""
    per_chip = load / chips if chips else None
    if closed:
        return MaxGoodput(users=round(load), users_per_chip=per_chip)
    return MaxGoodput(rate=load, rate_per_chip=per_chip)


@dataclass(frozen=True, kw_only=True)
class RivalSystem:
    """The best plan of one ordinary system within the limits of two pools, and its goodput."""

    chip: str
    chips: int
    plan: Degrees
    most: Annotated[MaxGoodput, SPLICED]

    @property
    def text(self) -> str:
        """'72 x gb200, tensor 1, attention data 36, expert 36, 2 replicas: 11.9 request/s'."""
        plan, parts = self.plan, [f"{self.chips} x {self.chip}", f"tensor {self.plan.tensor}"]
        if plan.attention_data > 1 or plan.expert > 1:
            parts += [f"attention data {plan.attention_data}", f"expert {plan.expert}"]
        parts += [f"pipeline {plan.pipeline}"] if plan.pipeline > 1 else []
        parts += [f"{plan.replicas} replicas"] if plan.replicas > 1 else []
        return f"{', '.join(parts)}: {self.most.load:.4g} {self.most.unit}"


@dataclass(frozen=True, kw_only=True)
class SearchedPlan:
    """The result of `search: capacity`: plans considered, simulated, and the highest goodput.

    rival: of attention and FFN pools, one system in their place; None for other systems, or if the
    model does not fit it.
    """

    by: str
    considered: int
    simulated: int
    most: Annotated[MaxGoodput, SPLICED]
    rival: Annotated[RivalSystem | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """Number formats, such as int8, of stored and sent values."""

    weights: str
    attention: str | None = None
    activations: str
    hidden: str | None = None
    dispatch: str | None = None
    kv: str
    head: str


@dataclass(frozen=True)
class MemoryPlacement:
    """The memories of a chip that hold the weights and the KV cache."""

    weights: str
    kv: str


@dataclass(frozen=True)
class WeightBandwidth:
    """The bandwidth of one chip for weights, B/s: as its maker counts, and in a matrix product."""

    claimed: float
    chip: float


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The time of a compiled pipeline's slowest stage for what enters together.

    us: time in microseconds. tokens: number that enters together.
    max_token_throughput: of a replica with its micro-batches, tokens/s, prompts counted.
    fill: micro-batches that keep the slowest stage busy.
    """

    us: float
    tokens: int
    max_token_throughput: float
    fill: int | None = None


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """The speculation of a system.

    drafter: the model that drafts. tokens: drafts of a step. acceptance: by place, the probability
    that all drafts up to there are accepted. tokens_per_step: mean output of a sequence.
    """

    method: str
    drafter: str
    tokens: int
    acceptance: tuple[float, ...]
    tokens_per_step: float

    @property
    def text(self) -> str:
        """'3 of mtp, 2.82 token': drafts of a step, and its mean output."""
        return f"{self.tokens} of {self.method}, {self.tokens_per_step:.3g} token"


@dataclass(frozen=True, kw_only=True)
class SpeedPoint:
    """A published speed of one user with this model, chip, engine and width of weights.

    engine: the service. paced: the service throttled it. tokens_per_second: tokens/s.
    """

    id: str
    engine: str
    weights: str
    date: str
    source: str
    paced: bool = False
    tokens_per_second: float


@dataclass(frozen=True)
class ChangedValue:
    """A number of a named entry that the scenario changes. was: None if it is new."""

    was: Annotated[Any, Key("from")]
    now: Annotated[Any, Key("to")]


# A changed number belongs to the first of these that its key starts with.
CHANGED_PARTS = (
    *("cluster.chip", "cluster", "chip", "engine", "model", "exceptions"),
    *("ffn.cluster.chip", "ffn.cluster", "ffn.chip", "ffn.engine"),
    *(f"speculate.draft.system.{part}" for part in ("cluster.chip", "cluster", "chip", "engine")),
    "speculate.draft.model",
)


@dataclass(frozen=True, kw_only=True)
class SystemIdentity:
    """The identity of a plain system.

    label, colour: in tables and figures; None if the scenario leaves them out.
    vendor: maker of the chips.
    speed_label: such as 'extrapolated'; None if an engine was measured on the chip.
    contended: collectives whose times by stage are estimates; None without any.
    memories: of the chip. token_budget: tokens of a step. kv_tokens: room of a replica, tokens.
    beat: None if the pipeline is not compiled.
    load_s: time to load the weights from the hosts [s]; None if the link is not known.
    speculation: None if each step yields one token of a sequence.
    ffn: the pool of MLPs; None if they are on the same chips. `chips` counts both pools.
    drafter: the chips that draft; None if no others do. `chips` counts them, too.
    changed: by dotted key; None without changes.
    """

    label: Annotated[str | None, OMIT_NONE] = None
    colour: Annotated[str | None, OMIT_NONE] = None
    model: str
    vendor: Annotated[str | None, OMIT_NONE] = None
    chip: str
    chips: int
    engine: str
    speed_label: str | None = None
    contended: str | None = None
    plan: PlanDegrees
    search: Annotated[SearchedPlan | None, OMIT_NONE] = None
    precision: Precisions
    memory: MemoryPlacement
    memories: tuple[str, ...]
    weight_bandwidth: WeightBandwidth
    token_budget: int | None = None
    kv_tokens: int
    beat: Beat | None = None
    load_s: float | None = None
    published: tuple[SpeedPoint, ...] = ()
    speculation: Annotated[Drafts | None, OMIT_NONE] = None
    ffn: Annotated[FfnPoolIdentity | None, OMIT_NONE] = None
    drafter: Annotated[DrafterIdentity | None, OMIT_NONE] = None
    changed: Annotated[Mapping[str, ChangedValue] | None, OMIT_NONE] = None

    @property
    def plain(self) -> "SystemIdentity | None":
        """The identity itself; None for a fleet."""
        return self

    def parts(self, name: str) -> "Mapping[str, SystemIdentity]":
        """Return its plain systems by name; a plain system is its only part."""
        return {name: self}

    @property
    def hardware(self) -> tuple[str, ...]:
        """('576 x groq-lpu-v1', 'groq-compiler'): chips and engine.

        With an FFN pool, ('16 x gb200 + 4 x groq-lp30', 'vllm + groq-compiler'); with a drafter on
        other chips as well.
        """
        chips = [f"{self.own_chips} x {self.chip}"]
        chips += [f"{other.chips} x {other.chip}" for other in self.others]
        return " + ".join(chips), " + ".join((self.engine, *(o.engine for o in self.others)))

    @property
    def weights(self) -> str:
        """'fp4 weights', or with an FFN pool 'bf16 attention + fp4 FFN weights'."""
        own = self.precision.weights
        return f"{own} attention + {self.ffn.weights} FFN weights" if self.ffn else f"{own} weights"

    @property
    def degrees(self) -> str:
        """'8 x 72 x 1', or with an FFN pool the degrees of both pools and their micro-batches."""
        if self.ffn is None:
            return self.plan.text
        own = f"tensor {self.plan.tensor} x attention data {self.plan.attention_data}"
        turns = f"{self.ffn.micro_batches} micro-batch{'es' * (self.ffn.micro_batches > 1)}"
        return f"attention {own}; FFN {self.ffn.degrees}; {turns}"

    @property
    def others(self) -> tuple[FfnPoolIdentity | DrafterIdentity, ...]:
        """The chips of other kinds: an FFN pool, and a drafter; empty without."""
        return tuple(other for other in (self.ffn, self.drafter) if other)

    @property
    def own_chips(self) -> int:
        """The chips without those of an FFN pool or a drafter."""
        return self.chips - sum(other.chips for other in self.others)

    @property
    def speed_labels(self) -> tuple[str, ...]:
        """The labels of its speeds; empty if engines were measured on their chips."""
        labels = self.speed_label, *(other.speed_label for other in self.others)
        return tuple(dict.fromkeys(label for label in labels if label))

    def kv_room(self) -> int:
        """Return the tokens that the KV caches of all replicas hold."""
        return self.plan.replicas * self.kv_tokens

    def changes(self, part: str) -> bool:
        """Return whether the scenario changes a number of a part, such as 'engine'."""
        return any(key.startswith(f"{part}.") for key in self.changed or ())


@dataclass(frozen=True, kw_only=True)
class UnloadedRequest:
    """A single request on an unloaded system.

    terms_ms: the time of a mean token by cause. fitted_terms_ms: the fitted part of each.
    fitted_share: of a token's time.
    """

    ttft_ms: float
    tpot_ms: float
    terms_ms: Mapping[str, float]
    fitted_terms_ms: Mapping[str, float]
    fitted_share: float


@dataclass(frozen=True, kw_only=True)
class FleetMember:
    """A member of a fleet: its copies, the identity of one copy, and in a run its service.

    pool: 'prefill' or 'decode'; None outside pools.
    """

    copies: int
    pool: Annotated[str | None, OMIT_NONE] = None
    identity: Annotated[SystemIdentity, SPLICED]
    fidelity: Annotated[str | None, OMIT_NONE] = None
    served: Annotated[MemberMetrics | None, SPLICED] = None
    unloaded: Annotated[UnloadedRequest | None, OMIT_NONE, Key("lone_request")] = None

    def hardware(self, name: str) -> str:
        """Return '4 x h100x8', or of a pool 'prefill: 4 x 8 H100'."""
        identity = self.identity
        if self.pool is None:
            return f"{self.copies} x {identity.label or name}"
        times = f"{self.copies} x " if self.copies > 1 else ""
        return f"{self.pool}: {times}{identity.label or identity.hardware[0]}"


@dataclass(frozen=True, kw_only=True)
class FleetIdentity:
    """The identity of a fleet: its model, the number of chips, and its members by name.

    label, colour: in tables and figures; None if the scenario leaves them out.
    search: how the sizes of pools were found; None if the scenario has them.
    """

    label: Annotated[str | None, OMIT_NONE] = None
    colour: Annotated[str | None, OMIT_NONE] = None
    model: str
    chips: int
    search: Annotated[SearchedPlan | None, OMIT_NONE] = None
    members: Mapping[str, FleetMember]

    @property
    def plain(self) -> SystemIdentity | None:
        """None: a fleet has no plan of its own."""
        return None

    def parts(self, name: str) -> Mapping[str, SystemIdentity]:
        """Return its plain systems by name; a plain system is its only part."""
        return {member: of.identity for member, of in self.members.items()}

    @property
    def hardware(self) -> tuple[str, ...]:
        """('1 x lpu', '4 x h100x8'): copies and members, by their labels."""
        return tuple(of.hardware(member) for member, of in self.members.items())

    @property
    def speed_labels(self) -> tuple[str, ...]:
        """The labels of its members' speeds, if engines were not measured on their chips."""
        labels = (label for of in self.members.values() for label in of.identity.speed_labels)
        return tuple(dict.fromkeys(labels))

    def changes(self, part: str) -> bool:
        """Return False, because its members name the changes."""
        return False


Identity = SystemIdentity | FleetIdentity
