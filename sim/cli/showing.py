"""Commands that show results and entries: plot, report, compare, trace, catalog, show."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.app import LOOK, TRUST, app
from sim.cli.completion import complete_entries, complete_results
from sim.cli.console import print_json, show_table
from sim.cli.options import (
    FileArgument,
    JsonOption,
    SetOption,
    open_scenario,
    search_open_plans,
)
from sim.cli.running import run_command
from sim.cli.saving import (
    check_figure_name,
    note_figures,
    save_figure,
    save_figures,
    save_run_figures,
    save_text,
)
from sim.inputs.errors import UserError
from sim.inputs.suggestions import unknown_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sim.scenario.scenario import Scenario


@app.command("plot", rich_help_panel=LOOK, epilog="Example: sramsim plot out")
def plot_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|FILE",
            help="Folder of `run --out` or `sweep --out`, or a scenario to run first.",
            autocompletion=complete_results,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default: DIR itself, or out.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a sweep: draw this column of its table, such as output_throughput; repeatable."
        ),
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.PY:FUNCTION",
            help="Draw with your own function of the result; repeatable.",
        ),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Draw the figures of a result as PNG, SVG and PDF; of a sweep, also print its table."""
    folder = Path(source)
    if figure and metric:
        raise UserError(
            "--figure: got --metric as well; expected one of them; try without --metric"
        )
    if figure and not assignments and folder.is_dir():
        draw_own_figures(folder, figure, out or folder)
        return
    if metric and not (folder / "sweep.json").exists():
        raise UserError(
            f"--metric: got {metric[0]} with {source}, which is no sweep; expected a folder of"
            " sramsim sweep --out; try without --metric"
        )
    if not folder.is_dir():
        if not figure:
            run_command(source, out=out, plots=True, assignments=assignments)
            return
        folder = out or Path("out")
        run_command(source, out=folder, assignments=assignments)
        draw_own_figures(folder, figure, folder)
        return
    if assignments:
        raise UserError(
            f"--set: got {assignments[0]} with {source}, which is a result;"
            f" expected a scenario; try sramsim run SCENARIO --set {assignments[0]}"
        )
    if (folder / "sweep.json").exists():
        from plots import draw_swept
        from sim.report.sweep_tables import point_table
        from sim.studies.sweep import load_sweep
        from sim.studies.sweep_table import metric_column

        swept = load_sweep(folder)
        metrics = [metric_column(swept.table, name) for name in metric or ()]
        figures = draw_swept(swept, metrics)
        if not figures:
            raise UserError(
                f"{folder}: got no point that worked; expected one; see the errors in table.csv"
            )
        show_table(point_table(swept, metrics))
        save_figures(figures, out or folder)
        note_figures(figures, out or folder)
    else:
        from sim.results.saving import load_result

        note_figures(save_run_figures(load_result(folder), out or folder), out or folder)


def draw_own_figures(folder: Path, names: list[str], out: Path) -> None:
    """Draw a result with functions of the user, such as 'my.py:draw', and print a note."""
    from plots import draw_own
    from sim.results.saving import load_result
    from sim.studies.sweep import load_sweep

    is_sweep = (folder / "sweep.json").exists()
    figures = draw_own(load_sweep(folder) if is_sweep else load_result(folder), names)
    save_figures(figures, out)
    note_figures(figures, out)


@app.command(
    "report",
    rich_help_panel=LOOK,
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --out out "
    "&& sramsim report out -o out/report.html",
)
def report_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of `run --out` or `sweep --out`.",
            autocompletion=complete_results,
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write.")] = Path(
        "report.html"
    ),
    brief: Annotated[
        bool, typer.Option("--brief", help="Write only what prints on one sheet.")
    ] = False,
) -> None:
    """Write one HTML page with the answer, figures, tables, the scenario and all sources.

    The page needs no network.
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError(
            f"--output: got {out}; expected a name that ends with .html; try report.html"
        )
    from sim.report import page

    save_text(page.html_page(folder, brief), out)


@app.command(
    "compare",
    rich_help_panel=LOOK,
    epilog="Example: sramsim compare out/base out/busy; sramsim compare out bench.json",
)
def compare_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR DIR...|DIR FILE",
            help="Folders of `run --out`, the first is the base; or a folder and a JSON result of "
            "`vllm bench serve --save-result`.",
            autocompletion=complete_results,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what changed between runs, or the error of a run against a measured benchmark."""
    from sim.results.encoding import encode_summary
    from sim.studies.benchmark import compare_benchmark
    from sim.studies.compare import compare_runs

    if len(folders) < 2:
        raise UserError(
            f"compare: got one folder, {folders[0]}; expected two or more, the first as the base;"
            f" try sramsim compare {folders[0]} OTHER"
        )
    from sim.report.compare_tables import benchmark_tables, change_tables

    if any(path.is_file() for path in folders):
        measured = compare_benchmark(folders)
        data, table = encode_summary(measured), benchmark_tables(measured)
    else:
        result = compare_runs(folders)
        data, table = encode_summary(result), change_tables(result)
    if as_json:
        print_json(data)
    else:
        show_table(table)


@app.command(
    "trace",
    rich_help_panel=LOOK,
    epilog="Example: sramsim trace llama2-70b-lpu-vs-h100 --system lpu -o trace.json "
    "--figure gantt.png",
)
def trace_command(
    file: FileArgument,
    system: Annotated[
        str | None, typer.Option(help="Name of the system; default: the scenario's first.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Number of tokens after the first; default: 3.")
    ] = None,
    prefill: Annotated[
        bool, typer.Option("--prefill", help="Include the steps of the prompt.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write Chrome trace events, for ui.perfetto.dev."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Draw a Gantt chart: all stages and one group, or visits to pools (png, svg, pdf)."
        ),
    ] = None,
    as_program: Annotated[
        bool, typer.Option("--program", help="Print what the chips execute in one step instead.")
    ] = False,
    chip: Annotated[
        int | None,
        typer.Option(min=0, help="With --program: show one chip, with its messages."),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Trace every chip and every link while a single request gets its tokens.

    With prefill and decode pools, all requests are traced, by replica and link. With attention and
    FFN pools, there is a request for each micro-batch.
    """
    from sim.scenario.pools import Pools, both_pools
    from sim.studies.timeline import chrome_json, trace

    scenario = open_scenario(file, assignments)
    name = system or next(iter(scenario.systems))
    if as_program:
        if out or figure:
            raise UserError(
                "--program: got -o or --figure too; expected none, because --program only prints;"
                " try without them"
            )
        print_program(scenario, name, chip)
        return
    if chip is not None:
        raise UserError(f"--chip: got {chip} without --program; try --program --chip {chip}")
    if not (out or figure):
        raise UserError(
            "trace: got no output; expected -o, --figure or --program; try -o trace.json"
        )
    check_figure_name(figure)
    if isinstance(scenario.systems.get(name), Pools):
        trace_pools(search_open_plans(scenario), name, out, extra=bool(tokens or prefill or figure))
        return
    if name in both_pools(scenario.systems):
        write_visits(search_open_plans(scenario), name, (out, figure), tokens or 3, prefill)
        return
    timeline = trace(search_open_plans(scenario), name, tokens or 3, prefill)
    if out:
        save_text(chrome_json(timeline), out, "; open it at https://ui.perfetto.dev")
    if figure:
        from plots import gantt

        save_figure(gantt.draw(timeline), figure)


def write_visits(
    scenario: "Scenario",
    name: str,
    paths: tuple[Path | None, Path | None],
    tokens: int,
    prefill: bool,
) -> None:
    """Write the timeline of attention and FFN pools, and the figure of the visits, where asked."""
    from plots import visits
    from sim.studies.timeline import chrome_json
    from sim.studies.visit_timeline import trace_visits
    from sim.studies.visits import layer_visits

    out, figure = paths
    if out:
        events = chrome_json(trace_visits(scenario, name, tokens, prefill))
        save_text(events, out, "; open it at https://ui.perfetto.dev")
    if figure:
        save_figure(visits.draw(layer_visits(scenario, name)), figure)


def trace_pools(scenario: "Scenario", name: str, out: Path | None, extra: bool) -> None:
    """Write the timeline of all requests on a system of pools.

    extra: whether there are options of a single request.
    """
    from sim.scenario.pools import key_path
    from sim.studies.pool_timeline import pools_json

    if extra or out is None:
        pool = ".".join(key_path(scenario.systems, f"{name}.decode"))
        raise UserError(
            f"trace: got options of a single request for {name}, a system of pools; expected -o "
            f"only; try -o trace.json, or --system {pool}"
        )
    save_text(pools_json(scenario, name), out, "; open it at https://ui.perfetto.dev")


def print_program(scenario: "Scenario", name: str, chip: int | None) -> None:
    """Print the program of one decode step of a system, or the part of one chip."""
    from sim.report.program_table import program_table
    from sim.studies.timeline import step_program

    show_table(program_table(name, *step_program(search_open_plans(scenario), name), chip))


@app.command("catalog", rich_help_panel=TRUST, epilog="Example: sramsim catalog chips")
def catalog_command(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="acceptance, chips, engines, kernels, models, families (of models), clusters, "
            "measurements or scenarios."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the entries of the catalogue; of chips also capacity and bandwidth."""
    from rich.console import Group
    from rich.text import Text

    from sim.catalogue.entries import CATALOGUE_KINDS, listed_entries
    from sim.report.listings import catalogue_table
    from sim.results.encoding import encode_summary

    if kind is not None and kind not in CATALOGUE_KINDS:
        raise unknown_name("catalog", kind, CATALOGUE_KINDS)
    entries = {name: listed_entries(name) for name in ([kind] if kind else CATALOGUE_KINDS)}
    if as_json:
        print_json(encode_summary(entries))
        return
    tables: list[RenderableType] = []
    for folder, rows in entries.items():
        tables += [catalogue_table(folder, rows), Text()]
    show_table(Group(*tables[:-1]))


@app.command("show", rich_help_panel=TRUST, epilog="Example: sramsim show chip groq-lpu-v1")
def show_command(
    kind: Annotated[
        str,
        typer.Argument(
            help="chip, engine, kernels, model, cluster, acceptance, measurement or scenario."
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="Catalogue name, or a file.",
            autocompletion=complete_entries,
        ),
    ],
) -> None:
    """Show one entry of the catalogue: every number with its source, or a scenario's file."""
    if kind == "scenario":
        from sim.inputs.files import load_text
        from sim.inputs.names import find_entry

        print(load_text(find_entry(name, "scenarios"), name), end="")
        return
    from sim.catalogue.entries import entry_facts
    from sim.report.listings import entry_table

    show_table(entry_table(entry_facts(kind, name)))
