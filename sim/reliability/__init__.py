"""What fails over months, and what then still serves: availability, spares, link errors.

    >>> import sim
    >>> spares = sim.read("spares")  # sim.run(spares) simulates it and prints the closed form beside

Read `failures` first, then `link_errors` (steps that a link spoils and that run again).
"""
