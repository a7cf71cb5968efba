"""The kinds of layers of hybrid models: attention, a recurrence, both, or an MLP by itself.

>>> spelled_layer_types({"model_type": "nemotron_h", "hybrid_override_pattern": "M-*E"})
('linear_attention', 'mlp', 'full_attention', 'moe')
"""

from collections.abc import Callable, Mapping, Sequence

from sim.inputs.errors import error_at_key, missing_key
from sim.inputs.key_paths import JsonObject, JsonValue

# Kinds of layers, in the words of transformers. Those of a hybrid model follow the first three.
ATTENTION_TYPES = ("full_attention", "sliding_attention", "chunked_attention")
SPARSE_TYPES = ("full_attention", "deepseek_sparse_attention", "indexed_attention")
RECURRENT, SIDE_BY_SIDE = "linear_attention", "hybrid"
MLP_TYPES = ("mlp", "moe")  # a layer of its own
HYBRID_TYPES = ("full_attention", RECURRENT, SIDE_BY_SIDE, *MLP_TYPES)
OTHER_NAMES = {"attention": "full_attention", "mamba": RECURRENT}
LETTERS = {"M": RECURRENT, "*": "full_attention", "-": "mlp", "E": "moe"}
INTERVAL_FAMILIES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
# Keys of Kimi's linear_attn_config, under the names of other families.
_LINEAR_KEYS = {
    "num_heads": ("linear_num_key_heads", "linear_num_value_heads"),
    "head_dim": ("linear_key_head_dim", "linear_value_head_dim"),
    "short_conv_kernel_size": ("conv_kernel",),
}


def spelled_layer_types(flat: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return the kind of each layer of a hybrid model, from the keys of its family.

    Raises: PydanticCustomError if no key says it, or a kind is not covered.
    """
    family, pattern = flat.get("model_type"), flat.get("hybrid_override_pattern")
    layers = flat.get("num_hidden_layers")
    named = flat.get("layer_types") or flat.get("layers_block_type")
    linear = flat.get("linear_attn_config")
    count = layers if isinstance(layers, int) else 0
    if isinstance(named, Sequence) and not isinstance(named, str):
        return _covered("layer_types", [OTHER_NAMES.get(str(n), str(n)) for n in named])
    if isinstance(pattern, str):
        return _covered("hybrid_override_pattern", [LETTERS.get(c, c) for c in pattern])
    if family == "kimi_linear" and not isinstance(linear, Mapping):
        return _attending(count, lambda layer: layer > 0 and layer % 4 == 0)
    attending = flat.get("attn_layer_indices")
    if isinstance(attending, list | tuple):
        return _attending(count, lambda layer: layer in attending)
    if family == "falcon_h1":
        return (SIDE_BY_SIDE,) * count
    if family == "jamba":
        period = _number(flat, "attn_layer_period", 8)
        offset = _number(flat, "attn_layer_offset", 4, least=0)
        return _attending(count, lambda layer: layer % period == offset)
    if family in INTERVAL_FAMILIES:
        interval = _number(flat, "full_attention_interval", 4)
        return _attending(count, lambda layer: (layer + 1) % interval == 0)
    numbers = linear.get("full_attn_layers") if isinstance(linear, Mapping) else None
    if isinstance(numbers, list | tuple):
        return _attending(count, lambda layer: layer + 1 in numbers)
    raise missing_key("layer_types", "the kind of each layer")


def linear_attention_keys(flat: Mapping[str, JsonValue]) -> JsonObject:
    """Return the numbers of Kimi's linear attention, under the names of other families."""
    linear = flat.get("linear_attn_config")
    if isinstance(linear, Mapping):
        return {
            name: linear[key]
            for key, names in _LINEAR_KEYS.items()
            if key in linear
            for name in names
        }
    heads, size = flat.get("linear_num_heads"), flat.get("linear_head_dim")  # of transformers 5
    sizes = {"num_key_heads": heads, "num_value_heads": heads}
    sizes |= {"key_head_dim": size, "value_head_dim": size}
    return {f"linear_{name}": value for name, value in sizes.items() if value is not None}


def drafting_letters(flat: Mapping[str, JsonValue]) -> JsonObject:
    """Return the letters of a layer for multi-token prediction, which transformers 5 lists.

    Raises: PydanticCustomError if a kind is not covered.
    """
    kinds = flat.get("mtp_layers_block_type")
    if flat.get("mtp_hybrid_override_pattern") or not isinstance(kinds, list | tuple):
        return {}
    letters = {kind: letter for letter, kind in LETTERS.items()} | {SIDE_BY_SIDE: "?"}
    covered = _covered("mtp_layers_block_type", [OTHER_NAMES.get(str(k), str(k)) for k in kinds])
    return {"mtp_hybrid_override_pattern": "".join(letters[kind] for kind in covered)}


def _number(flat: Mapping[str, JsonValue], key: str, default: int, least: int = 1) -> int:
    """Return a number of layers, or a default where it is none, which the key's check refuses."""
    value = flat.get(key, default)
    return value if isinstance(value, int) and value >= least else default


def _attending(layers: int, attends: Callable[[int], bool]) -> tuple[str, ...]:
    """Return the kinds of layers that either attend or have a recurrence."""
    return tuple("full_attention" if attends(n) else RECURRENT for n in range(layers))


def _covered(key: str, kinds: Sequence[str]) -> tuple[str, ...]:
    if odd := set(kinds) - set(HYBRID_TYPES):
        covered = ", ".join(LETTERS if key == "hybrid_override_pattern" else HYBRID_TYPES)
        reason = f"{key}: got '{min(odd)}'; expected {covered}"
        raise error_at_key((key,), reason)
    return tuple(kinds)
