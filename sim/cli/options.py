"""Options that several commands share, and the scenario that they name."""

from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.completion import complete_scenarios
from sim.cli.console import note

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario
    from sim.studies.load_trial import LoadTrial

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="Scenario file, or the name of one in the catalogue.",
        autocompletion=complete_scenarios,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B.C=VALUE",
        help="Change one value of the scenario, such as workload.rate='2 request/s'; repeatable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def open_scenario(file: str, assignments: list[str] | None, seed: int | None = None) -> "Scenario":
    """Return the scenario of a file, with `--set` values and, if given, another seed."""
    from sim.scenario.scenario import read

    scenario = read(file, assignments)
    return scenario if seed is None else scenario.model_copy(update={"seed": seed})


def search_open_plans(scenario: "Scenario") -> "Scenario":
    """Return the scenario with degrees in place of `search: capacity`, and print each trial."""
    from sim.studies.design import search_plans

    return search_plans(scenario, progress=print_trial)


def print_trial(system: str, trial: "LoadTrial") -> None:
    """Print the result of one trial of a capacity search on stderr."""
    from sim.results.labels import percent_text

    load = f"{trial.load:.4g} {'users' if trial.closed else 'request/s'}"
    note(f"{system}: at {load}, {percent_text(trial.attainment, 1)} meet the SLO, {trial.verdict}")
