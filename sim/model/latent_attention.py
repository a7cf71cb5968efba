"""Multi-head latent attention, and the indexer that makes it sparse."""

from sim.model.blocks import Attention, Block, Dim, Dims, Indexer, Latent, Matrix, MatrixMaker
from sim.model.config_layers import ConfigLayers


def latent_attention(config: ConfigLayers, layer: int, norms: int, matrix: MatrixMaker) -> Block:
    """Return a block of latent attention, sparse where the config has `index_topk`.

    norms: numbers of the layer's norms before and after it.
    """
    heads, hidden = config.num_attention_heads, Dim(config.hidden_size)
    assert config.kv_lora_rank
    assert config.qk_rope_head_dim
    assert config.qk_nope_head_dim
    assert config.v_head_dim
    latent = Latent(
        config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim
    )
    query = Dim(heads, latent.nope + latent.rope, split=True)
    unpacked = Dim(heads, latent.nope + latent.value, split=True)
    compressed, value = Dim(latent.rank + latent.rope), Dim(heads, latent.value, split=True)
    compressing = "kv_a_proj_with_mqa"
    sides: dict[str, Dims] = {"q_proj": (hidden, query), compressing: (hidden, compressed)}
    if config.q_lora_rank:  # vLLM, SGLang and TensorRT-LLM compress both in one multiply
        rank = Dim(config.q_lora_rank)
        sides = {f"q_a_proj {compressing}": (hidden, rank, compressed), "q_b_proj": (rank, query)}
    sides |= {"kv_b_proj": (Dim(latent.rank), unpacked), "o_proj": (value, hidden)}
    vectors = norms + (config.q_lora_rank or 0) + latent.rank
    sparse = config.index_topk is not None
    attention = Attention(heads, heads, 0, config.index_topk, latent=latent, sparse=sparse)
    matrices = _matrices(sides, matrix)
    if not sparse or not config.has_indexer(layer):
        return Block("attention", matrices, vectors, (attention,))
    indexer = Indexer(config.index_n_heads, config.index_head_dim)
    sides = {
        "indexer.wq_b": (
            Dim(config.q_lora_rank or config.hidden_size),
            Dim(indexer.heads, indexer.size),
        ),
        "indexer.wk": (hidden, Dim(indexer.size)),
        "indexer.weights_proj": (hidden, Dim(indexer.heads)),
    }
    vectors += 2 * indexer.size  # the layer norm of its keys has biases
    return Block("attention", matrices + _matrices(sides, matrix), vectors, (attention, indexer))


def _matrices(sides: dict[str, Dims], matrix: MatrixMaker) -> tuple[Matrix, ...]:
    """Return the matrices with these rows and columns, by the names of their modules."""
    return tuple(
        matrix((rows,), tuple(columns), tuple(names.split()))
        for names, (rows, *columns) in sides.items()
    )
