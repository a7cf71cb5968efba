"""The command that sizes a system: size."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.app import ASK, app
from sim.cli.completion import complete_chips, complete_engines, complete_models
from sim.cli.console import note, print_json
from sim.cli.options import JsonOption
from sim.cli.saving import save_text
from sim.inputs.errors import UserError
from sim.inputs.suggestions import unknown_name

if TYPE_CHECKING:
    from sim.cost.plan import Plan

THOUSANDS = {"k": 1024, "m": 1024**2}  # as in the names of models: 32k is 32,768


@app.command(
    "size",
    rich_help_panel=ASK,
    epilog="Example: sramsim size llama-2-70b groq-lpu-v1 --weights int8 --context 4k "
    "--users 64 --tpot 10ms --out mine.yaml && sramsim run mine.yaml",
)
def size_command(
    model: Annotated[
        str,
        typer.Argument(
            help="Catalogue name, config.json, or its folder.", autocompletion=complete_models
        ),
    ],
    chip: Annotated[
        str,
        typer.Argument(
            help="Chip or cluster of the catalogue, or its file.", autocompletion=complete_chips
        ),
    ],
    context: Annotated[
        str,
        typer.Option(
            metavar="TOKENS",
            help="Prompt and output of a sequence, such as 32k (32,768) or '4000 token'.",
        ),
    ] = "640",
    users: Annotated[int, typer.Option(min=1, help="Sequences held at the same time.")] = 1,
    tpot: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Longest time of a user's output token, such as 10ms."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine or its file; default: one measured on the chip, else ideal.",
            autocompletion=complete_engines,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Format of all weights, head included; default: the model's."),
    ] = None,
    activations: Annotated[
        str | None, typer.Option(help="Precision of activations; default: the model's.")
    ] = None,
    kv: Annotated[
        str | None, typer.Option(help="Precision of the KV cache; default: the model's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Scenario to write, with this system: NAME.yaml.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the fewest chips that hold a model and its users, and how fast they are.

    All tensor degrees are tried. Speeds are those at the end of the context.
    """
    from sim.report.sizing_table import sizing_lines
    from sim.results.encoding import encode_summary
    from sim.studies.sizing import demand_of, size

    if out:
        check_new_scenario(out)
    plan = precision_plan(weights, activations, kv)
    demand = demand_of(read_tokens(context), users, read_tpot(tpot) if tpot else None)
    sized = size(model, chip, demand, engine, plan)
    summary = sized.summary
    if out:
        save_text(sized.scenario_text(out.parent), out, f"; try `sramsim run {out}`")
    if as_json:
        print_json(encode_summary(summary))
    else:
        print("\n".join(sizing_lines(summary)))
    for warning in summary.warnings:
        note(f"warning: {warning}")


def check_new_scenario(path: Path) -> None:
    """Check the name of a scenario to write, before anything is computed."""
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out: got {path}; expected a name that ends with .yaml; try mine.yaml")
    if os.path.lexists(path):
        raise UserError(f"--out: got {path}, which exists; expected a new name; try another one")


def precision_plan(weights: str | None, activations: str | None, kv: str | None) -> "Plan":
    """Return a plan with these precisions; `weights` are also those of the head."""
    from sim.cost.plan import Plan, WeightFormat
    from sim.hardware.chip import Precision

    for option, name, known in (
        ("weights", weights, tuple(WeightFormat)),
        ("activations", activations, tuple(Precision)),
        ("kv", kv, tuple(Precision)),
    ):
        if name is not None and name not in known:
            raise unknown_name(f"--{option}", name, known)
    return Plan.model_validate(
        {"weights": weights, "activations": activations, "kv": kv, "head": weights}
    )


def read_tokens(text: str) -> int:
    """Return the tokens of '32k', '32768' or '32768 token'."""
    from sim.units import MAX_COUNT, UnitError, parse_quantity

    error = UserError(
        f"--context: got {text!r}; expected a number of tokens, at least 2; try 32k, 32768 or "
        "'32768 token'"
    )
    short = re.fullmatch(r"([0-9]{1,9})([kKmM]?)", text.strip())
    try:
        tokens = (
            int(short[1]) * THOUSANDS.get(short[2].lower(), 1)
            if short
            else parse_quantity(text, "token")
        )
    except UnitError:
        raise error from None
    if not 2 <= tokens <= MAX_COUNT or tokens != int(tokens):
        raise error
    return int(tokens)


def read_tpot(text: str) -> float:
    """Return the seconds of '10ms' or '10 ms'."""
    from sim.units import UnitError, parse_quantity

    spaced = re.sub(r"(?<=[0-9.])(?=[A-Za-zµμ])", " ", text.strip(), count=1)
    try:
        seconds = parse_quantity(spaced, "s")
    except UnitError:
        seconds = 0.0
    if seconds <= 0:
        raise UserError(f"--tpot: got {text!r}; expected a time above 0; try 10ms")
    return seconds
