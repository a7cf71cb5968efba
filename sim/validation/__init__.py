"""Measured and simulated figures: how large the errors are, and how engines are fitted.

    >>> from sim.validation.points import measured_points
    >>> from sim.validation.validate import shipped_table
    >>> len(measured_points(shipped_table("calibration"))) > 10  # doctest: +SKIP
    True

Read `points` first (measured rows as scenarios), then `validate` (reports of errors by metric).
"""
