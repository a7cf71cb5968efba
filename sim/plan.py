"""How a model is laid on chips: degrees, precisions, stages, bytes, and whether it fits.  Arithmetic only."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sim.chip import WIDTH, Chip
from sim.engine import Engine
from sim.files import UserError, Value
from sim.model import Block, Model
from sim.topology import Topology
from sim.units import Bytes, Count

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4"]


class PlanError(UserError):
    """The model does not fit the chips as the plan lays it."""


class Plan(Value):
    """Degrees of parallelism and precisions.

    `pipeline` defaults to all the chips there are; precisions to the config's.  `head` is the precision of the embedding and
    the output head, which checkpoints keep at 16 bits.  `balance` says what the cut into stages cares for first: the slowest
    stage, or the room left for KV cache.  `slots` is the number of micro-batches in flight, by default one for each stage.
    """

    tensor: Count = 1
    pipeline: Count | None = None
    replicas: Count = 1
    weights: Precision | None = None
    activations: Precision | None = None
    kv: Precision | None = None
    head: Precision | None = None
    balance: Literal["time", "memory"] = "time"
    slots: Count | None = None

    def resolved(self, chips: int, model: Model) -> "Plan":
        """The plan with its defaults filled in for so many chips.  Raises: ValueError where the degrees do not make `chips`."""
        each = self.tensor * self.replicas
        pipeline = self.pipeline or max(1, chips // each)
        product = each * pipeline
        if product != chips:
            degrees = f"tensor {self.tensor} x pipeline {pipeline}" + (f" x replicas {self.replicas}" if self.replicas > 1 else "")
            hint = f"; leave pipeline out for {chips // each}" if self.pipeline and chips % each == 0 else ""
            raise ValueError(f"{degrees} is {product} chips, and the system has {chips}{hint}")
        if pipeline > len(model.blocks):
            raise ValueError(f"pipeline {pipeline}: {model.id} has only {len(model.blocks)} blocks to cut between")
        filled = {key: getattr(self, key) or model.precision for key in ("weights", "activations", "kv", "head")}
        return self.model_copy(update={"pipeline": pipeline, "slots": self.slots or pipeline, **filled})

    # What follows is for resolved plans.

    @property
    def depth(self) -> int:
        """Pipeline stages."""
        return self.pipeline or 1

    def given(self, what: Literal["weights", "activations", "kv", "head"]) -> str:
        """The precision of weights, activations, KV cache or head."""
        precision: str | None = getattr(self, what)
        assert precision is not None, "the plan is not resolved"
        return precision

    def width(self, what: Literal["weights", "activations", "kv", "head"]) -> float:
        """Bytes of one number of it."""
        return WIDTH[self.given(what)]

    def precision(self, block: Block) -> str:
        """The precision of a block's weights."""
        return self.given("head" if block.kind in ("embedding", "head") else "weights")


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive blocks, from `first` to `last`, and what the fullest chip of the stage holds of them."""

    first: int
    last: int
    layers: int  # of which it keeps KV
    weights: Bytes
    kv_per_token: Bytes


@dataclass(frozen=True)
class Layout:
    """One replica: a model laid on chips by a plan whose defaults are filled in.  Stages are cut by the planner."""

    model: Model
    chip: Chip
    topology: Topology
    engine: Engine
    plan: Plan
    token_budget: int
    memory_fraction: float
    bounds: tuple[int, ...] = ()  # the first block of each stage

    def stage(self, first: int, last: int) -> Stage:
        """The stage that blocks first..last would make."""
        plan, blocks = self.plan, self.model.blocks[first : last + 1]
        weights = sum(block.parameters(plan.tensor) * WIDTH[plan.precision(block)] for block in blocks)
        if self.model.tie_word_embeddings and len(blocks) == len(self.model.blocks):  # one table serves both ends
            weights -= blocks[0].parameters(plan.tensor) * WIDTH[plan.precision(blocks[0])]
        layers = sum(block.kind == "attention" for block in blocks)
        kv = layers * self.model.kv_width(plan.tensor) * plan.width("kv")
        return Stage(first, last, layers, weights, kv)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        ends = (*self.bounds[1:], len(self.model.blocks))
        return tuple(self.stage(first, end - 1) for first, end in zip(self.bounds, ends, strict=True))

    @property
    def usable(self) -> Bytes:
        """Bytes of a chip that the engine may fill."""
        return self.chip.main.capacity * self.memory_fraction

    @cached_property
    def activations(self) -> Bytes:
        """Activations of the largest step: `token_budget` tokens through the widest matrix multiply, in and out."""
        plan = self.plan
        widest = max(sum(matrix.share(plan.tensor)) for block in self.model.blocks for matrix in block.matrices)
        return self.token_budget * widest * plan.width("activations")

    def room(self, stage: Stage) -> Bytes:
        """Bytes that a chip of the stage has left for KV cache; negative where its weights do not fit."""
        return self.usable - self.engine.reserve - self.activations - stage.weights


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a layout fits, and what its fullest chip holds, one request of `request_tokens` counted in."""

    fits: bool
    weights: Bytes
    kv: Bytes
    activations: Bytes
    reserve: Bytes
    capacity: Bytes
    kv_tokens: int  # that the fullest stage has room for, over all sequences
    free: Bytes  # for KV, over all chips of a replica

    @property
    def needed(self) -> Bytes:
        return self.weights + self.kv + self.activations + self.reserve

    def sequences(self, tokens: int, bytes_per_token: float) -> tuple[int, int]:
        """How many sequences of `tokens` fit: by the fullest stage, and if all the chips' memory were one."""
        return self.kv_tokens // tokens, max(0, int(self.free // (tokens * bytes_per_token)))


def fit(layout: Layout, request_tokens: float) -> Fit:
    """Whether every chip holds its weights, activations, reserve and the KV cache of one request."""
    stages = layout.stages
    full = min(stages, key=lambda stage: layout.room(stage) - stage.kv_per_token * request_tokens)
    rooms = [(layout.room(stage), stage.kv_per_token) for stage in stages]
    tokens = min((math.floor(room / kv) for room, kv in rooms if kv), default=0)
    enough = all(room >= kv * request_tokens for room, kv in rooms)
    return Fit(
        fits=enough,
        weights=full.weights,
        kv=full.kv_per_token * request_tokens,
        activations=layout.activations,
        reserve=layout.engine.reserve,
        capacity=layout.usable,
        kv_tokens=max(0, tokens),
        free=layout.plan.tensor * sum(room for room, _ in rooms),
    )
