"""The look of each cause of time, energy and memory use: a colour that no system has, and a hatch.

The colours are of Tol's muted palette, without those near the colour of a maker.
Source: https://sronpersonalpages.nl/~pault/
"""

from dataclasses import dataclass
from typing import Any

from matplotlib.patches import Patch


@dataclass(frozen=True)
class CauseLook:
    """A part of a bar: its label, colour and hatch. The hatch tells it apart in grey print."""

    label: str
    colour: str
    hatch: str

    @property
    def filled(self) -> dict[str, Any]:
        """The looks of the part: the colour, with a white hatch."""
        return {"facecolor": self.colour, "edgecolor": "white", "hatch": self.hatch, "lw": 0.6}

    @property
    def open(self) -> dict[str, Any]:
        """The looks of its fitted share: white, with a hatch in the colour."""
        return {"facecolor": "white", "edgecolor": self.colour, "hatch": self.hatch, "lw": 0.6}

    @property
    def entry(self) -> Patch:
        """An entry of a key."""
        return Patch(label=self.label, **self.filled)


# The keys are those of a result. Equal causes have equal looks in all figures.
TOKEN_CAUSES = {
    "weights": CauseLook("weights read", "#332288", "//"),
    "kv": CauseLook("KV cache read", "#ddcc77", "...."),
    "activations": CauseLook("activations read", "#999933", "+++"),
    "compute": CauseLook("computing", "#882255", "\\\\\\"),
    "collectives": CauseLook("collectives", "#aa4499", "xxx"),
    "hops": CauseLook("hops between stages", "#555555", "---"),
    "overhead": CauseLook("engine overhead", "#bbbbbb", "oo"),
}
CHIP_CAUSES = {
    "compute": TOKEN_CAUSES["compute"],
    "exchange": CauseLook("collectives, waiting for others included", "#ddcc77", "xxx"),
}
MEMORY_PARTS = {
    "weights": CauseLook("weights", "#332288", "//"),
    "activations": CauseLook("activations", "#999933", "+++"),
    "reserve": CauseLook("reserve of the engine", "#bbbbbb", "oo"),
    "room": CauseLook("room for KV cache", "#ddcc77", "...."),
}
POOL_PARTS = {  # from the arrival on
    "wait": CauseLook("wait for the prefill", "#bbbbbb", "oo"),
    "prefill": CauseLook("prefill", "#882255", "\\\\\\"),
    "wait for room": CauseLook("wait for room and link", "#999933", "+++"),
    "transfer": CauseLook("transfer", "#aa4499", "xxx"),
    "hand-over": CauseLook("hand-over", "#555555", "---"),
    "wait for a place": CauseLook("wait for a place", "#ddcc77", "...."),
    "decode step": CauseLook("decode step", "#332288", "//"),
}
ENERGY_CAUSES = {  # from below
    "idle": CauseLook("idle chips", "#bbbbbb", "oo"),
    "server": CauseLook("servers", "#555555", "---"),
    "pue": CauseLook("cooling (PUE)", "#999933", "+++"),
    "compute": CauseLook("computing", "#882255", "\\\\\\"),
    "memory": CauseLook("memory", "#332288", "//"),
    "links": CauseLook("links", "#aa4499", "xxx"),
}
