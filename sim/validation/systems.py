"""The system that ran a measured row, from the row's names and the catalogue's rules.

    >>> parallel_degrees("TP2 PP4", 8)
    {'plan.tensor': 2, 'plan.pipeline': 4}

Tables leave much unsaid.  `scenarios/measurements/rules.yaml` supplies it, with reasons.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.catalogue.measurements import Rule, Rules
from sim.cost.plan import Plan
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.hardware.kernels import Kernels
from sim.inputs.document import read_value
from sim.inputs.errors import UserError
from sim.inputs.names import aliases, catalogue_names
from sim.inputs.values import Value
from sim.model.transformer import Model
from sim.scenario.system import System

Setting = str | bool | int | float | None  # a value of a system's key in a rule; None: its default


class InexpressibleError(UserError):
    """A row that no system of the catalogue can express."""


@dataclass(frozen=True, slots=True)
class RowSystem:
    """A system that ran a row, and what the rules say about the row's numbers.

    reason: why the engine is a neighbour's, or nothing.
    remark: why the row is known to be far off, or nothing.
    bound: why the row's time is only an upper bound, or nothing.
    host: name of the host whose client, HTTP and tokenizer the TTFT includes, or nothing.
    prefill: whether the makespan of a batch includes the prompts.
    not_fitted: why no engine is fitted to the row, or nothing.
    own_kernels: kernels that the row's server set in place of its engine's, by key of the engine.
    """

    system: System
    reason: str = ""
    remark: str = ""
    bound: str = ""
    host: str = ""
    prefill: bool = True
    not_fitted: str = ""
    own_kernels: Mapping[str, Kernels] = field(default_factory=dict)


@lru_cache(maxsize=256)
def catalogue_entry(name: str, kind: str) -> Any:
    """Return one entry of the catalogue; a name in capitals is tried in lower case too.

    Raises: InexpressibleError if there is none.
    """
    classes: dict[str, type[Value]] = {
        "chips": Chip,
        "engines": Engine,
        "kernels": Kernels,
        "models": Model,
    }
    paths = catalogue_paths(kind)
    path = paths.get(name) or paths.get(name.lower())
    if path is None:
        raise InexpressibleError(f"{name!r} is not among the catalogue's {kind}")
    return read_value(path, classes[kind])


@lru_cache(maxsize=8)
def catalogue_paths(kind: str) -> dict[str, Path]:
    """Return the catalogue's files of a kind by name and alias.

    Cached, because aliases are read from every file.
    """
    return catalogue_names(kind) | aliases(kind)


@lru_cache(maxsize=1)
def measurement_rules() -> tuple[Rule, ...]:
    """Return the rules about measured rows.  Raises: ScenarioError if their file is wrong."""
    return read_value(catalogue_names("measurements")["rules"], Rules).rules


def system_of_row(
    about: Mapping[str, str],
    chips: int | None,
    parallelism: str,
    degrees: Mapping[str, Setting] | None = None,
    users: int = 0,
) -> RowSystem:
    """Return the system that ran a row, with what the rules say about it.

    about: names in the row, which the rules match.
    chips: number of chips; None if it was not published.
    degrees: degrees of the plan; None means those of `parallelism`. Those of a rule replace them.
    Raises: InexpressibleError if the catalogue cannot express the row.
    """
    matching = [rule for rule in measurement_rules() if rule.holds(about)]
    options = _system_options(matching, users)
    if "engine" not in options:
        raise InexpressibleError(f"engine {about['engine']!r}: the catalogue has no file for it")
    if "plan.weights" not in options:
        raise InexpressibleError(f"precision {about['precision']!r} is not known")
    model = catalogue_entry(about["model"], "models")
    chip = catalogue_entry(str(options.pop("chip", about["chip"])), "chips")
    published = _unpublished_chips(model) if chips is None else chips
    count = int(options.pop("chips", None) or published)
    # Groq: nodes of 8 in a row, two to a stage where there are more nodes than blocks to cut at.
    node = 8 if count // 8 <= len(model.blocks) else 16
    own = degrees if degrees is not None else parallel_degrees(parallelism, node)
    options = {**own, **options}
    if not any(block.experts for block in model.blocks):
        options.pop("plan.expert", None)
    plan = {
        key.removeprefix("plan."): value
        for key, value in options.items()
        if key.startswith("plan.")
    }
    rest = {key: value for key, value in options.items() if not key.startswith("plan.")}
    engine = catalogue_entry(str(rest.pop("engine")), "engines")
    own_kernels: dict[str, Kernels] = {}
    if kernels := rest.pop("engine.block_kernels", None):
        own_kernels["block_kernels"] = catalogue_entry(str(kernels), "kernels")
        engine = engine.model_copy(update=own_kernels)
    parts = {"chip": chip, "chips": count, "engine": engine, "model": model}
    system = System.model_validate({**parts, "plan": Plan.model_validate(plan), **_nested(rest)})

    def last(key: str) -> str:
        """Return the text of the last rule that has one, or nothing."""
        return next((text for rule in reversed(matching) if (text := getattr(rule, key))), "")

    return RowSystem(
        system,
        last("assumed"),
        last("remark"),
        last("bound"),
        last("host"),
        all(rule.prefill for rule in matching),
        last("not_fitted"),
        own_kernels,
    )


def _nested(options: Mapping[str, Setting]) -> dict[str, Any]:
    """Return options with keys as 'batch_wait.steps' as mappings in mappings."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        part, _, rest = key.partition(".")
        if rest:
            nested.setdefault(part, {})[rest] = value
        else:
            nested[part] = value
    return nested


def _system_options(matching: list[Rule], users: int) -> dict[str, Setting]:
    """Return the keys of a system that rules set; later rules replace earlier ones.

    Raises: InexpressibleError if a rule excludes the row.
    """
    options: dict[str, Setting] = {}
    for rule in matching:
        options |= rule.system
        if rule.exclude:
            raise InexpressibleError(rule.exclude)
        if rule.one_less:
            options["max_sequences"] = max(1, users - 1)
    return options


def _unpublished_chips(model: Model) -> int:
    """Return how many chips serve a model where Groq did not say.

    Assumed: as many as it takes, 576 for 70 B parameters.
    """
    return 576 if model.parameters > 20e9 else 64


def parallel_degrees(parallelism: str, tensor: int) -> dict[str, int]:
    """Return the degrees of 'TP8', 'PP4', 'DEP4', 'TP2 PP2' or 'none', by key of a system.

    tensor: chips of a stage, used where a table says only 'TP x PP'.
    Raises: InexpressibleError if the text is none of these.
    """
    if parallelism.startswith("TP x PP"):
        return {"plan.tensor": tensor}
    numbers = dict(re.findall(r"\b(TP|PP|DEP|EP)([0-9]+)", parallelism))
    if "DEP" in numbers:
        return {"plan.attention_data": int(numbers["DEP"])}
    if numbers:
        degrees = {
            "plan.tensor": int(numbers.get("TP", 1)),
            "plan.pipeline": int(numbers.get("PP", 1)),
        }
        if "EP" in numbers:
            degrees["plan.expert"] = int(numbers["EP"])
        return degrees
    if parallelism in ("none", "", "1 wafer") or parallelism.startswith("PP over"):
        return {"plan.tensor": 1}
    raise InexpressibleError(f"parallelism {parallelism!r} is not known")
