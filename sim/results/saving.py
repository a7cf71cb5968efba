"""A run in a folder: result.json (the summary) and requests.parquet (a row for each request).

>>> load_result(Path("out")).summary.systems["lpu"].metrics.verdict  # doctest: +SKIP
'STABLE'
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from sim.inputs.errors import UserError
from sim.inputs.key_paths import JsonObject, JsonValue, dotted_values, replaced, value_at
from sim.inputs.values import Text
from sim.results.encoding import decode_summary, encode_summary
from sim.results.summary import RunOrigin, RunSummary

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class Saved:
    """A run as figures and reports read it: its summary, and the rows of all systems.

    requests: a row for each request and system, with the columns of `sim.results.rows.COLUMNS`.
    """

    summary: RunSummary
    requests: "polars.DataFrame"


def save_result(saved: Saved, folder: Path, place: Path | None = None) -> None:
    """Write result.json and requests.parquet into a folder.

    place: the folder to which the files are moved afterwards; None: they stay.
    """
    summary = saved.summary
    if origin := summary.origin:
        folders = _folders_of_files(origin.inputs, place or folder)
        summary = replace(summary, origin=replace(origin, folders=folders or None))
    (folder / "result.json").write_text(
        json.dumps(encode_summary(summary), indent=2, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    write_parquet(saved.requests, folder / "requests.parquet")


def _folders_of_files(inputs: Mapping[str, JsonValue], place: Path) -> dict[str, str]:
    """Return the folders of the inputs that name a user's file, relative to a folder, by key.

    Such an input is a path, or a name of a user's code, such as 'my_chips:InMemory'.
    """
    folders = {}
    for key, value in dotted_values(inputs, into_lists=True):
        if isinstance(value, Text):
            names = value, f"{value.partition(':')[0]}.py"
            with suppress(OSError, ValueError):  # a text that no path may have
                if value and any(os.path.exists(value.folder / name) for name in names):
                    folders[key] = os.path.relpath(value.folder, place)
    return folders


def inputs_of_result(origin: RunOrigin, folder: Path) -> JsonObject:
    """Return the inputs of a result in a folder, as its scenario had them, with tuples for lists.

    Paths do not depend on the working folder, except in results of earlier versions.
    """
    inputs: JsonObject = {key: _frozen(value) for key, value in origin.inputs.items()}
    for key, parent in (origin.folders or {}).items():
        path = key.split(".")
        text = Text(str(value_at(inputs, path)), f"{folder}: {key}", folder / parent)
        inputs = replaced(inputs, path, text)
    return inputs


def _frozen(value: JsonValue) -> JsonValue:
    """Return JSON data with tuples in place of lists, as scenarios have them."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def write_parquet(table: "polars.DataFrame", path: Path) -> None:
    """Write a table to a file.

    The bytes pass through memory: on a full disk Polars raises an error of its own, Python an
    OSError, which the command line reports.
    """
    buffer = BytesIO()
    table.write_parquet(buffer)
    path.write_bytes(buffer.getvalue())


def load_result(folder: Path) -> Saved:
    """Return the run that `save_result` wrote into a folder.

    Results of earlier versions may lack keys. Their fields have the defaults of the class.
    Raises: UserError if the folder holds no result.
    """
    import polars

    with one_line_for(folder, "result of `sramsim run --out`", "run"):
        data = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if not (isinstance(data, dict) and {"scenario", "seed", "systems"} <= data.keys()):
            raise ValueError("result.json is of another kind")
        summary = decode_summary(RunSummary, data)
        return Saved(summary, polars.read_parquet((folder / "requests.parquet").read_bytes()))


@contextmanager
def one_line_for(folder: Path, what: str, command: str) -> Iterator[None]:
    """Turn every error of reading saved files into one line.

    what: what the folder should hold, such as 'finished sweep'.
    command: the command of sramsim that writes it.
    Raises: UserError if the block inside cannot read a file, or the file is of another kind.
    """
    import polars

    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        got = "a file" if folder.is_file() else f"no {Path(error.filename).name}"
        raise UserError(
            f"{folder}: got {got}; expected the folder of a {what}; "
            f"try sramsim {command} SCENARIO --out FOLDER"
        ) from None
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        polars.exceptions.PolarsError,
    ) as error:
        raise UserError(f"{folder}: holds no {what}: {str(error).splitlines()[0]}") from None
