"""The layers with a window of attention, by a rule of the family, for configs without layer_types.

Source: transformers' configuration classes, which fill in layer_types.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple


class LayerPlace(NamedTuple):
    """The place of a layer among its model's layers.

    period: layers after which the family's pattern repeats.
    limit: the config's max_window_layers.
    """

    layer: int
    layers: int
    period: int
    limit: int

    @property
    def closes(self) -> bool:
        """Whether the layer is the last of a period."""
        return (self.layer + 1) % self.period == 0


# late: from max_window_layers on. without rotary: the last of each period, which has no rotary
# embedding. named: only those that layer_types names.
WindowLayers = Literal[
    "all",
    "pattern",
    "pattern, not last",
    "pattern, not first",
    "pattern from 0",
    "late",
    "early, every second",
    "without rotary",
    "named",
]
WINDOW_RULES: dict[WindowLayers, Callable[[LayerPlace], bool]] = {
    "all": lambda place: True,
    "pattern": lambda place: not place.closes,
    "pattern, not last": lambda place: not place.closes and place.layer + 1 < place.layers,
    "pattern, not first": lambda place: not place.closes and place.layer > 0,
    "pattern from 0": lambda place: place.layer % place.period != 0,
    "late": lambda place: place.layer >= place.limit,
    "early, every second": lambda place: place.layer % 2 == 0 and place.layer < place.limit,
    "without rotary": lambda place: place.closes,
    "named": lambda place: False,
}
