"""Requests to come: when they arrive and how long they are.

    >>> from sim.workload.arrivals import Poisson
    >>> chat = Poisson(rate="2 request/s", requests=3, prompt="512 token", output="128 token")
    >>> len(chat.draw(seed=0).arrival)
    3

Read `arrivals` first (the kinds of workload), then `traces` (recorded requests, in six formats).
"""
