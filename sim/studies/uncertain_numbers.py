"""The uncertain numbers of a system: those with a range in a file of its chips or engines.

number = next(uncertain_numbers(system))
number.moved_to(number.ends[0])  # the system with the number at the low end
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import TypeAdapter

from sim.cost.draft_link import DraftLink
from sim.cost.layer_transfer import LayerTransfer
from sim.inputs.values import Sourced, Value
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.placement import Placement
from sim.scenario.system import System
from sim.units import format_quantity

Studied = System | AttentionFfn  # a system whose numbers are moved
LINK_UNITS = {"bandwidth": "B/s", "latency": "s"}


@dataclass(frozen=True, slots=True)
class UncertainNumber:
    """A number with a range.

    of: its file and its key there; systems that use one file share its numbers.
    value: the number in SI units. ends: of its range, as written.
    moved_to: returns the system with the number at a value that is written as in a file.
    """

    key: str  # such as 'engine.layer_overhead'
    of: tuple[str, str]  # such as ('vllm', 'layer_overhead')
    source: str
    value: str
    ends: tuple[str, str]
    moved_to: Callable[[str], Studied]


def uncertain_numbers(system: Studied) -> Iterator[UncertainNumber]:
    """Yield the numbers with a range of a system's engines, chips and clusters.

    Numbers of both pools, of links between chips, and of a drafter on other chips are among them.
    """
    if isinstance(system, AttentionFfn):
        for pool in ("attention", "ffn"):
            for number in uncertain_numbers(getattr(system, pool)):
                key = f"{pool}.{number.key}"
                yield replace(number, key=key, moved_to=partial(moved_system, system, key))
        yield from _links(system, system.transfer, "transfer")
        return
    yield from _uncertain_parts(system, system, "")
    of = system.speculate
    if of and of.tokens and (ends := of.range.acceptance):
        yield _of_scenario(system, "speculate.acceptance", of.acceptance, ends, "")
    if of and (drafter := system.drafter):
        yield from _uncertain_parts(system, drafter, "speculate.draft.system.")
        assert of.draft.transfer
        yield from _links(system, of.draft.transfer, "speculate.draft.transfer")


def _uncertain_parts(system: System, chips: Placement, below: str) -> Iterator[UncertainNumber]:
    """Yield the numbers with a range of the chips of a system, or of its drafter.

    below: the keys of the system above those of the chips, such as 'speculate.draft.system.'.
    """
    parts: dict[str, Sourced] = {"engine": chips.engine}
    if chips.cluster:
        parts["cluster.chip"] = chips.cluster.chip
        parts["cluster"] = chips.cluster
    elif chips.chip:
        parts["chip"] = chips.chip
    for part, entry in parts.items():
        for key, ends in entry.range.items():
            if not _is_unused(chips, key):
                yield UncertainNumber(
                    key=f"{below}{part}.{key}",
                    of=(entry.id, key),
                    source=entry.source_of(key) or "",
                    value=_si_text(entry, key),
                    ends=(str(ends[0]), str(ends[1])),
                    moved_to=partial(moved_system, system, f"{below}{part}.{key}"),
                )


def _links(system: Studied, link: LayerTransfer | DraftLink, at: str) -> Iterator[UncertainNumber]:
    """Yield the numbers with a range of a link, whose keys are below `at`."""
    for name, unit in LINK_UNITS.items():
        if ends := getattr(link.range, name):
            yield _of_scenario(system, f"{at}.{name}", getattr(link, name), ends, unit)


def _of_scenario(
    system: Studied, key: str, value: object, ends: tuple[float, float], unit: str
) -> UncertainNumber:
    """Return a number whose range is in the scenario.

    Numbers of two systems with equal values, ranges and keys count as one number.
    """
    return UncertainNumber(
        key=key,
        of=("scenario", key.removeprefix("speculate.draft.")),
        source="assumed: the scenario's range",
        value=f"{value:.4g}",
        ends=(_written(ends[0], unit), _written(ends[1], unit)),
        moved_to=partial(moved_system, system, key),
    )


def _written(value: float, unit: str) -> str:
    return format_quantity(value, unit) if unit else f"{value:g}"


def _is_unused(system: Placement, key: str) -> bool:
    """Return whether a number has no effect on a system.

    Unused are the cables of a chip whose system has others, and the overheads of measured hosts.
    """
    other = system.topology or (system.cluster and system.cluster.topology)
    return bool(key.startswith("topology") and other) or key.startswith("hosts")


def moved_system(system: Studied, key: str, text: str) -> Studied:
    """Return a system with the number at a dotted key read from a text."""
    changed: Studied = moved(system, key.split("."), text)
    return changed


def moved(value: Any, path: list[str], text: str) -> Any:
    """Return a copy of a value with the number at a path read from a text.

    The field reads the text as it does in a file.
    """
    head, rest = path[0], path[1:]
    if isinstance(value, Value):
        field = type(value).model_fields[head]
        inner = getattr(value, head)
        if rest:
            return value.model_copy(update={head: moved(inner, rest, text)})
        kind: Any = (
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        )
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        read = float(text) if isinstance(inner, float) and " " not in text else text
        return value.model_copy(update={head: adapter.validate_python(read)})
    if isinstance(value, tuple):
        place = int(head)
        return (*value[:place], moved(value[place], rest, text), *value[place + 1 :])
    return {**value, head: moved(value[head], rest, text) if rest else float(text)}


def _si_text(entry: Sourced, key: str) -> str:
    """Return the number at a dotted key of an entry, in SI units."""
    value: Any = entry
    for part in key.split("."):
        match value:
            case Value():
                value = getattr(value, part)
            case tuple():
                value = value[int(part)]
            case _:
                value = value[part]
    return f"{value:.4g}"
