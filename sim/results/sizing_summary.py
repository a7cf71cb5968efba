"""The fewest chips for a model and its users, typed: the contract of `size --json`.

    >>> UserSpeed(tpot_ms=4.0).tokens_per_second
    250.0

`sim.results.encoding` writes these values.
"""

from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import SPLICED
from sim.results.system_identity import SystemIdentity


@dataclass(frozen=True, kw_only=True)
class SizedDemand:
    """The demand: users with one sequence of `context` tokens each.

    prompt, output: tokens that make up the context. tpot_ms: limit of each user; None: any.
    """

    users: int
    context: int
    prompt: int
    output: int
    tpot_ms: float | None


@dataclass(frozen=True, kw_only=True)
class KVRoom:
    """The room for KV cache.

    bytes_per_chip: of the fullest chip [B]. tokens: of all replicas.
    sequences: of the context's length, of all replicas.
    """

    bytes_per_chip: float
    tokens: int
    sequences: int


@dataclass(frozen=True, kw_only=True)
class UserSpeed:
    """The speed of one user at the end of the context, where a token takes longest."""

    tpot_ms: float

    @property
    def tokens_per_second(self) -> float:
        """Output tokens per second of the user."""
        return 1000 / self.tpot_ms


@dataclass(frozen=True, kw_only=True)
class SizeSummary:
    """The fewest chips that meet a demand, their plan, room and speed.

    unloaded, loaded: a single user; all users together.
    binds: capacity, KV, TPOT or topology. chips_otherwise: the fewest chips if that did not bind;
    for capacity, the chips that the weights alone fill.
    other_engines: other engines that were measured on the chip.
    """

    demand: SizedDemand
    identity: Annotated[SystemIdentity, SPLICED]
    kv_room: KVRoom
    unloaded: UserSpeed
    loaded: UserSpeed
    binds: str
    chips_otherwise: int
    other_engines: tuple[str, ...]
    warnings: tuple[str, ...]
