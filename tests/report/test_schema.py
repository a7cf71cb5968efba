"""The schema says what the classes read, and the page of all keys is current."""

import json
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import yaml
from pydantic import BaseModel, Field

from sim.inputs.names import catalogue_folder, catalogue_names
from sim.report.reference import SCHEMA_KINDS, json_schema, reference
from sim.units import Seconds


def test_the_page_of_all_keys_is_current():
    assert (catalogue_folder() / "REFERENCE.md").read_text(encoding="utf-8") == reference(), (
        "make reference"
    )


def test_no_key_has_a_default_and_names_another_one():
    """`transfer.handover` had 0.0 on the page, and in truth that of the engine."""
    rows = [line.strip("| ").split(" | ") for line in reference().splitlines()]
    with_default = [row for row in rows if len(row) == 4 and row[2].strip().startswith("`")]
    assert len(with_default) > 50
    both = [row[0] for row in with_default if "default:" in row[3] or "; if left out" in row[3]]
    assert both == []


@pytest.mark.parametrize("kind", SCHEMA_KINDS)
def test_every_key_of_a_class_is_in_its_schema(kind):
    schema = json_schema(kind)
    assert set(schema["properties"]) == set(SCHEMA_KINDS[kind].model_fields)
    json.dumps(schema)


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="jsonschema is not installed")
@pytest.mark.parametrize("kind", ["scenario", "chip", "cluster", "engine"])
def test_what_the_catalogue_holds_is_what_the_schema_says(kind):
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json_schema(kind))
    for name, path in catalogue_names(f"{kind}s").items():
        errors = [
            error.message
            for error in validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))
        ]
        assert errors == [], name


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="jsonschema is not installed")
def test_a_part_may_be_like_another():
    from jsonschema import Draft202012Validator

    system = {"chips": 8, "engine": {"like": "ideal", "layer_overhead": "2 us"}}
    like = {"chip": {"like": "h100-sxm", "memory.hbm.capacity": "1 GB"}}
    asked = {
        "workload": {
            "kind": "poisson",
            "rate": "1 request/s",
            "requests": 3,
            "prompt": "64 token",
            "output": "8 token",
        }
    }
    validator = Draft202012Validator(json_schema("scenario"))

    def errors(system: dict[str, object]) -> int:
        scenario = {
            "model": {"like": "llama-2-7b", "num_hidden_layers": 4},
            **asked,
            "systems": {"one": system},
        }
        return len(list(validator.iter_errors(scenario)))

    assert (
        errors(system | like) == errors(system | {"cluster": {"like": "dgx-h100", "chips": 4}}) == 0
    )
    assert (
        errors(system | {"chip": {"like": 3}})
        == errors(system | {"chip": {"lik": "h100-sxm"}})
        == 1
    )


def test_kinds_are_told_apart_and_a_users_own_is_let_in():
    schema = json_schema("chip")
    options = [
        schema["$defs"][o["$ref"].rpartition("/")[2]] if "$ref" in o else o
        for o in schema["properties"]["compute"]["anyOf"]
    ]
    kinds = {option["properties"]["kind"].get("const") for option in options}
    assert {"roofline", "tensor-streaming"} <= kinds
    assert any(option["properties"]["kind"].get("pattern") == ":" for option in options)


def properties(schema: object) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield the title of each class at any depth of a schema, with a key and its schema."""
    if isinstance(schema, list):
        for part in schema:
            yield from properties(part)
    elif isinstance(schema, dict):
        if "properties" in schema and "title" in schema:
            for key, value in schema["properties"].items():
                yield schema["title"], key, value
        for part in schema.values():
            yield from properties(part)


@pytest.mark.parametrize("kind", SCHEMA_KINDS)
def test_every_key_has_a_meaning(kind):
    meanings = {
        (title, key): str(value.get("description", ""))
        for title, key, value in properties(json_schema(kind))
    }
    assert len(meanings) > len(SCHEMA_KINDS[kind].model_fields) - 1
    assert [place for place, text in meanings.items() if not text.endswith(".")] == []
    long = [place for place, text in meanings.items() if len(text.split()) > 20]
    assert long == []


def test_the_form_of_a_value_is_kept_beside_the_meaning_of_its_key():
    system = json_schema("scenario")["$defs"]["System"]["properties"]
    assert system["request_overhead"]["description"].startswith("Time that")
    assert system["request_overhead"]["allOf"][0]["description"] == "a quantity in s"
    assert system["deadline"]["description"].startswith("Time after")
    lines = reference().splitlines()
    rows = [
        line
        for line in lines
        if line.startswith("| `request_overhead` | a quantity in s | `0.0` |")
    ]
    assert len(rows) == 1


def test_a_cell_has_no_bar_and_no_newline(monkeypatch):
    class Odd(BaseModel):
        """A class."""

        time: Seconds = Field(description="one | two\nthree")

    monkeypatch.setitem(SCHEMA_KINDS, "odd", Odd)
    assert "| `time` | a quantity in s | required | one \\| two three |" in reference().splitlines()


def test_every_kind_has_its_table_on_the_page():
    page = reference()
    for title in (
        "Roofline",
        "TensorStreaming",
        "Dragonfly",
        "Hierarchical",
        "Poisson",
        "ClosedLoop",
        "Plan",
        "System",
        "Memory",
    ):
        assert f"\n## {title}\n" in page
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {5}
