"""The command line: `sramsim`.  The only module that prints.  Results go to stdout, progress and errors to stderr."""

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from sim import __version__
from sim.inputs.files import UserError, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

    from sim.results.saving import Saved
    from sim.scenario.scenario import Scenario
    from sim.studies.capacity import LoadTrial

app = typer.Typer(
    name="sramsim",
    help="What happens to token latency if a language model lives in the SRAM of hundreds of chips?  Simulate it, from YAML.",
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --plots",
    add_completion=False,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A scenario file, or the name of one in the catalogue."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B.C=VALUE", help="Put a value into the scenario; may be repeated."
    ),
]
# Typer's error about a wrong command line: newer ones bring their own copy of click, older ones import it.
CommandLineError: Any = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)
INTERRUPTED = 130  # what a shell expects after Ctrl-C

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

NEW = """\
# {name}: what do you want to know?  (The first line is shown by `sramsim catalog`.)
model: llama-3.1-8b             # a catalogue name (sramsim catalog models), or the path of a config.json
seed: 0                         # the same seed gives the same requests, and the same bytes
workload:
  kind: poisson                 # or closed: {{kind: closed, users: 8, requests: 100, ...}}
  rate: 1 request/s
  requests: 200
  prompt: 512 token             # or {{uniform: [256 token, 768 token]}}
  output: {{lognormal: {{mean: 128 token, sigma: 0.5}}}}
slo: {{ttft: 2 s, tpot: 100 ms}}  # or a preset of MLPerf's: llama3.1-8b
systems:                        # every system meets the same requests
  lpu:
    chip: groq-lpu-v1           # a catalogue name, a path of your own chip's YAML, or a mapping in place
    chips: 64
    engine: groq-compiler       # what the software loses; `ideal` loses nothing
    plan: {{tensor: 8, weights: int8, activations: int8, kv: fp16, head: int8}}  # pipeline: chips / tensor
  h100:
    chip: h100-sxm
    chips: 1
    engine: vllm
    plan: {{weights: fp8, activations: fp8, kv: fp16}}
"""


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"sramsim {__version__}")
        raise typer.Exit


@app.command(
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --set workload.rate='2 request/s' --out out/busy --plots"
)
def run(
    file: FileArgument,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Write result.json and requests.parquet into this folder.")
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw the figures too, into --out (by default: out).")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the scenario's seed.")] = None,
    assignments: SetOption = None,
) -> None:
    """Simulate a scenario: every system under the same requests."""
    from sim.cost.plan import PlanError
    from sim.report.tables import comparison, envelope
    from sim.studies.run import economic_terms, priced
    from sim.studies.run import run as simulate

    scenario = opened(file, assignments, seed)
    folder = out or Path("out")
    if out or plots:
        with write_whole(folder):
            pass  # a folder that cannot be written is told before the simulation, not after it
    try:
        scenario = searched(scenario)
        with progress() as tell:
            result = simulate(scenario, scenario.seed, tell)
    except PlanError:
        if scenario.economics and (estimate := priced(scenario)) and not as_json:
            terms = economic_terms(scenario)
            show_table(
                envelope(scenario.id, terms, estimate)
            )  # what systems cost does not hang on what they serve
        raise
    if out or plots:
        write(result.saved(), folder, plots)
    if as_json:
        print_json(result.as_json())
    else:
        show_table(comparison(result.summary, file))


@app.command(epilog="Example: sramsim check mine.yaml && sramsim run mine.yaml")
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Scenario files or catalogue names.")
    ],
    assignments: SetOption = None,
) -> None:
    """Read scenarios and lay out their systems, without simulating: is all well, and does everything fit?"""
    from sim.scenario.scenario import check as lay_out
    from sim.scenario.scenario import read
    from sim.studies.design import bound_plans

    for file in files:
        scenario = bound_plans(read(file, assignments))
        systems = lay_out(scenario)
        chips = {
            name: sum(member.chips for member in members.values())
            for name, members in systems.items()
        }
        print(f"{file}: ok ({', '.join(f'{name} on {n} chips' for name, n in chips.items())})")
        for name, search in scenario.searches.items():
            fit = f"{search.considered} plans fit; laid out is the one with the highest bound, and run simulates the best few"
            note(f"{file}: systems.{name}: search: capacity: {fit}")
        for name, members in systems.items():
            for warning in members[name].deployment.warnings if name in members else ():
                note(f"{file}: systems.{name}: warning: {warning}")


@app.command(
    epilog="Example: sramsim plan llama2-70b-lpu-vs-h100 --tokens 4096 --tokens 1024 --set systems.lpu.chips=640"
)
def plan(
    file: FileArgument,
    more: Annotated[list[int] | None, typer.Argument(hidden=True, min=1)] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Count the sequences of this length that fit; may be repeated."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw what the chips of each stage hold (png, svg, pdf).")
    ] = None,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """What each system holds, whether it fits, and how fast a lone request would be."""
    check_figure(figure)
    from sim.report.plan_tables import planning
    from sim.results.encoding import encode_summary
    from sim.studies.run import planned

    lengths = [*(tokens or []), *(more or [])] or [4096]
    result = planned(searched(opened(file, assignments))).summary(lengths)
    if as_json:
        print_json(encode_summary(result))
    else:
        show_table(planning(result))
    if figure:
        from plots import memory

        save_figure(memory.draw(result), figure)


@app.command(epilog="Example: sramsim capacity llama2-70b-lpu-vs-h100 --attainment 0.99")
def capacity(
    file: FileArgument,
    as_json: JsonOption = False,
    attainment: Annotated[
        float, typer.Option(help="The share of requests that must meet the SLO.")
    ] = 0.9,
    requests: Annotated[
        int | None,
        typer.Option(
            min=100,
            help="Of each trial; by default 2,000, or more where a system holds many at once.",
        ),
    ] = None,
    plans: Annotated[
        bool,
        typer.Option(
            "--plans", help="Also search the plan of each system with the highest goodput."
        ),
    ] = False,
    assignments: SetOption = None,
) -> None:
    """Find the highest rate of requests (in a closed loop: the most users) at which each system meets the SLO."""
    from sim.studies.capacity import capacity as find_capacity
    from sim.studies.design import best_plans

    scenario = searched(opened(file, assignments), attainment, requests)
    own = find_capacity(scenario, attainment, requests, tell_trial)
    found = own.as_json()
    for name, each in (
        best_plans(scenario, attainment, requests, tell_trial, own.systems).items() if plans else ()
    ):
        found["systems"][name]["best"] = each.as_json()
    if as_json:
        print_json(found)
    else:
        from sim.report.plan_tables import capacities

        show_table(capacities(found))


def opened(file: str, assignments: list[str] | None, seed: int | None = None) -> "Scenario":
    """Return a file's scenario, with another seed where one is given."""
    from sim.scenario.scenario import read

    scenario = read(file, assignments)
    return scenario if seed is None else scenario.model_copy(update={"seed": seed})


def searched(
    scenario: "Scenario", attainment: float = 0.9, requests: int | None = None
) -> "Scenario":
    """Return the scenario with the plans that `search: capacity` leaves open; trials are printed as they end."""
    from sim.studies.design import search_plans

    return search_plans(scenario, attainment, requests, tell_trial)


def tell_trial(system: str, trial: "LoadTrial") -> None:
    note(
        f"{system}: at load {trial.load:.4g}, {trial.attainment:.1%} meet the SLO, {trial.verdict}"
    )


@app.command(
    epilog="Example: sramsim sweep latency-vs-load --jobs 2 --out out/load && sramsim plot out/load"
)
def sweep(
    file: FileArgument,
    out: Annotated[
        Path,
        typer.Option(
            help="The folder of its points and its table; what is there is not computed again."
        ),
    ],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="How many processes; by default one for each core.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a Dask scheduler, to use its workers instead."),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Simulate a scenario at every point of its sweep; interrupted, the same command goes on where it stopped."""
    from sim.studies.sweep import sweep as compute

    last = [0, 0]
    try:
        with progress() as tell:

            def count(done: int, total: int) -> None:
                last[:] = done, total
                tell("points", done, total)

            table = compute(file, out, assignments, jobs, dask, count).table
    except KeyboardInterrupt:
        note(
            f"interrupted; {out} has {last[0]} of {last[1]} points, and the same command computes the rest"
        )
        sys.exit(INTERRUPTED)
    wrong = table.filter(table["error"] != "")
    note(f"{out}: {last[1]} points, {len(table)} rows: sweep.json, table.csv, table.parquet")
    if len(wrong):
        note(f"{out}: {len(wrong)} rows have an error; the first: {wrong['error'][0]}")


@app.command(epilog="Example: sramsim plot out")
def plot(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|FILE",
            help="A folder of `run --out` or of `sweep --out`, or a scenario to run first.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to; by default the folder itself, or out.")
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Draw the figures of a result."""
    if Path(source).is_dir():
        if assignments:
            raise UserError(
                f"--set {assignments[0]}: {source} is a result already; run the scenario with it"
            )
        folder = Path(source)
        if (folder / "sweep.json").exists():
            from plots import draw_swept
            from sim.studies.sweep import load_sweep

            drawn = draw_swept(load_sweep(folder))
            if not drawn:
                raise UserError(
                    f"{folder}: nothing to draw: the rate, the users or the chips are the same at all points that worked"
                )
            save_figures(drawn, out or folder)
        else:
            from sim.results.saving import load_result

            figures(load_result(folder), out or folder)
    else:
        run(source, out=out, plots=True, assignments=assignments)


@app.command(
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --out out && sramsim report out -o out/report.html"
)
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of `run --out` or `sweep --out`.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Write one page, which needs no network: the question, the verdict, tables, figures, the scenario, every number's source."""
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--output {out}: a page ends with .html")
    from sim.report import page

    with write_whole(out.parent) as scratch:
        (scratch / out.name).write_text(page.report(folder), encoding="utf-8")
    note(f"{out}: written")


@app.command(epilog="Example: sramsim compare out/base out/busy")
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR DIR...", help="Folders of `run --out`; the first is the base."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what changed between runs, in inputs and in metrics."""
    from sim.studies.compare import changes

    if len(folders) < 2:
        raise UserError(
            f"compare {folders[0]}: two folders or more are compared, and the first is the base"
        )
    found = changes(folders)
    if as_json:
        print_json(found)
    else:
        from sim.report.compare_tables import changed

        show_table(changed(found))


@app.command(
    epilog="Example: sramsim trace llama2-70b-lpu-vs-h100 --system lpu -o trace.json --figure gantt.png"
)
def trace(
    file: FileArgument,
    system: Annotated[
        str | None, typer.Option(help="Which system; by default the scenario's first.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="How many tokens to follow after the first.")
    ] = 3,
    prefill: Annotated[
        bool, typer.Option("--prefill", help="Follow the prompt's passages too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write Chrome trace events, for ui.perfetto.dev."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the stages and one group as a Gantt chart (png, svg, pdf)."),
    ] = None,
    as_program: Annotated[
        bool, typer.Option("--program", help="Print what the chips execute in one step instead.")
    ] = False,
    chip: Annotated[
        int | None, typer.Option(min=0, help="With --program: this chip's part, with its messages.")
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Follow every chip and every link while a lone request gets its tokens."""
    from sim.studies import timeline as tracing

    scenario = opened(file, assignments)
    name = system or next(iter(scenario.systems))
    if chip is not None and not as_program:
        raise UserError(f"--chip {chip}: goes with --program")
    if as_program:
        if out or figure:
            raise UserError(
                "--program: prints, and writes no trace and no figure; leave -o and --figure out"
            )
        from sim.report.program_table import listing

        show_table(listing(name, *tracing.step_program(searched(scenario), name), chip))
        return
    if not (out or figure):
        raise UserError(
            "trace: say where to: -o trace.json, --figure gantt.png, or --program to print what the chips execute"
        )
    check_figure(figure)
    scenario = searched(scenario)
    timeline = tracing.trace(scenario, name, tokens, prefill)
    if out:
        with write_whole(out.parent) as scratch:
            (scratch / out.name).write_text(tracing.chrome_json(timeline), encoding="utf-8")
        note(f"{out}: written; open it at https://ui.perfetto.dev")
    if figure:
        from plots import gantt

        save_figure(gantt.draw(timeline), figure)


@app.command(epilog="Example: sramsim catalog chips")
def catalog(
    kind: Annotated[
        str | None,
        typer.Argument(help="chips, engines, models, clusters, measurements or scenarios"),
    ] = None,
) -> None:
    """List what the catalogue holds."""
    from rich.console import Group
    from rich.text import Text

    from sim.catalogue.entries import CATALOGUE_KINDS, titles
    from sim.inputs.files import nearest_name
    from sim.report.listings import entries

    if kind is not None and kind not in CATALOGUE_KINDS:
        hint = (
            f"did you mean {near}?"
            if (near := nearest_name(kind, CATALOGUE_KINDS))
            else f"choose of {', '.join(CATALOGUE_KINDS)}"
        )
        raise UserError(f"catalog {kind}: there is no such kind; {hint}")
    tables: list[RenderableType] = []
    for each in [kind] if kind else CATALOGUE_KINDS:
        tables += [entries(each, titles(each)), Text()]
    show_table(Group(*tables[:-1]))


@app.command(epilog="Example: sramsim show chip groq-lpu-v1")
def show(
    kind: Annotated[str, typer.Argument(help="chip, engine, model or measurement")],
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A catalogue name, or a file.")],
) -> None:
    """Show one entry: every number with its source."""
    from sim.catalogue.entries import facts
    from sim.report.listings import sourced

    show_table(sourced(*facts(kind, name)))


@app.command(epilog="Example: sramsim validate serving; sramsim validate --points mine.csv")
def validate(
    name: Annotated[
        str | None,
        typer.Argument(
            help="calibration, validation, serving, steps-2023, sram-replies, replay or network; by default all of them."
        ),
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="A CSV file with the columns of one of them, instead.")
    ] = None,
    network: Annotated[bool, typer.Option("--network", help="Short for the name network.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Draw simulated over measured; of sram-replies alone, prompt times (png, svg, pdf)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show measured figures beside simulated ones, and how far off each is."""
    from sim.validation import messages, validate

    if (points is not None) + (name is not None) + network > 1:
        raise UserError("validate: name one set, or --points, or --network")
    name = "network" if network else name
    check_figure(figure)
    tables: list[validate.Table] = []
    with progress() as tell:
        if points is not None:
            tables.append(validate.of_file(points, tell))
        else:
            named = (
                [*validate.SETS, "replay"] if name is None else [name] if name != "network" else []
            )
            tables += [validate.table(each, tell) for each in named]
    wires = messages.network() if points is None and name in (None, "network") else []
    if as_json:
        sets = {table.name: table.as_json() for table in tables}
        sets |= {"network": messages.as_json(wires)} if wires else {}
        as_printed = (
            {"rows": [row.as_json() for row in wires], "medians": messages.medians(wires)}
            if network
            else {}
        )
        print_json({"sets": sets, **as_printed})
    else:
        from sim.report.listings import agreement, validated

        for table in tables:
            show_table(agreement(table))
        if wires:
            show_table(validated("messages between chips", wires, messages.medians(wires)))
    if figure and [table.of_replies for table in tables] == [True]:
        from plots import prefill as drawing_of_replies
        from sim.studies.prefill import prefills

        save_figure(drawing_of_replies.draw(prefills(tables[0])), figure)
    elif figure:
        from plots import agreement as drawing

        save_figure(drawing.draw({table.name: table.as_json() for table in tables}), figure)


@app.command(epilog="Example: sramsim sensitivity llama2-70b-lpu-vs-h100 --figure tornado.png")
def sensitivity(
    file: FileArgument,
    assignments: SetOption = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the tornado (png, svg, pdf).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much each uncertain number moves the latency of a lone request."""
    from sim.studies.sensitivity import sensitivity as swing_all

    check_figure(figure)
    scenario = searched(opened(file, assignments))
    with progress() as tell:
        systems = {name: each.as_json() for name, each in swing_all(scenario, tell).items()}
    if as_json:
        print_json({"scenario": scenario.id, "systems": systems})
    else:
        from sim.report.listings import swings

        show_table(swings(scenario.id, systems))
    if figure:
        from plots import tornado

        save_figure(tornado.draw(scenario.id, systems), figure)


@app.command(epilog="Example: sramsim calibrate mine.yaml -o mine.yaml")
def calibrate(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE|FILE", help="A catalogue name, or a file; its fit: says what may move."
        ),
    ],
    write: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the engine's file with what was found."),
    ] = None,
) -> None:
    """Fit an engine's numbers to the measured points it may be fitted to."""
    from sim.inputs.files import find_entry
    from sim.report.listings import calibrated
    from sim.validation import calibrate as calibration

    path = find_entry(engine, "engines")
    found = calibration.calibrate(path, note)
    show_table(calibrated(found))
    if write:
        with write_whole(write.parent) as scratch:
            (scratch / write.name).write_text(calibration.rewritten(path, found), encoding="utf-8")
        note(f"{write}: written")


@app.command(epilog="Example: sramsim measure --chip h100-sxm --model llama-3.1-8b -o my-h100.yaml")
def measure(
    chip: Annotated[
        str,
        typer.Option(
            help="The card's entry in the catalogue, or a file: what is reached is told against it."
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The engine file to write.")],
    model: Annotated[str, typer.Option(help="Whose layer shapes to multiply.")] = "llama-3.1-8b",
) -> None:
    """Measure this machine's GPU with PyTorch and write an engine file for it (extra: measure)."""
    from sim.hardware.chip import Chip
    from sim.inputs.files import find_entry, read_value
    from sim.model.config import Model
    from sim.validation import measure as measuring

    measuring.torch_with_cuda()
    card, shapes = (
        read_value(find_entry(chip, "chips"), Chip),
        read_value(find_entry(model, "models"), Model),
    )
    found = measuring.measure(shapes, note)
    with write_whole(out.parent) as scratch:
        (scratch / out.name).write_text(
            measuring.engine_file(found, card, shapes), encoding="utf-8"
        )
    note(f"{out}: written")


@app.command(epilog="Example: sramsim schema > scenario.schema.json")
def schema(
    kind: Annotated[
        str, typer.Argument(help="scenario, chip, cluster, engine or model")
    ] = "scenario",
    reference: Annotated[
        bool, typer.Option("--reference", help="Print the page of all keys instead, in Markdown.")
    ] = False,
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from sim.report import reference as schemas

    if kind not in schemas.SCHEMA_KINDS:
        raise UserError(
            f"schema {kind}: there is no such kind; choose of {', '.join(schemas.SCHEMA_KINDS)}"
        )
    if reference:
        print(schemas.reference(), end="")
    else:
        print_json(schemas.json_schema(kind))


@app.command(epilog="Example: sramsim new mine && sramsim run mine.yaml")
def new(
    name: Annotated[str, typer.Argument(help="Of the scenario; NAME.yaml is written.")],
) -> None:
    """Write a commented scenario to start from."""
    path = Path(name)
    if path.name in ("", "..") or not name.isprintable():
        raise UserError(f"new {name!r}: is no name for a file")
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; choose another name")
    with write_whole(path.parent) as scratch:
        (scratch / path.name).write_text(NEW.format(name=path.stem), encoding="utf-8")
    print(f"{path}: written; try `sramsim run {path}`")


def write(saved: "Saved", folder: Path, plots: bool) -> None:
    """result.json, requests.parquet and the figures: whole or not at all."""
    from sim.results.saving import save_result

    with write_whole(folder) as scratch:
        save_result(saved, scratch)
        if plots:
            figures(saved, scratch)
    note(f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))}")


def figures(saved: "Saved", folder: Path) -> None:
    """Every figure that this result has, as PNG, SVG and PDF."""
    from plots import draw_all

    save_figures(draw_all(saved), folder)


def save_figures(drawn: "dict[str, Figure]", folder: Path) -> None:
    from plots import style

    with write_whole(folder) as scratch:
        for name, figure in drawn.items():
            for suffix in ("png", "svg", "pdf"):
                style.save(figure, scratch / f"{name}.{suffix}")


def check_figure(path: Path | None) -> None:
    """Before anything long is done.  Raises: UserError where it is not the name of a figure."""
    if path and path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--figure {path}: a figure ends with .png, .svg or .pdf")


def save_figure(drawn: "Figure", path: Path) -> None:
    from plots import style

    with write_whole(path.parent) as scratch:
        style.save(drawn, scratch / path.name)
    note(f"{path}: written")


def progress() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """A bar for each system on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(lambda system, done, total: None)
    return Bars()


class Bars:
    """Rich's progress bars as the callback that `run` wants; told at most a hundred times a system."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.console import Console
        from rich.progress import Progress

        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.progress.start()
        self.tasks: dict[str, Any] = {}
        return self.tell

    def tell(self, system: str, done: int, total: int) -> None:
        if system not in self.tasks:
            self.tasks[system] = self.progress.add_task(system, total=total)
        if done == total or done % max(1, total // 100) == 0:
            self.progress.update(self.tasks[system], completed=done)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


def print_json(result: Any) -> None:
    print(json.dumps(result, indent=2, allow_nan=False))


def show_table(table: "RenderableType") -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width))
    console.print(table, markup=False)


def note(line: str) -> None:
    """Print a line to stderr; one that cannot be written there is no reason to fail."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        divert(sys.stderr)


def prepare_streams() -> None:
    """Let streams that the shell closed lead nowhere, and stdout print '?' for what its encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def divert(stream: TextIO) -> None:
    """Send what is left in a stream nowhere, since the end of the process would fail on it again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main() -> None:
    """The command; what the user can mend is one line on stderr and exit status 2."""
    prepare_streams()
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()  # what cannot be printed is known here, and not at the end of the process
    except UserError as error:
        fail(str(error))
    except CommandLineError as error:
        fail(error.format_message())
    except MemoryError as error:
        fail(f"more memory is needed than there is: {error}")
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone
        divert(sys.stdout)
        sys.exit(0)
    except OSError as error:
        fail(f"{error.filename or 'stdout'}: {error.strerror or error}")
    if status == INTERRUPTED:
        note("interrupted; nothing was written")
    sys.exit(status if isinstance(status, int) else 0)


def fail(reason: str) -> NoReturn:
    note(" ".join(reason.splitlines()))
    try:
        sys.stdout.flush()
    except OSError:
        divert(sys.stdout)
    sys.exit(2)
