"""How checkpoints store their weights: by method, by part, by layer; what is not covered is named."""

import json

import pytest
from pydantic import ValidationError

from sim.inputs.document import read_document, read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import find_entry
from sim.model.transformer import Model

DENSE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "torch_dtype": "bfloat16",
}
ROUTED = DENSE | {
    "model_type": "glm4_moe",
    "n_routed_experts": 8,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
INT4, FP8 = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "float"}


def tensors(weights, **rest):
    """The quantization of compressed-tensors with one group for all matrices."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": rest.pop("acts", None)}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}} | rest


def model(base=DENSE, key="quantization_config", **quantization) -> Model:
    return Model.model_validate(base | {key: quantization})


def parts(built: Model) -> dict[str, str]:
    """'int4 4.25' for each part, or several with commas."""
    found: dict[str, list[str]] = {}
    for row in built.weight_map:
        found.setdefault(row.part, []).append(f"{row.stored.precision} {row.stored.bits:g}")
    return {part: ", ".join(texts) for part, texts in found.items()}


@pytest.mark.parametrize(
    ("quantization", "attention", "mlp", "head"),
    [
        ({}, "bf16 16", "bf16 16", "bf16 16"),
        ({"quant_method": "fp8"}, "fp8 8", "fp8 8", "bf16 16"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 8.00195", "fp8 8.00195", "bf16 16"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8 8", "int8 8", "bf16 16"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "int4 3.14844", "int4 3.14844", "bf16 16"),
        ({"quant_method": "gptq", "bits": 4, "lm_head": True, "group_size": 32}, "int4 4.625", "int4 4.625", "int4 4.625"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4 4.15625", "int4 4.15625", "bf16 16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4 4.5", "int4 4.5", "bf16 16"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4 4.5", "fp4 4.5", "bf16 16"),
        ({"bits": 4, "group_size": 64}, "int4 4.5", "int4 4.5", "int4 4.5"),  # mlx-lm
        (tensors(FP8), "fp8 8", "fp8 8", "fp8 8"),
        (tensors(INT4 | {"group_size": 128, "symmetric": False}, ignore=["lm_head"]), "int4 4.15625", "int4 4.15625", "bf16 16"),
        (tensors({"num_bits": 4, "type": "float", "group_size": 16}, ignore=["lm_head"]), "fp4 4.5", "fp4 4.5", "bf16 16"),
        (tensors(FP8 | {"strategy": "block", "block_structure": [128, 128]}), "fp8 8.00098", "fp8 8.00098", "fp8 8.00098"),
        (tensors(FP8 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}), "fp8 8.25", "fp8 8.25", "fp8 8.25"),
        (tensors(INT4, ignore=["lm_head", "re:.*mlp.*"]), "int4 4", "bf16 16", "bf16 16"),
        (tensors(FP8, ignore=["re:.*vision.*", "vision_tower.encoder.layers.0.self_attn.q_proj"]), "fp8 8", "fp8 8", "fp8 8"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.self_attn.k_norm"]}, "fp8 8", "fp8 8", "bf16 16"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["mlp.gate"]}, "fp8 8", "fp8 8", "bf16 16"),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["model.layers.1.self_attn.", "model.layers.0.mlp.down_proj"]}, "fp8 8, bf16 16", "fp8 8, bf16 16", "bf16 16"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.language_model.layers.1.self_attn*"]}, "fp8 8, bf16 16", "fp8 8", "bf16 16"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*self_attn.*": {}, ".*down_proj.*": {"bits": 8}}}, "bf16 16", "int4 4.15625, int8 8.1875", "bf16 16"),
    ],
)  # fmt: skip
def test_each_part_is_stored_as_the_file_says(quantization, attention, mlp, head):
    assert parts(model(**quantization)) == {
        "embedding": head if quantization.get("group_size") == 64 else "bf16 16",
        "attention": attention,
        "mlp": mlp,
        "head": head,
    }


def test_groups_with_names_count_before_a_group_of_all():
    groups = {
        "group_0": {"targets": ["Linear"], "weights": INT4},
        "group_1": {"targets": ["re:.*self_attn.*"], "weights": FP8},
    }
    built = model(quant_method="compressed-tensors", config_groups=groups, ignore=["lm_head"])
    assert parts(built)["attention"] == "fp8 8"
    assert parts(built)["mlp"] == "int4 4"


def test_a_matrix_that_is_stored_in_two_formats_has_their_mean():
    """q is kept: 64 of 128 columns. Engines multiply the whole in the wider precision."""
    built = model(quant_method="fp8", modules_to_not_convert=["model.layers.0.self_attn.q_proj"])
    assert built.blocks[1].matrices[0].stored == ("bf16", 12.0)


def test_experts_shared_experts_and_dense_layers_are_parts_of_their_own():
    kept = ["*.mlp.shared_experts*", "model.layers.0.*"]
    built = model(ROUTED, quant_method="modelopt", quant_algo="NVFP4", exclude_modules=kept)
    assert parts(built) == {
        "embedding": "bf16 16",
        "attention": "bf16 16, fp4 4.5",
        "mlp": "bf16 16",
        "router": "bf16 16",
        "shared experts": "bf16 16",
        "experts": "fp4 4.5",
        "head": "bf16 16",
    }


@pytest.mark.parametrize("key", ["compression_config", "quantization"])
def test_older_and_other_names_of_the_key_are_read(key):
    assert parts(model(key=key, **tensors(INT4)))["mlp"] == "int4 4"


@pytest.mark.parametrize(
    ("quantization", "activations", "kv"),
    [
        (tensors(FP8), None, None),
        (tensors(FP8, acts=FP8, kv_cache_scheme=FP8), "fp8", "fp8"),
        (tensors(FP8, acts={"num_bits": 8, "type": "int"}), "int8", None),
        ({"quant_method": "fp8"}, "fp8", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": FP8}, "fp4", "fp8"),
        ({"quant_method": "gptq", "bits": 4}, None, None),
        ({"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, "bf16", "fp8"),
    ],
)
def test_activations_and_cache_are_read(quantization, activations, kv):
    read = model(**quantization).quantization
    assert (read.activations, read.kv) == (activations, kv)


def test_modelopt_keeps_its_settings_beside_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DENSE), encoding="utf-8")
    settings = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = {"producer": {"name": "modelopt"}, "quantization": settings}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside), encoding="utf-8")
    read = read_value(tmp_path / "config.json", Model)
    assert parts(read)["mlp"] == "fp8 8"
    assert read.quantization.kv == "fp8"


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "nobody"}, "quant_method: got 'nobody'; expected awq"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quant_algo: got 'MIXED_PRECISION'; expected FP8 or NVFP4"),
        ({"quant_method": "gptq", "bits": 1}, "got 1 bits of type int; expected 2 to 8 bits"),
        ({"quant_method": "gptq", "bits": "four"}, "bits: got 'four'; expected a whole number"),
        (tensors(FP8, sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format: got 'sparse-24-bitmask'; expected dense"),
        (tensors(FP8, ignore=["re:("]), "got 're:\\('; expected a regular expression"),
        (tensors(FP8, ignore="lm_head"), "ignore: got 'lm_head'; expected a list of names"),
        (tensors(FP8, ignore=[0]), "ignore: got 0; expected names"),
        (tensors("fp8"), "weights: got 'fp8'; expected a mapping"),
        (tensors(FP8, config_groups={"a": None}), "config_groups.a: got null; expected a mapping"),
        (tensors(FP8, config_groups={"a": {"weights": FP8}}), "config_groups.a.targets: got none; expected Linear"),
        (tensors(FP8, config_groups={"a": {"weights": FP8, "targets": ["LlamaMLP"]}}), "config_groups.a.targets: got 'LlamaMLP'"),
        (tensors(FP8, config_groups=[1]), "config_groups: got a list; expected a mapping"),
        ({"quant_method": None, "bits": 4}, "quant_method: got null; expected awq"),
        ({"quant_method": "gptq"}, "bits: got nothing; expected the width of a weight"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size: got 0; expected 1 or more"),
        ({"bits": 4, "group_size": -1}, "group_size: got -1; expected 1 or more"),
        (tensors({"num_bits": 6, "type": "float"}), "got 6 bits of type float"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_covered_is_refused_by_its_name(tmp_path, quantization, reason):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DENSE | {"quantization_config": quantization}), encoding="utf-8")
    with pytest.raises(ScenarioError, match=f"config.json:1: quantization_config: {reason}"):
        read_value(path, Model)


KIMI_K2_THINKING = tensors(
    INT4 | {"group_size": 32, "symmetric": True},
    ignore=[
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ],
)


@pytest.mark.parametrize(
    ("name", "quantization", "gigabytes"),
    [("gpt-oss-120b", {}, 65.2), ("kimi-k2", KIMI_K2_THINKING, 594)],
)
def test_checkpoints_are_as_large_as_published(name, quantization, gigabytes):
    """https://huggingface.co/openai/gpt-oss-120b and https://huggingface.co/moonshotai/Kimi-K2-Thinking."""
    config = dict(read_document(find_entry(name, "models")).data)
    if quantization:
        config["quantization_config"] = quantization
    total = sum(row.nbytes for row in Model.model_validate(config).weight_map)
    assert total / 1e9 == pytest.approx(gigabytes, rel=0.002)


@pytest.mark.parametrize(
    ("targets", "refused"),
    [
        (["model.layers.0.self_attn.q_proj"], False),
        (["re:.*mlp.*"], False),
        (["re:.*vision_tower.*"], False),  # a part that is left out
        (["model.layers.0.self_atn.q_proj"], True),
        (["re:.*feed_forward.*"], True),  # of another family
    ],
)
def test_targets_that_no_matrix_has_are_refused(targets, refused):
    """They passed unseen, and the matrices counted as not quantized."""
    groups = {"a": {"targets": targets, "weights": INT4}}
    groups["b"] = {"targets": ["re:.*o_proj"], "weights": FP8}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    if not refused:
        model(**config)
        return
    with pytest.raises(ValidationError) as caught:
        model(**config)
    assert f"config_groups.a.targets: got '{targets[0]}', which no matrix" in str(caught.value)
    assert "such as model.layers.0." in str(caught.value)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("dynamic", {r"+:.*\.self_atn\..*": {"bits": 8}}),
        ("modules_in_block_to_quantize", [["self_atn.q_proj"], ["mlp.upproj"]]),
    ],
)
def test_names_of_gptq_that_no_matrix_has_are_refused(key, names):
    gptq = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ValidationError, match=rf"{key}.*self_atn.*which no matrix of the model"):
        model(**gptq, **{key: names})
    known = json.loads(json.dumps(names).replace("self_atn", "self_attn"))
    assert model(**gptq, **{key: known}).parameters > 0
