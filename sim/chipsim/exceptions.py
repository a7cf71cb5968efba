"""Chips and links that differ from the data sheet.

These are stragglers, chips of another kind, slow and dead links, and jitter.
They need `fidelity: chip`, because closed forms leave them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, model_validator

from sim.chipsim.network import LinkException
from sim.cost.layout import Layout, fit
from sim.cost.step import Costs
from sim.hardware.chip import Chip, ChipField
from sim.hardware.topology import Hop
from sim.inputs.errors import error_at_path
from sim.inputs.values import Value
from sim.units import Count

SpeedFactor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ChipNumber = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ChipException:
    """A chip at `speed` times the usual speed, or a chip of another kind.

    costs: those of the layout with all chips of this other kind; None for the usual kind.
    """

    number: int
    speed: float = 1.0
    costs: Costs | None = None


@dataclass(frozen=True)
class Irregularities:
    """The properties of a machine that closed forms leave out.

    jitter: sigma of the lognormal factor, of mean 1, on every computing time.
    """

    chips: tuple[ChipException, ...] = ()
    links: tuple[LinkException, ...] = ()
    scheduled: bool = False
    jitter: float = 0.0


NO_IRREGULARITIES = Irregularities()


class ExceptionField(Value):
    """A chip or a link of a system that differs from the others.

    The speed of a chip includes the engine's overheads.  That of a link counts in both directions.
    Messages avoid a dead link.
    In a scheduled network the schedule includes slow links, but not slow chips.
    """

    chip: ChipNumber | None = Field(
        default=None, description="Number of the chip, from 0 over all replicas."
    )
    link: tuple[ChipNumber | str, ChipNumber | str] | None = Field(
        default=None,
        description="Ends of the link: two chips, or a chip and its switch, as in [3, switch].",
    )
    speed: SpeedFactor = Field(
        default=1.0,
        description="Factor on the chip's usual speed, or on the link's bandwidth; 0: a dead link.",
    )
    like: ChipField | None = Field(
        default=None,
        description="Other kind of this chip, which keeps the usual links; default: the usual "
        "kind.",
    )

    @model_validator(mode="after")
    def _one_thing(self) -> "ExceptionField":
        if (self.chip is None) == (self.link is None):
            count = "neither" if self.chip is None else "both"
            raise ValueError(f"got {count} of chip and link; expected one; try chip: 3, speed: 0.5")
        if self.link and self.like:
            reason = f"got {self.like.id} with a link; expected a chip; try leaving link out"
            raise error_at_path(("like",), self.like.id, reason)
        if self.speed and not 1e-6 <= self.speed <= 1e6:
            reason = f"got {self.speed:g}; expected 0, or 1e-6 to 1e6; try 0.5"
            raise error_at_path(("speed",), self.speed, reason)
        if self.chip is not None and self.speed == 0:
            reason = (
                f"got 0 for chip {self.chip}; expected more, since a stage cannot work without one "
                "of its chips and only links may be dead; try 0.5"
            )
            raise error_at_path(("speed",), self.speed, reason)
        return self


def replica_irregularities(
    layout: Layout,
    exceptions: Sequence[ExceptionField],
    replica: int,
    usual: Irregularities,
    request_tokens: float,
    kv_tokens: int,
) -> Irregularities:
    """Return the irregularities of one replica.

    usual: those that all replicas have, as jitter.
    Raises: ValueError if a chip or link does not exist, is named twice, or is of another kind
    that does not hold its part.
    """
    size = layout.plan.replica_size
    chips: list[ChipException] = []
    links: list[LinkException] = []
    kinds: list[tuple[Chip, Costs]] = []
    _require_distinct(exceptions)
    for number, exception in enumerate(exceptions):
        if exception.chip is not None:
            where, place = divmod(exception.chip, size)
            if where >= layout.plan.replicas:
                raise _no_such_chip(("exceptions", number, "chip"), exception.chip, layout, size)
            costs = next((costs for chip, costs in kinds if chip == exception.like), None)
            if exception.like and costs is None:
                costs = Costs(_made_of(layout, exception.like, number, request_tokens, kv_tokens))
                kinds.append((exception.like, costs))
            if where == replica:
                chips.append(ChipException(place, exception.speed, costs))
        elif exception.link:
            where, hop = _hop(layout, exception.link, number, size)
            if where == replica:
                links.append(LinkException(hop, exception.speed))
    return replace(usual, chips=tuple(chips), links=tuple(links))


def _require_distinct(exceptions: Sequence[ExceptionField]) -> None:
    """Raise ValueError if two exceptions name the same chip or link."""
    places = [
        exception.chip if exception.link is None else frozenset(exception.link)
        for exception in exceptions
    ]
    for number, place in enumerate(places):
        if place in places[:number]:
            exception = exceptions[number]
            key, name = (
                ("chip", exception.chip)
                if exception.link is None
                else ("link", list(exception.link))
            )
            reason = f"got {key} {name} again; expected one exception for each chip and link"
            raise error_at_path(("exceptions", number, key), name, f"{reason}; try one with both")


def _no_such_chip(at: tuple[int | str, ...], chip: int, layout: Layout, size: int) -> ValueError:
    """Return the error for a chip beyond the last one."""
    last = size * layout.plan.replicas - 1
    return error_at_path(
        at, chip, f"got {chip}; expected at most {last}, the last chip; try {last}"
    )


def _made_of(
    layout: Layout, chip: Chip, number: int, request_tokens: float, kv_tokens: int
) -> Layout:
    """Return the layout with all its chips of another kind.

    number: place of the exception in the list.
    Raises: ValueError if such chips do not hold their part.
    """
    at = ("exceptions", number, "like")
    for name in (layout.plan.weights_in, layout.plan.kv_in):
        if name not in chip.memory:
            reason = f"got {chip.id}, without the memory '{name}' that the plan uses"
            raise error_at_path(
                at, chip.id, f"{reason}; expected a chip that has it; try another chip"
            )
    other = replace(layout, chip=chip)
    fitted = fit(other, request_tokens)
    if not fitted.fits:
        reason = f"got {chip.id}, which does not hold its part of {layout.model.id}"
        raise error_at_path(at, chip.id, f"{reason}; expected a chip that does; try a larger chip")
    if fitted.kv_tokens < kv_tokens:
        reason = (
            f"got {chip.id}, with room for {fitted.kv_tokens} tokens of KV cache; expected room "
            f"for the {kv_tokens} of the system; try kv_tokens: {fitted.kv_tokens} token"
        )
        raise error_at_path(at, chip.id, reason)
    return other


def _hop(
    layout: Layout, link: tuple[int | str, int | str], number: int, size: Count
) -> tuple[int, Hop]:
    """Return the replica that has the link, and its ends as that replica numbers them.

    number: place of the exception in the list.  size: chips of a replica.
    Raises: ValueError if there is no such link.
    """
    at, name = ("exceptions", number, "link"), f"[{link[0]}, {link[1]}]"
    chips = [end for end in link if isinstance(end, int)]
    if not chips:
        raise error_at_path(
            at, name, f"got {name}; expected a chip at one end at least; try [0, switch]"
        )
    if max(chips) >= size * layout.plan.replicas:
        raise _no_such_chip(at, max(chips), layout, size)
    replica = {chip // size for chip in chips}
    if len(replica) > 1:
        first = min(replica) * size
        reason = f"got {name}, of two replicas; expected chips of one replica"
        raise error_at_path(at, name, f"{reason}; try chips from {first} to {first + size - 1}")
    ends = tuple(end % size if isinstance(end, int) else end for end in link)
    hop: Hop = (ends[0], ends[1])
    joined = layout.topology.chips or size
    starts = [chip % size for chip in chips]
    routes = (
        layout.topology.route(a, b)
        for a in starts
        for b in (ends if len(chips) == 2 else range(joined))
        if isinstance(b, int)
    )
    if not any(hop in route or hop[::-1] in route for route in routes):
        used = layout.topology.route(0, 1)[0] if joined > 1 else hop
        reason = f"got {name}; expected a link of the {layout.topology.noun()}"
        raise error_at_path(at, name, f"{reason}; try one such as [{used[0]}, {used[1]}]")
    return min(replica), hop
