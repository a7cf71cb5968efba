"""What was published, and how near the simulator comes: a row for each number, with its source and why its tolerance.

A row that an engine was fitted to says so: it tells that the fit still stands, not that the simulator predicts.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import pytest

from sim.cost.layout import sequences as fitting
from sim.hardware.chip import Chip
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.scenario.scenario import read as read_scenario
from sim.studies.run import Planned, plan

FLAGSHIP, SMALL = "llama2-70b-lpu-vs-h100", "llama3-8b-lpu-vs-h100"
BF16_ON_A100 = (
    "chip=a100-80gb",
    "engine=ideal",
    "plan={tensor: 8, weights: bf16, activations: bf16, kv: bf16, head: bf16}",
)
FP16_ON_3090 = (
    "chip=rtx-3090",
    "engine=llama-cpp",
    "plan={weights: fp16, activations: fp16, kv: fp16, head: fp16}",
)
FP8_ON_TWO = ("chips=2", "plan={tensor: 2, weights: fp8, activations: fp8, kv: fp16}")

ISCA = "Abts et al., A Software-defined Tensor Streaming Multiprocessor, ISCA 2022, doi 10.1145/3470496.3527405"
GPT_FAST = "https://github.com/pytorch-labs/gpt-fast"
ANALYSIS = "Artificial Analysis, https://sambanova.ai/blog/sn40l-chip-best-inference-solution"
CAPACITY = "Abts et al., Think Fast, ISCA 2020: 220 MiB a chip; arithmetic with 69 GB of weights and 320 KiB of KV cache a token"


@cache
def plan_of(
    scenario: str, system: str, changes: tuple[str, ...], workload: tuple[str, ...]
) -> Planned:
    given = read_scenario(
        scenario, [*(f"systems.{system}.{change}" for change in changes), *workload]
    )
    return plan(
        given.model_copy(update={"systems": {system: given.systems[system]}})
    )  # the others cost time


def speed(scenario: str, system: str, *changes: str, workload: tuple[str, ...] = ()) -> float:
    """Tokens per second of a user who has a shipped system, with some changes to it, for himself."""
    return 1 / plan_of(scenario, system, changes, workload).unloaded[system].tpot


def sequences(where: int, *changes: str) -> int:
    """Sequences of 4,096 tokens that the flagship's LPUs hold: by their fullest stage (0), over all their memory (1)."""
    deployment = plan_of(FLAGSHIP, "lpu", changes, ()).deployments["lpu"]
    return fitting(deployment.layout, 4096)[where]


def farthest(chips: int) -> float:
    """Microseconds of a small message between the two of so many LPUs that are farthest apart."""
    fabric = read_value(catalogue_names("chips")["groq-lpu-v1"], Chip).topology.sized(chips)
    return 1e6 * max(fabric.send(a, b, 0) for a in range(72) for b in range(chips - 72, chips))


def all_reduce(nbytes: int) -> float:
    """Microseconds of an all-reduce over eight H100 as TensorRT-LLM does it."""
    scenario = read_scenario(FLAGSHIP)
    chip, engine = scenario.systems["h100x8"].chip, scenario.systems["h100x8"].engine
    latency = engine.collective_latency + 8 * engine.collective_latency_per_chip
    return 1e6 * chip.topology.sized(8).all_reduce(
        range(8), nbytes, latency, engine.collective_efficiency
    )


class Row(NamedTuple):
    """A published value, its source, the bounds that the simulated value must keep, and why these."""

    what: str
    published: str
    source: str
    low: float
    high: float
    why: str
    simulated: Callable[[], float]


SPEEDS = [
    Row(
        "Llama-2-70B on 576 LPU v1, one user",
        "300 and 241 token/s",
        "https://techpowerup.com/news-tags/Processor?page=3; Artificial Analysis, February 2024",
        240,
        360,
        "241 was measured; 300 is a throttle, and so is 350 for a later model of this size: the hardware is at least as fast",
        partial(speed, FLAGSHIP, "lpu"),
    ),
    Row(
        "the same on 640 LPU v1, ten racks",
        "240 token/s",
        "EE Times, August 2023",
        240,
        360,
        "a bound: a development system with an earlier compiler; the hardware is at least as fast",
        partial(speed, FLAGSHIP, "lpu", "chips=640"),
    ),
    Row(
        "the same on 576 LPU v1 by their data sheet alone",
        "540-680 token/s",
        "derived: 69 GB through load paths of 9.2 TB/s, a group of 8 at a time, and 161 all-reduces of 2.1 us and the bytes",
        540,
        680,
        "not measured: what engine ideal must give, so that the fitted part of a token's time is the rest",
        partial(speed, FLAGSHIP, "lpu", "engine=ideal"),
    ),
    Row(
        "Llama-3.1-8B on LPU v1, one user",
        "751 token/s, a throttle: the hardware is at least as fast",
        ANALYSIS,
        750,
        1200,
        "from this throttle to that of 1,200 token/s in 2025; 64 chips are assumed, for their number is not published",
        partial(speed, SMALL, "lpu"),
    ),
    Row(
        "Llama-2-70B FP8 on one H100, speed of light",
        "48 token/s",
        "derived: 69 GB of weights at 3.35 TB/s",
        45,
        49,
        "3.35 TB/s / 69 GB is 48.6; less the KV cache, and the tables at 16 bits",
        partial(speed, FLAGSHIP, "h100", "engine=ideal"),
    ),
    Row(
        "Llama-2-70B FP8 on one H100 with TensorRT-LLM",
        "50-60 % of the bandwidth with small batches, 78 % in a megakernel: 24-38 token/s",
        "https://hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles, of smaller models",
        25,
        45,
        "a large model loses less to launches than a small one: up to 93 % of the speed of light",
        partial(speed, FLAGSHIP, "h100"),
    ),
    Row(
        "Llama-3.3-70B FP8 on two H100 with NIM, 500 tokens in, 2,000 out",
        "18.9 ms a token, 52.9 token/s",
        "https://docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance",
        42,
        63,
        "20 %: another release of the engine than the one that tensorrt-llm was fitted to",
        partial(
            speed,
            FLAGSHIP,
            "h100",
            *FP8_ON_TWO,
            workload=(
                "model=llama-3.1-70b",
                "workload.prompt=500 token",
                "workload.output=2000 token",
            ),
        ),
    ),
    Row(
        "Llama-2-70B BF16 on eight A100, speed of light",
        "62.5 token/s measured with gpt-fast",
        GPT_FAST,
        62.5,
        125,
        "no software is faster than the data sheet; gpt-fast reached 53 % of its bandwidth",
        partial(speed, FLAGSHIP, "h100x8", *BF16_ON_A100),
    ),
    Row(
        "Llama-2-70B BF16 on two A100, speed of light",
        "21.3 token/s measured with gpt-fast",
        GPT_FAST,
        21.32,
        2 * 21.32,
        "no software is faster than the data sheet; gpt-fast reached 72 % of its bandwidth",
        partial(speed, FLAGSHIP, "h100x8", *BF16_ON_A100, "chips=2", "plan.tensor=2"),
    ),
    Row(
        "Llama-3-8B FP16 on one RTX 3090",
        "46.5 token/s measured with llama.cpp",
        "https://github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference",
        0.95 * 46.51,
        1.05 * 46.51,
        "5 %: llama-cpp was fitted to this card, too",
        partial(
            speed,
            SMALL,
            "h100",
            *FP16_ON_3090,
            workload=("workload.prompt=16 token", "workload.output=1024 token"),
        ),
    ),
]

ROOM = [
    Row(
        "sequences of 4,096 tokens on 576 LPU v1, by the fullest stage",
        "17",
        CAPACITY,
        14,
        17,
        "17 without anything beside weights and cache; activations and the program's reserve take one or two",
        partial(sequences, 0),
    ),
    Row(
        "the same over all memory",
        "47",
        CAPACITY,
        42,
        48,
        "47 without activations and reserve, which take 2 % of the SRAM",
        partial(sequences, 1),
    ),
    Row(
        "sequences of 4,096 tokens on 640 LPU v1, a layer on each node",
        "43",
        CAPACITY,
        36,
        43,
        "43 without activations and reserve; here every stage is the fullest",
        partial(sequences, 0, "chips=640"),
    ),
]

NETWORK = [
    Row(
        "the farthest of 10,440 LPU v1",
        "less than 3 us",
        ISCA,
        2.4,
        3.0001,
        "published as a bound of 5 hops, from which the 0.6 us a hop are taken",
        partial(farthest, 10440),
    ),
    Row(
        "the farthest in a rack of 72 LPU v1",
        "1.6 us",
        "Groq's product literature on RealScale",
        1.36,
        1.84,
        "15 %: the published 0.72, 1.6 and 3.0 us agree with no one figure for a hop",
        partial(farthest, 72),
    ),
    Row(
        "all-reduce of 32 KiB over eight H100",
        "7.8 us by TensorRT-LLM's kernel, 13.4 us by NCCL in a graph (four H100)",
        "https://github.com/sgl-project/sglang/pull/2904; https://github.com/waynehacking8/nccl-collectives-bench",
        0.8 * 7.8,
        13.4,
        "an engine uses the one or the other; 20 % below the faster for what a bench adds",
        partial(all_reduce, 32768),
    ),
]


@pytest.mark.parametrize("row", [*SPEEDS, *ROOM, *NETWORK], ids=lambda row: row.what)
def test_the_simulator_comes_near_what_was_published(row):
    value = row.simulated()
    assert row.low <= value <= row.high, (
        f"{value:.4g}; published: {row.published} ({row.source}); tolerance: {row.why}"
    )
