"""Tokens and experts of the slowest shard, between the numbers of tokens for which they are drawn."""

import numpy as np
import pytest

from sim.cost.experts import DRAWS, expected_shard, slowest_shard
from sim.model.blocks import Experts


@pytest.mark.parametrize("tokens", [1037, 5050])
def test_between_drawn_numbers_of_tokens_shards_are_as_if_drawn(tokens):
    """The nearest drawn number below is more than 1 % away; draws differ by 0.4 %."""
    experts = Experts(256, 8, ())
    drawn = slowest_shard(experts, 0.5, tokens, 8, np.random.default_rng(0), DRAWS)
    assert expected_shard(experts, 0.5, tokens, 8) == pytest.approx(drawn, rel=6e-3)
