"""The catalogue for `sramsim catalog` and `sramsim show`: entries, and all numbers with sources.

    >>> from sim.catalogue.entries import listed_entries
    >>> next(entry.title for entry in listed_entries("chips") if entry.name == "groq-lpu-v1")
    'Groq LPU v1 (TSP)'

Read `entries` first, then `measurements` (published speeds and latencies).
"""
