"""Serving on SimPy: requests arrive, a router assigns them, replicas schedule and execute steps.

    >>> import sim
    >>> sim.run("scheduling").systems  # doctest: +SKIP

Read `replica` first (a scheduler in vLLM's words), then `executors` (steps through the stages).
"""
