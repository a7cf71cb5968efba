"""Chip fidelity: every chip a process, every link a resource.

    >>> import sim
    >>> stragglers = sim.read("straggler")  # a scenario with `fidelity: chip`

Read `machine` first (stages, chips, collectives), then `network` (links and contention).
"""
