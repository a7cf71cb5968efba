"""The catalogue for `sramsim catalog` and `sramsim show`: entries, and all numbers with sources.

    >>> from sim.catalogue.entries import catalogue_titles
    >>> catalogue_titles("chips")["groq-lpu-v1"]
    'Groq LPU v1 (TSP)'

Read `entries` first, then `measurements` (published speeds and latencies).
"""
