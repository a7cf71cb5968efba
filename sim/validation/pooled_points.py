"""Measured prefill and decode pools: served requests, and transfers of KV caches.

    from sim.validation.validate import shipped_table
    pooled_points(shipped_table("pd-silicon"))[0].measured  # seconds by metric

A row of served pools has the mean TTFT and TPOT of a closed loop.  Rows that used multi-token
prediction are simulated with a published acceptance, and counted apart.  Rows that may have used it
are not simulated.
A row of the other table is one figure about a hand-over.  Only times of transfers and TTFTs are
simulated.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.catalogue.measurements import errors_at_row, read_csv_table
from sim.inputs.names import catalogue_folder
from sim.scenario.system import System
from sim.serving.transfer import Transfer
from sim.validation.points import (
    HYBRID,
    POOLED,
    Known,
    MeasuredPoint,
    MeasuredPools,
    cell_number,
    mtp_drafts,
    with_drafts,
    with_system,
)
from sim.validation.systems import InexpressibleError, RowSystem, measurement_rules, system_of_row

# The link that carries a prompt: its latency, and its share of the ports' peak bandwidth. Both are
# fitted to the nine transfers of this system, as in the scenario pd-mooncake.
FITTED_LINK = "vLLM 0.11.2 + Mooncake 1P1D, 8 RoCE ~200 GB/s peak"
LATENCY, SHARE_OF_PEAK = 0.374e-3, 147.1 / 200
# Assumed: a port of 400 Gb/s for each chip, because the table does not say what joined the pools.
PORT = 50e9
# Rows of the shipped table that show the hand-over. It is fitted to them for engines without a
# published one.
SHIPPED, FLOOR_PROMPT, FLOOR_USERS = "measurements/pd-silicon.csv", 1024, 32
LABELS = {
    "ambiguous": "with or without multi-token prediction: both fit the row",
    "unmatched": "with or without multi-token prediction: not known",
}
MILLISECONDS = {"kv_transfer_ms": "kv_transfer", "ttft_ms": "ttft"}
NOT_TIMED = {
    "kv_bandwidth": "a bandwidth: the time of its transfer is the row before",
    "kv_bytes": "bytes of a cache: a test compares them",
    "handover_p50_ms": "a hand-over: `handover` of vllm is from these figures",
    "handover_mean_ms": "a hand-over: `handover` of vllm is from these figures",
}


def is_pooled(path: Path) -> bool:
    """Return whether a table is of prefill and decode pools."""
    header = set(read_csv_table(path)[0])
    return set(POOLED) <= header or set(HYBRID) <= header


def pooled_points(path: Path) -> list[MeasuredPoint]:
    """Return the points of a table of prefill and decode pools.

    Raises: ScenarioError if a cell is malformed.
    """
    header, rows = read_csv_table(path)
    make = _served_pools if set(POOLED) <= set(header) else _hand_over
    measurement_rules()  # before the rows: an error in the rules is not an error of a row
    points = []
    for where, row in rows:
        with errors_at_row(where):
            points.append(make(row))
    return points


def _served_pools(row: Mapping[str, str]) -> MeasuredPoint:
    """Return the mean TTFT and TPOT of a closed loop on two pools."""
    about = {
        "table": "pools",
        "model": row["model"],
        "chip": row["system"],
        "engine": f"{row['backend']} {row['backend_version']}".strip(),
        "precision": row["precision"],
        "source": row.get("source", ""),
        "date": row.get("measured_on", ""),
        "prompt": row["isl"],
    }
    measured = {
        "ttft": cell_number(row, "mean_ttft_ms") / 1000,
        "tpot": cell_number(row, "mean_tpot_ms") / 1000,
    }
    name, label = row["point_id"], row["label"]
    if label not in ("without", "mtp"):
        reason = LABELS.get(
            label, f"label {label!r} is not one of without, mtp, {', '.join(LABELS)}"
        )
        return MeasuredPoint(name, about, measured, reason=reason)
    if doubt := row.get("doubt", ""):
        return MeasuredPoint(name, about, measured, reason=doubt)
    users, prompt, output = (cell_number(row, key, int) for key in ("concurrency", "isl", "osl"))
    try:
        prefill, decode = (_pool(row, pool, about) for pool in ("prefill", "decode"))
    except InexpressibleError as error:
        return MeasuredPoint(name, about, measured, reason=str(error))
    known: dict[str, Known] = {}
    fitted = (decode.system.engine.source_of("handover") or "").startswith("fitted")
    if fitted and name in floor_ids():
        known["ttft"] = ("fitted", "`handover` of the engine, to rows of few users")
    degrees = (row[key] for key in row if key.startswith(("prefill_", "decode_")))
    port = Transfer(bandwidth=PORT, latency=LATENCY, per="chip")
    point = MeasuredPoint(
        name,
        about,
        measured,
        "users",
        users,
        prompt,
        output,
        spread=True,
        pools=MeasuredPools(prefill.system, port),
        group=" ".join([*about.values(), row["osl"], row.get("mtp_depth", ""), *degrees]),
        known=known,
    )
    return with_drafts(with_system(point, decode), row)


@lru_cache(maxsize=1)
def floor_ids() -> frozenset[str]:
    """Return the ids of the shipped rows to which hand-overs may be fitted."""
    rows = (row for _, row in read_csv_table(catalogue_folder() / SHIPPED)[1])
    return frozenset(
        row["point_id"]
        for row in rows
        if row["label"] == "without"
        and int(row["isl"]) <= FLOOR_PROMPT
        and int(row["concurrency"]) <= FLOOR_USERS
    )


def _pool(row: Mapping[str, str], pool: str, about: Mapping[str, str]) -> RowSystem:
    """Return the system of a pool of a row.  Raises: InexpressibleError if there is none.

    A decode pool holds at least the sequences that it had.
    """
    keys = ("workers", "tp", "pp", "dp", "moe_ep")
    workers, tp, pp, dp, ep = (cell_number(row, f"{pool}_{key}", int) for key in keys)
    degrees = {
        "plan.tensor": tp,
        "plan.pipeline": pp,
        "plan.attention_data": dp,
        "plan.expert": ep,
        "plan.replicas": workers,
    }
    about = {**about, "tensor": str(tp)}  # rules tell attention data parallelism by it
    ran = system_of_row(about, workers * tp * pp * dp, "", degrees)
    if pool == "prefill":
        return ran
    engine, batch = ran.system.engine, cell_number(row, "decode_batch", int)
    if engine.limits_per == "replica":
        batch *= dp
    changes: dict[str, Any] = {"max_sequences": max(batch, engine.max_sequences or batch)}
    if row["label"] == "mtp":
        drafts = mtp_drafts(row)
        changes["speculate"], batch = drafts, (1 + drafts.tokens) * batch
    changes["token_budget"] = max(batch, engine.token_budget or batch)
    return _decoding(ran, **changes)


def _decoding(ran: RowSystem, **changes: Any) -> RowSystem:
    """Return the system with some keys changed, as a decode pool.

    The default policy of its engine may be one for prompts, and a decode pool has no prompts.
    """
    changed = System.model_validate(dict(ran.system) | changes | {"policy": "continuous"})
    return replace(ran, system=changed)


def _hand_over(row: Mapping[str, str]) -> MeasuredPoint:
    """Return one figure about the hand-over of a request."""
    about = {
        "table": "transfers",
        "model": row["model"],
        "chip": row["chips_prefill"],
        "engine": row["system"],
        "precision": row["precision"],
        "source": row.get("source", ""),
        "date": "",
        "prompt": row["isl"],
    }
    name, metric = row["point_id"], row["metric"]
    if metric not in MILLISECONDS:
        reason = NOT_TIMED.get(metric, f"topic {row['topic']}, metric {metric}: no set has it")
        return MeasuredPoint(name, about, {}, reason=reason)
    measured = {MILLISECONDS[metric]: cell_number(row, "value") / 1000}
    try:
        (chip, prefill), (_, decode) = (_chips(row[f"chips_{p}"]) for p in ("prefill", "decode"))
        prompt, peak = _number(row["isl"], "prompt"), _peak(row["system"])
        about["chip"] = chip
        pools = [system_of_row(about, n, f"TP{n}") for n in (prefill, decode)]
    except InexpressibleError as error:
        return MeasuredPoint(name, about, measured, reason=str(error))
    known: dict[str, Known] = {"ttft": ("listed", "simulated without hand-over and HTTP")}
    if row["system"] == FITTED_LINK:
        known["kv_transfer"] = ("fitted", "latency and bandwidth of the link, to nine transfers")
    link = Transfer(bandwidth=SHARE_OF_PEAK * peak, latency=LATENCY, handover=0.0)
    point = MeasuredPoint(
        name,
        about,
        measured,
        prompt=prompt,
        output=2,
        pools=MeasuredPools(pools[0].system, link),
        group=" ".join([*about.values(), row["chips_prefill"], row["chips_decode"]]),
        known=known,
    )
    return with_system(point, _decoding(pools[1]))


def _chips(text: str) -> tuple[str, int]:
    """Return the kind and number of chips in '8x H800 TP8'.

    Raises: InexpressibleError if the text is not like that.
    """
    match = re.fullmatch(r"([0-9]+)x (\S+) TP([0-9]+)", text)
    if not match or match[1] != match[3]:
        raise InexpressibleError(f"chips {text!r}: not like '8x H800 TP8'")
    return match[2], int(match[1])


def _number(text: str, what: str) -> int:
    """Return a number in a cell.  Raises: InexpressibleError if there is none."""
    if not text.isdecimal():
        raise InexpressibleError(f"{what} {text!r} is not a number")
    return int(text)


def _peak(system: str) -> float:
    """Return the peak bandwidth in '8 RoCE ~200 GB/s peak' [B/s].

    Raises: InexpressibleError if the text has none.
    """
    match = re.search(r"([0-9.]+) GB/s peak", system)
    if not match:
        raise InexpressibleError("the peak bandwidth between the pools is not given")
    return 1e9 * float(match[1])
