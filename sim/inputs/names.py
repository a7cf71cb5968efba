"""Catalogue names: which file a text in a scenario names."""

import os
import re
from pathlib import Path

from sim.inputs.errors import ScenarioError, nearest_name
from sim.inputs.files import existing
from sim.inputs.key_paths import value_at
from sim.inputs.suggestions import spelling_hint

SUFFIXES = (".yaml", ".yml", ".json")
MODEL_FILE = "config.json"  # as the Hugging Face Hub names the description of a model
HUB_ID = re.compile(r"(?!\.\.?/)[\w.-]+/[\w.-]+(?<!\.json)(?<!\.yaml)(?<!\.yml)", re.ASCII)


def catalogue_folder() -> Path:
    """Return the catalogue's folder: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "scenarios"
    return inside if inside.is_dir() else package.parent / "scenarios"


def catalogue_names(kind: str) -> dict[str, Path]:
    """Return the entries of one folder of the catalogue by name.

    Kind 'scenarios' is the catalogue's own folder, with the claims below it.
    """
    folder = catalogue_folder()
    if kind == "scenarios":
        files = sorted([*folder.glob("*"), *folder.glob("claims/*")])
        return {
            file.relative_to(folder).with_suffix("").as_posix(): file
            for file in files
            if file.suffix in SUFFIXES
        }
    return {
        file.stem: file for file in sorted((folder / kind).glob("*")) if file.suffix in SUFFIXES
    }


def aliases(kind: str) -> dict[str, Path]:
    """Return the entries of one folder of the catalogue by their other names."""
    if kind == "scenarios":
        return {}
    from sim.inputs.document import read_document  # slow: completion needs only names of files

    return {
        alias: path
        for path in catalogue_names(kind).values()
        for alias in value_at(read_document(path).data, ("aliases",)) or ()
    }


def find_entry(text: str, kind: str) -> Path:
    """Return the file that a text names.

    A text with a '/', or that ends in .yaml, .yml or .json, is a path.
    Any other text is a catalogue name or an alias.
    A model may also be named by the folder of its config.json.

    Raises: ScenarioError with the nearest names, if there is no such file or entry.
    """
    from sim.inputs.values import Text
    from sim.units import brief

    where = f"{text.where}: " if isinstance(text, Text) else ""
    folder = text.folder if isinstance(text, Text) else Path.cwd()
    known = catalogue_names(kind)
    if text in known:
        return known[text]
    is_path = "/" in text or text.endswith(SUFFIXES)
    if not is_path or not os.path.exists(folder / text):  # a Hugging Face id has a '/' too
        known |= aliases(kind)
    if text in known:
        return known[text]
    if kind == "models" and os.path.isfile(folder / text / MODEL_FILE):
        return folder / text / MODEL_FILE
    if is_path:
        if kind == "models" and HUB_ID.fullmatch(text) and not os.path.exists(folder / text):
            raise ScenarioError(f"{where}{_hub_hint(text)}")
        near = "" if os.path.exists(folder / text) else nearest_name(text, known)
        if near:
            raise ScenarioError(f"{where}{text}: no such file; did you mean {near}?")
        return existing(folder / text, f"{where}{text}")
    hint = spelling_hint(text, known, f"there are {', '.join(catalogue_names(kind))}")
    raise ScenarioError(
        f"{where}got {brief(text)!r}; expected one of the catalogue's {kind}; {hint}"
    )


def _hub_hint(text: str) -> str:
    """Return what to download for a text that looks like an id of the Hugging Face Hub."""
    name = text.partition("/")[2]
    return (
        f"got {text!r}, which is no file; expected a catalogue name, or a {MODEL_FILE} or its"
        f" folder; for the Hugging Face Hub's {text} try"
        f" `hf download {text} {MODEL_FILE} --local-dir {name}`, and name {name}/{MODEL_FILE}"
    )
