"""The link between a replica and its drafter on other chips."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sim.cost.collectives import TOKEN_BYTES
from sim.cost.layer_transfer import LinkRange
from sim.inputs.values import Value
from sim.units import Bytes, BytesPerSecond, Seconds

LOGIT_BYTES = 2.0  # of the score of one token of the vocabulary


class DraftLink(Value):
    """The full-duplex link between a replica and its drafter.

    A message takes `latency + bytes / bandwidth`. Drafts go to the model. The number of accepted
    drafts, and the token after them, come back. A token is 4 B. With `sends: tokens` the drafter
    takes the likeliest token. With `sends: logits` it samples, and sends the scores of the whole
    vocabulary with each draft, at 16 bits: exact sampling needs them.
    Left out: prompts, which the drafter receives when the model does.
    """

    bandwidth: BytesPerSecond = Field(
        description="Bandwidth of the link of one replica in each direction [B/s]."
    )
    latency: Seconds = Field(
        default=0.0, description="Fixed time of a message in one direction [s]."
    )
    sends: Literal["tokens", "logits"] = Field(
        default="tokens", description="Message for each draft: its token alone, or with all logits."
    )

    range: LinkRange = Field(
        default=LinkRange(),
        description="Ranges of bandwidth and latency that are not published, for `sensitivity`.",
    )

    def sequence_bytes(self, drafts: int, vocabulary: int) -> tuple[Bytes, Bytes]:
        """Return the bytes of a sequence's drafts, and of what comes back."""
        scores = LOGIT_BYTES * vocabulary if self.sends == "logits" else 0.0
        return drafts * (TOKEN_BYTES + scores), 2 * TOKEN_BYTES


@dataclass(frozen=True)
class DraftExchange:
    """The link to a drafter on other chips, and the number of micro-batches that take turns."""

    link: DraftLink
    micro_batches: int = 1
