"""Chip fidelity: every chip a SimPy process, every link a resource.

    >>> from sim.chipsim.network import link_name
    >>> link_name((3, 9))
    '3 -> 9'

Read `machine` first, then `network`.
"""
