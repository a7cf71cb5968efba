"""Checks of a config.json's numbers against each other."""

import re
from collections.abc import Collection

from sim.inputs.errors import error_at_key, missing_key, quoted_value
from sim.model.class_defaults import class_defaults
from sim.model.config_keys import DTYPES
from sim.model.config_layers import ConfigLayers
from sim.model.quantization import Quantization

# Numbers that each kind of recurrence needs.
RECURRENCE_NEEDS = {
    **dict.fromkeys(
        ("gated delta", "kimi delta"),
        tuple(f"linear_{key}" for key in ("num_key_heads", "num_value_heads"))
        + tuple(f"linear_{key}" for key in ("key_head_dim", "value_head_dim")),
    ),
    "mamba": ("ssm_state_size",),
    "mamba2": ("mamba_num_heads", "ssm_state_size"),
}
# Words in the names of modules that the simulator leaves out, or never counts as quantized.
OTHER_MODULES = re.compile(r"vision|visual|image|audio|projector|mtp|nextn|router|gate(?!_)")
# Classes whose layers are dense if the file has 0 experts. All other classes with experts make
# mixtures of 0 experts, which fail when they run. Source: transformers, modeling_*.
ZERO_IS_DENSE = frozenset(
    ("granitemoehybrid", "jamba", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe_text")
)


def check_heads(config: ConfigLayers) -> None:
    """Raise the error of heads that do not fit the hidden state, or each other."""
    hidden, heads, kv = config.hidden_size, config.num_attention_heads, config.kv_heads
    if config.head_dim is None and hidden % heads and not config.kv_lora_rank:
        expected = f"expected a multiple of num_attention_heads {heads}, or a head_dim"
        raise error_at_key(("hidden_size",), f"hidden_size: got {hidden}; {expected}")
    if heads % kv and not config.kv_lora_rank:
        expected = f"expected a divisor of num_attention_heads {heads}"
        reason = f"num_key_value_heads: got {kv}; {expected}"
        raise error_at_key(("num_key_value_heads",), reason)
    if config.model_type == "helium" and config.head_dim and config.head_dim * heads != hidden:
        # The output projection of its class has hidden_size rows, whatever the heads are.
        wanted = f"hidden_size {hidden} divided by num_attention_heads {heads}, as in its class"
        reason = f"head_dim: got {config.head_dim}; expected {wanted}"
        raise error_at_key(("head_dim",), reason)
    heads, kv = config.swa_num_attention_heads or heads, config.swa_num_key_value_heads or 1
    if heads % kv:
        key = "swa_num_key_value_heads"
        raise error_at_key((key,), f"{key}: got {kv}; expected a divisor of {heads} heads")


def check_recurrence(config: ConfigLayers) -> None:
    """Raise the error of a recurrence that lacks a number."""
    for key in RECURRENCE_NEEDS.get(config.family.recurrence or "", ()):
        if getattr(config, key) is None:
            raise missing_key(key, "a whole number")
    heads, size = config.mamba_num_heads or 0, config.mamba_head_dim or 0
    width = config.mamba_d_ssm or config.mamba_expand * config.hidden_size
    # Nemotron-H has the width that its heads make up, the other classes one of their own.
    own_width = config.family.recurrence == "mamba2" and config.model_type != "nemotron_h"
    if own_width and heads * (size or width // heads) != width:
        expected = f"expected {width}, the width of a layer"
        reason = f"mamba_num_heads: got {heads} heads of {size or width // heads}; {expected}"
        raise error_at_key(("mamba_num_heads",), reason)
    if config.mamba_ssm_dtype not in DTYPES:
        reason = f"got '{config.mamba_ssm_dtype}'; expected one of {', '.join(DTYPES)}"
        raise error_at_key(("mamba_ssm_dtype",), f"mamba_ssm_dtype: {reason}")


def check_experts(config: ConfigLayers) -> None:
    """Raise the error of experts that are too few, or of groups that they do not fill."""
    counted = class_defaults(config.model_type).get("num_local_experts")
    if config.num_local_experts == 0 and counted and config.model_type not in ZERO_IS_DENSE:
        some = config.model_copy(update={"num_local_experts": 1})
        if any(some.has_experts(layer) for layer in range(config.num_hidden_layers)):
            expected = f"expected 1 or more, since layers of {config.model_type} have experts"
            hint = "try more dense layers, such as with first_k_dense_replace, or another class"
            reason = f"num_local_experts: got 0; {expected}; {hint}"
            raise error_at_key(("num_local_experts",), reason)
    if (config.num_local_experts or config.num_experts_per_tok) < config.num_experts_per_tok:
        expected = f"expected at most the {config.num_local_experts} experts of a layer"
        reason = f"num_experts_per_tok: got {config.num_experts_per_tok}; {expected}"
        raise error_at_key(("num_experts_per_tok",), reason)
    if not (config.num_local_experts and config.n_group):
        return
    groups, experts = config.n_group, config.num_local_experts
    chosen = config.topk_group or groups
    if experts % groups:
        reason = f"n_group: got {groups}; expected a divisor of the {experts} experts"
        raise error_at_key(("n_group",), reason)
    if not chosen <= groups or experts // groups * chosen < config.num_experts_per_tok:
        expected = f"expected groups with {config.num_experts_per_tok} experts or more"
        reason = f"topk_group: got {chosen} of {groups} groups; {expected}"
        raise error_at_key(("topk_group",), reason)


def check_mlps(config: ConfigLayers) -> None:
    """Raise the error of dense MLPs next to experts, if the config has no width for them."""
    known = config.intermediate_size or config.intermediate_size_mlp
    if known or config.shared_intermediate_size or not config.num_local_experts:
        return
    if not all(config.has_experts(layer) for layer in range(config.num_hidden_layers)):
        raise missing_key("intermediate_size", "the inner width of layers without experts")


def check_targets(quantization: Quantization, names: Collection[str]) -> None:
    """Raise the error of a quantization group that names no matrix of the model.

    names: of all matrices.
    Left out: groups of modules that the simulator leaves out, such as vision towers and routers.
    """
    for key, targets in quantization.targets:
        left_out = all(OTHER_MODULES.search(target) for target in targets.texts)
        if not left_out and not any(targets.match(name) for name in names):
            expected = f"expected names of its matrices, such as {next(iter(names))}"
            got = f"got {quoted_value(targets.texts[0])}, which no matrix of the model has"
            reason = f"quantization_config: {key}: {got}; {expected}"
            raise error_at_key(("quantization_config",), reason)
