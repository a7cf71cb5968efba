"""Chips and links that are not as the data sheet says: stragglers, chips of another kind, slow and dead links, jitter.

No closed form knows them: they need `fidelity: chip`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field, model_validator

from sim.chipsim.machine import ChipException, Irregularities
from sim.chipsim.network import LinkException
from sim.cost.plan import Layout, PlanError, fit
from sim.cost.step import Costs
from sim.hardware.chip import Chip, ChipField
from sim.hardware.topology import Hop
from sim.inputs.values import Value
from sim.units import Count

SpeedFactor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ChipNumber = Annotated[int, Field(ge=0)]


class ExceptionField(Value):
    """A chip or a link of a system that is not as the others.

    In a scheduled network a slow link is known to the schedule; a slow chip is not.  A `chip`, numbered from 0 over all replicas,
    computes at `speed` times its usual speed (whatever it does, the engine's
    overheads too), or is a chip of another kind (`like`), joined to the others as they are.  A `link` between two chips, or a chip
    and its switch ([3, switch]), has `speed` times its bandwidth, in both directions; 0 is a dead one, and messages go round it.
    """

    chip: ChipNumber | None = None
    link: tuple[ChipNumber | str, ChipNumber | str] | None = None
    speed: SpeedFactor = 1.0
    like: ChipField | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> "ExceptionField":
        if (self.chip is None) == (self.link is None):
            raise ValueError("an exception names a chip or a link")
        if self.link and self.like:
            raise ValueError("like: names a chip of another kind, and does not go with a link")
        if self.speed and not 1e-6 <= self.speed <= 1e6:
            raise ValueError(f"speed {self.speed:g} is neither 0 nor between 1e-6 and 1e6")
        if self.chip is not None and self.speed == 0:
            raise ValueError(
                f"speed 0: a dead chip {self.chip} leaves its stage without an answer; only links may be dead"
            )
        return self


def irregular(
    layout: Layout,
    exceptions: Sequence[ExceptionField],
    replica: int,
    scheduled: bool,
    jitter: float,
    request_tokens: float,
    kv_tokens: int,
) -> Irregularities:
    """What one replica of a system has that is irregular.

    Raises: ValueError where a chip or link does not exist, PlanError where a chip of another kind does not hold its part.
    """
    size = layout.plan.stage_size * layout.plan.pipeline_depth
    chips: list[ChipException] = []
    links: list[LinkException] = []
    kinds: list[tuple[Chip, Costs]] = []
    places = [each.chip if each.link is None else frozenset(each.link) for each in exceptions]
    if twice := next((place for i, place in enumerate(places) if place in places[:i]), None):
        what = f"chip {twice}" if isinstance(twice, int) else f"link {sorted(map(str, twice))}"
        raise ValueError(f"exceptions: {what} is named twice")
    for each in exceptions:
        if each.chip is not None:
            where, number = divmod(each.chip, size)
            if where >= layout.plan.replicas:
                raise ValueError(
                    f"exceptions: there is no chip {each.chip}; the last one is {size * layout.plan.replicas - 1}"
                )
            costs = next((costs for chip, costs in kinds if chip == each.like), None)
            if each.like and costs is None:
                costs = Costs(_made_of(layout, each.like, request_tokens, kv_tokens))
                kinds.append((each.like, costs))
            if where == replica:
                chips.append(ChipException(number, each.speed, costs))
        elif each.link:
            where, hop = _hop(layout, each.link, size)
            if where == replica:
                links.append(LinkException(hop, each.speed))
    return Irregularities(tuple(chips), tuple(links), scheduled, jitter)


def _made_of(layout: Layout, chip: Chip, request_tokens: float, kv_tokens: int) -> Layout:
    """The layout as if all its chips were of another kind.  Raises: PlanError where they do not hold their part."""
    for name in (layout.plan.weights_in, layout.plan.kv_in):
        if name not in chip.memory:
            raise ValueError(
                f"exceptions: {chip.id} has no memory '{name}', where the plan keeps its part"
            )
    other = replace(layout, chip=chip)
    fitted = fit(other, request_tokens)
    if not fitted.fits:
        raise PlanError(f"exceptions: {chip.id} does not hold its part of {layout.model.id}")
    if fitted.kv_tokens < kv_tokens:
        room = f"{fitted.kv_tokens} tokens of KV cache, and the system counts on {kv_tokens}"
        raise PlanError(
            f"exceptions: {chip.id} has room for {room}; give kv_tokens: {fitted.kv_tokens} token"
        )
    return other


def _hop(layout: Layout, link: tuple[int | str, int | str], size: Count) -> tuple[int, Hop]:
    """The replica that has the link, and its ends as a replica numbers them."""
    chips = [end for end in link if isinstance(end, int)]
    if not chips:
        raise ValueError(
            f"exceptions: a link has a chip at one end at least, and [{link[0]}, {link[1]}] has none"
        )
    if max(chips) >= size * layout.plan.replicas:
        raise ValueError(
            f"exceptions: there is no chip {max(chips)}; the last one is {size * layout.plan.replicas - 1}"
        )
    replica = {chip // size for chip in chips}
    if len(replica) > 1:
        raise ValueError(
            f"exceptions: chips {chips[0]} and {chips[1]} are of two replicas, which no link joins"
        )
    ends = tuple(end % size if isinstance(end, int) else end for end in link)
    hop: Hop = (ends[0], ends[1])
    joined = layout.topology.chips or size
    starts = [chip % size for chip in chips]
    ways = (
        layout.topology.route(a, b)
        for a in starts
        for b in (ends if len(chips) == 2 else range(joined))
        if isinstance(b, int)
    )
    if not any(hop in way or hop[::-1] in way for way in ways):
        raise ValueError(
            f"exceptions: the {layout.topology.noun()} has no link from {link[0]} to {link[1]}"
        )
    return min(replica), hop
