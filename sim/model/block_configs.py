"""Layers that differ one by one, as Nemotron-NAS (DeciLM) lists them in `block_configs`.

A layer's attention or MLP may be left out, or be one matrix. Otherwise a layer has its own number
of KV heads, and its MLP its own inner width.
Source: Bercovich et al., "Puzzle", arXiv 2411.19146, section 2.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sim.inputs.errors import error_at_key, quoted_value

_SWITCHES = ("no_op", "replace_with_linear")
_ATTENTION = (*_SWITCHES, "n_heads_in_group")
_MLP = (*_SWITCHES, "ffn_mult")
_WIDTH_STEP = 256  # DeciLM's configuration_decilm.py rounds inner widths up to it


class LayerChoice(NamedTuple):
    """The parts of a layer.  kv_heads, width: None if the part is left out or is one matrix."""

    kv_heads: int | None
    attention_matrix: bool
    width: int | None
    mlp_matrix: bool


def layer_choices(
    entries: Sequence[Mapping[str, object]], heads: int, hidden: int
) -> tuple[LayerChoice, ...]:
    """Return the parts of each layer. heads, hidden: query heads, and width of the hidden state.

    Raises: PydanticCustomError if an entry is wrong or not covered.
    """
    return tuple(_choice(entry, place, heads, hidden) for place, entry in enumerate(entries))


def _choice(entry: Mapping[str, object], place: int, heads: int, hidden: int) -> LayerChoice:
    attention = _part(entry, "attention", _ATTENTION, place)
    mlp = _part(entry, "ffn", _MLP, place)
    kv = width = None
    if not any(attention.get(key) for key in _SWITCHES):
        group = attention.get("n_heads_in_group")
        if isinstance(group, bool) or not isinstance(group, int) or group <= 0 or heads % group:
            raise _refused(place, "attention.n_heads_in_group", group, f"a divisor of {heads}")
        kv = heads // group
    if not any(mlp.get(key) for key in _SWITCHES):
        factor = mlp.get("ffn_mult")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
            raise _refused(place, "ffn.ffn_mult", factor, "a positive number")
        width = math.ceil(int(2 * factor * hidden / 3) / _WIDTH_STEP) * _WIDTH_STEP
    return LayerChoice(
        kv,
        bool(attention.get("replace_with_linear") and not attention.get("no_op")),
        width,
        bool(mlp.get("replace_with_linear") and not mlp.get("no_op")),
    )


def _part(
    entry: Mapping[str, object], name: str, covered: tuple[str, ...], place: int
) -> Mapping[str, object]:
    """Return a part of an entry.  Raises: PydanticCustomError if it is not covered."""
    part = entry.get(name)
    if not isinstance(part, Mapping):
        raise _refused(place, name, part, "a mapping")
    for key, value in part.items():
        if value and key not in covered:
            raise _refused(place, f"{name}.{key}", value, "null, since it is not covered")
    return part


def _refused(place: int, key: str, value: object, expected: str) -> Exception:
    path = f"block_configs.{place}.{key}"
    reason = f"{path}: got {quoted_value(value)}; expected {expected}"
    return error_at_key(("block_configs",), reason)
