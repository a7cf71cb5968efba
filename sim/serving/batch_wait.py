"""Prompts that wait for others, so that one step computes several, as in TensorRT-LLM."""

from pydantic import Field

from sim.inputs.values import Value
from sim.units import Count, Fraction


class BatchWait(Value):
    """Hold prompts back while sequences decode, until enough of them have come.

    A step computes prompts if their tokens and its decodes fill `share` of the token budget, or if
    `steps` steps have passed without prompts.
    Prompts do not wait if no sequence decodes.
    Source: TensorRT-LLM, batch_wait_max_tokens_ratio and batch_wait_timeout_iters.
    """

    share: Fraction = Field(
        description="Share of the token budget that prompts and decodes of a step must fill, 0 to "
        "1."
    )
    steps: Count = Field(description="Steps after which prompts wait no longer.")

    def holds(self, tokens: int, budget: int, passed: int) -> bool:
        """Return whether prompts still wait.

        tokens: of the waiting prompts and of the decodes.  passed: steps that they have waited.
        """
        return passed < self.steps and tokens < self.share * budget
