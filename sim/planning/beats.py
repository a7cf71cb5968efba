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
    """The beat of a compiled pipeline, and the micro-batches that it needs.

    seconds: time of the slowest stage for the tokens that enter together [s].
    unloaded: time of a pass through all stages, without waits [s].
    fill: micro-batches that keep the slowest stage busy, unloaded / seconds rounded up.
    """

    seconds: Seconds
    unloaded: Seconds
    fill: int

    def interval(self, micro_batches: int) -> Seconds:
        """Return the least mean time between micro-batches that enter.

        It is the beat, or longer if they are fewer than `fill`: each enters once a pass.
        """
        return max(self.seconds, self.unloaded / micro_batches)


def pipeline_beat(costs: SystemCosts, tokens: int, request_tokens: float) -> PipelineBeat:
    """Return the beat of a pipeline which so many `tokens` enter together.

    Each field is a maximum over decodes and chunks of prompts (without the output head), and over
    contexts of one token and of `request_tokens`.
    """
    beat, longest, fill, width = 0.0, 0.0, 1, costs.layout.width
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
            beat, longest = max(beat, slowest), max(longest, unloaded)
            fill = max(fill, math.ceil(unloaded / slowest - 1e-9))
    return PipelineBeat(beat, longest, fill)
