"""Requests to come: their arrivals and their lengths.

    >>> from sim.workload.arrivals import Poisson
    >>> chat = Poisson(rate="2 request/s", requests=3, prompt="512 token", output="128 token")
    >>> len(chat.draw(seed=0).arrival)
    3

Read `arrivals` first (open and closed loops, lists), then `traces` (recorded requests).
"""
