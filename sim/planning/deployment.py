"""A system ready to serve: its layout, memory fit, scheduler limits and step costs."""

import math
from dataclasses import dataclass, replace
from functools import partial

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.layout import Layout, MemoryFit, fit, most_kv_tokens, sequences
from sim.cost.plan import Plan, ResolvedPlan
from sim.cost.remote_draft import RemoteDraftCosts
from sim.cost.rows import StepRows
from sim.cost.speculation import Speculation
from sim.cost.step import Costs
from sim.cost.system_costs import SystemCosts
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine, default_limits
from sim.hardware.topology import Topology
from sim.inputs.errors import error_at_path
from sim.model.transformer import Model
from sim.planning.beats import PipelineBeat, pipeline_beat
from sim.planning.chunks import CHUNKS, best_chunk
from sim.planning.memories import with_memories
from sim.planning.partition import Cutter
from sim.planning.search import (
    PLAIN_STEPS,
    PlanSpace,
    PlanSteps,
    PlanTrial,
    search_degrees,
    sized_layout,
)
from sim.results.labels import percent_text
from sim.serving.limits import SchedulerLimits
from sim.units import Seconds

# Sequences of a micro-batch, or of all micro-batches if they need not fit one.
# Source: the default of vLLM's max_num_seqs.
MAX_SEQUENCES = 256
MOST_SLOTS = 100_000  # micro-batches of a replica


@dataclass(frozen=True)
class PoolDeployment:
    """The layout and the memory fit on other chips of a system: an FFN pool, or a drafter."""

    layout: Layout
    fit: MemoryFit

    @property
    def chips(self) -> int:
        """The chips of all replicas."""
        return self.layout.plan.chips

    @property
    def load(self) -> Seconds | None:
        """The time to load the weights, as `Deployment.load`."""
        return _load_time(self.layout, self.fit)


@dataclass(frozen=True)
class Deployment:
    """A system ready to serve: its layout, its memory fit and the limits of its scheduler.

    space: all plans of its model on chips of its kind, of which `smallest_plan` takes one.
    beat: of a compiled pipeline; None without `tokens_per_beat`.
    tried: the trials of a plan search, the best first.
    ffn: the FFN pool, where MLPs are on other chips than attention. `layout` is then attention's.
    drafter: the chips that make drafts, if they are others than those that verify them.
    """

    layout: Layout
    fit: MemoryFit
    limits: SchedulerLimits
    costs: SystemCosts
    space: PlanSpace
    beat: PipelineBeat | None = None
    tried: tuple[PlanTrial, ...] = ()
    ffn: PoolDeployment | None = None
    drafter: PoolDeployment | None = None

    @property
    def chips(self) -> int:
        """The chips of all replicas, with those of an FFN pool or a drafter."""
        return self.own_chips + sum(other.chips for other in self.others)

    @property
    def own_chips(self) -> int:
        """The chips of the layout's kind, over all replicas."""
        return self.layout.plan.chips

    @property
    def others(self) -> tuple[PoolDeployment, ...]:
        """The chips of another kind: of an FFN pool, or of a drafter; empty without."""
        return tuple(other for other in (self.ffn, self.drafter) if other)

    @property
    def pools(self) -> AttentionFfnCosts | None:
        """The costs of an attention pool and an FFN pool; None without an FFN pool."""
        model = self.costs.model
        return model if isinstance(model, AttentionFfnCosts) else None

    @property
    def drafting(self) -> RemoteDraftCosts | None:
        """The costs with a drafter on other chips; None without one."""
        return self.costs if isinstance(self.costs, RemoteDraftCosts) else None

    def sequences(self, tokens: int) -> tuple[int, int]:
        """Return how many sequences of `tokens` fit, and how many if all memory were one.

        The first number follows from the fullest stage, or from `kv_tokens` of the system.
        """
        fullest, together = sequences(self.layout, tokens)
        limits, most = self.limits, self.fit.state_sequences
        if limits.kv_tokens == self.fit.kv_tokens and not limits.state_tokens:
            return fullest, together
        admitted = limits.kv_tokens // max(1, limits.kv_tokens_needed(tokens))
        return admitted if most is None else min(admitted, most), together

    @property
    def load(self) -> Seconds | None:
        """The time to load the weights from the hosts: bytes / bandwidth of the fullest chip.

        All chips load at the same time.  None if the chip's file has no host link.
        Left out: reads from disk or network into the host; chips that share a host's memory;
        the program.
        """
        return _load_time(self.layout, self.fit)

    @property
    def contended(self) -> str:
        """The warning that closed forms only estimate some collectives; empty if they are exact.

        Messages of such a collective meet on cables.
        """
        rows, topology, operations = StepRows(self.layout), self.layout.topology, set()
        for stage in set(rows.collectives.representatives):
            exchanges = [*rows.collectives.gather(1, stage)]
            for block, cost in rows.blocks.items():
                if cost.repeats[stage]:
                    exchanges += rows.collectives.of_block(block, 1, stage)
            operations |= {
                e.operation
                for e in exchanges
                for group in e.groups
                if e.operation not in topology.uncontended(group)
            }
        if not operations:
            return ""
        *others, last = sorted(operation.replace("_", "-") for operation in operations)
        names = f"{', '.join(others)} and {last}" if others else last
        return (
            f"the messages of {names} meet on the cables of a group: times by stage are estimates "
            "(fidelity: chip has all)"
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user.

        They name three things: the loss if tensor parallelism does not divide heads, columns or
        tokens evenly, since the fullest chip decides; collectives with estimated times; and more
        `kv_tokens` than the engine would take.  A loss that rounds to 0.0 % is left out.
        Source: vLLM's ModelConfig, which raises ValueError for heads that tensor does not divide.
        """
        model, tensor = self.layout.model, self.layout.plan.tensor
        lines = []
        for parts, what in (
            (model.num_attention_heads, "attention heads"),
            (model.fewest_kv_heads, "KV heads"),
            (
                model.linear_num_value_heads or model.mamba_num_heads or 0,
                "heads of linear attention" if model.linear_num_value_heads else "heads of Mamba",
            ),
            (model.intermediate_size or 0, "columns of the MLP"),
            (model.vocab_size, "tokens of the vocabulary"),
        ):
            loss = math.ceil(parts / tensor) * tensor / parts - 1 if parts else 0.0
            if loss >= 0.0005 or (what == "attention heads" and parts % tensor):
                held = (
                    f"each is held {tensor / parts:g} times"
                    if tensor > parts
                    else "the fullest chip decides"
                )
                refused = "GPU engines such as vLLM refuse it; " * (what == "attention heads")
                lines.append(
                    f"tensor {tensor} does not divide {parts} {what}: {refused}{held}, "
                    f"{percent_text(loss, 1)} more than an even share"
                )
        if self.contended:
            lines.append(self.contended)
        if self.limits.kv_tokens > self.fit.kv_tokens:
            lines.append(
                f"kv_tokens {self.limits.kv_tokens}: the engine's memory_fraction and reserve "
                f"leave {self.fit.kv_tokens}"
            )
        return lines


def _load_time(layout: Layout, fitted: MemoryFit) -> Seconds | None:
    return fitted.weights / layout.chip.host_link if layout.chip.host_link else None


@dataclass(frozen=True)
class DeploymentParts:
    """A model, chips, an engine and a plan, which `deploy` puts together.

    topology: None for that of the chip. speculation: None for one token in each step.
    """

    model: Model
    chip: Chip
    chips: int
    engine: Engine
    plan: Plan
    topology: Topology | None = None
    speculation: Speculation | None = None


@dataclass(frozen=True)
class LimitOverrides:
    """Limits of a system that replace the defaults; None keeps the default."""

    token_budget: int | None = None
    max_sequences: int | None = None
    kv_tokens: int | None = None
    memory_fraction: float | None = None
    micro_batch: int | None = None


def deploy(
    parts: DeploymentParts,
    request_tokens: float,
    prompt_tokens: float | None = None,
    overrides: LimitOverrides = LimitOverrides(),
    steps: PlanSteps = PLAIN_STEPS,
) -> Deployment:
    """Lay the model on the chips and compute whether it fits.

    request_tokens, prompt_tokens: tokens of a mean request and of its prompt.
    steps: the costs of its steps, also for a search of the plan.
    The token budget of a step is that of `overrides`, `tokens_per_beat` or the engine.
    Else it is the one that the chip's kind of compute advises.
    Else it is the one with which a mean prompt ends soonest (`best_chunk`).

    Raises: ValueError if the degrees, the topology, the precisions or the limits contradict
    each other.
    """
    lay = partial(uncut_layout, parts, overrides)
    if parts.speculation:
        request_tokens += parts.speculation.tokens
    if parts.plan.search == "capacity":
        reason = "got capacity; expected degrees here"
        hint = "try sim.search_plans(scenario), which finds them"
        raise error_at_path(("plan", "search"), "capacity", f"{reason}; {hint}")
    if parts.plan.search:
        plan, tried = search_degrees(
            parts.plan, parts.chips, parts.model, request_tokens, lay, steps
        )
    else:
        plan, tried = parts.plan.resolved(parts.chips, parts.model), ()
    bare = sized_layout(lay(plan))
    _require_draft_chips(bare)
    layout = cut_into_stages(with_memories(bare, request_tokens), request_tokens)
    if not _token_budget(parts, overrides, plan):
        chunk = best_chunk(layout, request_tokens, prompt_tokens)
        layout = cut_into_stages(replace(layout, token_budget=chunk), request_tokens)
    fitted = fit(layout, request_tokens)
    _require_kv_room(layout, fitted, overrides.kv_tokens)
    limits, beat = _scheduler_limits(layout, fitted, overrides, request_tokens)
    space = PlanSpace(parts.model, plan, lay, request_tokens)
    return Deployment(layout, fitted, limits, steps.costs_of(layout), space, beat, tried)


def _token_budget(
    parts: DeploymentParts, overrides: LimitOverrides, plan: ResolvedPlan
) -> int | None:
    """Return the token budget of a step; None if neither user, engine nor chip names one."""
    engine, beat = parts.engine, parts.engine.tokens_per_beat
    precisions = (plan.weights, plan.activations)
    advised = None if beat else parts.chip.compute.token_budget(precisions)
    if beat and parts.speculation:
        beat *= 1 + parts.speculation.tokens  # a program for so many tokens of each sequence
    rank_budget = overrides.token_budget or default_limits(engine, parts.chip)[1] or advised
    budget = rank_budget and rank_budget * limited_ranks(engine, plan)
    return min((n for n in (budget, beat) if n), default=None)


def uncut_layout(parts: DeploymentParts, overrides: LimitOverrides, plan: ResolvedPlan) -> Layout:
    """Return the layout of a plan, not cut into stages; its topology is not sized."""
    return Layout(
        parts.model,
        parts.chip,
        parts.topology or parts.chip.topology,
        parts.engine,
        plan,
        _token_budget(parts, overrides, plan) or CHUNKS[0],
        overrides.memory_fraction or parts.engine.memory_fraction,
        speculation=parts.speculation,
    )


def _require_draft_chips(layout: Layout) -> None:
    """Raise ValueError if the drafter needs more chips than a stage has."""
    if (drafter := layout.drafter) and drafter.plan.stage_size > layout.plan.stage_size:
        tensor, most = drafter.plan.tensor, layout.plan.tensor
        reason = f"got {tensor}; expected at most {most}, the chips of a stage; try {most}"
        raise error_at_path(("speculate", "draft", "plan", "tensor"), tensor, reason)


def _require_kv_room(layout: Layout, fitted: MemoryFit, kv_tokens: int | None) -> None:
    """Raise ValueError if the chips cannot hold `kv_tokens` of KV cache."""
    if not kv_tokens or not fitted.fits:
        return
    if kv_tokens > (most := most_kv_tokens(layout)):
        reason = (
            f"got {kv_tokens} token; expected at most {most} token, which fill the fullest "
            f"chip's {layout.plan.kv_in}; try leaving kv_tokens out, for {fitted.kv_tokens} token"
        )
        raise error_at_path(("kv_tokens",), kv_tokens, reason)


def _scheduler_limits(
    layout: Layout, fitted: MemoryFit, overrides: LimitOverrides, request_tokens: float
) -> tuple[SchedulerLimits, PipelineBeat | None]:
    """Return the limits of a replica's scheduler, and the beat of a compiled pipeline.

    Raises: ValueError if there are too many micro-batches, or more sequences than they carry.
    """
    engine, plan, tokens = layout.engine, layout.plan, layout.token_budget
    budget = _sequences_of_batch(layout)
    size = min(budget, overrides.micro_batch or budget)  # sequences of a micro-batch
    beat = None
    ranks = limited_ranks(engine, plan)
    default = default_limits(engine, layout.chip)[0] or 0
    limit = (overrides.max_sequences or default) * ranks
    if engine.tokens_per_beat:
        beat = pipeline_beat(Costs(layout), tokens, request_tokens)
        most = limit or max(MAX_SEQUENCES, beat.fill * size)
        held = min(most, fitted.state_sequences or most)
        slots = plan.slots or max(beat.fill, math.ceil(held / size))
        most = min(most, slots * size)
    else:
        slots = plan.slots or plan.pipeline
        most = limit or slots * min(size, MAX_SEQUENCES)
    if slots > MOST_SLOTS:
        reason = (
            f"got {slots:,} micro-batches; expected at most {MOST_SLOTS:,}, since each is "
            "simulated by itself; try fewer slots, or a smaller max_sequences"
        )
        raise error_at_path(("plan", "slots"), slots, reason)
    if overrides.max_sequences and most > slots * budget:
        carried = slots * budget // ranks
        each_rank = " for each of the attention ranks" if ranks > 1 else ""
        reason = (
            f"got {overrides.max_sequences}; expected at most {carried}{each_rank}, which {slots} "
            f"micro-batches of {tokens} tokens carry, so that prompts do not starve; "
            f"try {carried}"
        )
        raise error_at_path(("max_sequences",), overrides.max_sequences, reason)
    shares = [s.windowed_per_token / s.first_token for s in layout.stages if s.first_token]
    if fitted.state_sequences is not None:
        most = min(most, max(1, fitted.state_sequences))
    most = min(most, slots * size)
    limits = SchedulerLimits(
        micro_batches=slots,
        token_budget=tokens,
        sequences=most,
        kv_tokens=overrides.kv_tokens or fitted.kv_tokens,
        context=layout.model.max_position_embeddings,
        window=layout.model.window,
        windowed_share=min(shares),
        fill=beat.fill if beat else None,
        kv_block=engine.kv_block,
        width=layout.width,
        state_tokens=fitted.state_tokens,
        ranks=plan.attention_data,
    )
    return limits, beat


def _sequences_of_batch(layout: Layout) -> int:
    """Return the most sequences of a micro-batch. Raises: ValueError if it holds none."""
    tokens, drafts = layout.token_budget, layout.width - 1
    if tokens <= drafts:
        reason = f"got {drafts}; expected less than the token budget of {tokens}; try {tokens - 1}"
        raise error_at_path(("speculate", "tokens"), drafts, reason)
    return tokens // layout.width


def limited_ranks(engine: Engine, plan: ResolvedPlan) -> int:
    """Return the attention ranks with limits of their own: 1 if the limits are of a replica."""
    return plan.attention_data if engine.limits_per == "rank" else 1


def cut_into_stages(layout: Layout, request_tokens: float) -> Layout:
    """Return the layout with its blocks cut into stages."""
    return replace(layout, bounds=Cutter(layout, request_tokens).bounds(layout.plan.pipeline))
