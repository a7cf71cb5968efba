"""Numbers of an engine that a scenario changes without any effect on their system, and why.

    [*unused_of_engine((), part, layout)]  # [('moe_skew', 'no layer on these chips has experts')]

Changes are those of `{like: vllm, moe_skew: 0.5}`.
Left out: numbers that a kernel's number replaces; numbers of chips.
"""

from collections.abc import Iterator

from sim.cost.layout import Layout
from sim.hardware.chip import Precision
from sim.hardware.engine import default_limits
from sim.inputs.key_paths import KeyPath
from sim.planning.remote_draft import DRAFTER_PATH
from sim.scenario.placement import Placement
from sim.scenario.system import System

OF_EXPERTS = ("moe_layer_overhead", "moe_memory_efficiency", "moe_skew", "dispatch_kernels")
OF_COLLECTIVES = (
    "collectives",
    "collective_latency",
    "collective_latency_per_chip",
    "collective_efficiency",
)
BATCH_LIMITS = ("max_sequences", "token_budget")
OF_POLICIES = ("policy", "admission", "kv_block")
# Numbers by the last key of a part's path: what only the scheduler of the other chips has.
OF_SCHEDULERS = {"ffn": (*BATCH_LIMITS, "small_chip", *OF_POLICIES), DRAFTER_PATH[-1]: OF_POLICIES}
BY_BITS = ("memory_efficiency", "compute_efficiency")
# Keys of a system that replace the engine's of the same name.
REPLACED = ("max_sequences", "token_budget", "memory_fraction", "policy", "admission", "jitter")


def unused_of_engine(path: KeyPath, part: Placement, layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield the changed keys of the engine of a part with chips that have no effect, and why.

    path: of the part's keys in its system. An FFN pool and a drafter have no scheduler.
    """
    without = OF_SCHEDULERS.get(path[-1], ()) if path else ()
    for key in part.engine.changed:
        if key.partition(".")[0] in without:
            yield key, "the scheduler is that of the other chips"
        elif why := _why_unused(key, part, layout):
            yield key, why


def _why_unused(key: str, part: Placement, layout: Layout) -> str:
    """Return why a number of an engine has no effect on a part with chips; '' if it may have."""
    first, _, rest = key.partition(".")
    own = first in REPLACED and getattr(part, first, None) is not None
    alone, bits, chip = layout.plan.stage_size == 1, _bits(layout), layout.chip.id
    reached = layout.topology.collectives_reach(layout.plan.stage_size)
    cached = not isinstance(part, System) or part.prefix_caching
    rules = (
        ((first,), own, f"the system has {first} of its own"),
        (BATCH_LIMITS, _is_small(part), f"small_chip of the engine has the limits of {chip}"),
        (("small_chip",), not _is_small(part), f"{chip} has more memory"),
        (BY_BITS, rest not in bits, f"no weights here have {rest} bits, but {' or '.join(bits)}"),
        (OF_EXPERTS, not _has_experts(layout), "no layer on these chips has experts"),
        (OF_COLLECTIVES, alone, "a stage has one chip"),
        (("collective_efficiency",), reached is not None, "the topology has its own"),
        (("draft_sequence_overhead",), not layout.speculation, "the system does not speculate"),
        (("kv_block",), not cached, "the system has no prefix_caching"),
        (("hosts",), True, "only validations run on measured hosts"),
    )
    return next((why for keys, unused, why in rules if first in keys and unused), "")


def _is_small(part: Placement) -> bool:
    """Return whether the limits of an engine for small chips hold."""
    small = part.engine.small_chip
    without = part.engine.model_copy(update={"small_chip": None})
    chip = part.hardware[0]
    return small is not None and default_limits(part.engine, chip) != default_limits(without, chip)


def _bits(layout: Layout) -> list[str]:
    """Return the bits of the weights' precisions, also those of a drafter on the same chips."""
    layouts = (layout, layout.drafter) if layout.drafter else (layout,)
    stored = {
        of.plan.stored(block, matrix).precision
        for of in layouts
        for block in of.model.blocks
        for matrix in (*block.matrices, *(block.experts.matrices if block.experts else ()))
    }
    return sorted({f"{8 * Precision(precision).bytes:.0f}" for precision in stored})


def _has_experts(layout: Layout) -> bool:
    layouts = (layout, layout.drafter) if layout.drafter else (layout,)
    return any(block.experts for of in layouts for block in of.model.blocks)
