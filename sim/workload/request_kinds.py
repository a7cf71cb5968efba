"""Kinds of requests, with their shares, lengths and SLOs, and presets of published lengths.

>>> LENGTH_PRESETS["chat"].output.mean
211.0
"""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.inputs.fields import preset_shorthand
from sim.inputs.values import Value
from sim.workload.lengths import Length, LengthField, Spread
from sim.workload.slo import SLOField

SHARE_TOLERANCE = 1e-6  # how far a sum of shares may be from 1


class RequestLengths(Value):
    """Lengths of prompts and outputs."""

    prompt: LengthField = Field(description="Length of prompts [token].")
    output: LengthField = Field(description="Length of outputs [token].")


def _lognormal(mean: int, sigma: float) -> Length:
    return Length(lognormal=Spread(mean=mean, sigma=sigma))


# Lengths of requests as a server receives them: the prompt holds the conversation or documents so
# far. All are lognormal; sigma follows from the mean with the deviation or the median.
# chat: mean and standard deviation of the 19,366 requests of the conversation
#   trace in Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv (Patel et al., ISCA 2024).
# rag: means and standard deviations of 144 requests that have passages, in three places of
#   flashserve/RAGPulse, data/0_trace.jsonl (7,106 requests to a university's service; Wang et al.,
#   arXiv 2511.12979). Every third of the sample has a mean prompt within 2 %, and a mean output
#   within 22 %.
# agent: mean and median prompt (6,346 tokens) and mean output of the tool-and-agent trace (Qin et
#   al., Mooncake, FAST 2025, table 2). The median is that of its file toolagent_trace.jsonl, as
#   others counted it. Assumed: sigma 1 of the output. Half of the outputs have 30 tokens or fewer,
#   so no lognormal fits them.
# reasoning: means and medians (3,680 and 1,665 tokens) of the thinking trace, as others counted
#   them: 10,812 requests in alibaba-edu/qwen-bailian-usagetraces-anon (Wang et al., ATC 2025).
LENGTH_PRESETS = {
    "chat": RequestLengths(prompt=_lognormal(1155, 0.808), output=_lognormal(211, 0.683)),
    "rag": RequestLengths(prompt=_lognormal(3285, 0.155), output=_lognormal(291, 0.502)),
    "agent": RequestLengths(prompt=_lognormal(8596, 0.779), output=_lognormal(182, 1.0)),
    "reasoning": RequestLengths(prompt=_lognormal(4763, 0.718), output=_lognormal(3651, 1.253)),
}
LengthsField = Annotated[RequestLengths, preset_shorthand(LENGTH_PRESETS, "a preset of lengths")]


class WithLengths(Value):
    """The lengths of requests: of prompt and output by themselves, or by a preset."""

    prompt: LengthField | None = Field(
        default=None,
        description="Length of prompts, without `shared_prefix` [token]; default: that of "
        "`lengths`.",
    )
    output: LengthField | None = Field(
        default=None, description="Length of outputs [token]; default: that of `lengths`."
    )
    lengths: LengthsField | None = Field(
        default=None,
        description="Lengths of prompts and outputs, or a preset such as chat; `prompt` or "
        "`output` replaces its part.",
    )

    @property
    def own_lengths(self) -> RequestLengths | None:
        """The lengths of prompt and output; None if one of them is not given."""
        prompt = self.prompt or (self.lengths and self.lengths.prompt)
        output = self.output or (self.lengths and self.lengths.output)
        return RequestLengths(prompt=prompt, output=output) if prompt and output else None

    @property
    def lengths_error(self) -> str:
        """The error in the keys of the lengths; empty if there is none."""
        if self.own_lengths is None:
            key = "output" if self.prompt else "prompt"
            return f"got no {key}; expected prompt and output, or a preset; try lengths: chat"
        if self.lengths and self.prompt and self.output:
            return (
                "got lengths with both prompt and output, which replace all of it;"
                " expected at most one of them; try without lengths, or without prompt and output"
            )
        return ""


class RequestKind(WithLengths):
    """One kind of requests of a workload: its share, its lengths and its SLO."""

    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        description="Share of the requests; those of all kinds add up to 1."
    )
    slo: SLOField | None = Field(
        default=None,
        description="Latency limits of these requests, or a preset's name; default: the "
        "scenario's.",
    )

    @model_validator(mode="after")
    def _described(self) -> "RequestKind":
        if self.lengths_error:
            raise ValueError(self.lengths_error)
        return self


KindsField = Annotated[dict[str, RequestKind], Field(min_length=1)]


def check_shares(kinds: Mapping[str, RequestKind]) -> None:
    """Check that the shares of all kinds add up to 1.  Raises: ValueError otherwise."""
    total = sum(kind.share for kind in kinds.values())
    if abs(total - 1) > SHARE_TOLERANCE:
        shares = " + ".join(f"{kind.share:g}" for kind in kinds.values())
        raise ValueError(f"got shares {shares} = {total:g}; expected a sum of 1; try to change one")


def mean_length(kinds: Mapping[str, RequestKind], key: str) -> float:
    """Return the mean tokens of a `prompt` or `output` over all kinds."""
    return sum(kind.share * float(getattr(kind.own_lengths, key).mean) for kind in kinds.values())


def draw_kinds(
    kinds: Mapping[str, RequestKind], stream: np.random.Generator, n: int
) -> NDArray[np.int64]:
    """Return int[n], the place of each request's kind among `kinds`.

    A changed share changes the kinds of few requests, because each request keeps its random number.
    """
    bounds = np.cumsum([kind.share for kind in kinds.values()])[:-1]
    return np.searchsorted(bounds, stream.random(n), side="right")


def draw_lengths(
    kinds: Mapping[str, RequestKind],
    key: str,
    stream: np.random.Generator,
    kind_of: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return int[request], the tokens of each `prompt` or `output`.

    Every kind has its own random stream. So shares do not change the lengths that a request
    would have in a kind.
    kind_of: int[request], the place of its kind among `kinds`.
    """
    drawn = [
        getattr(kind.own_lengths, key).draw(own, len(kind_of))
        for kind, own in zip(kinds.values(), stream.spawn(len(kinds)), strict=True)
    ]
    lengths: NDArray[np.int64] = np.array(drawn)[kind_of, np.arange(len(kind_of))]
    return lengths
