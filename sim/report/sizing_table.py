"""The lines of `sramsim size`: one for each question, in 80 columns.

>>> _counted(1, "user"), _counted(64, "user")
('1 user', '64 users')
"""

from sim.report.identity_rows import precisions
from sim.results.labels import format_number
from sim.results.sizing_summary import SizeSummary
from sim.units import format_quantity


def sizing_lines(size: SizeSummary) -> list[str]:
    """Return the lines of `sramsim size`."""
    identity, demand, room = size.identity, size.demand, size.kv_room
    plan = identity.plan
    degrees = f"tensor {plan.tensor} x pipeline {plan.pipeline} x replicas {plan.replicas}"
    if plan.attention_data > 1:
        degrees = degrees.replace(" x", f" x attention data {plan.attention_data} x", 1)
    if plan.expert > 1:
        degrees += f", experts in {plan.expert} shards"
    sequences = _counted(room.sequences, "sequence")
    rows = {
        "chips": f"{identity.chips:,} x {identity.chip} for {identity.model}",
        "plan": degrees,
        "precisions": f"{precisions(identity)} (weights/activations/KV/head)",
        "engine": _engine(size),
        "KV room": f"{format_quantity(room.bytes_per_chip, 'B')} on the fullest chip: "
        f"{sequences} of {demand.context:,} tokens in all",
        "one user": _speed(size.unloaded.tpot_ms),
    }
    if demand.users > 1:
        rows[_counted(demand.users, "user")] = _speed(size.loaded.tpot_ms)
    if beat := identity.beat:
        most = format_number(plan.replicas * beat.max_token_throughput)
        tokens = _counted(beat.tokens, "token")
        rows["beat"] = f"{format_number(beat.us)} us for {tokens}: at most {most} token/s in all"
    rows["binds"] = _binding(size)
    return [f"{name:<12}{text}" for name, text in rows.items()]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _speed(tpot_ms: float) -> str:
    return f"{format_number(1000 / tpot_ms)} token/s: TPOT {format_number(tpot_ms)} ms"


def _engine(size: SizeSummary) -> str:
    """Return the engine, whether it was measured on the chip, and others that were."""
    label = size.identity.speed_label or "measured on this chip"
    others = f"; also {', '.join(size.other_engines[:2])}" if size.other_engines else ""
    return f"{size.identity.engine} ({label}{others})"


def _binding(size: SizeSummary) -> str:
    """Return the demand that binds, and the number of chips without it."""
    chips = _counted(size.chips_otherwise, "chip")
    match size.binds:
        case "TPOT":
            return f"TPOT of {format_number(size.demand.tpot_ms)} ms; at any speed {chips} would do"
        case "topology":
            return f"topology; one replica of {chips} would do if all were joined"
        case "KV":
            return f"KV of {size.demand.users:,} sequences; for one, {chips} would do"
    return f"capacity; the weights alone fill {chips}"
