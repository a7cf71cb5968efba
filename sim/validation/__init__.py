"""The simulator beside measurements: how far off it is, and how engines are fitted.

    >>> from sim.validation.points import measured_points
    >>> from sim.validation.validate import shipped
    >>> len(measured_points(shipped("calibration"))) > 10  # doctest: +SKIP
    True

Read `points` first (measured rows as scenarios), then `validate` (errors by metric).
"""
