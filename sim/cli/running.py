"""Commands that simulate scenarios or lay them out: run, check, plan, capacity, sweep."""

import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.app import ASK, INTERRUPTED, app
from sim.cli.completion import complete_scenarios
from sim.cli.console import (
    note,
    print_json,
    progress_bars,
    show_screen,
    show_table,
    status_line,
)
from sim.cli.options import (
    FileArgument,
    JsonOption,
    SetOption,
    open_scenario,
    print_trial,
    search_open_plans,
)
from sim.cli.saving import (
    check_figure_name,
    check_folder,
    save_capacity,
    save_figure,
    save_run,
)
from sim.inputs.errors import UserError

LEAST_REQUESTS = 100  # of a trial; with fewer, the attainment is too uncertain

if TYPE_CHECKING:
    from sim.planning.deployment import Deployment
    from sim.scenario.scenario import Scenario
    from sim.studies.run import Result


class OutputFormat(StrEnum):
    """A format of the output of `run`."""

    TEXT = "text"
    VLLM = "vllm"
    JSON = "json"


@app.command(
    "run",
    rich_help_panel=ASK,
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --set workload.rate='2 request/s' "
    "--out out/busy --plots",
)
def run_command(
    file: FileArgument,
    every_row: Annotated[
        bool, typer.Option("--all", help="Print every row and finding, at least 120 columns wide.")
    ] = False,
    output: Annotated[
        OutputFormat,
        typer.Option("--format", help="`vllm`: a block for each system as `vllm bench serve`."),
    ] = OutputFormat.TEXT,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for result.json and requests.parquet.")
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw the figures into --out (default: out).")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Replace the scenario's seed.")] = None,
    assignments: SetOption = None,
) -> None:
    """Simulate every system of a scenario under the same requests, and compare them."""
    from sim.cost.plan import PlanError
    from sim.report.first_screen import first_screen
    from sim.report.tables import comparison, estimate_table
    from sim.report.vllm_block import vllm_blocks
    from sim.studies.accounts import lifetime_estimates
    from sim.studies.run import run

    output, words = _one_format(output, as_json, every_row), command_words(file, assignments, seed)
    scenario = open_scenario(file, assignments, seed)
    folder = out or Path("out")
    if out or plots:
        check_folder(folder)
    try:
        scenario = search_open_plans(scenario)
        with progress_bars() as progress:
            result = run(scenario, scenario.seed, progress)
    except PlanError:
        # Prices do not depend on the requests, so print them although a model does not fit.
        if (
            scenario.economics
            and (estimate := lifetime_estimates(scenario))
            and output is OutputFormat.TEXT
        ):
            named = {
                scenario.systems[name].full_label or name: cost for name, cost in estimate.items()
            }
            show_table(estimate_table(scenario.id, scenario.money.terms, named))
        raise
    note_unused_keys(file, result)
    if out or plots:
        save_run(result.saved(), folder, plots)
    if output is OutputFormat.JSON:
        print_json(result.as_json())
    elif output is OutputFormat.VLLM:
        print(vllm_blocks(result.summary))
    elif every_row:
        show_table(comparison(result.summary, words))
    else:
        summary, question = result.summary, scenario.question
        show_screen(lambda width: first_screen(summary, question, words, width))


def note_unused_keys(file: str, result: "Result") -> None:
    """Print a warning on stderr for each key that is set and has no effect."""
    from sim.scenario.pools import member_place
    from sim.scenario.unused_keys import unused_keys

    scenario = result.scenario
    for name, system in result.systems.items():
        for member, of in system.members.items():
            where = f"{file}: systems.{member_place(scenario.systems, name, member)}"
            for line in unused_keys(scenario, member, of.deployment):
                note(f"{where}: warning: {line}")


def _one_format(output: OutputFormat, as_json: bool, every_row: bool) -> OutputFormat:
    """Return the format of the output. `--json` is short for `--format json`.

    Raises: UserError if two of the options contradict each other.
    """
    if as_json and output is not OutputFormat.TEXT:
        raise UserError(f"--format: got {output} with --json; expected one; try leaving --json out")
    if as_json:
        output = OutputFormat.JSON
    if every_row and output is not OutputFormat.TEXT:
        raise UserError(f"--all: got format {output}; expected text; try leaving --all out")
    return output


def command_words(file: str, assignments: list[str] | None, seed: int | None) -> str:
    """Return the words of a command line that open the same scenario again."""
    changes = [*(assignments or ()), *([] if seed is None else [f"seed={seed}"])]
    return shlex.join([file, *(word for change in changes for word in ("--set", change))])


@app.command(
    "check", rich_help_panel=ASK, epilog="Example: sramsim check mine.yaml && sramsim run mine.yaml"
)
def check_command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Scenario files, or catalogue names.",
            autocompletion=complete_scenarios,
        ),
    ],
    assignments: SetOption = None,
) -> None:
    """Read scenarios and check that every system fits, without a simulation."""
    from sim.scenario.layout import check
    from sim.scenario.pools import member_place
    from sim.scenario.scenario import read
    from sim.studies.design import bound_plans

    for file in files:
        scenario = bound_plans(read(file, assignments))
        systems = check(scenario)
        chips = {
            name: sum(member.chips for member in members.values())
            for name, members in systems.items()
        }
        print(f"{file}: ok ({', '.join(f'{name} on {n} chips' for name, n in chips.items())})")
        for name, search in scenario.searches.items():
            note(
                f"{file}: systems.{name}: search: capacity: {search.considered} plans fit; "
                "checked is the one with the highest estimate, and run simulates the best few"
            )
        for name, members in systems.items():
            for member_name, member in members.items():
                where = member_place(scenario.systems, name, member_name)
                print_warnings(file, scenario, {where: (member_name, member.deployment)})


def print_warnings(
    file: str, scenario: "Scenario", deployments: "Mapping[str, tuple[str, Deployment]]"
) -> None:
    """Print the warnings of plain systems on stderr.

    deployments: by place in the scenario, the system's name and its deployment.
    """
    from sim.scenario.layout import system_warnings

    for place, (name, deployment) in deployments.items():
        for warning in system_warnings(scenario, name, deployment):
            note(f"{file}: systems.{place}: warning: {warning}")


@app.command(
    "plan",
    rich_help_panel=ASK,
    epilog="Example: sramsim plan llama2-70b-lpu-vs-h100 --tokens 4096 --tokens 1024 "
    "--set systems.lpu.chips=640",
)
def plan_command(
    file: FileArgument,
    more: Annotated[list[int] | None, typer.Argument(hidden=True, min=1)] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Count how many sequences of this length fit; repeatable."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the memory use of each stage (png, svg, pdf).")
    ] = None,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Show memory use, fit, and unloaded TTFT and TPOT of each system."""
    check_figure_name(figure)
    from sim.report.plan_tables import plan_table
    from sim.results.encoding import encode_summary
    from sim.studies.run import plan

    lengths = [*(tokens or []), *(more or [])] or [4096]
    with status_line("laying out the systems"):
        planned = plan(search_open_plans(open_scenario(file, assignments)))
        result = planned.summary(lengths)
    if as_json:
        print_json(encode_summary(result))
    else:
        show_table(plan_table(result))
    fitting = {name: (name, of) for name, of in planned.deployments.items() if of.fit.fits}
    print_warnings(file, planned.scenario, fitting)
    if figure:
        from plots import memory

        save_figure(memory.draw(result), figure)


@app.command(
    "capacity",
    rich_help_panel=ASK,
    epilog="Example: sramsim capacity llama2-70b-lpu-vs-h100 --attainment 0.99",
)
def capacity_command(
    file: FileArgument,
    as_json: JsonOption = False,
    attainment: Annotated[
        float | None,
        typer.Option(
            help="Share of the requests that must meet the SLO; default: its percentile, or 0.9."
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Requests of a trial, at least 100; default: 2,000, or more if a system holds "
            "many.",
        ),
    ] = None,
    plans: Annotated[
        bool,
        typer.Option("--plans", help="Search the plan with the highest goodput of each system."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for capacity.json, trials.csv and a figure of all trials."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes for the systems; default for long trials: one a core.",
        ),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Find the highest request rate (or number of users) at which each system meets the SLO."""
    from sim.results.encoding import encode_summary
    from sim.scenario.pools import why_plan_is_kept
    from sim.studies.capacity import capacity
    from sim.studies.design import best_plans

    if requests is not None and requests < LEAST_REQUESTS:
        raise UserError(
            f"--requests: got {requests}; expected at least {LEAST_REQUESTS}; try {LEAST_REQUESTS}"
        )
    scenario = open_scenario(file, assignments)
    if out:
        check_folder(out)
    # No status line: each trial is reported when it is over, by the process that made it.
    own = capacity(scenario, attainment, requests, print_trial, jobs=jobs)
    if out:
        save_capacity(own, out)
    best = {}
    if plans:
        for name, system in own.scenario.systems.items():
            if why := why_plan_is_kept(system):
                note(f"{file}: systems.{name}: --plans tries no other plan: {why}")
        best = best_plans(own.scenario, attainment, requests, print_trial, own.systems, jobs)
    result = own.summary({name: plan.summary for name, plan in best.items()})
    if as_json:
        print_json(encode_summary(result))
    else:
        from sim.report.plan_tables import capacity_table

        show_table(capacity_table(result))


@app.command(
    "sweep",
    rich_help_panel=ASK,
    epilog="Example: sramsim sweep latency-vs-load --jobs 2 --out out/load "
    "&& sramsim plot out/load",
)
def sweep_command(
    file: FileArgument,
    out: Annotated[
        Path, typer.Option(help="Folder for points and table; finished points are not run again.")
    ],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default: one for each core.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Address of a Dask scheduler; its workers run the points."
        ),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Simulate every point of a scenario's sweep. After Ctrl-C, the same command continues."""
    from sim.scenario.scenario import open_document
    from sim.studies.sweep import sweep

    document = open_document(file, assignments)
    last = [0, 0]
    try:
        with progress_bars() as progress:

            def count_points(done: int, total: int) -> None:
                last[:] = done, total
                progress("points", done, total)

            table = sweep(document, out, None, jobs, dask, count_points).table
    except KeyboardInterrupt:
        note(
            f"interrupted; {out} has {last[0]} of {last[1]} points;"
            " the same command computes the rest"
        )
        sys.exit(INTERRUPTED)
    wrong = table.filter(table["error"] != "")
    note(f"{out}: {last[1]} points, {len(table)} rows: sweep.json, table.csv, table.parquet")
    if len(wrong):
        note(f"{out}: {len(wrong)} rows have an error; the first: {wrong['error'][0]}")
