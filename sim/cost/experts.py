"""Routed experts: how many of them a step's tokens reach on the slowest shard."""

import math
from functools import lru_cache

import numpy as np

from sim.model.blocks import Experts

DRAWS = 64  # of tokens to experts, because an expected maximum has no closed form
# Numbers of tokens that are drawn: all up to FEW, and then PER_OCTAVE up to twice as many. Between
# them, both results are interpolated. The error, 1 %, is that of the draws.
FEW, PER_OCTAVE = 64, 8


def expected_shard(experts: Experts, skew: float, tokens: int, shards: int) -> tuple[float, float]:
    """Return the expected experts that the slowest shard reaches, and the tokens of each of them.

    One shard: E - sum of (1 - q_i)^T, where q_i is the chance that a token takes expert i.
    Several shards: the mean over 64 draws of the shard that reaches most. Many tokens are drawn at
    some numbers only.
    """
    if shards == 1:
        return _one_shard(experts, skew, tokens)
    if tokens <= FEW:
        return _drawn_shard(experts, skew, tokens, shards)
    place = PER_OCTAVE * math.log2(tokens / FEW)
    low, high = (round(FEW * 2 ** (step / PER_OCTAVE)) for step in (int(place), int(place) + 1))
    share = (tokens - low) / (high - low)
    reached, each = zip(*(_drawn_shard(experts, skew, n, shards) for n in (low, high)), strict=True)
    taken = [number * of_each for number, of_each in zip(reached, each, strict=True)]
    between = reached[0] + share * (reached[1] - reached[0])
    return between, (taken[0] + share * (taken[1] - taken[0])) / between


@lru_cache(maxsize=1 << 16)
def _one_shard(experts: Experts, skew: float, tokens: int) -> tuple[float, float]:
    """Return both numbers of `expected_shard` for one shard, kept for the whole process."""
    reached = float(np.sum(1 - (1 - experts.chances(skew)) ** tokens))
    return reached, tokens * experts.per_token / reached


@lru_cache(maxsize=1 << 16)
def _drawn_shard(experts: Experts, skew: float, tokens: int, shards: int) -> tuple[float, float]:
    """Return both numbers of `expected_shard` by draws.

    Results are kept for the whole process, because other engines and chips need the same ones.
    """
    return slowest_shard(experts, skew, tokens, shards, np.random.default_rng(0), DRAWS)


def slowest_shard(
    experts: Experts, skew: float, tokens: int, shards: int, stream: np.random.Generator, draws: int
) -> tuple[float, float]:
    """Return both numbers of `expected_shard` as means of `draws` draws from `stream`.

    Expert i lies on shard i modulo shards, so that popular experts are spread.
    """
    drawn = np.zeros((draws, -(-experts.count // shards) * shards))
    drawn[:, : experts.count] = experts.draw(tokens, experts.chances(skew), stream, draws)
    by_shard = drawn.reshape(draws, -1, shards)
    reached = float((by_shard > 0).sum(axis=1).max(axis=1).mean())
    return reached, float(by_shard.sum(axis=1).max(axis=1).mean()) / reached
