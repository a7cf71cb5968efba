"""Commands that help to write files: schema, new."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.app import EXTEND, app
from sim.cli.completion import complete_scenarios
from sim.cli.console import print_json
from sim.inputs.errors import UserError
from sim.inputs.files import load_text, write_whole
from sim.inputs.names import catalogue_folder, find_entry
from sim.inputs.read_files import recorded_files
from sim.inputs.suggestions import unknown_name

SCENARIO_TEMPLATE = """\
# {name}: what do you want to know?  (The first line is shown by `sramsim catalog`.)
model: llama-3.1-8b             # a catalogue name (sramsim catalog models), or a config.json
seed: 0                         # the same seed gives the same requests, and the same bytes
workload:
  kind: poisson                 # or closed: {{kind: closed, users: 8, requests: 100, ...}}
  rate: 1 request/s
  requests: 200
  prompt: 512 token             # or {{uniform: [256 token, 768 token]}}
  output: {{lognormal: {{mean: 128 token, sigma: 0.5}}}}
slo: {{ttft: 2 s, tpot: 100 ms}}  # or an MLPerf preset: llama3.1-8b
systems:                        # every system serves the same requests
  lpu:
    label: "{{chips}} Groq LPUs"  # in tables and figures
    chip: groq-lpu-v1           # a catalogue name, a YAML file, or a mapping in place
    chips: 64
    engine: groq-compiler       # losses of the software; `ideal` loses nothing
    # Left out below: pipeline, which is chips / tensor.
    plan: {{tensor: 8, weights: int8, activations: int8, kv: fp16, head: int8}}
  h100:
    label: "{{chips}} H100"
    chip: h100-sxm
    chips: 1
    engine: vllm
    plan: {{weights: fp8, activations: fp8, kv: fp16}}
"""


@app.command(
    "schema", rich_help_panel=EXTEND, epilog="Example: sramsim schema > scenario.schema.json"
)
def schema_command(
    kind: Annotated[
        str, typer.Argument(help="scenario, chip, cluster, engine or model.")
    ] = "scenario",
    reference: Annotated[
        bool, typer.Option("--reference", help="Print the reference of all keys, in Markdown.")
    ] = False,
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from sim.report import reference as schemas

    if kind not in schemas.SCHEMA_KINDS:
        raise unknown_name("schema", kind, schemas.SCHEMA_KINDS)
    if reference:
        print(schemas.reference(), end="")
    else:
        print_json(schemas.json_schema(kind))


@app.command(
    "new", rich_help_panel=EXTEND, epilog="Example: sramsim new mine && sramsim run mine.yaml"
)
def new_command(
    name: Annotated[str, typer.Argument(help="Name of the scenario; writes NAME.yaml.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Scenario to copy, such as one of the catalogue; default: a short example.",
            autocompletion=complete_scenarios,
        ),
    ] = None,
) -> None:
    """Write a commented scenario to start from."""
    path = Path(name)
    if path.name in ("", "..") or not name.isprintable():
        raise UserError(f"new: got {name!r}; expected the name of a file; try new mine")
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    if os.path.lexists(path):
        raise UserError(f"new: got {path}, which exists; expected a new name; try another one")
    if source is None:
        text = SCENARIO_TEMPLATE.format(name=path.stem)
    else:
        text = f"# {path.stem}, from {source}: change the question.\n{scenario_text(source, path)}"
    with write_whole(path.parent) as scratch:
        (scratch / path.name).write_text(text, encoding="utf-8")
    print(f"{path}: written; try `sramsim run {path}`")


def scenario_text(source: str, path: Path) -> str:
    """Return the text of a scenario that shall be copied to `path`.

    Raises: UserError if there is no such scenario, or it reads files that are not at `path`.
    """
    from sim.scenario.scenario import read

    original = find_entry(source, "scenarios")
    with recorded_files() as files:
        scenario = read(original)
        scenario.workload.draw(scenario.seed)  # a trace is read only now
    kinds = ("acceptance", "chips", "clusters", "engines", "kernels", "models")
    shipped = [catalogue_folder() / kind for kind in kinds]
    beside = [
        file.name
        for file in files.stamps
        if file != original.absolute() and file.parent not in shipped
    ]
    if beside and path.absolute().parent != original.absolute().parent:
        raise UserError(
            f"--from: got {source}, which reads {beside[0]} beside it; expected a scenario of one"
            f" file; try a copy of both from {original.parent}"
        )
    return load_text(original, source)
