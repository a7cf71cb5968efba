"""Files: read as UTF-8 text, written completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sim.inputs.errors import ScenarioError, UserError
from sim.inputs.read_files import record_file

MAX_FILE = 10_000_000  # bytes; a scenario is a few kB


def shorten(path: Path) -> str:
    """Return the path as a person would type it: relative if it is below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def existing(path: Path, shown: str) -> Path:
    """Return the path of an existing file.

    Raises: ScenarioError if it is a directory or does not exist.
    """
    if os.path.isdir(path):
        raise ScenarioError(f"{shown}: is a directory; expected a file")
    # Not Path.is_file: it raises for a name that is too long or a folder without permission.
    if not os.path.isfile(path):
        raise ScenarioError(f"{shown}: no such file")
    return path


def load_bytes(path: Path, shown: str, most: int) -> bytes:
    """Return a file's content.

    Raises: ScenarioError if it is missing, larger than `most` bytes or unreadable.
    """
    record_file(path)
    try:
        if path.stat().st_size > most:
            raise ScenarioError(
                f"{shown}:1: got a larger file; expected {most // 1_000_000} MB at most"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise ScenarioError(f"{shown}: no such file") from None
    except OSError as error:
        raise ScenarioError(f"{shown}: {error.strerror}") from None


def decoded(content: bytes, shown: str) -> str:
    """Return the text of a file's content.

    Raises: ScenarioError with the line, if it is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = f"got the byte {content[error.start]:#04x}; expected a text in UTF-8"
        raise ScenarioError(f"{shown}:{line}: {reason}; try converting the file") from None


def load_text(path: Path, shown: str, most: int = MAX_FILE) -> str:
    """Return a file's text.

    Raises: ScenarioError if it is missing, larger than `most` bytes, unreadable or not UTF-8.
    """
    text = decoded(load_bytes(path, shown, most), shown)
    # JSON allows tabs as indentation, YAML does not.
    return text.replace("\t", " ") if path.suffix == ".json" else text


@contextmanager
def write_whole(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder whose files move into `folder` at the end.

    After an error none of them moves, and folders made on the way are removed if they are empty.

    Raises: UserError if the folder or a file cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            yield Path(scratch)
            files = sorted(Path(scratch).iterdir())
            for file in files:
                if (folder / file.name).is_dir():
                    raise UserError(f"{folder / file.name}: cannot be written: it is a directory")
            for file in files:
                os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        for path in made:
            with suppress(OSError):  # not empty: files were written into it
                path.rmdir()
