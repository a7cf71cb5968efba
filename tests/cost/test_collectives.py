"""Collectives of a step: whose share of the bandwidth counts."""

import pytest

from sim.cost.plan import Plan
from sim.hardware.topology import FullyConnected, Link


@pytest.mark.parametrize(("of_links", "share"), [(None, 0.5), (0.2, 0.2)])
def test_collectives_reach_what_the_links_allow_or_else_the_engines_share(
    make_deployment, make_chip, lossy, of_links, share
):
    link = Link(latency=1e-6, bandwidth=1e9)
    joined = FullyConnected(link=link, collective_efficiency=of_links)
    chip = make_chip(topology=joined)
    layout = make_deployment(2, plan=Plan(tensor=2), chip=chip, engine=lossy).layout
    collectives = make_deployment(2, plan=Plan(tensor=2), chip=chip, engine=lossy).costs.collectives
    (exchange,) = collectives.of_block(layout.model.blocks[1], 16, 0)
    latency = lossy.collective_latency + 2 * lossy.collective_latency_per_chip
    group = range(2)
    assert exchange.time == pytest.approx(
        layout.topology.all_reduce(group, exchange.nbytes, latency, share)
    )
    # What is lost on links is not lost by the engine.
    assert exchange.ideal == pytest.approx(
        layout.topology.all_reduce(group, exchange.nbytes, 0.0, of_links or 1.0)
    )
