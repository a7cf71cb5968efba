"""The command that writes a page to explore a sweep: explore."""

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.app import LOOK, app
from sim.cli.completion import complete_results
from sim.cli.saving import save_text
from sim.inputs.errors import UserError


@app.command(
    "explore",
    rich_help_panel=LOOK,
    epilog="Example: sramsim sweep pareto --out out/pareto "
    "&& sramsim explore out/pareto -o explore.html",
)
def explore_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder of `sweep --out`.", autocompletion=complete_results
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write.")] = Path(
        "explore.html"
    ),
) -> None:
    """Write one HTML page to explore a sweep: choose axes, filter, read off values.

    The page needs no network. It holds plotly.js, of the extra `explore`.
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError(
            f"--output: got {out}; expected a name that ends with .html; try explore.html"
        )
    from sim.report.explore import explore_page

    save_text(explore_page(folder), out)
