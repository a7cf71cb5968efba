"""What may stand in a file: a JSON Schema for editors, and a page of all keys, both made from the classes that read them."""

from typing import Any

from sim.hardware.chip import Chip, Cluster
from sim.hardware.engine import Engine
from sim.inputs.values import Value
from sim.model.transformer import Model
from sim.scenario.scenario import Scenario

SCHEMA_KINDS: dict[str, type[Value]] = {
    "scenario": Scenario,
    "chip": Chip,
    "cluster": Cluster,
    "engine": Engine,
    "model": Model,
}


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one kind of file, as YAML editors read it."""
    schema = SCHEMA_KINDS[kind].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def reference() -> str:
    """All keys of all files as a Markdown page: what each holds, and what it is where it is left out."""
    lines = [
        "# All keys",
        "",
        "Made by `sramsim schema --reference`; do not edit. A quantity is a number, a space and a unit: `230 MB`, `0.6 us`.",
        "A class of your own is named as `kind: module:Class`, and brings keys of its own.",
    ]
    parts: dict[str, dict[str, Any]] = {}
    for kind, cls in SCHEMA_KINDS.items():
        schema = json_schema(kind)
        lines += _section(f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} file", schema)
        _collect(schema, parts)
        parts.pop(cls.__name__, None)
    for name in sorted(parts.keys() - {cls.__name__ for cls in SCHEMA_KINDS.values()}):
        lines += _section(name, parts[name])
    return "\n".join(lines) + "\n"


def _collect(schema: object, parts: dict[str, dict[str, Any]]) -> None:
    """Every class that a schema describes, wherever in it it stands, by its title."""
    if isinstance(schema, list):
        for each in schema:
            _collect(each, parts)
    elif isinstance(schema, dict):
        if "properties" in schema and "title" in schema:
            parts.setdefault(schema["title"], schema)
        for each in schema.values():
            _collect(each, parts)


def _section(title: str, schema: dict[str, Any]) -> list[str]:
    head = str(schema.get("description", "")).strip()
    lines = [
        "",
        f"## {title}",
        "",
        *(line.strip() for line in head.splitlines()),
        "",
        "| key | value | left out |",
        "|---|---|---|",
    ]
    required = schema.get("required", [])
    for key, value in schema.get("properties", {}).items():
        default = "" if key in required else _shown(value.get("default"))
        lines.append(
            f"| `{key}` | {_meaning(value)} | {'required' if key in required else default} |"
        )
    return lines


def _shown(default: object) -> str:
    if default is None or default == "" or default == {} or default == []:
        return ""
    return f"`{default}`" if not isinstance(default, dict) else ""


def _meaning(value: dict[str, Any]) -> str:
    """A key's value in words."""
    if options := value.get("anyOf"):
        words = [_meaning(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "properties" in value and "title" in value:
        return str(value["title"])
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "description" in value:
        return str(value["description"])
    match value.get("type"):
        case "array":
            items: list[dict[str, Any]] = (
                [value["items"]] if "items" in value else value.get("prefixItems", [])
            )
            return "a list of " + " and ".join(dict.fromkeys(map(_meaning, items)))
        case "object":
            inner = value.get("additionalProperties")
            return (
                f"a mapping of names to {_meaning(inner)}"
                if isinstance(inner, dict)
                else "a mapping"
            )
        case "integer":
            return "a whole number"
        case "number":
            return "a number" + (f" up to {value['maximum']}" if "maximum" in value else "")
        case "boolean":
            return "true or false"
    return "a text"
