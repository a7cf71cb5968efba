"""Results of a run: one row for each request, metrics made from the rows, and a verdict.

    >>> import sim
    >>> result = sim.run("llama3-8b-lpu-vs-h100")  # doctest: +SKIP
    >>> result.systems["lpu"].rows.finished.all()  # doctest: +SKIP
    True

Read `rows` first, then `summary` (a run as typed values, and so its JSON).
"""
