"""Runs of a scenario: one, a sweep, the capacity, the best plan, sensitivity, timelines.

    >>> import sim
    >>> sim.run("llama3-8b-lpu-vs-h100").systems["lpu"].rows.finished.all()  # doctest: +SKIP
    True

Read `run` first (what each system did and cost), then `capacity` (the highest load in the SLO).
"""
