"""Chips, topologies and engines: what a datasheet says, and what software loses.

    >>> from sim.hardware.topology import Ring
    >>> ring = Ring(link={"latency": "1 us", "bandwidth": "10 GB/s"}).sized(8)
    >>> ring.hops(0, 4)
    4

Read `chip` first (memories and compute kinds), then `topology.base` (routes and collectives).
"""
