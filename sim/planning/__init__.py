"""The layout of a model on chips: degrees, stages, limits, and the time of a single request.

    >>> import sim
    >>> sim.read("llama3-8b-lpu-vs-h100").deploy("lpu").fit.fits
    True

Read `deployment` first, then `partition` (how the model is cut into stages).
"""
