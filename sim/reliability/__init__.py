"""Failures over months, availability, and steps with link errors.

    >>> from sim.reliability.failures import Failures
    >>> Failures(rate=1e-6, shape=1.0).scale  # s
    1000000.0

Read `failures` first, then `availability` (the simulation).
"""
