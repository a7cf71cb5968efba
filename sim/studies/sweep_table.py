"""The table of a sweep: a row for each point and system, and what its columns mean.

>>> swept_key("workload.rate [request/s]")
'workload.rate'

A key whose values are quantities has two columns: the texts of the file, and numbers in SI units.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sim.inputs.errors import UserError
from sim.inputs.key_paths import JsonValue
from sim.inputs.suggestions import spelling_hint
from sim.studies.sweep_record import PointRecord
from sim.units import si_quantity

if TYPE_CHECKING:
    import polars

NamedColumn = tuple[str, Sequence[JsonValue]]


def sweep_table(
    keys: Sequence[str],
    systems: Sequence[str],
    points: Iterable[tuple[Mapping[str, JsonValue], PointRecord]],
) -> "polars.DataFrame":
    """Return a row for each point and system: its number, values, system, error and results.

    points: values by key, and the record.
    """
    import polars

    rows: list[Mapping[str, JsonValue]] = []
    for number, (values, record) in enumerate(points):
        swept = {key: values.get(key) for key in keys}
        for name in systems:
            result = record.systems.get(name) or {
                "error": record.error or f"this point has no system {name}"
            }
            rows.append({"point": number, **swept, "system": name, **result})
    columns: list[NamedColumn] = []
    for key in dict.fromkeys(key for row in rows for key in row):
        columns.append((key, [row.get(key) for row in rows]))
        if key in keys and (numeric := si_column(*columns[-1])):
            columns.append(numeric)
    return polars.DataFrame([_column(name, values) for name, values in columns])


def si_column(key: str, values: Sequence[JsonValue]) -> NamedColumn | None:
    """Return the values of a key in SI units: 'workload.rate [request/s]', [1.0, 2.0].

    None if a value is no quantity, or the units differ.
    """
    numbers: list[JsonValue] = []
    units: set[str] = set()
    for value in values:
        quantity = si_quantity(value) if isinstance(value, str) else None
        if value is not None and quantity is None:
            return None
        numbers.append(quantity[0] if quantity else None)
        units.update({quantity[1]} if quantity else ())
    return (f"{key} [{units.pop()}]", numbers) if len(units) == 1 else None


def swept_key(column: str) -> str:
    """Return the key of a column: of one in SI units, the key without the unit."""
    key, _, unit = column.partition(" [")
    return key if unit.endswith("]") else column


def axis_column(table: "polars.DataFrame", key: str) -> str:
    """Return the column of a key that an axis shows: its numbers in SI units, if it has them."""
    return next((name for name in table.columns if name != key and swept_key(name) == key), key)


def metric_column(table: "polars.DataFrame", name: str) -> str:
    """Return the numeric column of a name; 'joules_per_token' is short for one with that end.

    Raises: UserError if no numeric column, or more than one, has the name.
    """
    numeric = [column for column in table.columns if table[column].dtype.is_numeric()]
    if name in numeric:
        return name
    ends = [column for column in numeric if column.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    short = dict.fromkeys(column.rpartition(".")[2] for column in numeric)
    hint = spelling_hint(name, short, f"try one of table.csv, such as {numeric[-1]}")
    several = f"; it stands for {', '.join(ends)}" if ends else ""
    raise UserError(
        f"--metric: got {name!r}{several}; expected one numeric column of the table; {hint}"
    )


def _column(name: str, values: Sequence[JsonValue]) -> "polars.Series":
    """Return a column of whole numbers, numbers, truth values or texts (JSON for other values)."""
    import polars

    kinds = {type(value) for value in values if value is not None}
    for dtype, allowed in (
        (polars.Boolean, {bool}),
        (polars.Int64, {int}),
        (polars.Float64, {int, float}),
    ):
        if kinds and kinds <= allowed:
            return polars.Series(name, values, dtype=dtype, strict=False)
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value) for value in values
    ]
    return polars.Series(
        name, [None if text is None else str(text) for text in texts], dtype=polars.String
    )
