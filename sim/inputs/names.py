"""Catalogue names: which file a text in a scenario names."""

import os
from pathlib import Path

from sim.inputs.errors import ScenarioError
from sim.inputs.files import existing
from sim.inputs.key_paths import value_at
from sim.inputs.suggestions import spelling_hint

SUFFIXES = (".yaml", ".yml", ".json")


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
    if is_path:
        return existing(folder / text, f"{where}{text}")
    hint = spelling_hint(text, known, f"there are {', '.join(catalogue_names(kind))}")
    raise ScenarioError(f"{where}{brief(text)!r} is not among the catalogue's {kind}; {hint}")
