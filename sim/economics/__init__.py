"""Costs of systems for their owners, and the card price at which two cost the same.

    >>> from sim.economics.owner_costs import capital_recovery
    >>> round(capital_recovery(years=3, interest=0.05), 4)  # of the price, each year
    0.3672

Read `owner_costs` first (capital, power), then `token_price` ($ per token) and `break_even`.
"""
