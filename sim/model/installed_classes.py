"""Rewrite `class_defaults.yaml` from an installed transformers.

python -m sim.model.installed_classes
"""

import importlib.metadata
import inspect
from typing import Any

import yaml

from sim.inputs.key_paths import JsonObject
from sim.model.class_defaults import DEFAULTS_FILE
from sim.model.config import NOT_COVERED
from sim.model.config_keys import ConfigKeys
from sim.model.families import FAMILIES
from sim.model.spellings import TEXT_TYPES, spelled_keys

NOT_SIZES = {"id", "aliases", "hidden_act", "torch_dtype", "quantization_config"}
# Defaults that a class sets in its code, and not in its signature.
IN_CODE: dict[str, JsonObject] = {
    "gemma4_text": {"global_head_dim": 512},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "hy_v3": {"first_k_dense_replace": 1},
    "kimi_linear": {"first_k_dense_replace": 1},
    "mimo_v2_flash": {"first_k_dense_replace": 1},
}


def installed_class(model_type: str) -> Any:
    """Return the configuration class of a model_type in the installed transformers.

    Raises: KeyError if transformers has no class for it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def installed_defaults(model_type: str) -> JsonObject:
    """Return the defaults of a model_type's class, by the names of this package.

    Raises: KeyError if transformers has no class for it.
    """
    values = _signature(model_type)
    wrappers = [name for name, text in TEXT_TYPES.items() if text == model_type]
    if wrappers and model_type.endswith("_text"):
        # The head belongs to the wrapper, which says whether the tables are tied.
        values["tie_word_embeddings"] = _signature(wrappers[0])["tie_word_embeddings"]
    known = (spelled_keys(values) | IN_CODE.get(model_type, {})).items()
    sizes = ConfigKeys.model_fields.keys() - NOT_SIZES
    return {
        key: value
        for key, value in known
        if (key in sizes and value is not None) or (key in NOT_COVERED and value)
    }


def _signature(model_type: str) -> JsonObject:
    """Return the defaults of a class by the names of its parameters."""
    parameters = inspect.signature(installed_class(model_type).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def written_defaults() -> str:
    """Return the text of `class_defaults.yaml` with the classes of the installed transformers.

    Classes from elsewhere stay as they are.
    """
    text = DEFAULTS_FILE.read_text(encoding="utf-8")
    elsewhere = yaml.safe_load(text)["elsewhere"]
    comment = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    version = importlib.metadata.version("transformers")
    content = {
        "source": "huggingface/transformers, src/transformers/models/*/configuration_*.py",
        "transformers": version,
        "classes": {name: installed_defaults(name) for name in FAMILIES if name not in elsewhere},
        "elsewhere": elsewhere,
    }
    return comment + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=96)


if __name__ == "__main__":
    DEFAULTS_FILE.write_text(written_defaults(), encoding="utf-8")
