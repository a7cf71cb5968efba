"""The cost of a step: time by term, bytes that must fit, and joules.

    >>> from sim.cost.work import Work
    >>> Work(decodes=16, context=16 * 512, logits=16).tokens  # 16 sequences, 512 positions each
    16

Read `layout` first (bytes on each chip, and fit), then `rows` (contributions to a step) and `step`
(Work -> time on each stage). Rows come from `multiplies`, `attention`, `experts` and `collectives`,
and with `speculation` from a drafter. `program` has the same times for each chip, and `energy` the
joules.
"""
