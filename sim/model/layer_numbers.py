"""Numbers of layers that a config.json names: each must be a layer of the model.

>>> check_layer_numbers({"num_hidden_layers": 4, "moe_layers": (1, 3)})
"""

import re
from collections.abc import Iterator, Mapping

from sim.inputs.errors import error_at_key, quoted_value
from sim.inputs.key_paths import JsonValue
from sim.model.modules import family_modules

LISTS = ("moe_layers", "mlp_only_layers", "attn_layer_indices")
# Layers for multi-token prediction follow the others, and a checkpoint may name them too.
DRAFTING = ("num_nextn_predict_layers", "num_mtp_layers")


def check_layer_numbers(flat: Mapping[str, JsonValue]) -> None:
    """Check the lists of layers, and the layers that a quantization_config names.

    Left out: regular expressions, and modules of vision and audio towers.
    Raises: PydanticCustomError for a layer that the model does not have.
    """
    layers = flat.get("num_hidden_layers")
    if not isinstance(layers, int):
        return  # its own check refuses it
    expected = f"expected layers from 0 to {layers - 1}"
    for key in LISTS:
        numbers = flat.get(key)
        for number in numbers if isinstance(numbers, list | tuple) else ():
            if isinstance(number, int) and not 0 <= number < layers:
                raise error_at_key((key,), f"{key}: got {number}; {expected}")
    counts = [count for key in DRAFTING if isinstance(count := flat.get(key), int)]
    end = layers + max((1, *counts))
    list_name = family_modules(str(flat.get("model_type"))).layers.rpartition(".")[2]
    layer = re.compile(rf"(?:[a-z_]*(?:model|transformer|backbone|decoder)\.)*{list_name}\.(\d+)\b")
    for name in _names(flat.get("quantization_config")):
        if (named := layer.match(name)) and int(named[1]) >= end:
            got = f"quantization_config: got {quoted_value(name)}"
            raise error_at_key(("quantization_config",), f"{got}; {expected}")


def _names(value: object) -> Iterator[str]:
    """Yield the keys of mappings and the texts of lists at any depth."""
    if isinstance(value, str):
        yield value
    for key, part in value.items() if isinstance(value, Mapping) else ():
        yield str(key)
        if isinstance(part, Mapping | list | tuple):
            yield from _names(part)
    for part in value if isinstance(value, list | tuple) else ():
        yield from _names(part)
