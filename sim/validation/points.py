"""Measured points: a row of a table as the system and the requests that simulate it.

    from sim.validation.validate import shipped_table
    measured_points(shipped_table("calibration"))[0].measured  # seconds by metric

Three kinds of table are recognized by their header.
Published figures: a row is one metric of one configuration.
Serving measurements: a row is the mean TTFT and TPOT of a closed loop.
Steps: a row is the time of a batch's prompts and of one token.
A fourth kind, replies of services, has many rows for one point: `sim.validation.replies`.
Two more are of prefill and decode pools: `sim.validation.pooled_points`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sim.catalogue.measurements import errors_at_row, read_csv_table
from sim.hardware.kernels import Kernels
from sim.inputs.errors import ScenarioError, nearest_name
from sim.inputs.files import shorten
from sim.scenario.speculate import Speculate
from sim.scenario.system import System
from sim.serving.transfer import Transfer
from sim.validation.systems import (
    InexpressibleError,
    RowSystem,
    measurement_rules,
    system_of_row,
)

# Columns by which a table is recognized.
PUBLISHED = (
    "point_id", "accelerator_chip_id", "n_accelerators", "model", "weight_precision",
    "parallelism", "engine", "speculative_decoding", "batch_or_concurrency", "input_tokens",
    "output_tokens", "metric", "value",
)  # fmt: skip
SERVING = (
    "point_id", "model", "system", "backend", "backend_version", "precision", "isl", "osl",
    "lengths", "concurrency", "chips", "tp", "pp", "attention_dp", "moe_tp", "moe_ep",
    "mean_ttft_ms", "mean_tpot_ms", "use", "reason",
)  # fmt: skip
STEPS = (
    "model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time",
    "tensor_parallel",
)  # fmt: skip
REPLIES = (
    "provider", "model", "date", "prompt_tokens", "completion_tokens", "cached_tokens",
    "prompt_time_s", "completion_time_s", "ttft_s", "tokens_per_s_reported", "acceptance_rate",
    "speculative", "flags",
)  # fmt: skip
POOLED = (
    "point_id", "model", "system", "backend", "backend_version", "precision", "isl", "osl",
    "concurrency", "prefill_workers", "prefill_tp", "prefill_pp", "prefill_dp", "prefill_moe_tp",
    "prefill_moe_ep", "decode_workers", "decode_tp", "decode_pp", "decode_dp", "decode_moe_tp",
    "decode_moe_ep", "decode_batch", "mean_ttft_ms", "mean_tpot_ms", "label",
)  # fmt: skip
HYBRID = (
    "point_id", "topic", "system", "chips_prefill", "chips_decode", "model", "precision", "isl",
    "osl", "concurrency", "metric", "value", "unit",
)  # fmt: skip
# A row of a user's own table needs these. With a TTFT, its TPOT may be empty.
OWN_COLUMNS = ("model", "chip", "chips", "concurrency", "tpot_ms")
# Our metric for each metric of a table.
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
# Tokens of a prompt and an answer in a chat with a public service, if a table has none.  Assumed.
API = (500, 200)
# The curve of a family. Tables have the drafts of a step, but not how many are accepted: assumed.
MTP_CURVE = {"DeepSeek": "deepseek-r1-mtp"}
Pattern = Literal["alone", "batch", "users", "full", "reply"]
# How a metric counts, and why: fitted to, or listed without being scored.
Known = tuple[Literal["fitted", "listed"], str]


@dataclass(frozen=True, slots=True)
class MeasuredPools:
    """The prefill pool of a measured row and its links; the row's own system decodes."""

    prefill: System
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """A measured row: what ran, under which requests, and what was measured.

    about: model, chip, engine, precision, source, date, prompt and table, as the table names
    them.  Rules match these names.
    measured: seconds by metric; for a throughput, the time of one token.
    pattern: how the requests come; see `sim.validation.simulate.serve_point`.
    """

    id: str
    about: dict[str, str]
    measured: dict[str, float]
    pattern: Pattern = "alone"
    users: int = 1
    prompt: int = 0
    output: int = 0
    spread: bool = False  # lengths are 80-100 % of `prompt` and `output`
    prefill: bool = True
    system: System | None = None  # None if it cannot be simulated
    pools: MeasuredPools | None = None  # None if one system does all
    reason: str = ""  # why it cannot, or why its engine is a neighbour's
    remark: str = ""  # why it is known to be far off
    not_fitted: str = ""  # why no engine is fitted to it
    bound: str = ""  # why its time is only an upper bound: a throttle or the load of a service
    host: str = ""  # host whose client, HTTP and tokenizer the TTFT includes; see the engine's file
    own_kernels: Mapping[str, Kernels] = field(default_factory=dict)  # see `RowSystem`
    group: str = ""  # equal for configurations that differ only in the number of users
    # Metrics that are not scored like the others, by name.
    known: Mapping[str, Known] = field(default_factory=dict)
    # Single replies: new prompt tokens, and prompt time [s].
    prompts: tuple[tuple[int, float], ...] = ()

    @property
    def key(self) -> str:
        """The key of the simulation; points with equal keys are simulated once."""
        return f"{self.group} {self.users}"

    def is_bound(self, metric: str) -> bool:
        """Return whether the measured time of a metric is an upper bound.

        A throttle delays tokens after the first one, so the time of a prompt is a measurement.
        """
        return bool(self.bound) and metric not in ("ttft", "beat")

    def error(self, metric: str, simulated: float, measured: float) -> float:
        """Return simulated / measured - 1 of a time; at least 0 if it is an upper bound."""
        error = simulated / measured - 1
        return max(0.0, error) if self.is_bound(metric) else error


def measured_points(path: Path) -> list[MeasuredPoint]:
    """Return the points of a table.

    Left out: tables of replies (`sim.validation.replies.floors`).
    Raises: ScenarioError if the header is unknown or a cell is malformed.
    """
    header, rows = read_csv_table(path)
    kinds = ((PUBLISHED, _published_point), (SERVING, _serving_point), (STEPS, _steps_point))
    make = next((make for keys, make in kinds if set(keys) <= set(header)), None)
    if make is None:
        raise _header_error(path, header)
    measurement_rules()  # before the rows: an error in the rules is not an error of a row
    points: list[MeasuredPoint] = []
    for where, row in rows:
        with errors_at_row(where):  # also for degrees that make no plan
            points.append(make({"line": f"{path.stem}:{where.rpartition(':')[2]}", **row}))
    return points


def _header_error(path: Path, header: list[str]) -> ScenarioError:
    """Return the error of a header: the column that the most similar kind of table also needs."""
    columns = max(
        (OWN_COLUMNS, PUBLISHED, SERVING, STEPS, REPLIES, POOLED, HYBRID),
        key=lambda columns: len({*columns} & {*header}) / len(columns),
    )
    missing = next(column for column in columns if column not in header)
    near = nearest_name(missing, [column for column in header if column not in columns])
    hint = f"'{missing}' in place of {near}" if near else f"this header: {','.join(columns)}"
    return ScenarioError(
        f"{shorten(path)}:1: got no column '{missing}'; expected at least {', '.join(columns)};"
        f" try {hint}"
    )


def cell_number(row: Mapping[str, str], key: str, kind: type = float) -> Any:
    """Return the number in a cell.  Raises: ValueError if it is not finite and above 0."""
    try:
        value = kind(row[key])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        noun = "whole number" if kind is int else "finite number"
        raise ValueError(f"{key}: got {row[key]!r}; expected a {noun} above 0")
    return value


def _leading_number(text: str) -> int | None:
    """Return the number that a cell begins with: 576 for '576 (70B)', None for '~100..1000'."""
    match = re.match(r"[0-9]+", text.strip())
    return int(match.group()) if match else None


def with_system(point: MeasuredPoint, row: RowSystem) -> MeasuredPoint:
    """Return the point with its system, and with what rules say about it."""
    return replace(
        point,
        system=row.system,
        reason=row.reason,
        remark=row.remark,
        not_fitted=row.not_fitted,
        bound=row.bound,
        host=row.host,
        prefill=row.prefill,
        own_kernels=row.own_kernels,
    )


def _published_point(row: Mapping[str, str]) -> MeasuredPoint:
    """Return a published figure of one configuration."""
    about = {key: row.get(key, "") for key in ("model", "engine", "date")}
    about |= {
        "table": "published",
        "chip": row["accelerator_chip_id"],
        "precision": row["weight_precision"],
    }
    about |= {"source": row.get("source_url", ""), "prompt": row["input_tokens"]}
    name, metric = row["point_id"], row["metric"]
    value = cell_number(row, "value")
    if metric not in POINT_METRICS:
        reason = f"metric {metric}: nothing simulates it; there are {', '.join(POINT_METRICS)}"
        return MeasuredPoint(name, about, {}, reason=reason)
    prompt, output = (_leading_number(row[f"{key}_tokens"]) for key in ("input", "output"))
    users, chips = (_leading_number(row[key]) for key in ("batch_or_concurrency", "n_accelerators"))
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
            seconds, pattern = value / 1000, _ttft_pattern(several, output)
        case "ITL_ms" | "TPOT_ms":
            seconds, pattern = value / 1000, "users" if several else "alone"
        case "e2e_latency_s":
            seconds, pattern = value, "batch"
        case _:
            seconds = 1 / (value * (chips or 1) if metric.endswith("per_gpu") else value)
            pattern = "full"
    measured = {POINT_METRICS[metric]: seconds}
    try:
        ran = system_of_row(about, chips, row["parallelism"])
    except InexpressibleError as error:
        return MeasuredPoint(name, about, measured, reason=str(error))
    if row["speculative_decoding"] not in ("0", "", "False"):
        return MeasuredPoint(
            name,
            about,
            measured,
            reason="speculative decoding, and its acceptance is not published",
        )
    users = users or (0 if pattern == "full" else 1)
    group = " ".join(
        [*about.values(), str(chips), row["parallelism"], f"{pattern} {prompt} {output}"]
    )
    point = MeasuredPoint(name, about, measured, pattern, users, prompt, output, group=group)
    return with_system(point, ran)


def _ttft_pattern(several: bool, output: int) -> Pattern:
    """Return the pattern of a published TTFT; with one output token, many requests are a batch."""
    if several:
        return "batch" if output == 1 else "users"
    return "alone"


def mtp_drafts(row: Mapping[str, str]) -> Speculate:
    """Return the drafts of a row with multi-token prediction.

    Raises: InexpressibleError if their number, or an acceptance for the model, is not known.
    """
    if not row.get("mtp_depth"):
        raise InexpressibleError("with multi-token prediction, of a number of drafts unknown")
    drafts = {"tokens": cell_number(row, "mtp_depth", int), "acceptance": _mtp_curve(row)}
    return Speculate.model_validate({"method": "mtp"} | drafts)


def with_drafts(point: MeasuredPoint, row: Mapping[str, str]) -> MeasuredPoint:
    """Return the point of a row with the reason why its drafts are assumed, if it has drafts."""
    if point.reason or not (point.system and point.system.speculate):
        return point
    return replace(point, reason=f"acceptance of {_mtp_curve(row)}, of another text")


def _mtp_curve(row: Mapping[str, str]) -> str:
    """Return the acceptance curve of a row.  Raises: InexpressibleError if there is none."""
    for model, curve in MTP_CURVE.items():
        if row["model"].startswith(model):
            return curve
    raise InexpressibleError(f"no acceptance of multi-token prediction of {row['model']} is known")


def _serving_point(row: Mapping[str, str]) -> MeasuredPoint:
    """Return the mean TTFT and TPOT of a closed loop."""
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
    tp, pp, dp, _, ep, chips, users, isl, osl = (cell_number(row, key, int) for key in keys)
    measured = {
        "ttft": cell_number(row, "mean_ttft_ms") / 1000,
        "tpot": cell_number(row, "mean_tpot_ms") / 1000,
    }
    degrees = {
        "plan.tensor": tp,
        "plan.pipeline": pp,
        "plan.attention_data": dp,
        "plan.expert": ep,
        "plan.replicas": chips // (tp * pp * dp),
    }
    same = ("isl", "osl", "tp", "attention_dp", "moe_ep", "pp", "chips", "lengths")
    group = " ".join([*about.values(), *(row[key] for key in same)])
    # After the group, by which the halves are chosen.
    about |= {"output": row["osl"], "chips": row["chips"], "tensor": str(tp)}
    about |= {"users": row["concurrency"], "version": row["backend_version"] or "unknown"}
    about["drafts"] = row.get("mtp_depth") or "0"
    name = row["point_id"]
    if row["use"] != "score":
        reason = row["reason"] or f"its use is {row['use']!r}, not 'score'"
        return MeasuredPoint(name, about, measured, reason=reason, group=group)
    try:
        ran = system_of_row(about, chips, "", degrees, users * dp)
        if depth := row.get("mtp_depth"):
            drafting = System.model_validate(dict(ran.system) | {"speculate": mtp_drafts(row)})
            ran, group = replace(ran, system=drafting), f"{group} {depth} drafts"
    except InexpressibleError as error:
        return MeasuredPoint(name, about, measured, reason=str(error), group=group)
    spread = not row["lengths"].startswith("fixed")
    point = MeasuredPoint(name, about, measured, "users", users * dp, isl, osl, spread, group=group)
    return with_drafts(with_system(point, ran), row)


def _steps_point(row: Mapping[str, str]) -> MeasuredPoint:
    """Return the time of a batch's prompts, and of one token of the batch."""
    about = {
        "table": "steps",
        "model": row["model"],
        "chip": row["hardware"],
        "engine": "2023",
        "precision": "fp16",
    }
    about |= {"source": "", "date": "2023"}
    keys = ("prompt_size", "batch_size", "token_size", "tensor_parallel")
    prompt, users, output, tensor = (cell_number(row, key, int) for key in keys)
    measured = {
        "ttft": cell_number(row, "prompt_time") / 1000,
        "tpot": cell_number(row, "token_time") / 1000,
    }
    name = row["line"]
    group = f"tensor {tensor}, prompt {prompt}, output {output}, batch {users}"
    about["group"] = group
    try:
        ran = system_of_row(about, tensor, f"TP{tensor}")
    except InexpressibleError as error:
        return MeasuredPoint(name, about, measured, reason=str(error), group=group)
    point = MeasuredPoint(name, about, measured, "batch", users, prompt, output, group=group)
    return with_system(point, ran)


def fitting_half(points: Iterable[MeasuredPoint]) -> set[str]:
    """Return the ids of serving measurements that engines may be fitted to: every second one.

    Points are grouped by model, system and backend.  In a group, configurations (precision,
    version, lengths, degrees) are sorted by name.  Every second one is taken, with all its
    numbers of users.  Left out: points with drafts, whose acceptance is assumed.
    """
    by_group: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for point in points:
        if point.system is not None and not point.system.speculate:
            about = point.about
            where = about["model"], about["chip"], about["engine"].split()[0]
            by_group.setdefault(where, {}).setdefault(point.group, []).append(point.id)
    return {
        point_id
        for groups in by_group.values()
        for group in sorted(groups)[1::2]
        for point_id in groups[group]
    }
