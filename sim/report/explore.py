"""The page of `sramsim explore`: one HTML file in which a reader explores a sweep.

explore_page(Path("out/pareto"))  # hover, choose axes, filter, Pareto front

The page loads nothing from a network. It holds plotly.js (MIT license, 4.8 MB), which the extra
`explore` installs as the package `plotly`. Smaller libraries would do less, or need more code here.
Left out: rows with an error, which have no values. The page counts them.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sim.inputs.errors import UserError
from sim.report.page import DARK_COLOURS, HERE, comment_html
from sim.studies.sweep import Swept, load_sweep
from sim.studies.sweep_table import axis_column

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A quantity that the page can show on an axis.

    better: 1 if more is better, -1 if less is, 0 if neither is.
    """

    label: str
    unit: str
    better: int
    meaning: str


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


# Quantities that are computed from the columns of a table.
_DERIVED: dict[str, tuple[Axis, Callable[[_Row], float | None]]] = {
    "user_speed": (
        Axis("speed of a user", "token/s", 1, "Output token/s of the median user, 1/TPOT."),
        lambda row: _ratio(1000.0, row.get("median_tpot_ms")),
    ),
    "throughput_per_chip": (
        Axis("throughput per chip", "token/s", 1, "Output token/s of all users, per chip."),
        lambda row: _ratio(row.get("output_throughput"), row.get("chips")),
    ),
}
# Columns of the table that are worth an axis.
_COLUMNS = {
    "output_throughput": Axis("throughput", "token/s", 1, "Output tokens per second of all users."),
    "request_throughput": Axis("requests served", "request/s", 1, "Finished requests per second."),
    "request_goodput": Axis(
        "goodput", "request/s", 1, "Requests per second that meet all limits of the SLO."
    ),
    "attainment": Axis("attainment", "share", 1, "Share of the requests that meet the SLO."),
    "median_ttft_ms": Axis("TTFT, median", "ms", -1, "Time to first token: from arrival to it."),
    "p99_ttft_ms": Axis("TTFT, p99", "ms", -1, "One request in a hundred waits longer."),
    "median_tpot_ms": Axis(
        "TPOT, median", "ms", -1, "Time per output token, after the first one of a request."
    ),
    "p99_tpot_ms": Axis("TPOT, p99", "ms", -1, "One request in a hundred has a longer TPOT."),
    "median_e2el_ms": Axis(
        "E2E latency, median", "ms", -1, "End-to-end latency: from arrival to the last token."
    ),
    "p99_e2el_ms": Axis(
        "E2E latency, p99", "ms", -1, "One request in a hundred takes longer to its last token."
    ),
    "energy.joules_per_token": Axis(
        "energy of a token", "J", -1, "J for an output token: chips, servers and cooling (PUE)."
    ),
    "energy.mean_power_w": Axis("power", "W", -1, "Mean power while the requests are served."),
    "economics.usd_per_mtok": Axis(
        "price of tokens", "$ per million", -1, "What a million output tokens cost under this load."
    ),
    "economics.capital_usd": Axis("price to buy", "$", -1, "Chips and servers, bought once."),
    "chips": Axis("chips", "", -1, "All chips of the system."),
    "busy_share": Axis(
        "chips busy", "share", 0, "Share of the time that the chips work, the mean over all chips."
    ),
    "fitted_share": Axis(
        "fitted share", "share", -1, "Share of a token's time that was fitted to measurements."
    ),
}
GLOSSARY = {
    "point": "One system under one set of swept values: a simulated run.",
    "Pareto front": "Points that no other shown point beats on both axes.",
    "STABLE": "The system keeps up with the load.",
    "BACKLOGGED": "It keeps up, but many requests wait longer than they are served.",
    "OVERLOADED": "It serves less than is offered: requests wait ever longer, or are refused.",
    "REFUSED": "At least half of the requests were not served.",
    "TOO SHORT": "The run is too short to decide.",
    "SLO": "The latency limits that each request should meet.",
    "stage": "The chips that hold one contiguous part of the model's layers.",
    "replica": "One copy of the model: all stages and one scheduler.",
}


def explore_page(folder: Path) -> str:
    """Return the page of a sweep's folder. Equal folders give equal bytes.

    Raises: UserError if the folder holds no finished sweep, no point worked, or the package plotly
    is missing.
    """
    library = plotly_script()
    swept = load_sweep(folder)
    data = explore_data(swept)
    if not data["rows"]:
        raise UserError(
            f"{folder}: got no point that worked; expected one; see the errors in table.csv"
        )
    origin = swept.summary.origin
    script = (HERE / "explore.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    styles = "\n".join((HERE / n).read_text(encoding="utf-8") for n in ("page.css", "explore.css"))
    return environment.get_template("explore.html").render(
        name=swept.summary.scenario,
        question=comment_html(origin),
        version=(origin and origin.version) or "unknown",
        seed=swept.summary.seed,
        style=Markup(styles),
        library=Markup(library),
        script=Markup(script),
        hashes=[_script_hash(library), _script_hash(script)],
        data=Markup(json_for_script(data)),
        failed=int((swept.table["error"].fill_null("") != "").sum()),
        rows=len(data["rows"]),
        glossary=GLOSSARY,
        dark=DARK_COLOURS,
    )


def explore_data(swept: Swept) -> dict[str, Any]:
    """Return what the script shows: axes, systems, swept keys, and a row for each point."""
    from plots.series import swept_looks

    table = swept.table.filter(swept.table["error"].fill_null("") == "")
    swept_columns = {key: axis_column(swept.table, key) for key in swept.summary.keys}
    axes = {key: axis for key, (axis, _) in _DERIVED.items()}
    axes |= {key: axis for key, axis in _COLUMNS.items() if key in table.columns}
    for key, column in swept_columns.items():
        if table[column].dtype.is_numeric():
            unit = column.removeprefix(key).strip(" []")
            axes.setdefault(column, Axis(key, unit, 0, "A key that the sweep varies."))
    rows = []
    for row in table.to_dicts():
        values = {key: derived(row) for key, (_, derived) in _DERIVED.items()}
        values |= {key: row[key] for key in axes if key in row}
        swept_values = {key: row[key] for key in swept.summary.keys}
        rows.append(
            {"system": row["system"], "verdict": row["verdict"], "at": swept_values, "is": values}
        )
    looks = swept_looks(swept) if rows else {}
    shown = {row["system"] for row in rows}
    return {
        "axes": {key: asdict(axis) for key, axis in axes.items() if _has_values(key, rows)},
        "systems": {
            name: {"label": look.label, "colour": look.colour}
            for name, look in looks.items()
            if name in shown
        },
        "dark": DARK_COLOURS,
        "rows": rows,
    }


def _has_values(key: str, rows: Iterable[_Row]) -> bool:
    return any(isinstance(row["is"].get(key), int | float) for row in rows)


def plotly_script() -> str:
    """Return plotly.js.  Raises: UserError if the package plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError(
            "explore: got no package plotly; expected it, because the page holds its script;"
            " try pip install 'sramsim[explore]'"
        ) from None
    text: str = get_plotlyjs()
    return text


def json_for_script(data: object) -> str:
    """Return JSON that cannot end the script element that holds it."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _script_hash(script: str) -> str:
    """Return the hash by which the page's policy allows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
