"""Routed experts: how many of them a step's tokens reach on the slowest shard."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.model.blocks import Experts

DRAWS = 64  # of tokens to experts, because an expected maximum has no closed form


@lru_cache(maxsize=1 << 16)
def expected_shard(experts: Experts, skew: float, tokens: int, shards: int) -> tuple[float, float]:
    """Return the expected experts that the slowest shard reaches, and the tokens of each of them.

    One shard: E - sum of (1 - q_i)^T, where q_i is the chance that a token takes expert i.
    Several shards: the mean over 64 draws of the shard that reaches most. From 128 tokens it is
    drawn for 64 numbers of tokens in each doubling, and linear between them.
    Results are kept for the whole process, because other engines and chips need the same ones.
    """
    if shards == 1:
        reached = float(np.sum(1 - (1 - experts.chances(skew)) ** tokens))
        return reached, tokens * experts.per_token / reached
    spacing = 1 << max(0, tokens.bit_length() - 7)
    part = tokens % spacing / spacing
    reached, share = _drawn_shard(experts, skew, tokens - tokens % spacing, shards)
    if part:
        following = tokens - tokens % spacing + spacing
        more_reached, more_share = _drawn_shard(experts, skew, following, shards)
        reached += part * (more_reached - reached)
        share += part * (more_share - share)
    return reached, share


@lru_cache(maxsize=1 << 16)
def _drawn_shard(experts: Experts, skew: float, tokens: int, shards: int) -> tuple[float, float]:
    return _slowest(_kept_draws(experts, skew, tokens), shards)


@lru_cache(maxsize=1 << 11)
def _kept_draws(experts: Experts, skew: float, tokens: int) -> NDArray[np.integer]:
    """Return int[draw, expert]: the tokens of each expert. All numbers of shards share them."""
    drawn = experts.draw(tokens, experts.chances(skew), np.random.default_rng(0), DRAWS)
    return drawn.astype(np.min_scalar_type(tokens))  # memory: at most 64 MB in all


def slowest_shard(
    experts: Experts, skew: float, tokens: int, shards: int, stream: np.random.Generator, draws: int
) -> tuple[float, float]:
    """Return both numbers of `expected_shard` as means of `draws` draws from `stream`.

    Expert i lies on shard i modulo shards, so that popular experts are spread.
    """
    return _slowest(experts.draw(tokens, experts.chances(skew), stream, draws), shards)


def _slowest(drawn: NDArray[np.integer], shards: int) -> tuple[float, float]:
    """Return the means of the experts that the slowest shard reaches, and of their tokens.

    drawn: int[draw, expert], tokens.
    """
    draws, experts = drawn.shape
    padded = np.zeros((draws, -(-experts // shards) * shards))
    padded[:, :experts] = drawn
    by_shard = padded.reshape(draws, -1, shards)
    reached = float((by_shard > 0).sum(axis=1).max(axis=1).mean())
    return reached, float(by_shard.sum(axis=1).max(axis=1).mean()) / reached
