"""Times of single multiplies: simulated by hand, compared by row, and fitted."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from sim.cost.multiplies import shaped_multiply
from sim.cost.plan import Plan
from sim.hardware.chip import Chip, Precision
from sim.hardware.engine import Engine
from sim.hardware.kernels import Kernels
from sim.hardware.topology import Link, Switch
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names
from sim.model.blocks import Block, NumberFormat
from sim.model.transformer import Model
from sim.validation import kernel_fits
from sim.validation.kernel_fits import fit_exposed, fit_kernel, timed_groups
from sim.validation.kernels import (
    engine_of_kernels,
    kernel_rows,
    kernel_set,
    kernel_summary,
    timed_kernel,
)
from sim.validation.loss_fits import loss_fit
from sim.validation.validate import shipped_table

ROW = {
    "op": "gemm",
    "chip": "H200 SXM",
    "backend": "vllm",
    "dtype": "bf16",
    "m": "1",
    "n": "8192",
    "k": "4096",
    "latency_us": "25",
    "doubt": "",
}


def table(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "own.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)
    return path


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        ("1", "51200", "5120"),
        ("256", "8192", "8192"),
        ("8192", "8192", "8192"),
        ("1", "256", "16384"),
    ],
)
def test_a_multiply_takes_its_fixed_time_the_longer_side_and_a_share_of_the_shorter(m, n, k):
    timed = timed_kernel(ROW | {"m": m, "n": n, "k": k})
    kernels = read_value(catalogue_names("kernels")["vllm"], Kernels)
    kernel = kernels.multiplies["hopper"]["bf16"]
    tokens, outputs, inputs = int(m), int(n), int(k)
    nbytes = 2 * (outputs * inputs + tokens * (outputs + inputs))
    sides = (
        nbytes / (4.8e12 * kernel.memory_efficiency),
        2 * tokens * outputs * inputs / (989e12 * kernel.compute_efficiency),
        inputs * kernel.per_input,
    )
    longest = {"51200": 0, "8192": 1, "256": 2}[n]
    assert max(sides) == sides[longest]
    shorter, longer = sorted((max(sides[0], sides[2]), sides[1]))
    expected = kernel.fixed + longer + kernels.exposed * shorter
    assert timed.simulated == pytest.approx(expected, rel=1e-9)


def test_rows_of_an_own_table_are_tested_listed_or_not_expressed(tmp_path):
    with shipped_table("kernels").open(encoding="utf-8") as file:
        shipped = next(row for row in csv.DictReader(file) if row["op"] == "gemm")
    known = {key: shipped[key] for key in ROW if key != "doubt"}
    path = table(
        tmp_path,
        {},
        known,
        {"doubt": "weights in L2"},
        {"dtype": "w4a16"},
        {"chip": "MI300X", "dtype": "fp8"},
        {"op": "softmax"},
        {"backend": "another"},
        {"chip": "unheard of"},
    )
    rows = kernel_rows(path)
    assert [row.status for row in rows] == [
        "tested",
        "fitted",
        "listed",
        "not expressed",
        "assumed",
        "not expressed",
        "not expressed",
        "not expressed",
    ]
    assert [row.reason for row in rows if row.simulated is None][1:] == [
        "no model of single kernels of softmax",
        "no multiplies of backend another",
        "no chip unheard of in the catalogue",
    ]
    summary = kernel_summary(rows)
    assert (summary.expressed, summary.total, summary.metrics["gemm"].n) == (4, 8, 3)
    assert summary.groups["h200-sxm, vllm"]["gemm"].n == 1


def test_a_cell_that_is_no_number_is_refused_with_its_line(tmp_path):
    with pytest.raises(ScenarioError, match=r"own\.csv:3: n: got 'many'; expected a whole number"):
        kernel_rows(table(tmp_path, {}, {"n": "many"}))


def test_multiplies_of_few_tokens_are_within_8_percent_on_every_chip():
    (summary,) = kernel_set("kernels", None).values()
    chips = ("h100-sxm", "a100-80gb", "b200-sxm", "gb200", "l40s", "rtx-pro-6000")
    assert all(summary.groups[chip]["gemm"].median_ape <= 8 for chip in chips)
    pairs = [name for name in summary.groups if ", " in name]
    multiplied = [summary.groups[pair]["gemm"] for pair in pairs if "gemm" in summary.groups[pair]]
    assert len(multiplied) == 18
    assert all(errors.median_ape <= 8 for errors in multiplied)
    assert all(summary.metrics[name].median_ape <= 10 for name in ("moe", "attention_decode"))
    assert {row.status for row in summary.points if row.metric == "all_gather"} == {"fitted"}


def test_a_fit_gives_the_numbers_of_the_file():
    rows = timed_groups("sglang")["hopper", "bf16"]
    file = read_value(catalogue_names("kernels")["sglang"], Kernels)
    fit = fit_kernel(rows, file.exposed)
    assert fit.kernel == file.multiplies["hopper"]["bf16"]
    assert f"median error {fit.error:.1f} %" in file.source["multiplies.hopper.bf16"]


def test_a_fit_finds_the_share_of_the_shorter_side_that_is_not_hidden(monkeypatch):
    monkeypatch.setattr(kernel_fits, "SHARES", (0.0, 0.3, 0.6))
    monkeypatch.setattr(kernel_fits, "STARTS", kernel_fits.STARTS[:1])
    rows = timed_groups("sglang")["ada", "bf16"]
    kernels = rows[0].engine.kernels.model_copy(update={"exposed": 0.3})
    timed = [replace(row, engine=engine_of_kernels(kernels)) for row in rows]
    assert fit_exposed([[replace(row, seconds=row.simulated) for row in timed]]) == 0.3


def row_of(**cells: str) -> float:
    """Return the simulated time of a row with only these cells [s]."""
    return timed_kernel(
        {"latency_us": "1", "backend": "own", "chip": "h100-sxm", **cells}
    ).simulated


@pytest.fixture
def own_kernels(monkeypatch):
    """Kernels with round numbers, as those of a backend `own`."""
    numbers = {"fixed": "10 us", "memory_efficiency": 0.5, "compute_efficiency": 0.5}
    attention = {
        "decode": {"bf16": numbers},
        "prefill": {
            "bf16": {"fixed": "20 us", "compute_efficiency": 0.5, "more_positions": 100.0},
            "fp8_products": {"fixed": "20 us", "compute_efficiency": 1.0},
        },
    }
    kernels = Kernels.model_validate(
        {
            "otherwise": "hopper",
            "experts": {"hopper": {"bf16": {**numbers, "more_tokens": 64.0}}},
            "attention": {"hopper": attention},
            "latent_attention": {"hopper": attention},
            "collectives": {"hopper": {"latency": "2 us", "latency_per_chip": "1 us"}},
        }
    )
    engine = engine_of_kernels(kernels)
    monkeypatch.setattr("sim.validation.kernels._engine", lambda backend: engine)


@pytest.mark.usefixtures("own_kernels")
def test_experts_take_their_start_and_the_longer_of_reading_and_computing_whole_tiles():
    cells = {"op": "moe", "dtype": "bf16", "experts": "8", "topk": "2", "distribution": "balanced"}
    cells |= {"hidden": "4096", "inter": "1024", "moe_tp": "2", "moe_ep": "2"}
    weights, peak = 3 * 4096 * 512, 989e12
    activations = 4096 + 2 * 512 + 512 + 4096
    few, many = (row_of(**cells, m=tokens) for tokens in ("4", "4096"))
    assert few == pytest.approx(10e-6 + 4 * 2 * (weights + activations) / (0.5 * 3.35e12))
    assert many == pytest.approx(10e-6 + 4 * 2 * weights * (1024 + 64) / (0.5 * peak))


@pytest.mark.parametrize(("passes", "split"), [("passes", 4), ("passes_of_all", 1)])
def test_each_chip_moves_the_hidden_states_of_every_token_and_expert(monkeypatch, passes, split):
    """Tensor parallelism does not share them. Expert parallelism shares those of own experts."""
    numbers = {"fixed": "0 us", "memory_efficiency": 0.5, "compute_efficiency": 0.5}
    cells = {"op": "moe", "dtype": "bf16", "experts": "8", "topk": "2", "distribution": "balanced"}
    cells |= {"hidden": "4096", "inter": "1024", "m": "64"}

    def timed(times: float, tensor: str, shards: str) -> float:
        kernel = {"hopper": {"bf16": {**numbers, passes: times}}}
        engine = engine_of_kernels(
            Kernels.model_validate({"otherwise": "hopper", "experts": kernel})
        )
        monkeypatch.setattr("sim.validation.kernels._engine", lambda backend: engine)
        return row_of(**cells, moe_tp=tensor, moe_ep=shards)

    def moving(tensor: str, shards: str) -> float:
        return timed(3.0, tensor, shards) - timed(0.0, tensor, shards)

    whole = 3 * (64 * 2) * 4096 * 2 / 3.35e12
    assert moving("1", "1") == pytest.approx(whole)
    assert moving("4", "1") == pytest.approx(whole)
    assert moving("1", "4") == pytest.approx(whole / split)


@pytest.mark.parametrize("tokens", ["1", "64", "4096"])
def test_experts_padded_to_whole_tiles_take_as_long_as_experts_of_that_size(monkeypatch, tokens):
    """gpt-oss on 8 chips has 360 inner columns of 2,880 on each."""
    numbers = {"fixed": "10 us", "memory_efficiency": 0.5, "compute_efficiency": 0.5}
    cells = {"op": "moe", "dtype": "bf16", "m": tokens, "experts": "128", "topk": "4"}
    cells |= {"moe_tp": "1", "moe_ep": "1", "distribution": "balanced"}

    def timed(tiles: dict[str, int], hidden: str, inter: str) -> float:
        kernel = {"hopper": {"bf16": {**numbers, **tiles}}}
        engine = engine_of_kernels(
            Kernels.model_validate({"otherwise": "hopper", "experts": kernel})
        )
        monkeypatch.setattr("sim.validation.kernels._engine", lambda backend: engine)
        return row_of(**cells, hidden=hidden, inter=inter)

    tiles = {"hidden_tile": 256, "inner_tile": 256}
    whole = timed({}, "3072", "512")
    # Activations are not padded, and take a few percent of the time with many tokens.
    assert timed(tiles, "2880", "360") == pytest.approx(
        whole, rel=0.06 if tokens == "4096" else 0.01
    )
    assert timed(tiles, "3072", "512") == whole


@pytest.mark.usefixtures("own_kernels")
def test_attention_reads_its_cache_or_computes_whole_tiles():
    heads = {"heads": "64", "kv_heads": "8", "head_size": "128", "dtype": "bf16", "batch": "2"}
    decode = row_of(**heads, op="attention_decode", length="1", context="1000", window="")
    assert decode == pytest.approx(10e-6 + 2 * 1000 * 2 * 8 * 128 * 2 / (0.5 * 3.35e12))
    windowed = row_of(**heads, op="attention_decode", length="1", context="1000", window="100")
    assert windowed - 10e-6 == pytest.approx((decode - 10e-6) / 10)
    cells = heads | {"op": "attention_prefill", "length": "1000", "context": "1000"}
    attended = 2 * (1000 * 1001 / 2 + 100 * 1000)
    assert row_of(**cells) == pytest.approx(20e-6 + 4 * 64 * 128 * attended / (0.5 * 989e12))
    narrow = row_of(**cells | {"dtype": "fp8", "kv_dtype": "fp8"})
    attended -= 2 * 100 * 1000
    assert narrow == pytest.approx(20e-6 + 4 * 64 * 128 * attended / 989e12)


@pytest.mark.usefixtures("own_kernels")
def test_latents_are_read_once_and_unpacked_for_each_chunk_of_a_prompt():
    cells = {"dtype": "bf16", "batch": "1", "heads": "128"}
    decode = row_of(**cells, op="mla_decode", length="1", context="100")
    flops = 2 * 128 * (2 * 512 + 64) * 100
    assert decode == pytest.approx(10e-6 + max(100 * 576 * 2 / 1.675e12, flops / 494.5e12))
    whole = row_of(**cells, op="mla_prefill", length="4000", context="4000")
    last = row_of(**cells, op="mla_prefill", length="1000", context="4000")
    positions = 4000 * 4001 / 2 + 100 * 4000, 1000 * 3000 + 1000 * 1001 / 2 + 100 * 1000
    flops = 2 * 128 * (192 + 128) * positions[0], 2 * 128 * (192 + 128) * positions[1]
    assert whole == pytest.approx(20e-6 + flops[0] / 494.5e12)
    unpacked = 3000 * 2 * 128 * 512 * (128 + 128)
    assert last == pytest.approx(20e-6 + (flops[1] + unpacked) / 494.5e12)


@pytest.mark.usefixtures("own_kernels")
def test_a_collective_has_the_latency_of_its_kernels_and_the_share_of_its_links():
    cells = {"op": "all_reduce", "dtype": "bf16", "chips": "8", "bytes": "67108864"}
    share = read_value(catalogue_names("chips")["h100-sxm"], Chip).topology.collectives_reach(8)
    phases = 2 * (10e-6 + 1e-6 + 67108864 / 8 * 7 / (450e9 * (share or 0.8)))
    assert row_of(**cells) == pytest.approx(phases)


def test_a_share_by_chips_counts_for_the_next_larger_group():
    switch = Switch(
        link=Link(latency=0.0, bandwidth=1e9), collective_efficiency={"2": 0.6, "8": 0.1}
    )
    assert [switch.collectives_reach(chips) for chips in (2, 3, 8, 64)] == [0.6, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("backend", "key"),
    [
        ("vllm", "attention.hopper.decode.bf16"),
        ("vllm", "experts.hopper.fp8_block"),
        ("trtllm", "experts.hopper.fp8"),
        ("deepgemm", "experts.blackwell.fp8_block"),
    ],
)
def test_a_fit_of_losses_gives_the_numbers_of_the_file(backend, key):
    file = read_value(catalogue_names("kernels")[backend], Kernels)
    part, generation, *path = key.split(".")
    kernel = getattr(file, part)[generation]
    for name in path:
        kernel = kernel[name] if isinstance(kernel, dict) else getattr(kernel, name)
    fit = loss_fit(backend, key)
    assert {name: getattr(kernel, name) for name in fit.numbers} == pytest.approx(
        {name: 1e-6 * v if name == "fixed" else v for name, v in fit.numbers.items()}, rel=0.005
    )
    assert ("passes" in fit.numbers) == (backend == "trtllm")


def test_tensorrt_llm_of_2025_has_the_experts_that_flashinfer_took_from_it():
    """Its file has the numbers of the fit to FlashInfer's times."""
    engine = read_value(catalogue_names("engines")["tensorrt-llm-1.0"], Engine)
    _, kernel = engine.block_kernels.expert("hopper", "fp8_block")
    fit = loss_fit("trtllm-1.0", "experts.hopper.fp8_block").numbers
    names = "memory_efficiency", "compute_efficiency", "more_tokens"
    assert [getattr(kernel, name) for name in names] == [fit[name] for name in names]


def test_kernels_of_experts_alone_leave_latent_attention_to_the_others():
    """DeepGEMM's experts were timed, its attention was not."""
    engine = read_value(catalogue_names("engines")["tensorrt-llm-kernels"], Engine)
    experts = read_value(catalogue_names("kernels")["deepgemm"], Kernels)
    with_both = engine.model_copy(update={"block_kernels": experts})
    assert with_both.kernels_of("experts") == ("block_kernels", experts)
    assert with_both.kernels_of("latent_attention") == ("kernels", engine.kernels)
    assert engine.kernels_of("experts") == ("kernels", engine.kernels)


def test_a_layer_of_timed_experts_pays_their_start_in_place_of_half_an_overhead(make_deployment):
    parts = {"model": Model, "engine": Engine, "chip": Chip}
    names = {"model": "gpt-oss-120b", "engine": "vllm", "chip": "h100-sxm"}
    entries = {
        part: read_value(catalogue_names(f"{part}s")[names[part]], kind)
        for part, kind in parts.items()
    }
    costs = make_deployment(2, plan=Plan(tensor=2, activations="bf16"), **entries).costs
    keys = {
        (row.part.kind, key)
        for row in costs.body_rows(4, 4)
        if isinstance(row.part, Block)
        for cause in row.causes()
        for key in cause.keys
    }
    assert ("mlp", "engine.kernels.experts.hopper.fp4_bf16.fixed") in keys
    assert ("attention", "engine.layer_overhead") in keys
    assert ("mlp", "engine.layer_overhead") not in keys


@pytest.mark.parametrize("tokens", [4, 4096])
def test_the_causes_of_padded_experts_add_up_to_their_time(make_deployment, tokens):
    parts = {"model": Model, "engine": Engine, "chip": Chip}
    names = {"model": "gpt-oss-120b", "engine": "vllm", "chip": "b200-sxm"}
    entries = {
        part: read_value(catalogue_names(f"{part}s")[names[part]], kind)
        for part, kind in parts.items()
    }
    costs = make_deployment(8, plan=Plan(tensor=8, activations="fp8"), **entries).costs
    rows = [row for row in costs.body_rows(tokens, tokens) if getattr(row.part, "experts", None)]
    assert any(
        "engine.kernels.experts.blackwell.fp4_fp8.fixed" in cause.keys
        for row in rows
        for cause in row.causes()
    )
    for row in rows:
        assert sum(cause.seconds for cause in row.causes()) == pytest.approx(row.seconds)


def test_ranks_of_experts_move_all_tokens_that_they_have(make_deployment):
    """With attention ranks a chip gets only the tokens of its own experts."""
    numbers = {"fixed": "0 us", "memory_efficiency": 0.5, "compute_efficiency": 0.5}
    kernel = {"hopper": {"bf16": {**numbers, "passes": 1.0, "passes_of_all": 3.0}}}
    kernels = Kernels.model_validate({"otherwise": "hopper", "experts": kernel})
    model = read_value(catalogue_names("models")["qwen3-235b-a22b"], Model)
    chip = read_value(catalogue_names("chips")["h100-sxm"], Chip)
    moved = []
    for degrees in ({"tensor": 8, "expert": 8}, {"attention_data": 8, "expert": 8}):
        costs = make_deployment(
            8, plan=Plan(**degrees), model=model, chip=chip, engine=engine_of_kernels(kernels)
        ).costs
        rows = [row for row in costs.body_rows(64, 8) if "passes" in str(row.causes())]
        (own, every), *_ = [row.causes() for row in rows]
        assert rows[0].seconds == pytest.approx(own.seconds + every.seconds)
        moved.append((own.seconds, every.seconds))
    whole = 64 * 8 * 4096 * 2 / chip.memory["hbm"].bandwidth
    assert moved[0][1] == pytest.approx(3 * whole)
    assert whole / 8 < moved[0][0] < whole / 4  # of the fullest rank
    assert moved[1] == pytest.approx((moved[0][0], 3 * moved[0][0]))


@pytest.mark.parametrize("tokens", [4, 256, 4096])
def test_what_a_longer_side_does_not_hide_is_a_row_of_its_own(make_deployment, tokens):
    engine = read_value(catalogue_names("engines")["vllm"], Engine)
    kernels = engine.kernels.model_copy(update={"exposed": 0.25})
    chip = read_value(catalogue_names("chips")["b200-sxm"], Chip)
    engine = engine.model_copy(update={"kernels": kernels})
    costs = make_deployment(1, engine=engine, chip=chip).costs
    rows = [row for row in costs.body_rows(tokens, tokens) if row.part.kind == "mlp"]
    unhidden = [
        row for row in rows if "engine.kernels.exposed" in {k for c in row.causes() for k in c.keys}
    ]
    assert len(unhidden) == len(costs.blocks[rows[0].part].dense)
    for row in rows:
        assert sum(cause.seconds for cause in row.causes()) == pytest.approx(row.seconds)
    assert {row.ideal for row in unhidden} == {0.0}


def multiply_of(engine: Engine, chip: str):
    """Return a multiply of an engine by 16-bit weights on a chip."""
    on = read_value(catalogue_names("chips")[chip], Chip)
    return shaped_multiply(engine, on, (4096, 4096), NumberFormat("bf16", 16), Precision.BF16)


def test_an_engine_has_its_own_share_or_that_of_its_kernels():
    kernels = read_value(catalogue_names("kernels")["vllm"], Kernels)
    kernels = kernels.model_copy(update={"exposed": 0.2})
    timed = engine_of_kernels(kernels)
    cases = (
        (None, None, 0.0, "engine.exposed"),
        (None, 0.3, 0.3, "engine.exposed"),
        (kernels, None, 0.2, "engine.kernels.exposed"),
        (kernels, 0.0, 0.0, "engine.exposed"),
    )
    for of, own, *expected in cases:
        multiply = multiply_of(timed.model_copy(update={"kernels": of, "exposed": own}), "h100-sxm")
        assert [multiply.exposed, multiply.exposed_key] == expected


def test_no_factor_of_an_engine_lifts_a_kernel_above_the_peak():
    engine = read_value(catalogue_names("engines")["vllm"], Engine)
    for factor in (0.5, 1.9):
        factors = {"16": factor}
        update = {"memory_efficiency": factors, "compute_efficiency": factors}
        multiply = multiply_of(engine.model_copy(update=update), "h100-sxm")
        kernel = engine.kernels.multiplies["hopper"]["bf16"]
        reached = kernel.compute_efficiency, kernel.memory_efficiency
        assert multiply.efficiencies == tuple(min(1.0, factor * share) for share in reached)


def test_shares_of_whole_steps_hide_the_shorter_side():
    kernels = read_value(catalogue_names("kernels")["vllm"], Kernels)
    kernels = kernels.model_copy(update={"exposed": 0.25})
    named = {name: kernels.multiply(name, "bf16") for name in ("hopper", "ada-geforce")}
    assert [(n.kernel.in_steps, n.exposed) for n in named.values()] == [(False, 0.25), (True, 0.0)]
