"""The time to the second token in prefill and decode pools, and the KV cache of both pools."""

from collections.abc import Mapping

import numpy as np
import polars
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from plots import style
from plots.causes import POOL_PARTS
from sim.results.labels import system_label
from sim.results.saving import Saved
from sim.results.system_identity import FleetIdentity

_POINTS = 600  # of a line; more cannot be seen
_LINE_STYLES = {
    "prefill": {"ls": "--", "color": "#555555"},
    "decode": {"ls": "-", "color": "#000000"},
}
# The parts between two columns of times, in order. A decode step follows.
_PARTS = {
    "wait": ("arrival", "admitted"),
    "prefill": ("admitted", "first_token"),
    "wait for room": ("first_token", "transfer_start"),
    "transfer": ("transfer_start", "transfer_end"),
    "hand-over": ("transfer_end", "handed_over"),
    "wait for a place": ("handed_over", "decode_start"),
}

_COLUMNS = (
    "arrival",
    "admitted",
    "transfer_start",
    "transfer_end",
    "decode_start",
    "last_token",
    "prompt_tokens",
    "output_tokens",
)


def pooled(saved: Saved) -> dict[str, FleetIdentity]:
    """Return the systems that have prefill and decode pools, by name."""
    return {
        name: identity
        for name, identity in saved.summary.identities.items()
        if isinstance(identity, FleetIdentity) and any(m.pool for m in identity.members.values())
    }


def draw(saved: Saved) -> Figure:
    """Draw the parts of the mean time to the second token, and the KV cache of both pools."""
    systems = pooled(saved)
    figure = style.figure(7.5, 3.2 + 1.5 * len(systems))
    heights = [0.7 + 0.5 * len(systems), *[1.6] * len(systems)]
    first, *rooms = figure.subplots(1 + len(systems), 1, height_ratios=heights)
    means = {name: mean_parts(saved, name) for name in systems}
    means = {name: parts for name, parts in means.items() if parts}
    for place, parts in enumerate(means.values()):
        left = 0.0
        for part, seconds in parts.items():
            cause = POOL_PARTS[part]
            first.barh(place, 1000 * seconds, left=left, height=0.6, **cause.filled)
            left += 1000 * seconds
    first.set_yticks(range(len(means)), [system_label(name, systems[name]) for name in means])
    first.set(xlabel="mean time to the second token, ms", xlim=(0, None))
    first.invert_yaxis()
    first.grid(axis="y", visible=False)
    for (name, identity), axis in zip(systems.items(), rooms, strict=True):
        curves = rooms_over_time(saved, name, identity)
        size, unit = style.time_axis(max((times[-1] for times, _ in curves.values()), default=0.0))
        for pool, (times, share) in curves.items():
            axis.plot(times / size, 100 * share, lw=1.3, label=pool, **_LINE_STYLES[pool])
        axis.set(ylabel="KV filled, %", ylim=(0, None), xlabel=f"time, {unit}")
        axis.set_title(system_label(name, identity), fontsize=9, loc="left")
        axis.legend(
            fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1
        )
    used = [part for part in POOL_PARTS if any(parts.get(part) for parts in means.values())]
    keys: list[Patch] = [POOL_PARTS[part].entry for part in used]
    style.title(figure, finding(means, systems), style.keyed(figure, keys))
    style.run_footnote(figure, saved.summary)
    return figure


def _rows(saved: Saved, name: str) -> polars.DataFrame:
    """Return the finished requests of a system that decoded in its decode pool."""
    rows = saved.requests
    done = (rows["system"] == name) & (rows["outcome"] == "finished")
    return rows.filter(done & rows["decode_start"].is_finite())


def mean_parts(saved: Saved, name: str) -> dict[str, float]:
    """Return the mean seconds of each part of the time to the second token; empty without rows.

    The decode step is the mean step of each request.
    """
    rows = _rows(saved, name)
    if not len(rows):
        return {}
    times = {key: rows[key].to_numpy() for pair in _PARTS.values() for key in pair}
    parts = {
        part: float((times[end] - times[start]).mean()) for part, (start, end) in _PARTS.items()
    }
    decoding = rows["last_token"].to_numpy() - times["decode_start"]
    steps = np.maximum(1, rows["output_tokens"].to_numpy() - 1)
    return parts | {"decode step": float((decoding / steps).mean())}


def rooms_over_time(
    saved: Saved, name: str, identity: FleetIdentity
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the times [s] and the share of the KV cache that tokens fill, by pool.

    A prompt is in the prefill pool from its admission to the end of its transfer, and in the decode
    pool from the start of the transfer on. The tokens of an answer come at equal intervals.
    Left out: room that is reserved but empty, and requests that are not finished.
    """
    rows = _rows(saved, name)
    if not len(rows):
        return {}
    column = {key: rows[key].to_numpy().astype(float) for key in _COLUMNS}
    begin, end = column["arrival"].min(), column["last_token"].max()
    times = np.linspace(begin, end, _POINTS)
    decoding = np.maximum(column["last_token"] - column["decode_start"], 1e-12)
    held: dict[str, list[float]] = {"prefill": [], "decode": []}
    for time in times:
        here = (column["admitted"] <= time) & (time < column["transfer_end"])
        held["prefill"].append(float(column["prompt_tokens"][here].sum()))
        there = (column["transfer_start"] <= time) & (time < column["last_token"])
        part = np.clip((time - column["decode_start"]) / decoding, 0, 1)
        tokens = column["prompt_tokens"] + part * column["output_tokens"]
        held["decode"].append(float(tokens[there].sum()))
    room = {of.pool: of.copies * of.identity.kv_room() for of in identity.members.values()}
    return {
        pool: (times - begin, np.array(tokens) / (room[pool] or 1)) for pool, tokens in held.items()
    }


def finding(means: Mapping[str, Mapping[str, float]], systems: Mapping[str, FleetIdentity]) -> str:
    """Return the title: the largest part of the time to the second token of each system."""
    if not means:
        return "No request was decoded in a decode pool"
    clauses = []
    for name, parts in means.items():
        largest = max(parts, key=lambda part: parts[part])
        share = parts[largest] / sum(parts.values())
        label = system_label(name, systems[name])
        clauses.append(
            f"{label}: {largest} takes {style.share_text(share)} of the time to the second token"
        )
    return "; ".join(clauses)
