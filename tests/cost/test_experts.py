"""Experts that a step's tokens reach: between the numbers of tokens that are drawn."""

import numpy as np
import pytest

from sim.cost.experts import DRAWS, expected_shard, slowest_shards
from sim.model.blocks import Experts

ROUTED = Experts(128, 8, ())
FEW = 127  # tokens up to which each number is drawn


@pytest.mark.parametrize("tokens", [5, FEW, 130, 333, 1500])
@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_the_slowest_shard_is_that_of_draws(tokens, skew):
    """Up to FEW tokens exactly; beyond, the draws scatter by about 1 %."""
    reached, each = expected_shard(ROUTED, skew, tokens, 4)
    loads = ROUTED.draw(tokens, ROUTED.chances(skew), np.random.default_rng(0), DRAWS)
    drawn, most = slowest_shards(loads, 4)
    error = 1e-12 if tokens <= FEW else 0.01
    assert reached == pytest.approx(drawn.mean(), rel=error)
    assert reached * each == pytest.approx(most.mean(), rel=error)


def test_more_tokens_load_the_slowest_shard_more():
    loads = [
        reached * each
        for tokens in range(FEW, 4 * FEW, 5)
        for reached, each in [expected_shard(ROUTED, 0.0, tokens, 4)]
    ]
    assert np.diff(loads).min() > 0
    # A token more adds its 8 experts, spread over 4 shards.
    assert np.diff(loads).mean() / 5 == pytest.approx(2, rel=0.1)
