"""How many chips a model needs, from two names: the study behind `sramsim size`.

    size("llama-2-70b", "groq-lpu-v1", precisions=Plan(weights="int8", head="int8")).summary

The search is `sim.planning.sizing`.  Here names become entries, and the result a scenario.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from sim.catalogue.engines import default_engine, measured_engines
from sim.cost.plan import DEGREES, Plan, PlanError
from sim.hardware.chip import Chip, Cluster
from sim.hardware.engine import Engine
from sim.inputs.document import read_document, read_value
from sim.inputs.errors import ScenarioError, UserError
from sim.inputs.names import aliases, catalogue_folder, catalogue_names, find_entry
from sim.inputs.suggestions import spelling_hint
from sim.model.transformer import Model
from sim.planning.deployment import DeploymentParts
from sim.planning.sizing import Demand, JoinError, SizedDeployment, size_deployment
from sim.results.labels import format_number
from sim.results.sizing_summary import KVRoom, SizedDemand, SizeSummary, UserSpeed
from sim.scenario.layout import system_warnings
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.studies.identity import plain_identity
from sim.units import Seconds, brief
from sim.workload.arrivals import ClosedLoop
from sim.workload.lengths import Length
from sim.workload.slo import SLO

# Tokens of a sequence: a prompt of 512 and an output of 128, as in the scenario of `sramsim new`.
DEFAULT_CONTEXT = 640
OUTPUT_SHARE = 5  # one token in five is output, as there
REQUESTS_PER_USER = 10  # of a written scenario
FOUND_KEYS = (*DEGREES, "balance", "search")  # of a plan; `size` finds their values


@dataclass(frozen=True)
class SizeInputs:
    """The entries that a size is asked for, and the names under which a scenario finds them.

    hardware: the key of a system (chip or cluster), and its name.
    most: chips of the cluster; inf for a chip.
    """

    model: Model
    model_name: str
    chip: Chip
    cluster: Cluster | None
    hardware: tuple[str, str]
    engine: Engine
    engine_name: str

    @property
    def most(self) -> float:
        """The chips of the cluster; inf without one."""
        return self.cluster.chips if self.cluster else math.inf


@dataclass(frozen=True)
class Sized:
    """The fewest chips for a demand, as a scenario with one system."""

    inputs: SizeInputs
    demand: Demand
    result: SizedDeployment

    def __repr__(self) -> str:
        """Return the model, the chips, and the speed of a single user."""
        model, chips = self.inputs.model.id, self.result.deployment.chips
        speed = format_number(1 / self.result.unloaded)
        return f"<Sized {model}: {chips} x {self.name}, {speed} token/s of one user>"

    @property
    def name(self) -> str:
        """The name of the system: that of its chip."""
        return self.inputs.chip.id

    @property
    def scenario(self) -> Scenario:
        """The scenario in which the users send their requests in a closed loop."""
        inputs, demand, result = self.inputs, self.demand, self.result
        system = System(
            chip=None if inputs.cluster else inputs.chip,
            cluster=inputs.cluster,
            chips=result.deployment.chips,
            engine=inputs.engine,
            plan=result.plan,
            max_sequences=result.max_sequences,
        )
        workload = ClosedLoop(
            users=demand.users,
            requests=REQUESTS_PER_USER * demand.users,
            prompt=Length(fixed=demand.prompt),
            output=Length(fixed=demand.context - demand.prompt),
        )
        slo = SLO(tpot=demand.tpot) if demand.tpot else None
        return Scenario(model=inputs.model, workload=workload, slo=slo, systems={self.name: system})

    @property
    def summary(self) -> SizeSummary:
        """The result, typed."""
        demand, result, deployment = self.demand, self.result, self.result.deployment
        replicas, scenario = deployment.layout.plan.replicas, self.scenario
        layout = deployment.layout
        engines = [engine.id for engine in measured_engines(self.inputs.chip.id)]
        return SizeSummary(
            demand=SizedDemand(
                users=demand.users,
                context=demand.context,
                prompt=demand.prompt,
                output=demand.context - demand.prompt,
                tpot_ms=1000 * demand.tpot if demand.tpot else None,
            ),
            identity=plain_identity(scenario, self.name, deployment),
            kv_room=KVRoom(
                bytes_per_chip=min(layout.room(stage) for stage in layout.stages),
                tokens=replicas * deployment.limits.kv_tokens,
                sequences=replicas * deployment.sequences(demand.context)[0],
            ),
            unloaded=UserSpeed(tpot_ms=1000 * result.unloaded),
            loaded=UserSpeed(tpot_ms=1000 * result.tpot),
            binds=result.binds,
            chips_otherwise=result.otherwise,
            other_engines=tuple(name for name in engines if name != self.inputs.engine.id),
            warnings=tuple(system_warnings(scenario, self.name, deployment)),
        )

    def scenario_text(self, folder: Path) -> str:
        """Return the scenario as a commented file for a folder, to which its paths are relative."""
        inputs, demand, plan = self.inputs, self.demand, self.result.plan
        resolved = self.result.deployment.layout.plan
        degrees = {key: getattr(resolved, key) for key in DEGREES}
        said = {key: n for key, n in degrees.items() if n > 1 or key in ("tensor", "pipeline")}
        # A precision that was not given is not written: a model's file may have several.
        others = {key: getattr(plan, key) for key in Plan.model_fields if key not in DEGREES}
        said |= {
            key: str(value)
            for key, value in others.items()
            if value != Plan.model_fields[key].default
        }
        pairs = ", ".join(f"{key}: {value}" for key, value in said.items())
        key, hardware = inputs.hardware
        lines = [
            f"# Do {self.result.deployment.chips} {inputs.chip.id} serve {inputs.model.id} to "
            f"{demand.users} users with {demand.context} tokens each?",
            "# Written by `sramsim size`: the fewest chips for them.",
            f"model: {_written(inputs.model_name, folder)}",
            "seed: 0                         # the same seed gives the same requests",
            "workload:                       # each user sends the next request after an answer",
            "  kind: closed",
            f"  users: {demand.users}",
            f"  requests: {REQUESTS_PER_USER * demand.users}",
            f"  prompt: {demand.prompt} token",
            f"  output: {demand.context - demand.prompt} token",
        ]
        if demand.tpot:
            lines.append(f"slo: {{tpot: {1000 * demand.tpot:.12g} ms}}")
        lines += [
            "systems:",
            f"  {_written(self.name, folder)}:",
            f"    {key}: {_written(hardware, folder)}",
            f"    chips: {self.result.deployment.chips:<21} # {self.result.binds} binds",
            f"    engine: {_written(inputs.engine_name, folder)}",
            f"    plan: {{{pairs}}}",
        ]
        if self.result.max_sequences:
            lines.append(f"    max_sequences: {self.result.max_sequences}")
        return "\n".join(lines) + "\n"


def size(
    model: str,
    chip: str,
    demand: Demand | None = None,
    engine: str | None = None,
    precisions: Plan | None = None,
) -> Sized:
    """Return the fewest chips of a kind that hold a model and its users, with their plan.

    model, chip, engine: catalogue names, aliases or paths; `chip` may name a cluster.
    demand: None is one user with `DEFAULT_CONTEXT` tokens.
    engine: None takes an engine that was measured on the chip, else `ideal`.
    precisions: a plan that sets none of `FOUND_KEYS`; None takes those of the model's config.

    Raises: ScenarioError for an unknown name, PlanError if no number of chips meets the demand,
    UserError if `precisions` sets a key whose value `size` finds.
    """
    demand, precisions = demand or demand_of(DEFAULT_CONTEXT), precisions or Plan()
    for key in FOUND_KEYS:
        if key in precisions.model_fields_set and (value := getattr(precisions, key)) is not None:
            reason = f"precisions: got {key} {value}; expected none, since size finds it"
            raise UserError(f"{reason}; try leaving {key} out")
    inputs = size_inputs(model, chip, engine, precisions)
    longest = inputs.model.max_position_embeddings
    if demand.context > longest:
        raise PlanError(
            f"context: got {demand.context:,} tokens; expected at most {longest:,}, the context "
            f"of {inputs.model.id}; try {longest}"
        )
    topology = inputs.cluster.topology if inputs.cluster else None
    parts = DeploymentParts(inputs.model, inputs.chip, 1, inputs.engine, precisions, topology)
    try:
        result = size_deployment(parts, demand)
    except JoinError as error:
        raise PlanError(f"{error}{_larger_clusters(inputs)}") from None
    except ValueError as error:
        raise PlanError(f"{inputs.model.id} on {inputs.chip.id}: {error}") from None
    if result.deployment.chips > inputs.most:
        raise PlanError(
            f"{inputs.hardware[1]}: got {inputs.most} chips; expected {result.deployment.chips:,} "
            f"({result.binds} binds); try fewer users, or chip {inputs.chip.id}"
        )
    return Sized(inputs, demand, result)


def demand_of(context: int, users: int = 1, tpot: Seconds | None = None) -> Demand:
    """Return the demand of users with `context` tokens each, of which a fifth is output."""
    return Demand(context, context - max(1, context // OUTPUT_SHARE), users, tpot)


def size_inputs(model: str, chip: str, engine: str | None, precisions: Plan) -> SizeInputs:
    """Return the entries of names or paths.

    Raises: ScenarioError, with the nearest names, if there is no such entry.
    """
    file = find_entry(model, "models")
    read_model = read_value(file, Model)
    key, path = _hardware(chip)
    cluster = read_value(path, Cluster) if key == "cluster" else None
    read_chip = cluster.chip if cluster else read_value(path, Chip)
    if engine:
        read_engine = read_value(find_entry(engine, "engines"), Engine)
    else:
        weights = precisions.resolved(1, read_model).weights
        read_engine = default_engine(read_chip, f"{8 * weights.bytes:.0f}")
    return SizeInputs(
        read_model,
        model if file.is_relative_to(catalogue_folder()) else str(file),
        read_chip,
        cluster,
        (key, chip),
        read_engine,
        engine or read_engine.id,
    )


def _hardware(text: str) -> tuple[str, Path]:
    """Return whether a text names a chip or a cluster, and its file."""
    chips = catalogue_names("chips") | aliases("chips")
    clusters = catalogue_names("clusters") | aliases("clusters")
    if text in chips:
        return "chip", chips[text]
    if text in clusters:
        return "cluster", clusters[text]
    if "/" not in text and not text.endswith((".yaml", ".yml")):
        hint = spelling_hint(
            text, chips | clusters, f"there are {', '.join(catalogue_names('chips'))}"
        )
        raise ScenarioError(f"got {brief(text)!r}; expected one of the catalogue's chips; {hint}")
    path = find_entry(text, "chips")
    return "cluster" if "chip" in read_document(path).data else "chip", path


def _larger_clusters(inputs: SizeInputs) -> str:
    """Return which clusters of the catalogue join more chips of this kind; '' if none does."""
    here = inputs.cluster or inputs.chip
    joined = (here.topology or inputs.chip.topology).most_chips or math.inf
    names = []
    for name, path in catalogue_names("clusters").items():
        cluster = read_value(path, Cluster)
        topology = cluster.topology or cluster.chip.topology
        if cluster.chip.id == inputs.chip.id and (topology.most_chips or math.inf) > joined:
            names.append(name)
    return f", or {' or '.join(names)}" if names else ""


def _written(name: str, folder: Path) -> str:
    """Return a name as a scenario in a folder writes it: paths relative, odd texts in quotes."""
    if os.path.exists(name) and ("/" in name or name.endswith((".yaml", ".yml", ".json"))):
        name = os.path.relpath(name, folder)
        name = name if "/" in name else f"./{name}"
    return yaml.safe_dump(name, allow_unicode=True, width=math.inf).removesuffix("...\n").strip()
