"""The limits of a replica: its micro-batches, its sequences, and the room for their KV cache."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The limits of a replica.

    micro_batches: those in flight. token_budget: tokens of a step of one micro-batch.
    sequences: admitted requests. kv_tokens: tokens of the KV cache.
    context: the most tokens of a request.
    window: the attention window of the layers that have one; None without such layers.
    windowed_share: the part of a token's KV cache in layers with a window, on the stage where it
        is smallest.
    fill: micro-batches that keep every stage busy, which prompts may take; more would only queue
        at the first stage. None is no limit.
    kv_block: tokens of a block of the prefix cache.
    width: tokens of a decoding sequence in a step: one, and with speculation its drafts.
    state_tokens: the states of a sequence, counted in tokens of KV cache; 0 without such layers.
    ranks: of attention data parallelism. Each of them computes prompts of its own.
    """

    micro_batches: int
    token_budget: int
    sequences: int
    kv_tokens: int
    context: int
    window: int | None = None
    windowed_share: float = 0.0
    fill: int | None = None
    kv_block: int = 16
    width: int = 1
    state_tokens: int = 0
    ranks: int = 1

    @property
    def prompt_budget(self) -> int:
        """The most tokens of one prompt in a step, which one attention rank computes."""
        return -(-self.token_budget // self.ranks)

    @property
    def spread(self) -> int:
        """The micro-batches over which sequences spread: more would only queue."""
        return min(self.micro_batches, self.fill or self.micro_batches)

    @property
    def batch_sequences(self) -> int:
        """The most sequences of a micro-batch."""
        return -(-self.sequences // self.micro_batches)

    def kv_tokens_needed(self, tokens: int) -> int:
        """Return the room of a sequence, counted in tokens of layers without a window.

        tokens: its prompt and output. The stage on which windows save least decides.
        Drafts need room behind them.
        """
        room = tokens + self.width - 1 + self.state_tokens
        if self.window:
            room -= int(self.windowed_share * max(0, tokens - self.window))
        return room

    def max_concurrent(self, tokens: int) -> int:
        """Return how many sequences of `tokens` tokens each a replica holds at one time."""
        return min(self.sequences, self.kv_tokens // max(1, self.kv_tokens_needed(tokens)))
