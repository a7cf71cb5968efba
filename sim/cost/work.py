"""The work of one step: the tokens that it computes, and the positions that they attend to.

>>> decodes_at(2, 100.0, window=64).windowed_context
128
"""

from dataclasses import dataclass


@dataclass(slots=True)  # not frozen, because that triples the time to make one, once a step
class Work:
    """The tokens of one step: one for each of `decodes` sequences, and chunks of prompts.

    context: positions that the decoded tokens attend to, themselves included, over all sequences.
    attended: positions that the tokens of chunks attend to; C after S earlier ones make
    C*S + C*(C+1)/2.
    cached: positions whose K and V the chunks read: S + C.
    logits: positions from which a token is sampled.
    windowed_*: these numbers in layers with a window; not read without such layers.
    growing: sequences whose windowed context still grows.
    """

    decodes: int = 0
    context: float = 0.0
    prompt_tokens: int = 0
    chunks: int = 0
    attended: float = 0.0
    cached: float = 0.0
    logits: int = 0
    windowed_context: float = 0.0
    windowed_attended: float = 0.0
    windowed_cached: float = 0.0
    growing: int = 0

    @property
    def tokens(self) -> int:
        """The tokens that the step computes."""
        return self.decodes + self.prompt_tokens


def decodes_at(sequences: int, context: float, window: int | None) -> Work:
    """Return the work of sequences that decode, each of which attends to `context` positions."""
    seen = min(context, window or context)
    return Work(sequences, sequences * context, logits=sequences, windowed_context=sequences * seen)
