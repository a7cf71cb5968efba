"""Results for people: tables in the terminal, one HTML page, notebooks, and the reference.

    >>> from sim.results.labels import format_number
    >>> format_number(0.123456)
    '0.123'

Read `first_screen` first, then `tables` and `page`.
"""
