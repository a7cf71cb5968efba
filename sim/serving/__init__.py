"""Serving on SimPy: requests arrive, a router assigns them, replicas schedule and execute steps.

    >>> import sim
    >>> sim.run("scheduling").systems  # doctest: +SKIP

Read `scheduler` first (the decisions, in vLLM's words), then `replica` and `executors` (steps
through the stages). `service` and `fleet` send requests to replicas. `event_order` explains the
order of events at one time.
"""
