"""A timeline of the requests of prefill and decode pools, for Perfetto.

    pools_json(sim.read("lpu-decode-h100-prefill"), "pools")

Each replica is a process of the trace, and so is its link. Requests on one track do not overlap.
"""

import heapq
import json
from collections.abc import Iterator, Sequence

import numpy as np

from sim.inputs.errors import UserError
from sim.inputs.key_paths import JsonObject
from sim.results.rows import Rows
from sim.scenario.layout import deploy_members
from sim.scenario.replicas import serve_requests
from sim.scenario.scenario import Scenario
from sim.studies.timeline import MOST_EVENTS
from sim.units import Seconds

EVENTS_OF_REQUEST = 11  # slices and counters


def pools_json(scenario: Scenario, name: str) -> str:
    """Return a run on a system of pools as Chrome trace events, in a JSON object.

    Left out: requests that are not finished, or that have one token only.
    Raises: UserError if there are too many requests; PlanError if the system does not fit.
    """
    requests = scenario.workload.draw(scenario.seed)
    events = EVENTS_OF_REQUEST * len(requests.prompt)
    if events > MOST_EVENTS:
        raise UserError(
            f"trace: got about {events:,} events of {len(requests.prompt):,} requests; expected at "
            f"most {MOST_EVENTS:,}; try --set workload.requests=1000"
        )
    rows = serve_requests(scenario, name, deploy_members(scenario, name), requests)
    lines = (json.dumps(event, separators=(",", ":")) for event in pool_events(rows))
    return '{"displayTimeUnit":"ms","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n"


def pool_events(rows: Rows) -> Iterator[JsonObject]:
    """Yield the names of replicas and links, then their slices (X) and counters (C)."""
    transfers = rows.transfers
    assert transfers
    done = np.flatnonzero(rows.finished & np.isfinite(transfers.decode_start))
    prefills, decodes = transfers.prefill_replica[done], rows.replica[done]
    computing = {"wait": rows.arrival, "prefill": rows.admitted, "hold": rows.first_token}
    travelling = {"transfer": transfers.start}
    decoding = {
        "hand-over": transfers.end,
        "wait": transfers.handed_over,
        "decode": transfers.decode_start,
    }
    held = rows.requests.prompt, rows.requests.prompt + rows.requests.output
    pid = 0
    for replica in sorted({*prefills.tolist(), *decodes.tolist()}):
        is_prefill = replica in prefills
        own = done[(prefills if is_prefill else decodes) == replica]
        label = f"{'prefill' if is_prefill else 'decode'} replica {replica}"
        parts, ends = (computing, transfers.end) if is_prefill else (decoding, rows.last_token)
        yield _process(pid, label)
        yield from slices(pid, own, [*parts.values(), ends], tuple(parts))
        since = rows.admitted if is_prefill else transfers.start
        yield from counter(pid, since[own], ends[own], held[not is_prefill][own].tolist())
        pid += 1
        if is_prefill:
            yield _process(pid, f"link of {label}")
            yield from slices(pid, own, [*travelling.values(), transfers.end], tuple(travelling))
            pid += 1


def _process(pid: int, label: str) -> JsonObject:
    return {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": label}}


def slices(
    pid: int, requests: Sequence[int], times: Sequence[np.ndarray], parts: Sequence[str]
) -> Iterator[JsonObject]:
    """Yield a slice for each part of each request.

    times: float[request], s. Part n lasts from times[n] to times[n + 1].
    """
    order = sorted(requests, key=lambda request: float(times[0][request]))
    free: list[tuple[Seconds, int]] = []  # when each track is free, and its number
    for request in order:
        start, end = float(times[0][request]), float(times[-1][request])
        track = heapq.heappop(free)[1] if free and free[0][0] <= start else len(free)
        heapq.heappush(free, (end, track))
        for part, since, until in zip(parts, times, times[1:], strict=False):
            begun, over = (round(float(at[request]) * 1e9) for at in (since, until))
            if over == begun:
                continue
            yield {
                "ph": "X",
                "pid": pid,
                "tid": track,
                "ts": begun / 1e3,
                "dur": (over - begun) / 1e3,
                "name": part,
                "cat": part,
                "args": {"request": int(request)},
            }


def counter(
    pid: int, starts: np.ndarray, ends: np.ndarray, tokens: Sequence[int]
) -> Iterator[JsonObject]:
    """Yield the tokens of KV cache that a replica's requests need, at each change."""
    changes = [(float(at), n) for at, n in zip(starts, tokens, strict=True)]
    changes += [(float(at), -n) for at, n in zip(ends, tokens, strict=True)]
    total = 0
    for at, more in sorted(changes):
        total += more
        args = {"tokens": total}
        yield {"ph": "C", "pid": pid, "ts": round(at * 1e9) / 1e3, "name": "KV cache", "args": args}
