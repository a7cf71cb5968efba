"""Frames of metrics with fixed columns, so that those of several runs and sweeps concatenate.

>>> METRIC_COLUMNS["energy.joules_per_token"]
'J for an output token'

The columns have the names of `sweep`'s table.csv. A value that a system lacks is null.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sim.inputs.key_paths import JsonValue
from sim.results.statistics import LATENCIES, statistic_key

if TYPE_CHECKING:
    import polars

# Texts and counts; all other columns are floats.
TEXT_COLUMNS = {
    "scenario": "name of the scenario",
    "system": "name of the system in the scenario",
    "label": "its label",
    "error": "why it was not served; empty if it was",
    "model": "name of the model",
    "chip": "name of the chip; null of a fleet",
    "engine": "name of the engine; null of a fleet",
    "verdict": "STABLE, BACKLOGGED, OVERLOADED, REFUSED or TOO SHORT",
}
COUNT_COLUMNS = {
    "seed": "of all draws",
    "chips": "all its chips",
    "plan.tensor": "chips that share each multiply",
    "plan.pipeline": "stages",
    "plan.replicas": "copies of the model",
    "users": "of a closed loop; null otherwise",
    "completed": "finished requests",
    "refused": "refused requests",
    "total_input_tokens": "prompts of finished requests",
    "total_output_tokens": "outputs of finished requests",
}
_RATES = {
    "rate": "request/s that the scenario offers; null of a closed loop",
    "duration": "s, from the first arrival to the last end",
    "request_throughput": "request/s",
    "output_throughput": "token/s of all users",
    "total_token_throughput": "token/s, prompts too",
    "request_goodput": "request/s within the SLO",
    "attainment": "share of the requests within the SLO",
}
_COSTS = {
    "fitted_share": "share of a token's time that is fitted",
    "busy_share": "share of the chips' time in use",
    "energy.joules_per_token": "J for an output token",
    "energy.mean_power_w": "W",
    "economics.usd_per_mtok": "$ for a million output tokens",
    "economics.usd_per_request": "$ for a request",
    "economics.capital_usd": "$ to buy",
    "lone_request.ttft_ms": "ms, TTFT of a single request",
    "lone_request.tpot_ms": "ms, TPOT of a single request",
}
_LATENCIES = {
    statistic_key(statistic, name): f"ms, {statistic} of {latency.label}"
    for name, latency in LATENCIES.items()
    for statistic in latency.statistics
}
METRIC_COLUMNS = TEXT_COLUMNS | COUNT_COLUMNS | _RATES | _LATENCIES | _COSTS


def metric_frame(
    rows: Sequence[Mapping[str, JsonValue]], before: Iterable["polars.Series"] = ()
) -> "polars.DataFrame":
    """Return a frame with the columns of METRIC_COLUMNS, after some others.

    rows: values by column; other keys are ignored. before: columns with as many rows.
    """
    import polars

    def column(name: str) -> polars.Series:
        dtype = (
            polars.String
            if name in TEXT_COLUMNS
            else polars.Int64
            if name in COUNT_COLUMNS
            else polars.Float64
        )
        return polars.Series(name, [row.get(name) for row in rows], dtype=dtype, strict=False)

    return polars.DataFrame([*before, *map(column, METRIC_COLUMNS)])
