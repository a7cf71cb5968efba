"""Layers with a window of attention, by the rule of the family, where no layer_types names them.

Source: transformers' configuration classes, which fill in layer_types.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple


class Place(NamedTuple):
    """A layer, the number of layers, the family's period, and the config's max_window_layers."""

    layer: int
    layers: int
    period: int
    limit: int

    @property
    def closes(self) -> bool:
        """Whether the layer is the last of a period."""
        return (self.layer + 1) % self.period == 0


# late: from max_window_layers on. without rotary: each so-manieth, which has no rotary embedding.
# named: those that layer_types names alone.
WindowLayers = Literal[
    "all",
    "pattern",
    "pattern, not last",
    "pattern, not first",
    "pattern from 0",
    "late",
    "early, each second",
    "without rotary",
    "named",
]
WINDOW_RULES: dict[WindowLayers, Callable[[Place], bool]] = {
    "all": lambda place: True,
    "pattern": lambda place: not place.closes,
    "pattern, not last": lambda place: not place.closes and place.layer + 1 < place.layers,
    "pattern, not first": lambda place: not place.closes and place.layer > 0,
    "pattern from 0": lambda place: place.layer % place.period != 0,
    "late": lambda place: place.layer >= place.limit,
    "early, each second": lambda place: place.layer % 2 == 0 and place.layer < place.limit,
    "without rotary": lambda place: place.closes,
    "named": lambda place: False,
}
