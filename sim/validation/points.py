"""Measured points: rows of tables, each as the system and the requests that simulate it.

Three kinds of table are known by their header: published figures (a row is one metric of one configuration), serving
measurements (a row is the mean TTFT and TPOT of a closed loop) and steps (a row is the time of a batch's prompts and of a token).
A fourth, replies of services, becomes points in `sim.validation.replies`: one for many rows.
What the tables leave unsaid stands in rules, with reasons.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sim.catalogue.measurements import Rule, Rules, errors_at_row, read_csv_table
from sim.cost.plan import Plan
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.inputs.files import (
    ScenarioError,
    UserError,
    Value,
    aliases,
    catalogue_names,
    read_value,
    shorten,
)
from sim.model.config import Model
from sim.scenario.system import System

PUBLISHED = (
    *(
        "point_id",
        "accelerator_chip_id",
        "n_accelerators",
        "model",
        "weight_precision",
        "parallelism",
        "engine",
    ),
    *(
        "speculative_decoding",
        "batch_or_concurrency",
        "input_tokens",
        "output_tokens",
        "metric",
        "value",
    ),
)
SERVING = (
    *(
        "point_id",
        "model",
        "system",
        "backend",
        "backend_version",
        "precision",
        "isl",
        "osl",
        "lengths",
        "concurrency",
    ),
    *(
        "chips",
        "tp",
        "pp",
        "attention_dp",
        "moe_tp",
        "moe_ep",
        "mean_ttft_ms",
        "mean_tpot_ms",
        "use",
        "reason",
    ),
)
STEPS = (
    "model",
    "hardware",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
    "tensor_parallel",
)
REPLIES = (
    *(
        "provider",
        "model",
        "date",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "prompt_time_s",
    ),
    *(
        "completion_time_s",
        "ttft_s",
        "tokens_per_s_reported",
        "acceptance_rate",
        "speculative",
        "flags",
    ),
)
# What of a table's metric is measured, and how its unit becomes seconds a token or seconds: per thousand, or its inverse.
POINT_METRICS = {
    "decode_tok_s_user": "tpot",
    "TPOT_ms": "tpot",
    "ITL_ms": "itl",
    "TTFT_ms": "ttft",
    "prefill_tok_s": "ttft",
    "e2e_latency_s": "e2el",
    "throughput_tok_s_total": "throughput",
    "throughput_tok_s_per_gpu": "throughput",
}
API = (
    500,
    200,
)  # tokens of a prompt and an answer where a table does not say, of a chat with a public service.  Assumed.
Pattern = Literal["alone", "batch", "users", "full", "reply"]
# How a metric counts, and why: fitted to, or listed without being scored.
Known = tuple[Literal["fitted", "listed"], str]


class InexpressibleError(UserError):
    """A row that no system of the catalogue stands for."""


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One measured row: what ran, under which requests, and what was measured (seconds; for a throughput, a token's).

    `about` has model, chip, engine, precision, source, date, prompt and table as the table has them: what rules go by.
    """

    id: str
    about: dict[str, str]
    measured: dict[str, float]
    pattern: Pattern = "alone"
    users: int = 1
    prompt: int = 0
    output: int = 0
    spread: bool = False  # lengths are 80-100 % of these
    prefill: bool = True
    system: System | None = None  # None where it cannot be simulated
    reason: str = ""  # why not, or why its engine is a neighbour's
    remark: str = ""  # why it is known to be far off
    bound: str = ""  # why its time is only an upper bound: a throttle or the load of a service
    host: str = ""  # whose client, HTTP and tokenizer its TTFT counts; an engine's file knows what they take
    group: str = ""  # configurations that differ in the number of users alone
    known: Mapping[str, Known] = field(
        default_factory=dict
    )  # by metric, where it is not scored as others are
    prompts: tuple[
        tuple[int, float], ...
    ] = ()  # of single replies: new prompt tokens and prompt time [s]

    @property
    def key(self) -> str:
        """Points of one key are simulated once."""
        return f"{self.group} {self.users}"

    def is_bound(self, metric: str) -> bool:
        """Return whether the measured time of a metric is an upper bound.

        A pace delays tokens after the first one, so the time of a prompt stays a measurement.
        """
        return bool(self.bound) and metric not in ("ttft", "beat")

    def error(self, metric: str, simulated: float, measured: float) -> float:
        """Return ln(simulated / measured) of a time; at least 0 where the measured time is an upper bound."""
        error = math.log(simulated / measured)
        return max(0.0, error) if self.is_bound(metric) else error


@lru_cache(maxsize=256)
def entry(name: str, kind: str) -> Any:
    """One entry of the catalogue; tables write names in capitals that the catalogue has not."""
    classes: dict[str, type[Value]] = {"chips": Chip, "engines": Engine, "models": Model}
    known = entries(kind)
    path = known.get(name) or known.get(name.lower())
    if path is None:
        raise InexpressibleError(f"{name!r} is not among the catalogue's {kind}")
    return read_value(path, classes[kind])


@lru_cache(maxsize=8)
def entries(kind: str) -> dict[str, Path]:
    """Return the catalogue's files of a kind by name and alias.  Cached: aliases are read from every file."""
    return catalogue_names(kind) | aliases(kind)


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    return read_value(catalogue_names("measurements")["rules"], Rules).rules


def measured_points(path: Path) -> list[MeasuredPoint]:
    """The rows of a table.  Raises: ScenarioError where its header is not known or a cell is malformed."""
    header, rows = read_csv_table(path)
    kinds = ((PUBLISHED, published_points), (SERVING, serving), (STEPS, steps))
    make = next((make for keys, make in kinds if set(keys) <= set(header)), None)
    if make is None:
        raise ScenarioError(
            f"{shorten(path)}:1: is not a table that is known: published figures ({', '.join(PUBLISHED)}), serving measurements "
            f"({', '.join(SERVING)}), steps ({', '.join(STEPS)}) or replies ({', '.join(REPLIES)})"
        )
    rules()  # a mistake in them is not one of a row
    found: list[MeasuredPoint] = []
    for where, row in rows:
        with errors_at_row(where):  # also of degrees that make no plan
            found.append(make({"line": f"{path.stem}:{where.rpartition(':')[2]}", **row}))
    return found


def number(row: Mapping[str, str], key: str, kind: type = float) -> Any:
    try:
        value = kind(row[key])
    except ValueError:
        raise ValueError(f"{key}: {row[key]!r} is not a number") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{key}: {row[key]!r} must be more than 0, and finite")
    return value


def leading(text: str) -> int | None:
    """The number that a cell begins with: '576 (70B)' is 576, '~100..1000' is none."""
    found = re.match(r"[0-9]+", text.strip())
    return int(found.group()) if found else None


def published_points(row: Mapping[str, str]) -> MeasuredPoint:
    """A published figure of one configuration."""
    about = {key: row.get(key, "") for key in ("model", "engine", "date")}
    about |= {
        "table": "published",
        "chip": row["accelerator_chip_id"],
        "precision": row["weight_precision"],
    }
    about |= {"source": row.get("source_url", ""), "prompt": row["input_tokens"]}
    name, metric = row["point_id"], row["metric"]
    value = number(row, "value")
    if metric not in POINT_METRICS:
        return MeasuredPoint(
            name,
            about,
            {},
            reason=f"metric {metric}: nothing simulates it; there are {', '.join(POINT_METRICS)}",
        )
    prompt, output = leading(row["input_tokens"]), leading(row["output_tokens"])
    users, chips = leading(row["batch_or_concurrency"]), leading(row["n_accelerators"])
    prompt = API[0] if prompt is None else max(1, prompt)
    output = API[1] if output is None else max(1, output)
    several = (users or 1) > 1
    pattern: Pattern
    match metric:
        case "decode_tok_s_user":
            seconds, pattern = 1 / value, "batch" if several else "alone"
        case "prefill_tok_s":
            seconds, pattern, output = prompt / value, "alone", 1
        case "TTFT_ms":
            seconds, pattern = (
                value / 1000,
                ("batch" if output == 1 else "users") if several else "alone",
            )
        case "ITL_ms" | "TPOT_ms":
            seconds, pattern = value / 1000, "users" if several else "alone"
        case "e2e_latency_s":
            seconds, pattern = value, "batch"
        case _:
            seconds = 1 / (value * (chips or 1) if metric.endswith("per_gpu") else value)
            pattern = "full"
    try:
        system, said = run_by(about, chips, row["parallelism"])
    except InexpressibleError as error:
        return MeasuredPoint(name, about, {POINT_METRICS[metric]: seconds}, reason=str(error))
    measured = {POINT_METRICS[metric]: seconds}
    if row["speculative_decoding"] not in ("0", "", "False"):
        return MeasuredPoint(name, about, measured, reason="speculative decoding is not simulated")
    users = users or (0 if pattern == "full" else 1)
    group = " ".join(
        [*about.values(), str(chips), row["parallelism"], f"{pattern} {prompt} {output}"]
    )
    return MeasuredPoint(
        name, about, measured, pattern, users, prompt, output, system=system, **said, group=group
    )


def serving(row: Mapping[str, str]) -> MeasuredPoint:
    """A closed loop's mean TTFT and TPOT."""
    engine = f"{row['backend']} {row['backend_version']}".strip()
    about = {
        "table": "serving",
        "model": row["model"],
        "chip": row["system"],
        "engine": engine,
        "precision": row["precision"],
    }
    about |= {"source": row.get("source", ""), "date": "", "prompt": row["isl"]}
    keys = ("tp", "pp", "attention_dp", "moe_tp", "moe_ep", "chips", "concurrency", "isl", "osl")
    tp, pp, dp, _, ep, chips, users, isl, osl = (number(row, key, int) for key in keys)
    measured = {
        "ttft": number(row, "mean_ttft_ms") / 1000,
        "tpot": number(row, "mean_tpot_ms") / 1000,
    }
    replicas = chips // (tp * pp * dp)
    degrees = {
        "plan.tensor": tp,
        "plan.pipeline": pp,
        "plan.attention_data": dp,
        "plan.expert": ep,
        "plan.replicas": replicas,
    }
    group = " ".join(
        [
            *about.values(),
            *(
                row[key]
                for key in ("isl", "osl", "tp", "attention_dp", "moe_ep", "pp", "chips", "lengths")
            ),
        ]
    )
    if row["use"] != "score":
        reason = row["reason"] or f"its use is {row['use']!r}, not 'score'"
        return MeasuredPoint(row["point_id"], about, measured, reason=reason, group=group)
    try:
        system, said = run_by(about, chips, "", degrees, users * dp)
    except InexpressibleError as error:
        return MeasuredPoint(row["point_id"], about, measured, reason=str(error), group=group)
    lengths = {"prompt": isl, "output": osl, "spread": not row["lengths"].startswith("fixed")}
    return MeasuredPoint(
        row["point_id"],
        about,
        measured,
        "users",
        users * dp,
        **lengths,
        system=system,
        **said,
        group=group,
    )


def steps(row: Mapping[str, str]) -> MeasuredPoint:
    """The times of a batch's prompts, and of a token of it."""
    about = {
        "table": "steps",
        "model": row["model"],
        "chip": row["hardware"],
        "engine": "2023",
        "precision": "fp16",
    }
    about |= {"source": "", "date": "2023"}
    keys = ("prompt_size", "batch_size", "token_size", "tensor_parallel")
    prompt, users, output, tensor = (number(row, key, int) for key in keys)
    measured = {"ttft": number(row, "prompt_time") / 1000, "tpot": number(row, "token_time") / 1000}
    group = f"tensor {tensor}, prompt {prompt}, output {output}, batch {users}"
    about["group"] = group
    try:
        system, said = run_by(about, tensor, f"TP{tensor}")
    except InexpressibleError as error:
        return MeasuredPoint(row["line"], about, measured, reason=str(error), group=group)
    return MeasuredPoint(
        row["line"],
        about,
        measured,
        "batch",
        users,
        prompt,
        output,
        system=system,
        **said,
        group=group,
    )


def run_by(
    about: Mapping[str, str],
    chips: int | None,
    parallelism: str,
    degrees: Mapping[str, Any] | None = None,
    users: int = 0,
) -> tuple[System, dict[str, Any]]:
    """The system that ran a row, and what else the rules say.  Raises: InexpressibleError where it cannot be expressed."""
    options: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for rule in rules():
        if rule.holds(about):
            options |= rule.system
            if rule.exclude:
                raise InexpressibleError(rule.exclude)
            if rule.assumed:
                said["reason"] = rule.assumed
            if rule.remark:
                said["remark"] = rule.remark
            if rule.bound:
                said["bound"] = rule.bound
            if rule.host:
                said["host"] = rule.host
            if not rule.prefill:
                said["prefill"] = False
            if rule.one_less:
                options["max_sequences"] = max(1, users - 1)
    if "engine" not in options:
        raise InexpressibleError(f"engine {about['engine']!r}: the catalogue has no file for it")
    if "plan.weights" not in options:
        raise InexpressibleError(f"precision {about['precision']!r} is not known")
    model, chip = (
        entry(about["model"], "models"),
        entry(options.pop("chip", about["chip"]), "chips"),
    )
    chips = options.pop("chips", chips)
    if chips is None:
        chips = unpublished(model)
    # Groq: nodes of 8 in a row, two to a stage where there are more nodes than blocks to cut between.
    node = 8 if chips // 8 <= len(model.blocks) else 16
    options |= degrees if degrees is not None else dealt(parallelism, node)
    if not any(block.experts for block in model.blocks):
        options.pop("plan.expert", None)
    plan = {
        key.removeprefix("plan."): value
        for key, value in options.items()
        if key.startswith("plan.")
    }
    rest = {key: value for key, value in options.items() if not key.startswith("plan.")}
    engine = entry(rest.pop("engine"), "engines")
    return System(
        chip=chip, chips=chips, engine=engine, model=model, plan=Plan.model_validate(plan), **rest
    ), said


def unpublished(model: Model) -> int:
    """Groq did not say how many chips serve a model: as many as it takes, 576 for 70 B parameters.  Assumed."""
    return 576 if model.parameters > 20e9 else 64


def dealt(parallelism: str, tensor: int) -> dict[str, int]:
    """The degrees of 'TP8', 'PP4', 'DEP4', 'TP2 PP2', 'none'; stages of `tensor` chips where it is 'TP x PP'."""
    if parallelism.startswith("TP x PP"):
        return {"plan.tensor": tensor}
    found = dict(re.findall(r"\b(TP|PP|DEP|EP)([0-9]+)", parallelism))
    if "DEP" in found:
        return {"plan.attention_data": int(found["DEP"])}
    if found:
        degrees = {"plan.tensor": int(found.get("TP", 1)), "plan.pipeline": int(found.get("PP", 1))}
        if "EP" in found:
            degrees["plan.expert"] = int(found["EP"])
        return degrees
    if parallelism in ("none", "", "1 wafer") or parallelism.startswith("PP over"):
        return {"plan.tensor": 1}
    raise InexpressibleError(f"parallelism {parallelism!r} is not known")


def halves(all_points: Iterable[MeasuredPoint]) -> set[str]:
    """The ids of serving measurements that engines may be fitted to: within each model x system x backend, every second
    configuration (precision, version, lengths, degrees), in the order of their names, with all its numbers of users."""
    by_group: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for point in all_points:
        if point.system is not None:
            about = point.about
            where = about["model"], about["chip"], about["engine"].split()[0]
            by_group.setdefault(where, {}).setdefault(point.group, []).append(point.id)
    return {
        each
        for groups in by_group.values()
        for group in sorted(groups)[1::2]
        for each in groups[group]
    }
