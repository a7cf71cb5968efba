"""Engine files that `sramsim calibrate` writes: the old file with fitted numbers and sources.

fitted_engine_file(path, calibrate(path))  # the text of the new file
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sim.inputs.document import EXPONENT, Document
from sim.inputs.files import load_text
from sim.inputs.key_paths import value_at
from sim.validation.calibrate import Calibration


def fitted_engine_file(path: Path, fit: Calibration) -> str:
    """Return an engine's file with the values of a fit, their sources and ranges.

    A range is two standard errors to each side, within the bounds of the fit.
    """
    document = Document(path)
    source: dict[str, str] = dict(value_at(document.data, ("source",)) or {})
    ranges = dict(value_at(document.data, ("range",)) or {})
    for number in fit.moved:
        low = max(number.low, number.value - 2 * number.error)
        high = min(number.high, number.value + 2 * number.error)
        for key in number.keys:
            document.set(f"{key}={number.written(number.value)}")
            value = f"{number.written(number.value)} +- {number.written(number.error)}"
            source[key] = f"fitted: {value}, to {fit.data}; {fit.command}"
            ends = number.written(low), number.written(high)
            ranges[key] = ends if number.unit else tuple(map(float, ends))
    for key in (key for number in fit.unidentifiable for key in number.keys):
        if source.get(key, "").startswith("fitted"):
            source[key] = f"assumed: {fit.data} do not identify it; {fit.command}"
    data: dict[str, object] = {
        key: value for key, value in document.data.items() if key not in ("source", "range", "fit")
    }
    numbers = f"{fit.degrees} number{'s' * (fit.degrees > 1)}"
    data["fit"] = {
        **value_at(document.data, ("fit",)),
        "found": f"{numbers}, {fit.data}: {fit.errors}",
    }
    measured_on = {
        point.system.chip.id for point in fit.points if point.system and point.system.chip
    }
    data["points"] = sorted({*(value_at(data, ("points",)) or ()), *measured_on})
    data["range"], data["source"] = ranges, source
    text = load_text(path, document.shown)
    head = "".join(text.splitlines(keepends=True)[: _comment_lines(text)])
    return head + "".join(yaml_lines(data))


def _comment_lines(text: str) -> int:
    """Return the number of comment lines at the beginning of a file."""
    lines = text.splitlines()
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def yaml_lines(data: Mapping[str, object]) -> list[str]:
    """Return lines of YAML, one for each key, and for each entry of `source`, `range`, `fit`."""
    lines = []
    for key, value in data.items():
        if key in ("source", "range", "fit") and isinstance(value, Mapping):
            lines.append(f"{key}:\n")
            lines += [f"  {name}: {_flow(entry)}\n" for name, entry in value.items()]
        else:
            lines.append(f"{key}: {_flow(value)}\n")
    return lines


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_quoted(str(key))}: {_flow(entry)}" for key, entry in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Return a text plain if YAML reads it as the same text, else in quotes."""
    plain = (
        all(letter.isalnum() or letter in " ._/-()" for letter in text)
        and yaml.safe_load(text) == text
        and not EXPONENT.fullmatch(text)
    )
    return text if plain else json.dumps(text, ensure_ascii=False)
