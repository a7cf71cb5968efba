"""The order of a run's systems in sentences: ratios with bands, and what the order depends on.

order_lines(summary)  # nothing unless the scenario has `order_by`
"""

from sim.report.answer import short_ratio
from sim.results.labels import system_labels
from sim.results.ordering import Hinge, OrderKey
from sim.results.summary import RunSummary
from sim.units import format_quantity, si_quantity

# The measure, of which more is better, and the cost from which it follows.
ORDER_WORDS: dict[OrderKey, tuple[str, str]] = {
    "joules": ("token/s per MW", "joules"),
    "usd": ("tokens per dollar", "dollars"),
    "tpot": ("token/s of a user", "TPOT"),
}


def order_lines(summary: RunSummary) -> list[str]:
    """Return the systems, the best first, which of them may be swapped, and by what."""
    order = summary.order
    if order is None:
        return []
    labels = system_labels(summary.identities)
    measure, known = ORDER_WORDS[order.by]
    reference = next(name for name in summary.systems if name in order.systems)
    lines = [
        f"Order by {measure}, relative to {labels[reference]} (in brackets: the band of all "
        "uncertain numbers, taken as independent; decoding alone, without waiting):"
    ]
    for place, (name, system) in enumerate(order.systems.items(), 1):
        band = " to ".join(_times(bound) for bound in system.band)
        band = "" if name == reference else f" ({band})"
        lines.append(f"  {place}. {labels[name]}: {_times(system.ratio)} times{band}")
    places = {name: place for place, name in enumerate(order.systems, 1)}
    for better, other in order.swappable:
        hinges = [of for of in order.depends_on if of.pair == (better, other)]
        ends = [f"{of.key} at {of.at} instead of {_written(of)}{_basis(of)}" for of in hinges]
        by = f"one of these alone: {'; '.join(ends)}" if ends else "several numbers together"
        lines.append(f"Places {places[better]} and {places[other]} may be swapped by {by}.")
    if not order.swappable:
        lines.append("No neighbours are swapped within their bands.")
    if order.left_out:
        names = ", ".join(labels[name] for name in order.left_out)
        lines.append(f"Left out, because {known} are not known: {names}.")
    return lines


def _written(hinge: Hinge) -> str:
    """Return the value of a number with the unit of its ends: '19.7 us' beside '38 us'."""
    end = si_quantity(hinge.at)
    return format_quantity(float(hinge.value), end[1]) if end else hinge.value


def _basis(hinge: Hinge) -> str:
    """Return ' (assumed)', ' (fitted)', or ''."""
    return f" ({hinge.basis})" if hinge.basis else ""


def _times(ratio: float) -> str:
    """Return a ratio: '2.3', '0.45', '0.045'."""
    return short_ratio(ratio) if ratio >= 1 else f"{ratio:.2g}"
