"""What tests build from: a small model, a chip of round numbers, software that loses nothing.  A test names what it changes."""

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from sim.cli.app import main
from sim.cost.plan import Plan
from sim.cost.speculation import DraftPlan, Speculation, geometric_acceptance
from sim.hardware.chip import Chip, Memory, Roofline
from sim.hardware.engine import Engine, Launch
from sim.hardware.topology import FullyConnected, Link
from sim.model.draft_layer import draft_layer
from sim.model.transformer import Model
from sim.planning.deployment import Deployment, DeploymentParts, LimitOverrides, deploy
from sim.results.rows import Rows
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

settings.register_profile("sramsim", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("sramsim")


def pytest_configure(config: pytest.Config) -> None:
    """`pytest tests/benchmarks` takes the timings; with other tests they are skipped."""
    if config.args and all("benchmarks" in arg for arg in config.args):
        config.option.benchmark_skip = False


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    """Four layers of 12,288 + 24,576 parameters beside their norms; tables of 16,384."""

    def make(**changes: object) -> Model:
        config = {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 256,
            "max_position_embeddings": 4096,
            "torch_dtype": "float16",
        }
        return Model.model_validate(config | changes)

    return make


@pytest.fixture(scope="session")
def make_hybrid(make_model) -> Callable[..., Model]:
    """The same with a state in place of K and V in every other layer: 4 x 8 x 8 numbers of 4 B and 3 x 64 inputs of 2 B."""

    def make(**changes: object) -> Model:
        sizes = {"key_heads": 2, "value_heads": 4}
        config = {f"linear_num_{key}": count for key, count in sizes.items()}
        config |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        kinds = ("linear_attention", "full_attention") * 2
        config |= {"model_type": "qwen3_5_text", "head_dim": 16, "layer_types": kinds}
        return make_model(**(config | changes))

    return make


@pytest.fixture(scope="session")
def make_sparse(make_model) -> Callable[..., Model]:
    """The same with latents of 16 + 8 numbers; a token attends to 24 positions, by the scores of 2 heads of 8 numbers."""

    def make(**changes: object) -> Model:
        config = {"model_type": "deepseek_v32", "first_k_dense_replace": 99, "q_lora_rank": 16}
        config |= {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
        config |= {"v_head_dim": 8, "index_topk": 24, "index_n_heads": 2, "index_head_dim": 8}
        return make_model(**(config | changes))

    return make


@pytest.fixture(scope="session")
def make_chip() -> Callable[..., Chip]:
    """1 MB at 1 GB/s, 1 TFLOP/s, links of 1 us and 1 GB/s; `compute` and `topology` replace theirs whole."""

    def make(
        capacity: float = 1e6, bandwidth: float = 1e9, fp16: float = 1e12, **changes: object
    ) -> Chip:
        parts = {
            "memory": {"sram": Memory(capacity=capacity, bandwidth=bandwidth)},
            "compute": Roofline(fp16=fp16),
            "topology": FullyConnected(link=Link(latency=1e-6, bandwidth=1e9)),
        }
        return Chip.model_validate(parts | changes)

    return make


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    """The engine that loses nothing, but for what a test changes."""

    def make(**changes: object) -> Engine:
        ones = dict.fromkeys(("32", "16", "8", "4"), 1.0)
        numbers = {
            "memory_efficiency": ones,
            "compute_efficiency": ones,
            "attention_memory_efficiency": 1.0,
            "attention_compute_efficiency": 1.0,
            "layer_overhead": 0.0,
            "step_overhead": 0.0,
            "sequence_overhead": 0.0,
            "collective_latency": 0.0,
            "collective_latency_per_chip": 0.0,
            "collective_efficiency": 1.0,
            "memory_fraction": 1.0,
            "reserve": 0.0,
        }
        return Engine.model_validate(numbers | changes)

    return make


@pytest.fixture(scope="session")
def lossy(make_engine) -> Engine:
    """An engine that loses something everywhere."""
    halves = dict.fromkeys(("32", "16", "8", "4"), 0.5)
    return make_engine(
        memory_efficiency=halves | {"16": 0.8},
        compute_efficiency=halves,
        attention_memory_efficiency=0.7,
        attention_compute_efficiency=0.4,
        layer_overhead=3e-5,
        step_overhead=1e-4,
        sequence_overhead=2e-5,
        collective_latency=4e-6,
        collective_latency_per_chip=4e-7,
        collective_efficiency=0.5,
        memory_fraction=0.9,
        reserve=1000.0,
    )


@pytest.fixture(scope="session")
def eager(lossy) -> Engine:
    """The same, launched layer by layer, and reading the KV cache for each query head.

    On one chip the host is the slower one until the contexts add up to about 200 positions.
    """
    launch = Launch(decode=2.5e-4, prefill=3e-4, sequence=2e-5)
    return lossy.model_copy(update={"layer_launch": launch, "kv_reads": "query-heads"})


@pytest.fixture(scope="session")
def make_deployment(make_model, make_chip, make_engine) -> Callable[..., Deployment]:
    """The small model on `chips` chips, in steps of 16 tokens; model, chip and engine are built where none is given."""

    def make(
        chips: int = 1, request_tokens: float = 64, plan: Plan | None = None, **options: object
    ) -> Deployment:
        parts = {"model": make_model, "chip": make_chip, "engine": make_engine}
        built = {name: options.pop(name, None) or build() for name, build in parts.items()}
        topology = options.pop("topology", None)
        prompt_tokens = options.pop("prompt_tokens", None)
        of = options.pop("speculation", None)
        return deploy(
            DeploymentParts(
                **built, chips=chips, plan=plan or Plan(), topology=topology, speculation=of
            ),
            request_tokens,
            prompt_tokens,
            LimitOverrides(**({"token_budget": 16} | options)),
        )

    return make


@pytest.fixture(scope="session")
def speculate(make_model) -> Callable[..., Speculation]:
    """Makes a drafter for a model, by default a layer like its last one."""

    def make(tokens, acceptance=0.5, method="eagle", drafter=None, model=None):
        if not isinstance(acceptance, tuple):
            acceptance = geometric_acceptance(acceptance, tokens)
        layer = drafter is None
        drafter = drafter or draft_layer(model or make_model(), method)
        return Speculation(method, tokens, acceptance, drafter, layer, DraftPlan())

    return make


@pytest.fixture(scope="session")
def serve_on() -> Callable[..., Rows]:
    """Serves (arrival, prompt, output) on a deployment; `users` ask the same in a closed loop instead, whatever the arrivals."""

    def run(
        deployment: Deployment,
        requests: list[tuple[float, int, int]],
        users: int | None = None,
        **options: object,
    ) -> Rows:
        arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
        asked = RequestBatch(
            np.full(len(arrival), np.nan) if users else arrival.astype(float), prompt, output, users
        )
        return serve(asked, deployment.costs, options.pop("limits", deployment.limits), **options)

    return run


# Tables of measurements: a row of each kind, and a file of such rows.

PUBLISHED_ROW = {
    "point_id": "mine",
    "accelerator_chip_id": "nv_h100_sxm",
    "n_accelerators": "1",
    "model": "Llama-2-7B",
    "weight_precision": "BF16",
    "parallelism": "TP1",
    "engine": "gpt-fast",
    "speculative_decoding": "0",
    "batch_or_concurrency": "1",
    "input_tokens": "64",
    "output_tokens": "16",
    "metric": "decode_tok_s_user",
    "value": "100",
}
SERVING_ROW = {
    "point_id": "mine",
    "model": "Llama-3.1-8B",
    "system": "h100_sxm",
    "backend": "vllm",
    "backend_version": "0.11",
    "precision": "bf16",
    "isl": "64",
    "osl": "16",
    "lengths": "fixed",
    "concurrency": "2",
    "chips": "1",
    "tp": "1",
    "pp": "1",
    "attention_dp": "1",
    "moe_tp": "1",
    "moe_ep": "1",
    "mean_ttft_ms": "30",
    "mean_tpot_ms": "8",
    "use": "score",
    "reason": "",
}
STEPS_ROW = {
    "model": "llama2-70b",
    "hardware": "h100-80gb",
    "prompt_size": "64",
    "batch_size": "2",
    "token_size": "16",
    "prompt_time": "80",
    "token_time": "40",
    "tensor_parallel": "4",
}
REPLY_ROW = {
    "reply_id": "R1",
    "provider": "GroqCloud",
    "model": "llama-3.1-8b",
    "date": "2026-03",
    "prompt_tokens": "200",
    "completion_tokens": "100",
    "cached_tokens": "",
    "prompt_time_s": "0.012",
    "completion_time_s": "0.15",
    "ttft_s": "",
    "tokens_per_s_reported": "",
    "acceptance_rate": "",
    "speculative": "0",
    "flags": "",
}
ROWS = {
    "published": PUBLISHED_ROW,
    "serving": SERVING_ROW,
    "steps": STEPS_ROW,
    "replies": REPLY_ROW,
}


@pytest.fixture
def make_table(tmp_path) -> Callable[..., Path]:
    """A file of rows of a kind, each with what it changes of the kind's."""

    def make(kind: str, *rows: dict[str, object], name: str = "mine.csv") -> Path:
        full = [ROWS[kind] | {key: str(cell) for key, cell in row.items()} for row in rows or ({},)]
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(full[0]))
            writer.writeheader()
            writer.writerows(full)
        return tmp_path / name

    return make


@pytest.fixture
def sramsim(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: sramsim('run', 'mine.yaml') is its status, stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sramsim", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call
