"""The trials of a capacity search as a table: a row for each system and load.

>>> TRIAL_KEYS[:2]
('load', 'attainment')
"""

from typing import TYPE_CHECKING

from sim.inputs.key_paths import Scalar, scalar_values
from sim.results.encoding import json_object
from sim.studies.capacity_result import CapacityResult

if TYPE_CHECKING:
    import polars

TRIAL_KEYS = ("load", "attainment", "verdict", "output_throughput", "kept")


def trial_table(result: CapacityResult) -> "polars.DataFrame":
    """Return the trials of each system by rising load, with the costs of their tokens.

    Each trial is served once more, because a search counts no costs.
    """
    import polars

    rows: list[dict[str, Scalar]] = []
    for name, system in result.systems.items():
        for trial in sorted(system.series.tried, key=lambda trial: trial.load):
            values = {key: getattr(trial, key) for key in TRIAL_KEYS}
            missed = {f"missed.{limit}": share for limit, share in trial.missed.items()}
            costs = scalar_values(json_object(system.series.costs(trial)))
            rows.append({"system": name, **values, **missed, **costs})
    if not rows:  # even a single request misses the SLO, so no load was tried
        return polars.DataFrame(schema=dict.fromkeys(("system", *TRIAL_KEYS), polars.String))
    return polars.DataFrame(rows, infer_schema_length=None)
