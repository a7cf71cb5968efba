"""Times of the tokens of one request, by system: the first token, then a steady stream."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from plots import style
from sim.results.labels import trimmed_number
from sim.results.saving import Saved

FIRST = 8  # tokens in the left panel


def draw(saved: Saved) -> Figure:
    """Draw the first tokens on the left, and all tokens on the right.

    Rows have only the times of the first and the last token, so the line between them is straight.
    """
    systems = saved.summary.systems
    colours, dashes = style.colours(systems), style.lines(systems)
    tokens = median_request(saved)
    figure = style.figure(8.0, 4.0)
    for axis, most in zip(figure.subplots(1, 2, width_ratios=[1, 2]), (FIRST, None), strict=True):
        for name, (first, tpot, count) in tokens.items():
            end = min(most or count, count)
            looks = {"color": colours[name], "ls": dashes[name], "lw": 1.8}
            axis.plot([1, end], [first, first + (end - 1) * tpot], **looks)
            axis.plot(1, first, marker="o", ms=5, color=colours[name])
        axis.set(
            xlabel=f"token (the first {most})" if most else "token (all)",
            xlim=(0.5 if most else 0, None),
            ylim=(0, None),
        )
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    figure.axes[0].set_ylabel("time since the request came, ms")
    keys = [
        Line2D(
            [],
            [],
            color=colours[name],
            ls=dashes[name],
            lw=1.8,
            label=_label(name, *tokens[name][:2]),
        )
        for name in tokens
    ]
    style.title(figure, finding(tokens), style.keyed(figure, keys))
    style.run_footnote(figure, saved.summary)
    return figure


def _label(name: str, first: float, tpot: float) -> str:
    """Return 'lpu: 34.8 ms, then 3.25 ms a token'."""
    return f"{name}: {trimmed_number(first)} ms, then {trimmed_number(tpot)} ms a token"


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


def finding(tokens: dict[str, tuple[float, float, int]]) -> str:
    """Return the title: the system with the shortest TPOT, against the others."""
    if not tokens:
        return "No request was answered with two tokens"
    best = min(tokens, key=lambda name: tokens[name][1])
    first, tpot, _ = tokens[best]
    others = ", ".join(
        f"{style.times(request[1] / tpot)} faster than {name}"
        for name, request in tokens.items()
        if name != best
    )
    text = (
        f"{best}: the first token after {trimmed_number(first)} ms, "
        f"then one every {trimmed_number(tpot)} ms"
    )
    return text + (f", {others}" if others else "")
