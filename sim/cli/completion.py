"""Names that the shell completes: entries of the catalogue, scenarios, and YAML files.

>>> complete_chips("groq-lpu")
['groq-lpu-v1']

Completion lists names of files and reads none, because the shell waits for it.
"""

from pathlib import Path

import typer

from sim.inputs.names import catalogue_names

FILE_PATTERNS = ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml")  # in a folder, and one level below


def complete_chips(incomplete: str) -> list[str]:
    """Return the chips and files that begin with a text."""
    return _names_and_files("chips", incomplete)


def complete_engines(incomplete: str) -> list[str]:
    """Return the engines and files that begin with a text."""
    return _names_and_files("engines", incomplete)


def complete_models(incomplete: str) -> list[str]:
    """Return the models and files that begin with a text."""
    return _names_and_files("models", incomplete)


def complete_scenarios(incomplete: str) -> list[str]:
    """Return the shipped scenarios and the files that begin with a text."""
    return _names_and_files("scenarios", incomplete)


def complete_results(incomplete: str) -> list[str]:
    """Return the scenarios, files and folders of results that begin with a text."""
    folders = {
        path.rpartition("/")[0]
        for name in ("result.json", "sweep.json")
        for pattern in (f"*/{name}", f"*/*/{name}")
        for path in _below(incomplete, pattern)
    }
    return sorted(folders) + complete_scenarios(incomplete)


def complete_entries(context: typer.Context, incomplete: str) -> list[str]:
    """Return the entries of the kind that the command line has already, such as `show chip`."""
    return _names_and_files(f"{context.params.get('kind')}s", incomplete)


def _names_and_files(kind: str, incomplete: str) -> list[str]:
    names = [name for name in catalogue_names(kind) if name.startswith(incomplete)]
    files = {path for pattern in FILE_PATTERNS for path in _below(incomplete, pattern)}
    return names + sorted(files)


def _below(incomplete: str, pattern: str) -> list[str]:
    """Return the paths of a pattern that begin with a text, in the folder that the text names."""
    folder = Path(incomplete or ".")
    if not incomplete.endswith("/"):
        folder = folder.parent
    if not folder.is_dir():
        return []
    here = "./" if incomplete.startswith("./") else ""  # pathlib drops it, and the shell compares
    paths = [here + path.as_posix() for path in folder.glob(pattern)]
    return [path for path in paths if path.startswith(incomplete)]
