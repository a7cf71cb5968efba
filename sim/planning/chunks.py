"""The tokens of a prompt's chunks, where neither user, engine nor chip names a token budget."""

import math
from dataclasses import replace

from sim.cost.layout import Layout, fit
from sim.cost.step import Costs
from sim.cost.system_costs import leave_times
from sim.cost.work import Work
from sim.units import Seconds

# Token budgets that `best_chunk` compares: powers of the square root of 2.
CHUNKS = tuple(dict.fromkeys(round(2 ** (n / 2)) for n in range(25)))


def best_chunk(layout: Layout, request_tokens: float, prompt_tokens: float | None) -> int:
    """Return the token budget of `CHUNKS` with which an unloaded prompt ends soonest.

    A prompt of n tokens in chunks of c takes ceil(n / c) - 1 steps of the slowest stage, and
    one pass through all stages.
    With attention ranks, a prompt has the share of one rank of the budget.
    More compute shortens both for every c, so it never makes a chip slower.
    Left out: decodes that wait behind a chunk.
    """
    costs, prompt = Costs(layout), prompt_tokens or request_tokens

    def first_token(budget: int) -> Seconds:
        tokens = layout.plan.ranked(budget)
        cached, window = prompt / 2, layout.model.window or prompt
        windowed = min(cached, window)
        work = Work(
            0,
            0.0,
            tokens,
            1,
            tokens * cached,
            cached,
            windowed_attended=tokens * windowed,
            windowed_cached=windowed,
        )
        slowest, leave = leave_times(costs, work)
        return (math.ceil(prompt / tokens) - 1) * slowest + leave

    chunks = [n for n in CHUNKS if n >= layout.width]
    fitting = [n for n in chunks if fit(replace(layout, token_budget=n), request_tokens).fits]
    return min(fitting or chunks[:1], key=first_token)
