"""Routed experts: how many of them a step's tokens reach on the slowest shard."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.model.blocks import Experts

Loads = NDArray[np.int64]
# The most experts that a shard reaches, and the most tokens of a shard, for each routed block.
DrawnLoad = tuple[tuple[int, int], ...]

MOST_TOGETHER = 256  # steps that are drawn together; fewer if they have many tokens
DRAWS = 64  # of tokens to experts, because an expected maximum has no closed form


def expected_shard(
    experts: Experts, skew: float, tokens: int | Loads, shards: int
) -> tuple[float, float]:
    """Return the expected experts that the slowest shard reaches, and the tokens of each of them.

    tokens: may be an array; then both results are arrays, too.
    One shard: E - sum of (1 - q_i)^T, where q_i is the chance that a token takes expert i.
    Several shards: the mean over 64 draws of the shard that reaches most. From 128 tokens on, this
    mean is drawn for 64 numbers of tokens in each doubling, and linear between them.
    """
    if shards == 1:
        missed = (1 - experts.chances(skew)) ** np.expand_dims(tokens, -1)
        reached = (1 - missed).sum(axis=-1)
        return reached, tokens * experts.per_token / reached
    numbers = set[int]()
    for number in np.ravel(tokens).tolist():
        spacing = load_spacing(number)
        numbers |= {number // spacing * spacing, -(-number // spacing) * spacing}
    drawn = sorted(numbers)
    loads = [_drawn_shard(experts, skew, number, shards) for number in drawn]
    reached, share = (np.interp(tokens, drawn, column) for column in zip(*loads, strict=True))
    return reached, share


def load_spacing(tokens: int) -> int:
    """Return the distance between the numbers of tokens for which loads of shards are drawn."""
    return 1 << max(0, tokens.bit_length() - 7)


@lru_cache(maxsize=1 << 16)
def _drawn_shard(experts: Experts, skew: float, tokens: int, shards: int) -> tuple[float, float]:
    reached, most = slowest_shards(_kept_draws(experts, skew, tokens), shards)
    mean = float(reached.mean())
    return mean, float(most.mean()) / mean


@lru_cache(maxsize=1 << 11)
def _kept_draws(experts: Experts, skew: float, tokens: int) -> NDArray[np.integer]:
    """Return int[draw, expert]: the tokens of each expert. All numbers of shards share them."""
    drawn = experts.draw(tokens, experts.chances(skew), np.random.default_rng(0), DRAWS)
    return drawn.astype(np.min_scalar_type(tokens))  # memory: at most 64 MB in all


def slowest_shards(drawn: NDArray[np.integer], shards: int) -> tuple[Loads, Loads]:
    """Return int[draw], twice: the most experts that a shard reaches, and the most of its tokens.

    drawn: int[draw, expert], tokens.
    Expert i lies on shard i modulo shards, so that popular experts are spread.
    A token counts once for each of its experts.
    """
    draws, experts = drawn.shape
    padded = np.zeros((draws, -(-experts // shards) * shards), np.int64)
    padded[:, :experts] = drawn
    by_shard = padded.reshape(draws, -1, shards)
    return (by_shard > 0).sum(axis=1).max(axis=1), by_shard.sum(axis=1).max(axis=1)


class ExpertDraws:
    """The experts that the tokens of each step reach, drawn for many steps together.

    Steps of one size have a random stream, and the n-th of them has its n-th draw. So a draw does
    not depend on other steps, or on how many are drawn together. A size is the tokens of a step,
    and those of its fullest rank.

    seed: of all streams.
    routed: the experts of each distinct block that has some, and the chance of each.
    ahead: by size, the draws that no step has taken.
    together: by size, how many steps are drawn next.
    """

    def __init__(
        self, seed: Sequence[int], routed: Sequence[Experts], skew: float, shards: int
    ) -> None:
        self.seed, self.shards = seed, shards
        self.routed = [(experts, experts.chances(skew)) for experts in routed]
        self.streams: dict[tuple[int, int], np.random.Generator] = {}
        self.ahead: dict[tuple[int, int], list[DrawnLoad]] = {}
        self.together: dict[tuple[int, int], int] = {}

    def coming(self, size: tuple[int, int]) -> list[DrawnLoad]:
        """Return the draws of at least one coming step, which do not count as taken yet."""
        if size not in self.streams:
            self.streams[size] = np.random.default_rng([*self.seed, *size])
            self.ahead[size], self.together[size] = [], 1
        ahead, stream = self.ahead[size], self.streams[size]
        if not ahead:
            # One step is drawn first, and then twice as many each time. Many sizes occur once, and
            # draws that no step takes cost time.
            draws, most = self.together[size], max(64, 4096 // size[0])
            self.together[size] = min(MOST_TOGETHER, most, 2 * draws)
            drawn = [
                slowest_shards(experts.draw(size[0], chances, stream, draws), self.shards)
                for experts, chances in self.routed
            ]
            pairs = [zip(reached.tolist(), most.tolist(), strict=True) for reached, most in drawn]
            ahead.extend(zip(*pairs, strict=True))
        return ahead

    def take(self, size: tuple[int, int], steps: int = 1) -> DrawnLoad:
        """Take the draws of steps that are made, and return the last one."""
        while steps > len(ahead := self.coming(size)):
            steps -= len(ahead)
            ahead.clear()
        drawn = ahead[steps - 1]
        del ahead[:steps]
        return drawn
