"""The stages of a pipeline at which a step may wait for the step before it.

    >>> starts = np.array([[0.0, 1.0, 4.0, 6.0]])  # a step takes 1, 3, 2 and 1 s at four stages
    >>> ends = np.array([[1.0, 4.0, 6.0, 7.0]])
    >>> stages_with_waits(starts, ends)
    [1, 3]

A step starts at a stage when it has reached the stage and the step before it has left. Step m
enters the pipeline at entry[m]. So step n leaves the last stage at the latest of the sums

    entry[m] + (ends[m, s] - starts[m + 1, s]) + ... + (ends[n - 1, t] - starts[n, t]) + ends[n, -1]

over all earlier steps m, with one stage for each pair of successive steps, and s <= ... <= t.
A stage is left out if its differences never exceed those of a kept stage. The kept stage also
stands for all stages between the two, so the order s <= ... <= t remains.
"""

import numpy as np
from numpy.typing import NDArray

from sim.cost.step import Costs
from sim.cost.work import Work, decodes_at
from sim.serving.limits import SchedulerLimits
from sim.serving.prompt_chunks import add_chunk


def stages_with_waits(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> list[int]:
    """Return the stages that decide when steps leave the last stage. The last one is among them.

    starts, ends: float[step, stage], of all steps that may come, from the entry of a step that
    waits nowhere [s].
    """

    def covers(one: int, other: int) -> bool:
        """Return whether no step waits longer at the other stage than at this one."""
        longest = (ends[:, other] - ends[:, one]).max()
        return bool(longest <= (starts[:, other] - starts[:, one]).min())

    needed: list[int] = []
    last = starts.shape[1] - 1
    for stage in range(last + 1):
        while needed and covers(stage, needed[-1]):
            needed.pop()
        if stage == last or not (needed and covers(needed[-1], stage)):
            needed.append(stage)
    return needed


def waiting_stages(costs: Costs, limits: SchedulerLimits) -> list[int]:
    """Return the stages at which a step of one token may wait for another one.

    Its times are linear in the time of attention. So the steps with the shortest and the longest
    attention bound all others.
    """
    decode, prompt = decodes_at(1, limits.context, limits.window), Work()
    add_chunk(prompt, limits.context - 1, 1, limits.window)
    most = np.maximum(costs.parts(decode).attention, costs.parts(prompt).attention)
    body = costs.body(1, 1)
    slowest = body + sum(
        layers * seconds for layers, seconds in zip(costs.layers, most, strict=True)
    )
    times = np.array([body, slowest])
    ends = np.cumsum(costs.hops(1) + times, axis=1)
    return stages_with_waits(ends - times, ends)
