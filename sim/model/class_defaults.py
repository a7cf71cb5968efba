"""Meaning of a key that a config.json leaves out: the default of the model's own class.

>>> class_defaults("mistral")["num_key_value_heads"]
8
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sim.inputs.key_paths import JsonObject

DEFAULTS_FILE = Path(__file__).with_suffix(".yaml")


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.load(
        DEFAULTS_FILE.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader
    )
    return content


@cache
def _tables() -> dict[str, JsonObject]:
    """Return the defaults of every class by model_type."""
    content = _content()
    tables: dict[str, JsonObject] = dict(content["classes"])
    for model_type, table in content["elsewhere"].items():
        tables[model_type] = table["keys"]
    return {
        model_type: {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        for model_type, table in tables.items()
    }


def class_defaults(model_type: str) -> JsonObject:
    """Return the defaults of a model_type's class, by the names of this package.

    Left out: keys with the default None, and names of numbers that this package does not read.
    """
    return _tables().get(model_type, {})


def defaults_source(model_type: str) -> str:
    """Return where the defaults of a model_type's class are from."""
    content = _content()
    table = content["elsewhere"].get(model_type)
    return str(table["source"]) if table else f"transformers {content['transformers']}"
