"""What `sramsim catalog` and `sramsim show` print: entries, and every number with its source.

    >>> from sim.catalogue.entries import titles
    >>> titles("chips")["groq-lpu-v1"]
    'Groq LPU v1 (TSP)'

Read `entries` first, then `measurements` (published speeds and latencies).
"""
