"""The steps that the output of each request takes with speculation.

>>> StepDraws((0.5, 0.25), seed=None).steps(number=0, tokens=14)  # 1.75 tokens a step
8
"""

import math

import numpy as np
from numpy.typing import NDArray

from sim.workload.requests import stream_seed

# Parts of a token in which a mean step takes KV cache. A sum of multiples of 1/65536 is exact, so
# that a cache is empty in the end.
KV_PARTS = 2**16
# At first, LONGER times the mean steps of an output are drawn; few requests need more.
LONGER = 1.2


def kv_per_step(rate: float) -> float:
    """Return the KV cache that a sequence takes in a step, rounded up to a part of a token.

    rate: mean tokens that it decodes in a step.
    """
    return math.ceil(rate * KV_PARTS) / KV_PARTS


class StepDraws:
    """The decode steps of requests, drawn before they decode.

    A step yields one token, and the drafts that are accepted: as many as exceed a uniform number
    in `acceptance`. Each request has its own stream of uniform numbers, so all systems and
    policies meet the same luck.

    acceptance: by place, the probability that all drafts up to there are accepted.
    seed: of all streams; None takes the mean number of tokens in each step.
    """

    def __init__(self, acceptance: tuple[float, ...], seed: int | None) -> None:
        self.seed, self.mean_tokens = seed, 1.0 + sum(acceptance)
        self.acceptance = np.array(acceptance)[:, None]

    def steps(self, number: int, tokens: int) -> int:
        """Return the steps in which request `number` decodes so many tokens.

        The tokens of the last step are cut at the end of the output.
        """
        if self.seed is None:
            return math.ceil(tokens / self.mean_tokens * (1 - 1e-12))
        stream = np.random.default_rng(stream_seed(self.seed, "speculation", number))
        # More steps than usual, but not one for each token: these are most of the work.
        usual = min(tokens, math.ceil(LONGER * tokens / self.mean_tokens))
        decoded = self._decoded(stream.random(usual))
        if decoded[-1] < tokens:
            rest = self._decoded(stream.random(tokens - usual))
            decoded = np.append(decoded, decoded[-1] + rest)
        return 1 + int(np.searchsorted(decoded, tokens))

    def _decoded(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the tokens of so many steps and those before: int[step].

        uniform: float[step], the draw of each step.
        """
        accepted = (uniform < self.acceptance).sum(axis=0)
        return np.cumsum(1 + accepted)
