"""The transfer of hidden states between an attention pool and an FFN pool, in every layer."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sim.cost.layout import Layout
from sim.cost.plan import PrecisionField
from sim.hardware.chip import Precision
from sim.inputs.values import Value
from sim.model.blocks import Block
from sim.units import Bytes, BytesPerSecond, Seconds


def rising(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the ends of a range as they are.

    Raises: ValueError if the first is above the second.
    """
    if ends and ends[0] > ends[1]:
        raise ValueError(
            "got the highest value first; expected the lowest first; try swapping them"
        )
    return ends


class LinkRange(Value):
    """The lowest and the highest value of numbers of a link that are not known."""

    bandwidth: Annotated[tuple[BytesPerSecond, BytesPerSecond] | None, AfterValidator(rising)] = (
        Field(default=None, description="Lowest and highest bandwidth [B/s]; default: none.")
    )
    latency: Annotated[tuple[Seconds, Seconds] | None, AfterValidator(rising)] = Field(
        default=None, description="Lowest and highest latency [s]; default: none."
    )


class LayerTransfer(Value):
    """The full-duplex links between an attention pool and an FFN pool.

    A message takes `latency + bytes / bandwidth`. The bytes are those of a micro-batch at the
    busier end.  With `copies: rank` each shard of the experts receives the tokens that need it, and
    sends its results back.  The chips of a shard share its messages, gather the tokens and sum
    their results.  With `copies: shard` each shard receives all tokens.  With `copies: expert` a
    shard receives a token once for each of its experts that the token needs, and the attention pool
    sums the results.  With `copies: token` all chips of a stage are one shard.

    Left out: the links of the most popular shard carry more than others.
    Left out: results of shared experts, on shards that receive no copy of the token.
    """

    bandwidth: BytesPerSecond = Field(
        description="Bandwidth of a link in each direction [B/s]; `per` says whose link it is."
    )
    per: Literal["chip", "system"] = Field(
        default="chip", description="Owner of a link: each chip, or all chips of a pool together."
    )
    latency: Seconds = Field(
        default=0.0, description="Fixed time of a message [s]; it does not occupy the link."
    )
    out: Annotated[PrecisionField, Field(validate_default=True)] = Field(
        default=Precision.BF16, description="Precision of hidden states on the way to the FFN pool."
    )
    back: Annotated[PrecisionField, Field(validate_default=True)] = Field(
        default=Precision.BF16, description="Precision of results on the way back."
    )
    copies: Literal["token", "rank", "shard", "expert"] = Field(
        default="token",
        description="Copies of a token: one, or one for each shard that it needs (rank), each "
        "shard, or each expert.",
    )

    range: LinkRange = Field(
        default=LinkRange(),
        description="Ranges of bandwidth and latency that are not published, for `sensitivity`.",
    )

    def shards(self, ffn: Layout) -> int:
        """Return the number of shards of a stage that receive their own copies of tokens."""
        return 1 if self.copies == "token" else ffn.plan.expert

    def copies_of(self, ffn: Layout, block: Block) -> float:
        """Return the copies of a token that a layer's MLP needs.

        A token has k of E experts. N (1 - C(E - E/N, k) / C(E, k)) of N shards hold one of them. A
        dense MLP is on all shards.
        """
        shards = self.shards(ffn)
        if not block.experts or self.copies == "shard":
            return float(shards)
        if self.copies == "expert":
            return float(block.experts.per_token)
        return block.experts.reached(shards)

    def token_bytes(self, ffn: Layout, block: Block) -> tuple[Bytes, Bytes]:
        """Return the bytes of a token on its way to a layer's MLP, and back."""
        numbers = self.copies_of(ffn, block) * ffn.model.hidden_size
        return numbers * self.out.bytes, numbers * self.back.bytes

    def busy(
        self, attention: Layout, ffn: Layout, block: Block, tokens: int, ranked: int
    ) -> tuple[Seconds, Seconds]:
        """Return how long a micro-batch of `tokens` keeps the links busy, out and back.

        ranked: tokens of the fullest attention rank.
        """
        out, back = self.token_bytes(ffn, block)
        busiest = max(self.tokens_of_link(attention, ffn, tokens, ranked))
        return busiest * out / self.bandwidth, busiest * back / self.bandwidth

    def tokens_of_link(
        self, attention: Layout, ffn: Layout, tokens: int, ranked: int
    ) -> tuple[float, float]:
        """Return the tokens of a micro-batch on a link of the attention pool, and of the FFN pool.

        With `per: system` both pools have the same link.
        """
        if self.per == "system":
            return float(tokens), float(tokens)
        return ranked / attention.plan.tensor, tokens / ffn.plan.stage_size
