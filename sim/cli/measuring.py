"""Commands about measured figures: validate, sensitivity, calibrate, measure."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.app import EXTEND, TRUST, app
from sim.cli.completion import complete_chips, complete_engines, complete_models
from sim.cli.console import note, print_json, progress_bars, show_table, status_line
from sim.cli.options import (
    FileArgument,
    JsonOption,
    SetOption,
    open_scenario,
    search_open_plans,
)
from sim.cli.saving import check_figure_name, save_figure, save_text
from sim.inputs.errors import UserError

if TYPE_CHECKING:
    from sim.validation.agreement import ValidationReport

# A test compares this text with the columns that `sim.validation.own_points` reads.
POINTS_HELP = (
    "Columns: model, chip, chips, concurrency, tpot_ms; optional: ttft_ms, prompt (512 tokens),"
    " output (128 tokens), engine (vllm), host, id, and degrees and precisions of a plan, such as"
    " tensor (all chips)."
)


@app.command(
    "validate",
    rich_help_panel=TRUST,
    epilog="Example: sramsim validate serving; sramsim validate --points mine.csv",
)
def validate_command(
    name: Annotated[
        str | None,
        typer.Argument(
            help="calibration, validation, serving, steps-2023, sram-replies, speculation, afd, "
            "kv-transfer, pd-silicon, replay, kernels or network; default: all."
        ),
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help=f"CSV file instead of a set. {POINTS_HELP}")
    ] = None,
    network: Annotated[bool, typer.Option("--network", help="The set network.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Draw simulated over measured; for sram-replies prompt times, for afd speeds over "
            "the ratio of both pools (png, svg, pdf)."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default: one for each core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show measured and simulated figures, and the error of each."""
    if (points is not None) + (name is not None) + network > 1:
        raise UserError(
            "validate: got more than one of NAME, --points and --network; expected one;"
            " try sramsim validate serving"
        )
    name = "network" if network else name
    if name and name.endswith(".csv"):
        raise UserError(
            f"validate: got {name}; expected the name of a set;"
            f" try sramsim validate --points {name}"
        )
    check_figure_name(figure)
    if figure and name in ("network", "kernels"):
        raise UserError(
            f"--figure: got {name}, which has no figure; expected a set of served times;"
            " try sramsim validate calibration"
        )
    from sim.results.encoding import encode_summary
    from sim.results.validation_summary import ValidationResult
    from sim.validation.kernels import kernel_set
    from sim.validation.messages import medians, network_rows, network_summary

    kernels = kernel_set(name, points)
    served = name != "kernels" and not (points and kernels)
    tables = validation_tables(name, points, jobs or os.cpu_count() or 1) if served else []
    messages = network_rows() if points is None and name in (None, "network") else []
    if as_json:
        sets = {table.name: table.summary for table in tables} | kernels
        result = ValidationResult(
            sets=sets | ({"network": network_summary(messages)} if messages else {}),
            rows=tuple(messages) if network else None,
            medians=medians(messages) if network else None,
        )
        print_json(encode_summary(result))
    else:
        from sim.report.kernel_table import kernel_table
        from sim.report.listings import agreement_tables, message_table

        for table in tables:
            show_table(agreement_tables(table))
        for title, summary in kernels.items():
            show_table(kernel_table(title, summary))
        if messages:
            show_table(message_table("messages between chips", messages, medians(messages)))
    if figure:
        draw_validation(tables, figure)


def validation_tables(name: str | None, points: Path | None, jobs: int) -> list["ValidationReport"]:
    """Return the tables of a CSV file, of one set, or of all sets; none for `network`."""
    from sim.validation.validate import ALL_SETS, validate_own_file, validate_sets

    with progress_bars() as progress:
        if points is not None:
            report = validate_own_file(points, progress, jobs)
            for line in report.own.notes if report.own else ():
                note(line)
            return [report]
        names = ALL_SETS if name is None else [name] if name != "network" else []
        return validate_sets(names, progress, jobs)


def draw_validation(tables: list["ValidationReport"], path: Path) -> None:
    """Write the figure of validated tables: prompt times if they are replies, else agreement.

    The figure of the set `afd` alone has speeds over the ratio of both pools.
    """
    if [table.name for table in tables] == ["afd"]:
        from plots import ratio
        from sim.validation.afd import ratio_panels

        save_figure(ratio.draw(ratio_panels()), path)
    elif [table.of_replies for table in tables] == [True]:
        from plots import prefill
        from sim.studies.prefill import prefills

        save_figure(prefill.draw(prefills(tables[0])), path)
    else:
        from plots import agreement

        save_figure(agreement.draw([row for table in tables for row in table.summary.points]), path)


@app.command(
    "sensitivity",
    rich_help_panel=TRUST,
    epilog="Example: sramsim sensitivity llama2-70b-lpu-vs-h100 --figure tornado.png",
)
def sensitivity_command(
    file: FileArgument,
    assignments: SetOption = None,
    loaded: Annotated[
        bool,
        typer.Option("--loaded", help="Serve the scenario's requests, instead of a single one."),
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw the tornado (png, svg, pdf).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much each uncertain number changes TTFT, TPOT, J and $ of a token."""
    from sim.results.encoding import encode_summary
    from sim.results.sensitivity_summary import SensitivitySummary
    from sim.studies.sensitivity import sensitivity

    check_figure_name(figure)
    scenario = search_open_plans(open_scenario(file, assignments))
    with progress_bars() as progress:
        systems = sensitivity(scenario, progress, loaded)
    summary = SensitivitySummary(
        scenario.id, {name: system.summary for name, system in systems.items()}, loaded
    )
    if as_json:
        print_json(encode_summary(summary))
    else:
        from sim.report.listings import sensitivity_tables

        show_table(sensitivity_tables(summary))
    if figure:
        from plots import tornado

        save_figure(tornado.draw(summary), figure)


@app.command(
    "calibrate",
    rich_help_panel=EXTEND,
    epilog="Example: sramsim calibrate vllm --points mine.csv -o mine.yaml",
)
def calibrate_command(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE|FILE",
            help="Catalogue name of an engine, or its file; its `fit:` names the free numbers.",
            autocompletion=complete_engines,
        ),
    ],
    points: Annotated[
        Path | None,
        typer.Option(help=f"CSV file with your measurements, to fit to them. {POINTS_HELP}"),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the engine's file with the fitted numbers."),
    ] = None,
) -> None:
    """Fit an engine's numbers to your measurements, or to the catalogue's for that engine."""
    from sim.inputs.names import find_entry
    from sim.report.listings import calibration_table
    from sim.validation.calibrate import calibrate
    from sim.validation.engine_files import fitted_engine_file

    path = find_entry(engine, "engines")
    with status_line("fitting"):
        fit = calibrate(path, note, points)
    show_table(calibration_table(fit))
    if write:
        save_text(fitted_engine_file(path, fit), write)


@app.command(
    "measure",
    rich_help_panel=EXTEND,
    epilog="Example: sramsim measure --chip h100-sxm --model llama-3.1-8b -o my-h100.yaml",
)
def measure_command(
    chip: Annotated[
        str,
        typer.Option(
            help="Chip of the catalogue, or a file; efficiencies are relative to its peaks.",
            autocompletion=complete_chips,
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="Engine file to write.")],
    model: Annotated[
        str,
        typer.Option(help="Model whose layer shapes are timed.", autocompletion=complete_models),
    ] = "llama-3.1-8b",
) -> None:
    """Measure this machine's GPU with PyTorch and write its engine file (extra: measure)."""
    from sim.hardware.chip import Chip
    from sim.inputs.document import read_value
    from sim.inputs.names import find_entry
    from sim.model.transformer import Model
    from sim.validation.measure import measure, measured_engine_file, torch_with_cuda

    torch_with_cuda()  # first: without a GPU no file is read
    card = read_value(find_entry(chip, "chips"), Chip)
    shapes = read_value(find_entry(model, "models"), Model)
    save_text(measured_engine_file(measure(shapes, note), card, shapes), out)
