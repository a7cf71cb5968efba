"""Commands that simulate scenarios or lay them out: run, check, plan, capacity, sweep."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.app import INTERRUPTED, app
from sim.cli.console import note, print_json, progress_bars, show_table
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


@app.command(
    "run",
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --set workload.rate='2 request/s' "
    "--out out/busy --plots",
)
def run_command(
    file: FileArgument,
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
    from sim.report.tables import comparison, estimate_table
    from sim.studies.run import economic_terms, lifetime_estimates, run

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
        if scenario.economics and (estimate := lifetime_estimates(scenario)) and not as_json:
            show_table(estimate_table(scenario.id, economic_terms(scenario), estimate))
        raise
    if out or plots:
        save_run(result.saved(), folder, plots)
    if as_json:
        print_json(result.as_json())
    else:
        show_table(comparison(result.summary, file))


@app.command("check", epilog="Example: sramsim check mine.yaml && sramsim run mine.yaml")
def check_command(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Scenario files, or catalogue names.")
    ],
    assignments: SetOption = None,
) -> None:
    """Read scenarios and check that every system fits, without a simulation."""
    from sim.scenario.layout import check, system_warnings
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
                "checked is the one with the highest bound, and run simulates the best few"
            )
        for name, members in systems.items():
            deployment = members[name].deployment if name in members else None
            for warning in system_warnings(scenario, name, deployment) if deployment else ():
                note(f"{file}: systems.{name}: warning: {warning}")


@app.command(
    "plan",
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
    result = plan(search_open_plans(open_scenario(file, assignments))).summary(lengths)
    if as_json:
        print_json(encode_summary(result))
    else:
        show_table(plan_table(result))
    if figure:
        from plots import memory

        save_figure(memory.draw(result), figure)


@app.command(
    "capacity", epilog="Example: sramsim capacity llama2-70b-lpu-vs-h100 --attainment 0.99"
)
def capacity_command(
    file: FileArgument,
    as_json: JsonOption = False,
    attainment: Annotated[
        float, typer.Option(help="Share of the requests that must meet the SLO.")
    ] = 0.9,
    requests: Annotated[
        int | None,
        typer.Option(
            min=100,
            help="Requests of a trial; default: 2,000, or more if a system holds many at once.",
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
    assignments: SetOption = None,
) -> None:
    """Find the highest request rate (or number of users) at which each system meets the SLO."""
    from sim.results.encoding import encode_summary
    from sim.studies.capacity import capacity
    from sim.studies.design import best_plans
    from sim.studies.trials import LoadTrial

    scenario = search_open_plans(open_scenario(file, assignments), attainment, requests)
    trials: dict[str, list[LoadTrial]] = {name: [] for name in scenario.systems}

    def keep_trial(system: str, trial: LoadTrial) -> None:
        trials[system].append(trial)
        print_trial(system, trial)

    if out:
        check_folder(out)
    own = capacity(scenario, attainment, requests, keep_trial)
    if out:
        save_capacity(own, trials, out)
    best = best_plans(scenario, attainment, requests, print_trial, own.systems) if plans else {}
    result = own.summary({name: plan.summary for name, plan in best.items()})
    if as_json:
        print_json(encode_summary(result))
    else:
        from sim.report.plan_tables import capacity_table

        show_table(capacity_table(result))


@app.command(
    "sweep",
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
    from sim.studies.sweep import sweep

    last = [0, 0]
    try:
        with progress_bars() as progress:

            def count_points(done: int, total: int) -> None:
                last[:] = done, total
                progress("points", done, total)

            table = sweep(file, out, assignments, jobs, dask, count_points).table
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
