"""The precision of a model's weights, as `quantization_config` describes it."""

from collections.abc import Mapping

from sim.inputs.errors import error_at_key
from sim.inputs.key_paths import child

_METHODS = {"fp8": "fp8", "mxfp4": "fp4", "awq": "int4", "gptq": "int4", "nvfp4": "fp4"}
_COMPRESSED_TENSORS = {
    ("float", 8): "fp8",
    ("int", 8): "int8",
    ("int", 4): "int4",
    ("float", 4): "fp4",
}


def quantized_weights(config: Mapping[str, object] | None, precision: str) -> tuple[str, bool]:
    """Return the precision of the weights, and whether attention's weights keep `precision`.

    `config` is the quantization_config; None for a model that is not quantized.

    Raises: PydanticCustomError if the method is not covered.
    """
    if not config:
        return precision, False
    method = config.get("quant_method")
    weights_precision = _METHODS.get(str(config.get("quant_algo", method)).lower())
    if method == "compressed-tensors":
        groups = config.get("config_groups")
        first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
        weights = child(first, "weights")
        kind = str(child(weights, "type")), int(child(weights, "num_bits") or 0)
        weights_precision = _COMPRESSED_TENSORS.get(kind)
    elif method in ("gptq", "awq") and config.get("bits", 4) == 8:
        weights_precision = "int8"
    if weights_precision is None:
        raise error_at_key(
            ("quantization_config",),
            f"quantization_config: quant_method '{method}' is not covered",
        )
    kept = config.get("modules_to_not_convert") or config.get("ignore")
    names = kept if isinstance(kept, list | tuple) else ()
    return weights_precision, any("self_attn" in str(name) for name in names)
