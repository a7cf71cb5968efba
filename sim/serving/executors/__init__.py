"""Executors take the steps of micro-batches through the stages of a replica.

    >>> from sim.serving.executors.stepwise import Pipeline
    >>> pipeline = Pipeline(stages=2)

Read `executor` first (the contract), then `stepwise` (the plain reference). `fast_forward` and
`compiled` make many steps in one event and equal it. `chips` simulates every chip as a process.
`retry` repeats steps that fail from link errors, and `pausing` those that a pool's outage
interrupted; both are around another executor (`outer`). `choice` selects one for a replica.
"""
