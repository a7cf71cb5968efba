"""The beat of a compiled pipeline: the time of its slowest stage.

pipeline_beat(costs, tokens=20, request_tokens=640)  # s, and the micro-batches that fill it
"""

import math
from dataclasses import replace

from sim.cost.system_costs import SystemCosts, pass_times
from sim.cost.work import decodes_at
from sim.units import Seconds


def pipeline_beat(costs: SystemCosts, tokens: int, request_tokens: float) -> tuple[Seconds, int]:
    """Return the beat for `tokens`, and how many micro-batches keep the slowest stage busy.

    beat: time of the slowest stage [s].  micro-batches: unloaded pass divided by the beat.
    Both are maxima over decodes and chunks of prompts (without the output head), and over
    contexts of one token and of `request_tokens`.
    """
    beat, batches, width = 0.0, 1, costs.layout.width
    for context in (1.0, max(1.0, request_tokens)):
        windowed = min(context, costs.layout.model.window or context)
        decode = decodes_at(tokens // width, context, costs.layout.model.window, width)
        chunk = replace(
            decode,
            decodes=0,
            logits=0,
            prompt_tokens=tokens,
            chunks=1,
            attended=tokens * context,
            cached=context,
            rank_prompt=costs.layout.plan.ranked(tokens),
        )
        chunk.windowed_attended, chunk.windowed_cached = tokens * windowed, windowed
        for work in (decode, chunk):
            slowest, unloaded = pass_times(costs, work)
            beat = max(beat, slowest)
            batches = max(batches, math.ceil(unloaded / slowest - 1e-9))
    return beat, batches
