"""A scenario: one question, and the systems that it compares.

    >>> import sim
    >>> list(sim.read("llama2-70b-lpu-vs-h100").systems)
    ['lpu', 'h100', 'h100x8']

Read `scenario` first (the keys of a file), then `layout` (`check`, which lays its systems out).
"""
