"""A config.json, checked.

A key that is absent has the default of the model's own class. A model that is not covered is
refused by naming the key, and never computed wrongly.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from sim.inputs.document import read_document
from sim.inputs.errors import error_at_key, missing_key, quoted_value
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.inputs.suggestions import spelling_hint
from sim.inputs.values import Text
from sim.model.class_defaults import class_defaults
from sim.model.config_checks import check_experts, check_heads, check_mlps, check_recurrence
from sim.model.config_keys import DTYPES, MOST_LAYERS, ConfigKeys
from sim.model.config_layers import ConfigLayers
from sim.model.families import FAMILIES, Family
from sim.model.layer_kinds import (
    ATTENTION_TYPES,
    HYBRID_TYPES,
    SIDE_BY_SIDE,
    SPARSE_TYPES,
    drafting_letters,
    linear_attention_keys,
    spelled_layer_types,
)
from sim.model.layer_numbers import check_layer_numbers
from sim.model.spellings import SPELLINGS, TEXT_TYPES, spelled_keys, text_part, unnested

STATE_SPACE = ("ssm_state_size", "mamba_d_state", "hybrid_override_pattern")
# Keys of families with a recurrence. In other families they are refused.
RECURRENT_KEYS = {
    **dict.fromkeys(STATE_SPACE, "state-space layers"),
    "linear_num_value_heads": "linear attention",
    "linear_attn_config": "linear attention",
}
NOT_COVERED = {
    **dict.fromkeys(("ssm_cfg", "state_size"), "state-space layers"),
    "index_topk_pattern": "indexers by a pattern",
    "moe_latent_size": "experts of another width than hidden_size",
    "encoder_layers": "encoders",
    "is_encoder_decoder": "encoders",
    "num_kv_shared_layers": "KV cache shared between layers",
    "hidden_size_per_layer_input": "embeddings for each layer",
}
# Names of classes without a language-model head.
HEADLESS = re.compile(
    r"(For(Sequence|Token)Classification|ForQuestionAnswering|RewardModel|Model)$"
)


# Sizes that may be left out, but not be null, in a class that has them.
NEEDED_SIZES = (
    *("kv_lora_rank", "moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step"),
    *("expert_layer_period", "attn_layer_period", "full_attention_interval"),
    *("conv_kernel", "mamba_expand", "first_k_dense_replace", "intermediate_size_mlp"),
)
NEEDED_WITH_EXPERTS = ("moe_intermediate_size", "num_experts_per_tok")


class ModelConfig(ConfigLayers):
    """A config.json, checked."""

    @model_validator(mode="before")
    @classmethod
    def _covered(cls, data: object) -> object:
        """Give each number its one name and default, and refuse a model that is not covered."""
        if not isinstance(data, Mapping):
            return data
        _refuse_other_files(data)
        flat = unnested(data)
        for key in ("torch_dtype", "dtype"):
            if (dtype := flat.get(key)) is not None and dtype not in tuple(DTYPES):
                expected = f"expected one of {', '.join(DTYPES)}"
                raise error_at_key((key,), f"{key}: got {quoted_value(dtype)}; {expected}")
        family = flat.get("model_type")
        if isinstance(family, str) and family not in FAMILIES:
            raise _unknown_family(family)
        known = FAMILIES[family] if isinstance(family, str) else Family()
        recurrent = known.recurrence is not None
        refused = NOT_COVERED | ({} if recurrent else RECURRENT_KEYS)
        refused |= {} if known.sparse else {"index_topk": "sparse attention"}
        defaults = class_defaults(str(family))
        if flat.get("enable_moe_block"):  # no published Gemma 4 with experts has these tables
            defaults = defaults | {"hidden_size_per_layer_input": 0}
        for key, what in refused.items():
            if value := flat.get(key, defaults.get(key)):
                got = quoted_value(value) + ("" if key in flat else " by default")
                raise error_at_key(
                    (key,), f"{key}: got {got}; expected none: {what} are not covered"
                )
        flat = cls.spelled(flat)
        _refuse_layers(flat)
        if flat.get("quantization_config") is None:
            flat |= _quantization_beside(data)
        flat = _with_defaults(flat)
        if not known.can_tie:
            flat["tie_word_embeddings"] = False
        flat = _with_layer_kinds(flat) if recurrent else flat
        check_layer_numbers(flat)
        return flat

    @classmethod
    def unknown(cls, key: object) -> PydanticCustomError:
        field = next((field for field, spellings in SPELLINGS.items() if key in spellings), None)
        return (
            error_at_key((str(key),), f"a change of {key!r} is written as '{field}'")
            if field
            else super().unknown(key)
        )

    @classmethod
    def spelled(cls, data: Mapping[str, JsonValue]) -> JsonObject:
        return spelled_keys(data)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        check_heads(self)
        latent = self.qk_rope_head_dim and self.qk_nope_head_dim and self.v_head_dim
        if self.family.chosen and not self.block_configs:
            raise missing_key("block_configs", "attention and MLP of each layer")
        _ = self.layer_choices  # raises if one is not covered
        for key in ("layer_types", "mlp_layer_types", "indexer_types", "block_configs"):
            kinds = getattr(self, key)
            if kinds is not None and len(kinds) != self.num_hidden_layers:
                expected = f"expected {self.num_hidden_layers}, as num_hidden_layers says"
                raise error_at_key((key,), f"{key}: got {len(kinds)} layers; {expected}")
        check_experts(self)
        check_recurrence(self)
        known = set(HYBRID_TYPES if self.family.recurrence else ATTENTION_TYPES)
        known = set(SPARSE_TYPES) if self.family.sparse else known
        if odd := set(self.layer_types or ()) - known:
            expected = f"expected {', '.join(sorted(known))}"
            raise error_at_key(("layer_types",), f"layer_types: got '{min(odd)}'; {expected}")
        if self.kv_lora_rank and not latent:
            sizes = "qk_rope_head_dim, qk_nope_head_dim and v_head_dim"
            reason = f"kv_lora_rank: got {self.kv_lora_rank} without all of its sizes"
            raise error_at_key(("kv_lora_rank",), f"{reason}; expected {sizes}")
        if not (
            self.intermediate_size
            or self.moe_intermediate_size
            or self.family.chosen
            or self.model_type == "falcon"
        ):
            raise missing_key("intermediate_size", "the inner width of the MLPs")
        check_mlps(self)
        _ = self.quantization  # raises if it is not covered
        return self


def _unknown_family(family: str) -> PydanticCustomError:
    """Return the error of a model_type that is not covered, with the names that look like it."""
    near = spelling_hint(family, (*FAMILIES, *TEXT_TYPES), "")
    reason = (
        f"model_type: got {quoted_value(family)};"
        " expected a family that `sramsim catalog families` lists"
    )
    return error_at_key(("model_type",), f"{reason}; {near}" if near else reason)


def _with_defaults(flat: JsonObject) -> JsonObject:
    """Return the keys with the defaults of the model's class.

    A key that is null means that the model has no such thing.

    Raises: PydanticCustomError if a key that every model needs is null.
    """
    fields = ConfigKeys.model_fields
    keys = {**class_defaults(str(flat.get("model_type"))), **flat}
    if not keys.get("num_local_experts"):
        # Dense files of families with experts write 0.
        keys.pop("num_experts_per_tok", None)
    for key in ("sliding_window", "shared_intermediate_size"):
        if keys.get(key) == 0 and not isinstance(keys[key], bool):
            keys[key] = None
    needed = {*NEEDED_SIZES, *(NEEDED_WITH_EXPERTS if keys.get("num_local_experts") else ())}
    defaults = class_defaults(str(flat.get("model_type")))
    for key, value in keys.items():
        required = key in fields and fields[key].is_required()
        if value is None and (required or (key in needed and key in defaults)):
            expected = "a text" if key == "model_type" else "a whole number"
            raise error_at_key((key,), f"{key}: got null; expected {expected}")
    return {key: value for key, value in keys.items() if value is not None}


def _with_layer_kinds(flat: JsonObject) -> JsonObject:
    """Return the keys of a hybrid model with one name for the kinds of its layers.

    Raises: PydanticCustomError if the kinds are missing or not covered.
    """
    layers = flat.get("num_hidden_layers")
    if layers is not None and not (isinstance(layers, int) and 0 < layers <= MOST_LAYERS):
        return flat  # its own check refuses the number; a list of so many layers would not end
    if flat.get("mamba_head_dim") == "auto":
        del flat["mamba_head_dim"]
    if flat.get("mamba_dt_rank") == "auto":
        del flat["mamba_dt_rank"]
    if flat.get("shared_expert_intermediate_size"):
        flat.pop("n_shared_experts", None)  # the width is that of all shared experts
    flat |= linear_attention_keys(flat) | drafting_letters(flat)
    kinds = spelled_layer_types(flat)
    if not {"full_attention", SIDE_BY_SIDE} & set(kinds):
        reason = "got no layer with attention; expected one or more"
        raise error_at_key(("layer_types",), f"layer_types: {reason}")
    return {"num_hidden_layers": len(kinds)} | flat | {"layer_types": kinds}


def _refuse_layers(flat: JsonObject) -> None:
    """Raise the error of layers that are not covered."""
    last, end = flat.get("num_hidden_layers"), flat.get("moe_layer_end_index")
    if end not in (None, -1) and isinstance(last, int) and end != last - 1:
        reason = f"got {end}; expected the last layer, {last - 1}; other layers are not covered"
        raise error_at_key(("moe_layer_end_index",), f"moe_layer_end_index: {reason}")
    if flat.get("word_embed_proj_dim") not in (None, flat.get("hidden_size")):
        reason = "an embedding of another width than hidden_size is not covered"
        raise error_at_key(("word_embed_proj_dim",), f"word_embed_proj_dim: {reason}")


def _refuse_other_files(data: Mapping[str, JsonValue]) -> None:
    """Raise the error of a file that is no config.json of a model that generates tokens."""
    if "peft_type" in data or "base_model_name_or_path" in data:
        base = quoted_value(data.get("base_model_name_or_path"))
        key = "peft_type" if "peft_type" in data else "base_model_name_or_path"
        reason = f"got an adapter of the model {base}; expected the config.json of that model"
        raise error_at_key((key,), reason)
    quantization = data.get("quantization")
    if "model_type" not in data and isinstance(quantization, Mapping):
        reason = "got hf_quant_config.json; expected config.json, beside which it is read"
        raise error_at_key(("quantization",), reason)
    if "model_type" not in data and "dim" in data and "n_layers" in data:
        reason = "got params.json in its publisher's own form; expected Hugging Face's config.json"
        raise error_at_key(("dim",), reason)
    classes = data.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list | tuple) else []
    if names and text_part(data) is None and all(HEADLESS.search(name) for name in names):
        reason = f"got {names[0]}, which generates no tokens; expected a class ...ForCausalLM"
        raise error_at_key(("architectures",), f"architectures: {reason}")


def _quantization_beside(data: Mapping[str, JsonValue]) -> JsonObject:
    """Return the quantization of an hf_quant_config.json beside config.json, which engines read."""
    model_type = data.get("model_type")
    if not isinstance(model_type, Text) or "config.json:" not in model_type.where:
        return {}
    path = Path(model_type.folder) / "hf_quant_config.json"
    return {"quantization_config": read_document(path).data} if path.is_file() else {}
