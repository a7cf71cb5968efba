"""The work of a recurrence, by how it updates its state."""

from typing import NamedTuple


class UpdateRule(NamedTuple):
    """The matrix products with which one head of a recurrence updates its state.

    state: products of a token with the whole state.
    keys, values: products with each token of its chunk, of the size of a key and of a value.
    chunk: tokens of a prompt between two states that kernels write; a config may have its own.
    """

    state: int
    keys: int
    values: int
    chunk: int


# Mamba-2. Source: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 6. A chunk needs
# its keys times queries, the result times values, the state that it adds, and that which it reads.
SSD = UpdateRule(2, 1, 1, 256)
# Mamba. Its scan has no products inside a chunk. Source: state-spaces/mamba,
# selective_scan_fwd_kernel.cuh, which writes a state after 2,048 tokens.
SCAN = UpdateRule(2, 0, 0, 2048)
# Gated DeltaNet and Kimi delta attention. Source: Yang et al., arXiv 2406.06484, section 3: keys
# times keys, the inverse times keys and values, queries times keys, and the products with values.
# flash-linear-attention has chunks of 64.
DELTA = UpdateRule(3, 3, 2, 64)
