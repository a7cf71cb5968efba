"""Times of the tokens of one request, by system: the first token, then a steady stream."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from plots import claims, style
from plots.looks import system_looks
from sim.results.labels import system_label
from sim.results.saving import Saved
from sim.results.summary import SystemSummary

FIRST = 8  # tokens in the left panel


def draw(saved: Saved) -> Figure:
    """Draw the first tokens on the left, and all tokens on the right.

    Rows have only the times of the first and the last token, so the line between them is straight.
    """
    systems, looks = saved.summary.systems, system_looks(saved.summary.identities)
    tokens = median_request(saved)
    figure = style.figure(8.0, 4.0)
    for axis, most in zip(figure.subplots(1, 2, width_ratios=[1, 2]), (FIRST, None), strict=True):
        for name, (first, tpot, count) in tokens.items():
            end = min(most or count, count)
            look = looks[name]
            axis.plot([1, end], [first, first + (end - 1) * tpot], lw=1.8, **look.stroke)
            axis.plot(1, first, marker=look.marker, ms=5, color=look.colour)
        axis.set(
            xlabel=f"token (the first {most})" if most else "token (all)",
            xlim=(0.5 if most else 0, None),
            ylim=(0, _top(systems, tokens, most)),
        )
    figure.axes[0].set_ylabel("time since the request came, ms")
    keys = [looks[name].entry(_entry(looks[name].label, *tokens[name][:2])) for name in tokens]
    style.title(figure, finding(systems, tokens), style.keyed(figure, keys))
    notes = ["this request: near the medians of TTFT and TPOT on all systems"]
    if claims.behind(systems):
        notes.append("a system that does not keep up may be above the axes")
    style.run_footnote(figure, saved.summary, *notes)
    return figure


def _top(
    systems: Mapping[str, SystemSummary],
    tokens: Mapping[str, tuple[float, float, int]],
    most: int | None,
) -> float | None:
    """Return the top of a time axis [ms], so that all systems that keep up are inside.

    The line of an overloaded system may leave the axes. None if no system keeps up.
    """
    ends = [
        first + (min(most or count, count) - 1) * tpot
        for name, (first, tpot, count) in tokens.items()
        if systems[name].metrics.verdict not in claims.BEHIND
    ]
    return 1.08 * max(ends) if ends else None


def _entry(label: str, first: float, tpot: float) -> str:
    """Return '576 LPUs: 34.8 ms, then 3.25 ms a token'."""
    return f"{label}: {style.duration(first)}, then {style.duration(tpot)} a token"


def median_request(saved: Saved) -> dict[str, tuple[float, float, int]]:
    """Return TTFT [ms], TPOT [ms] and the number of tokens of a typical request, by system.

    It is the request nearest to the medians of TTFT and TPOT. If the systems finished a request in
    common, it is the nearest one over all systems together.
    """
    import polars

    wait, stream = (
        polars.col("first_token") - polars.col("arrival"),
        polars.col("last_token") - polars.col("first_token"),
    )
    rows = saved.requests.filter(
        (polars.col("outcome") == "finished") & (polars.col("output_tokens") > 1)
    )
    rows = rows.with_columns(
        ttft=1000 * wait, tpot=1000 * stream / (polars.col("output_tokens") - 1)
    )
    ttft, tpot = (
        (polars.col(key) - polars.col(key).median()).abs() / polars.col(key).median()
        for key in ("ttft", "tpot")
    )
    rows = rows.with_columns(off=(ttft + tpot).over("system"))
    systems = rows["system"].unique()
    common = (
        rows.group_by("id")
        .agg(polars.len(), polars.col("off").sum())
        .filter(polars.col("len") == len(systems))
    )
    if len(common):
        rows = rows.filter(polars.col("id") == common.sort("off", "id")["id"][0])
    requests = {}
    for name in saved.summary.systems:
        own = rows.filter(polars.col("system") == name).sort("off", "id")
        if len(own):
            requests[name] = own["ttft"][0], own["tpot"][0], own["output_tokens"][0]
    return requests


def finding(
    systems: Mapping[str, SystemSummary], tokens: dict[str, tuple[float, float, int]]
) -> str:
    """Return the title: the system with the shortest TPOT, and the first and the last token.

    Only systems that keep up are compared.
    """
    if not tokens:
        return "No request was answered with two tokens"
    able = {
        system_label(name, systems[name].identity): request
        for name, request in tokens.items()
        if systems[name].metrics.verdict not in claims.BEHIND
    }
    late = claims.behind(systems)
    if not able:
        return f"No system keeps up with the load; {late}"
    race = claims.Race(
        {label: 1000 / tpot for label, (_, tpot, _) in able.items()},
        {label: ttft for label, (ttft, _, _) in able.items()},
        {label: ttft + (n - 1) * tpot for label, (ttft, tpot, n) in able.items()},
        "in this request",
    )
    return claims.joined(race.finding, late)
