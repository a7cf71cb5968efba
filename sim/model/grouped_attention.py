"""Multi-head, grouped-query and multi-query attention."""

from dataclasses import replace

from sim.model.blocks import Attention, Block, Dim, Matrix, MatrixMaker
from sim.model.config_layers import ConfigLayers
from sim.model.modules import Modules


def grouped_attention(
    config: ConfigLayers, layer: int, norms: int, modules: Modules, matrix: MatrixMaker
) -> Block:
    """Return a block of attention whose cache holds keys and values.

    norms: numbers of the layer's norms before and after it.
    With `share_q_dim`, the query is factorized: its first matrix is whole on every chip.
    Source: Hu et al., "Multi-matrix Factorization Attention", arXiv 2412.19255.
    """
    d, hidden, family = config.hidden_size, Dim(config.hidden_size), config.family
    heads, kv, size, value = config.head_sizes(layer)
    window = config.windowed(layer)
    shared = config.attention_k_eq_v and window is None
    query, output = Dim(heads, size, split=True), Dim(heads, value, split=True)
    keys, values = Dim(kv, size, split=True), Dim(kv, value, split=True)
    gated = Dim(heads, 2 * size, split=True) if family.gated_query else query
    biases = config.attention_bias or config.use_bias
    vectors = (
        norms
        + (heads * size + kv * (size + value) if biases or family.qkv_bias else 0)
        + (d if biases else 0)
        + (2 * size if family.qk_norm else 0)
        + ((heads + kv) * size if family.whole_qk_norm else 0)
    )
    columns = (gated, keys) if shared else (gated, keys, values)
    expansion: tuple[Matrix, ...] = ()
    if config.share_q_dim:
        low = Dim(config.share_q_dim)
        expansion = (matrix((low,), (gated,), (modules.expand,)),)
        columns, vectors = (low, *columns[1:]), vectors + config.share_q_dim
    matrices = (
        matrix((hidden,), columns, modules.qkv[: len(columns)]),
        *expansion,
        matrix((output,), (hidden,), (modules.output,)),
    )
    mixer = Attention(heads, kv, size, window, shared)
    if value != size:
        mixer = replace(mixer, value_size=value)
    return Block("attention", matrices, vectors, (mixer,))
