"""The work of one step: the tokens that it computes, and the positions that they attend to.

>>> decodes_at(2, 100.0, window=64).windowed_context
128
"""

from dataclasses import dataclass


@dataclass(slots=True)  # not frozen, because that triples the time to make one, once a step
class Work:
    """The tokens of one step: `width` for each of `decodes` sequences, and chunks of prompts.

    width: 1, or with speculation the drafts to verify and one more token.
    context: positions that the first of these tokens attends to, itself included, over all
    sequences.
    added: what each further step adds to `context`; None: one position for each sequence.
    attended: positions that the tokens of chunks attend to; C after S earlier ones make
    C*S + C*(C+1)/2.
    cached: positions whose K and V the chunks read: S + C.
    logits: positions from which a token is sampled.
    rank_prompt: prompt tokens on the attention rank that has most of them; None: one rank has all.
    windowed_*: these numbers in layers with a window; not read without such layers.
    growing: what each further step adds to `windowed_context`.
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
    growing: float = 0
    width: int = 1
    added: float | None = None
    rank_prompt: int | None = None

    @property
    def tokens(self) -> int:
        """The tokens that the step computes."""
        return self.decodes * self.width + self.prompt_tokens

    @property
    def ranked_prompt(self) -> int:
        """The prompt tokens on the attention rank that has most of them."""
        return self.prompt_tokens if self.rank_prompt is None else self.rank_prompt

    def part(self, parts: int) -> "Work":
        """Return the largest of so many parts of the step, with a share of all its sums.

        Left out: chunks that fall into one part alone; each part has all of them.
        """
        if parts == 1:
            return self
        decodes, prompt = -(-self.decodes // parts), -(-self.prompt_tokens // parts)
        decoding = decodes / self.decodes if self.decodes else 0.0
        reading = prompt / self.prompt_tokens if self.prompt_tokens else 0.0
        return Work(
            decodes=decodes,
            context=decoding * self.context,
            prompt_tokens=prompt,
            chunks=self.chunks,
            attended=reading * self.attended,
            cached=reading * self.cached,
            logits=-(-self.logits // parts),
            windowed_context=decoding * self.windowed_context,
            windowed_attended=reading * self.windowed_attended,
            windowed_cached=reading * self.windowed_cached,
            growing=decoding * self.growing,
            width=self.width,
            added=None if self.added is None else decoding * self.added,
            rank_prompt=-(-self.ranked_prompt // parts),
        )


def decodes_at(sequences: int, context: float, window: int | None, width: int = 1) -> Work:
    """Return the work of sequences that decode, each of which attends to `context` positions."""
    seen = min(context, window or context)
    return Work(
        sequences,
        sequences * context,
        logits=sequences * width,
        windowed_context=sequences * seen,
        width=width,
    )


def verified_positions(context: float, sequences: float, width: int) -> tuple[float, float]:
    """Return the positions that decodes attend to, and those whose K and V they read.

    The tokens of one sequence attend to one position more each, and read the cache together.
    Left out: that a full window sees no position more.
    """
    later = width - 1
    return width * context + sequences * (width * later // 2), context + sequences * later
