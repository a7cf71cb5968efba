"""Scenarios from Python: a file, a catalogue name, a mapping, or a scenario, with changed values.

    >>> as_scenario("llama2-70b-lpu-vs-h100", {"workload__rate": "2 request/s"}).workload.rate
    2.0

A changed value has the key that `--set` takes. In a keyword, `__` stands for a dot.
"""

import copy
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from sim.inputs.document import Document
from sim.inputs.errors import ArgumentError, UserError
from sim.scenario.assignments import assign_all
from sim.scenario.scenario import Scenario, open_document, scenario_from

ScenarioSource: TypeAlias = Scenario | Mapping[str, Any] | Path | str


def as_scenario(source: ScenarioSource, changes: Mapping[str, object] | None = None) -> Scenario:
    """Return a scenario with changed values.

    Raises: ScenarioError if there is no such file or a value is wrong; UserError as `as_document`.
    """
    if isinstance(source, Scenario) and not changes:
        return source
    return scenario_from(as_document(source, changes))


def as_document(source: ScenarioSource, changes: Mapping[str, object] | None = None) -> Document:
    """Return the document of a scenario with changed values, before validation.

    Raises: ScenarioError if there is no such file, or a key has no keys of its own.
    Raises: UserError if values of a scenario were set in code, because it then has no document, or
    if the source is no scenario.
    """
    if isinstance(source, Scenario):
        document = _document_of(source)
    elif isinstance(source, Mapping):
        document = Document.from_text(yaml_text(source))
    elif isinstance(source, str | Path):
        document = open_document(source)
    else:  # a number would be a file that is open already
        raise UserError(
            f"scenario: got {type(source).__name__}; expected a path, a name of the catalogue, a "
            "mapping or a scenario; try 'llama2-70b-lpu-vs-h100'"
        )
    assignments = [assignment_of(key, value) for key, value in (changes or {}).items()]
    assign_all(document, assignments, in_python=True)
    return document


def require_whole(name: str, value: object, least: int) -> None:
    """Check a whole number that a function takes.  Raises: UserError otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ArgumentError(
            name, f"got {value!r}; expected a whole number of at least {least}; try {least}"
        )


def assignment_of(key: str, value: object) -> str:
    """Return the assignment of a value to a key, as `--set` takes it.

    Raises: UserError for a value that a file could not have.
    """
    dotted = key.replace("__", ".")
    try:
        return f"{dotted}={yaml_text(value)}"
    except yaml.YAMLError:
        raise UserError(
            f"{dotted}: got a value of type {type(value).__name__}; expected a text, a number, "
            "true or false, None, a list or a mapping of these; try a text, such as '2 s'"
        ) from None


def _document_of(scenario: Scenario) -> Document:
    """Return a copy of the document that a scenario was read from.

    Raises: UserError if there is none, or the scenario was changed since.
    """
    document = copy.deepcopy(scenario.document)
    if document is None or scenario_from(document) != scenario:
        raise UserError(
            f"scenario {scenario.id}: got values set in code; expected a scenario whose values "
            "are those of its file; try model_copy(update=...), or a file"
        )
    return document


def yaml_text(value: object) -> str:
    """Return a value of Python as YAML on one line.  A type that YAML lacks is a YAMLError."""
    text: str = yaml.safe_dump(
        _plain_value(value),
        default_flow_style=True,
        width=10**9,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()


def _plain_value(value: object) -> object:
    """Return a value with plain types: paths and texts of files as texts, NumPy's as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, str | Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value
