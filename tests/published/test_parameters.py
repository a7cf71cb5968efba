"""Parameters as the publishers count them: totals to 1 %, those that a token meets to 6 % (publishers round them, and do not all
count the head)."""

from typing import NamedTuple

import pytest

from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.model.transformer import Model


class Count(NamedTuple):
    """Billions of parameters, in all and met by a token (None where that is all of them, or was not published)."""

    model: str
    total: float
    active: float | None
    source: str


COUNTS = [
    Count("llama-2-7b", 6.74, None, "https://huggingface.co/meta-llama/Llama-2-7b-hf"),
    Count("llama-2-13b", 13.02, None, "https://huggingface.co/meta-llama/Llama-2-13b-hf"),
    Count("llama-2-70b", 68.98, None, "https://huggingface.co/meta-llama/Llama-2-70b-hf"),
    Count("llama-3-8b", 8.03, None, "https://huggingface.co/meta-llama/Meta-Llama-3-8B"),
    Count("llama-3-70b", 70.6, None, "https://huggingface.co/meta-llama/Meta-Llama-3-70B"),
    Count("llama-3.1-8b", 8.03, None, "https://huggingface.co/meta-llama/Llama-3.1-8B"),
    Count("llama-3.1-70b", 70.6, None, "https://huggingface.co/meta-llama/Llama-3.1-70B"),
    Count("llama-3.1-405b", 405.9, None, "https://huggingface.co/meta-llama/Llama-3.1-405B"),
    Count("llama-3.2-1b", 1.24, None, "https://huggingface.co/meta-llama/Llama-3.2-1B"),
    Count(
        "llama-4-maverick",
        400,
        17,
        "https://huggingface.co/meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    ),
    # The publisher's 109 B count the vision encoder: 0.87 B by the config's vision_config, which the simulator leaves out.
    Count(
        "llama-4-scout",
        109 - 0.87,
        17,
        "https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct",
    ),
    Count("mixtral-8x7b", 46.7, 12.9, "https://mistral.ai/news/mixtral-of-experts"),
    Count(
        "qwen2.5-32b",
        32.8,
        None,
        "https://huggingface.co/Qwen/Qwen2.5-32B and https://huggingface.co/Qwen/QwQ-32B",
    ),
    # A token reads one row of the embedding, which is 7 % of these: 152,064 x 3,584 and 151,936 x 4,096.
    Count("qwen2.5-7b", 7.61, 7.61 - 0.545, "https://huggingface.co/Qwen/Qwen2.5-7B"),
    Count("qwen3-8b", 8.19, 8.19 - 0.622, "https://huggingface.co/Qwen/Qwen3-8B"),
    Count("qwen3-32b", 32.8, None, "https://huggingface.co/Qwen/Qwen3-32B"),
    Count("qwen3-235b-a22b", 235, 22, "https://huggingface.co/Qwen/Qwen3-235B-A22B"),
    Count("deepseek-v3", 671, 37, "DeepSeek-V3 Technical Report, arXiv 2412.19437"),
    Count("gpt-oss-120b", 117, 5.1, "https://huggingface.co/openai/gpt-oss-120b"),
    Count("gpt-oss-20b", 20.9, 3.6, "https://huggingface.co/openai/gpt-oss-20b"),
    Count("gemma-2-9b", 9.24, None, "https://huggingface.co/google/gemma-2-9b"),
    Count("gemma-4-26b-a4b", 25.2, 3.8, "https://huggingface.co/google/gemma-4-26B-A4B"),
    Count("kimi-k2", 1030, 32, "https://huggingface.co/moonshotai/Kimi-K2-Instruct"),
    Count(
        "nemotron-nano-9b-v2",
        8.89,
        None,
        "https://huggingface.co/nvidia/NVIDIA-Nemotron-Nano-9B-v2",
    ),
    Count("step-3", 316, 38, "Step-3, arXiv 2507.19427: the language model"),
    Count("falcon-180b", 180, None, "https://huggingface.co/tiiuae/falcon-180B"),
]


def test_every_model_of_the_catalogue_has_its_published_count():
    assert sorted(count.model for count in COUNTS) == sorted(catalogue_names("models"))


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.model)
def test_parameters_agree_with_the_published_count(count):
    model = read_value(catalogue_names("models")[count.model], Model)
    assert model.parameters / 1e9 == pytest.approx(count.total, rel=0.01)
    assert model.active_parameters / 1e9 == pytest.approx(
        count.active or count.total, rel=0.06 if count.active else 0.07
    )
    assert model.active_parameters <= model.parameters
