"""The keys of files: a JSON Schema for editors, and a page of all keys.

Both are made from the classes that read the files. A field's description is the meaning of its key.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    """Return the JSON Schema of one kind of file, as YAML editors read it."""
    schema = SCHEMA_KINDS[kind].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def reference() -> str:
    """Return a Markdown page of all keys of all files, one table for each class."""
    sections = []
    parts: dict[str, dict[str, Any]] = {}
    for kind, cls in SCHEMA_KINDS.items():
        schema = json_schema(kind)
        sections.append(_section(_file_heading(kind), schema))
        _collect(schema, parts)
        parts.pop(cls.__name__, None)
    titles = sorted(parts.keys() - {cls.__name__ for cls in SCHEMA_KINDS.values()})
    sections += [_section(title, parts[title]) for title in titles]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("reference.md.jinja").render(sections=sections).rstrip() + "\n"


@dataclass(frozen=True, slots=True)
class _Key:
    """One row of a table: a key, what it holds, its default, and what it means."""

    name: str
    form: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class _Section:
    """One class of a file, with its docstring and its keys."""

    title: str
    about: str
    keys: list[_Key]


def _collect(schema: object, parts: dict[str, dict[str, Any]]) -> None:
    """Add every class at any depth of a schema to `parts`, by its title."""
    if isinstance(schema, list):
        for part in schema:
            _collect(part, parts)
    elif isinstance(schema, dict):
        if "properties" in schema and "title" in schema:
            parts.setdefault(schema["title"], schema)
        for part in schema.values():
            _collect(part, parts)


def _section(title: str, schema: dict[str, Any]) -> _Section:
    """Return the section of a class from its schema."""
    about = str(schema.get("description", "")).strip()
    required = schema.get("required", [])
    keys = [
        _Key(
            name,
            _form({key: part for key, part in value.items() if key != "description"}),
            "required" if name in required else _default(value.get("default")),
            value.get("description", ""),
        )
        for name, value in schema.get("properties", {}).items()
    ]
    return _Section(title, "\n".join(line.strip() for line in about.splitlines()), keys)


def _cell(text: str) -> str:
    """Return a text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _default(default: object) -> str:
    """Return a default as the page shows it; empty for none, and for a mapping."""
    if default in (None, "", (), []) or isinstance(default, dict):
        return ""
    return f"`{default}`"


def _form(value: dict[str, Any]) -> str:
    """Return in words what a value may be.

    A description inside a value's schema is its form. The description of a key is its meaning.
    """
    if parts := value.get("allOf"):
        return _form(parts[0])
    if options := value.get("anyOf"):
        words = [_form(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "properties" in value and "title" in value:
        return _link(value["title"])
    if "$ref" in value:
        return _link(value["$ref"].rpartition("/")[2])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{part}`" for part in value["enum"])
    if "description" in value:
        return str(value["description"])
    return _plain_form(value)


def _link(title: str) -> str:
    """Return the title of a class as a link to its section."""
    kinds = {cls.__name__: kind for kind, cls in SCHEMA_KINDS.items()}
    heading = _file_heading(kinds[title]) if title in kinds else title
    return f"[{title}](#{heading.lower().replace(' ', '-')})"


def _file_heading(kind: str) -> str:
    return f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} file"


_PLURALS = {"a text": "texts", "a number": "numbers", "a whole number": "whole numbers"}


def _plain_form(value: dict[str, Any]) -> str:
    """Return in words what a value of a JSON type may be."""
    match value.get("type"):
        case "array":
            items: list[dict[str, Any]] = (
                [value["items"]] if "items" in value else value.get("prefixItems", [])
            )
            forms = dict.fromkeys(map(_form, items))
            return "a list of " + " and ".join(_PLURALS.get(form, form) for form in forms)
        case "object":
            inner = value.get("additionalProperties")
            return (
                f"a mapping of names to {_form(inner)}" if isinstance(inner, dict) else "a mapping"
            )
        case "integer":
            return "a whole number"
        case "number":
            return "a number" + (f" up to {value['maximum']}" if "maximum" in value else "")
        case "boolean":
            return "true or false"
    return "a text"
