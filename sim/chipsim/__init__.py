"""Chip fidelity: every chip a SimPy process, every link a resource.

    >>> from sim.chipsim.network import link_name
    >>> link_name((3, 9))
    '3 -> 9'

Read `machine` first, then `network`. The modules:

* `machine`: a replica whose chips execute a step's program. `visits`: one of attention and FFN
  pools.
* `network`, `collectives`, `message_heads`: cables; messages and collectives over them.
* `arrivals`, `lock_step`: events that many chips share, for speed.
* `exceptions`: chips and links that differ from the data sheet.
"""
