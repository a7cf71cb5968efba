"""Layers with a state of fixed size: linear attention and state spaces, by kind of recurrence."""

import math
from collections.abc import Callable
from typing import NamedTuple

from sim.model.blocks import Dim, Dims, Matrix, MatrixMaker, Recurrence
from sim.model.config_keys import DTYPES
from sim.model.config_layers import ConfigLayers
from sim.model.families import RecurrenceKind
from sim.model.quantization import WIDTHS
from sim.model.update_rules import DELTA, SCAN, SSD


class RecurrentLayer(NamedTuple):
    """A layer without attention: its matrices, other parameters, and its recurrence."""

    matrices: tuple[Matrix, ...]
    vectors: int
    recurrence: Recurrence


def recurrent_layer(config: ConfigLayers, matrix: MatrixMaker) -> RecurrentLayer:
    """Return the recurrence of a hybrid model's layers, with its matrices."""
    assert config.family.recurrence
    return _KINDS[config.family.recurrence](config, matrix)


def _gated_delta(config: ConfigLayers, matrix: MatrixMaker) -> RecurrentLayer:
    """Return Qwen's gated delta net. Each value head has a state of its own."""
    heads, key = config.linear_num_value_heads or 0, config.linear_key_head_dim or 0
    value = config.linear_value_head_dim or 0
    hidden, gates = Dim(config.hidden_size), Dim(heads, split=True)
    keys = Dim(config.linear_num_key_heads or 0, key, split=True)
    values = Dim(heads, value, split=True)
    together = config.model_type == "qwen3_next"
    qkvz = ("in_proj_qkvz",) if together else (*("in_proj_qkv",) * 3, "in_proj_z")
    gated = ("in_proj_ba",) if together else ("in_proj_b", "in_proj_a")
    convolved = keys, keys, values
    return RecurrentLayer(
        (
            matrix((hidden,), (*convolved, values), qkvz),
            matrix((hidden,), (gates, gates), gated),
            matrix((values,), (hidden,), ("out_proj",)),
        ),
        config.conv_kernel * _length(convolved) + 2 * heads + value,
        Recurrence(
            heads, heads, key, value, convolved, config.conv_kernel - 1, DELTA, *_widths(config)
        ),
    )


def _kimi_delta(config: ConfigLayers, matrix: MatrixMaker) -> RecurrentLayer:
    """Return Kimi's delta attention, with a forget gate and an output gate of low rank."""
    heads, size = config.linear_num_value_heads or 0, config.linear_value_head_dim or 0
    hidden, low, wide = Dim(config.hidden_size), Dim(size), Dim(heads, size, split=True)
    convolved = wide, wide, wide
    return RecurrentLayer(
        (
            matrix((hidden,), convolved, ("q_proj", "k_proj", "v_proj")),
            matrix((hidden,), (low, low), ("f_a_proj", "g_a_proj")),
            matrix((low,), (wide,), ("f_b_proj",)),
            matrix((low,), (wide,), ("g_b_proj",)),
            matrix((hidden,), (Dim(heads, split=True),), ("b_proj",)),
            matrix((wide,), (hidden,), ("o_proj",)),
        ),
        config.conv_kernel * _length(convolved) + heads + heads * size + size,
        Recurrence(
            heads, heads, size, size, convolved, config.conv_kernel - 1, DELTA, *_widths(config)
        ),
    )


def _mamba2(config: ConfigLayers, matrix: MatrixMaker) -> RecurrentLayer:
    """Return a Mamba-2 layer. The heads of a group share B and C, which are its keys."""
    heads, state = config.mamba_num_heads or 0, config.ssm_state_size or 0
    groups, hidden = config.mamba_n_groups, Dim(config.hidden_size)
    width = config.mamba_d_ssm or config.mamba_expand * config.hidden_size
    size = config.mamba_head_dim or width // heads
    values, keys = Dim(heads, size, split=True), Dim(groups, state, split=True)
    steps = Dim(heads, split=True)
    convolved, rule = (values, keys, keys), SSD
    if config.mamba_chunk_size:
        rule = rule._replace(chunk=config.mamba_chunk_size)
    return RecurrentLayer(
        (
            matrix((hidden,), (values, *convolved, steps), ("in_proj",)),
            matrix((values,), (hidden,), ("out_proj",)),
        ),
        (config.conv_kernel + 1) * _length(convolved) + 3 * heads + heads * size,
        Recurrence(
            heads, groups, state, size, convolved, config.conv_kernel - 1, rule, *_widths(config)
        ),
    )


def _mamba(config: ConfigLayers, matrix: MatrixMaker) -> RecurrentLayer:
    """Return a Mamba layer. Each channel is a head with a value of one number.

    Left out: the all-reduce of `x_proj`, if chips share the channels.
    """
    width, state = config.mamba_expand * config.hidden_size, config.ssm_state_size or 0
    rank = config.mamba_dt_rank or math.ceil(config.hidden_size / 16)
    hidden, channels, low = Dim(config.hidden_size), Dim(width, split=True), Dim(rank)
    kept = config.conv_kernel - 1
    return RecurrentLayer(
        (
            matrix((hidden,), (channels, channels), ("in_proj",)),
            matrix((channels,), (low, Dim(2 * state)), ("x_proj",)),
            matrix((low,), (channels,), ("dt_proj",)),
            matrix((channels,), (hidden,), ("out_proj",)),
        ),
        (config.conv_kernel + 1) * width + (state + 2) * width + rank + 2 * state,
        Recurrence(width, 1, state, 1, (channels,), kept, SCAN, *_widths(config)),
    )


_KINDS: dict[RecurrenceKind, Callable[[ConfigLayers, MatrixMaker], RecurrentLayer]] = {
    "gated delta": _gated_delta,
    "kimi delta": _kimi_delta,
    "mamba": _mamba,
    "mamba2": _mamba2,
}


def _length(sides: Dims) -> int:
    return sum(side.share(1) for side in sides)


def _widths(config: ConfigLayers) -> tuple[float, float]:
    """Return the bytes of a number of the state, and of an input of the convolution."""
    return WIDTHS[DTYPES[config.mamba_ssm_dtype]] / 8, WIDTHS[config.precision] / 8
