"""The cost of a step: time by term, bytes that must fit, and joules.

    >>> from sim.cost.work import Work
    >>> Work(decodes=16, context=16 * 512, logits=16).tokens  # 16 sequences, 512 positions each
    16

Read `plan` first (degrees, bytes and fit), then `step` (Work -> time on each stage).
"""
