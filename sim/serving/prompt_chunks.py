"""Chunks of prompts that a step computes, and the positions that their tokens attend to.

>>> attended_positions(2, 3, None)  # the tokens at positions 3, 4 and 5
12
"""

import math
from collections import deque

from sim.cost.work import Work
from sim.serving.limits import SchedulerLimits
from sim.serving.request import Request


def attended_positions(old: int, new: int, window: int | None, rate: float = 1) -> float:
    """Return the sum of the positions that `new` tokens after `old` ones attend to.

    Each token attends to itself and to the tokens before it. window: the most positions of one
    token; None for all.
    rate: positions from one token to the next; with speculation, from one step to the next.
    """
    if window is None:
        return new * (old + 1) + rate * (new * (new - 1) // 2)
    free = min(new, steps_to_fill(old, window, rate))
    return attended_positions(old, free, None, rate) + (new - free) * window


def steps_to_fill(prompt: int, window: int, rate: float) -> int:
    """Return the steps after which a sequence fills its window; 0 if its prompt does.

    prompt: its tokens, after which comes the first token. rate: positions of a step.
    """
    return max(0, math.ceil((window - prompt - 1) / rate))


def add_chunk(work: Work, old: int, new: int, window: int | None) -> None:
    """Add a chunk of `new` prompt tokens after `old` computed ones to a step."""
    work.attended += attended_positions(old, new, None)
    work.cached += old + new
    if window:
        work.windowed_attended += attended_positions(old, new, window)
        work.windowed_cached += min(old, window) + new
    work.prompt_tokens += new
    work.chunks += 1


def take_chunks(
    prefilling: deque[Request], work: Work, tokens: int, ends: int, limits: SchedulerLimits
) -> list[Request]:
    """Add chunks of the oldest prompts to a step, and return the requests whose prompts end.

    prefilling: admitted requests; those whose prompts end are removed.
    tokens: the most prompt tokens of the step.
    ends: the most prompts that may end with it. The last token of the next prompt is left to a
    micro-batch with room for its sequence.

    Each attention rank has an equal share of the tokens, for the prompts of its own sequences.
    """
    prefilled: list[Request] = []
    share, ranks = -(-tokens // limits.ranks), [0] * limits.ranks
    unfinished = 0  # prompts before the next one that do not end with the step
    while tokens and unfinished < len(prefilling):
        request = prefilling[unfinished]
        left = request.prompt - request.prefilled - (len(prefilled) >= ends)
        if left <= 0:  # less than 0 for a received prompt without a place
            break
        chunk = min(left, share - ranks[request.rank], tokens)
        if not chunk:  # its rank has no tokens left, but other ranks may
            unfinished += 1
            continue
        add_chunk(work, request.prefilled, chunk, limits.window)
        tokens -= chunk
        ranks[request.rank] += chunk
        request.prefilled += chunk
        if request.prefilled == request.prompt:
            prefilled.append(request)
            del prefilling[unfinished]
        elif chunk == left:
            break  # its last token waits for a place
        else:
            unfinished += 1
    work.logits += len(prefilled)
    if limits.ranks > 1:
        work.rank_prompt = max(ranks)
    return prefilled
