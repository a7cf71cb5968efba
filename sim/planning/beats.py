"""The beat of a compiled pipeline: the time of its slowest stage.

pipeline_beat(costs, tokens=20, request_tokens=640).fill  # micro-batches that keep it busy
"""

import math
from dataclasses import dataclass, replace

from sim.cost.system_costs import SystemCosts, pass_times
from sim.cost.work import decodes_at
from sim.units import Seconds


@dataclass(frozen=True)
class PipelineBeat:
    """The times of a compiled pipeline.

    slowest: the beat, which is the time of the slowest stage for what enters together [s].
    unloaded: one pass through all stages [s].
    fill: micro-batches that keep the slowest stage busy, unloaded / slowest.
    """

    slowest: Seconds
    unloaded: Seconds
    fill: int

    def interval(self, micro_batches: int) -> Seconds:
        """Return the least mean time between micro-batches that enter: too few wait for a pass."""
        return max(self.slowest, self.unloaded / micro_batches)


def pipeline_beat(costs: SystemCosts, tokens: int, request_tokens: float) -> PipelineBeat:
    """Return the beat for `tokens`.

    All times are maxima over decodes and chunks of prompts (without the output head), and over
    contexts of one token and of `request_tokens`.
    """
    beat, passing, batches, width = 0.0, 0.0, 1, costs.layout.width
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
            beat, passing = max(beat, slowest), max(passing, unloaded)
            batches = max(batches, math.ceil(unloaded / slowest - 1e-9))
    return PipelineBeat(beat, passing, batches)
