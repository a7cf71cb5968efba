"""The command that explains a result: explain."""

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.app import LOOK, app
from sim.cli.completion import complete_results
from sim.cli.console import print_json
from sim.cli.options import JsonOption, SetOption, open_scenario, search_open_plans
from sim.inputs.errors import UserError


@app.command(
    "explain",
    rich_help_panel=LOOK,
    epilog="Example: sramsim explain llama2-70b-lpu-vs-h100 --system lpu",
)
def explain_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|FILE",
            help="Folder of `run --out`, a scenario file, or the name of one in the catalogue.",
            autocompletion=complete_results,
        ),
    ],
    system: Annotated[str | None, typer.Option(help="Name of one system; default: all.")] = None,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Show why a token takes its time: formulas with values, what binds, and all sources."""
    from sim.report.explanation_text import explanation_text
    from sim.results.encoding import encode_summary
    from sim.results.saving import load_result
    from sim.studies.explaining import explain, scenario_of_result

    saved = None
    if Path(source).is_dir():
        if assignments:
            raise UserError(
                f"--set: got {assignments[0]} with {source}, which is a result; expected a "
                f"scenario; try sramsim explain SCENARIO --set {assignments[0]}"
            )
        saved = load_result(Path(source))
        scenario = scenario_of_result(saved, source)
    else:
        scenario = search_open_plans(open_scenario(source, assignments))
    summary = explain(scenario, [system] if system else None, saved)
    if as_json:
        print_json(encode_summary(summary))
    else:
        print(explanation_text(summary))
