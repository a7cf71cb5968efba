"""Files that the commands write: results, figures and pages, whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.console import note, status_line
from sim.inputs.errors import UserError
from sim.inputs.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sim.results.saving import Saved
    from sim.studies.capacity_result import CapacityResult

FIGURE_SUFFIXES = ("png", "svg", "pdf")


def save_text(text: str, path: Path, hint: str = "") -> None:
    """Write a text file, and print a note with a hint about it."""
    with write_whole(path.parent) as scratch:
        (scratch / path.name).write_text(text, encoding="utf-8")
    note(f"{path}: written{hint}")


def save_run(saved: "Saved", folder: Path, plots: bool) -> None:
    """Write result.json, requests.parquet and, if `plots`, the figures."""
    from sim.results.saving import save_result

    with write_whole(folder) as scratch:
        save_result(saved, scratch, folder)
        if plots:
            save_run_figures(saved, scratch)
    note(f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))}")


def save_run_figures(saved: "Saved", folder: Path) -> "dict[str, Figure]":
    """Write all figures of a result as PNG, SVG and PDF, and return them by name."""
    from plots import draw_all

    with status_line("drawing figures"):
        figures = draw_all(saved)
        save_figures(figures, folder)
    return figures


def note_figures(names: Iterable[str], folder: Path) -> None:
    """Print a note of the figures in a folder."""
    note(f"{folder}: {', '.join(names)} as {', '.join(FIGURE_SUFFIXES)}")


def save_capacity(result: "CapacityResult", folder: Path) -> None:
    """Write capacity.json, the table of all trials, and the figure of attainment over load."""
    from plots import attainment
    from sim.results.encoding import encode_summary
    from sim.results.saving import write_parquet
    from sim.studies.capacity_table import trial_table

    table, summary = trial_table(result), result.summary()
    with write_whole(folder) as scratch:
        text = json.dumps(encode_summary(summary), indent=2, allow_nan=False) + "\n"
        (scratch / "capacity.json").write_text(text, encoding="utf-8")
        (scratch / "trials.csv").write_bytes(table.write_csv().encode())
        write_parquet(table, scratch / "trials.parquet")
        save_figures({"capacity": attainment.draw(summary, table)}, scratch)
    note(f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))}")


def save_figures(figures: "dict[str, Figure]", folder: Path) -> None:
    """Write figures by name as PNG, SVG and PDF."""
    from plots import style

    with write_whole(folder) as scratch:
        for name, figure in figures.items():
            for suffix in FIGURE_SUFFIXES:
                style.save(figure, scratch / f"{name}.{suffix}")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write one figure in the format of its suffix, and print a note."""
    from plots import style

    with write_whole(path.parent) as scratch:
        style.save(figure, scratch / path.name)
    note(f"{path}: written")


def check_figure_name(path: Path | None) -> None:
    """Check the name of a figure before anything long runs.

    Raises: UserError if the suffix is no format of figures.
    """
    if path and path.suffix.removeprefix(".") not in FIGURE_SUFFIXES:
        raise UserError(
            f"--figure: got {path}; expected a name that ends with .png, .svg or .pdf;"
            f" try {path.parent / (path.stem or 'figure')}.png"
        )


def check_folder(folder: Path) -> None:
    """Check that a folder can be written, before anything long runs.  Raises: UserError."""
    with write_whole(folder):
        pass
