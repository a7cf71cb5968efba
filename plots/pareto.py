"""The Pareto frontier that the field reads: throughput per chip, per kW and per dollar against what one user gets."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from plots import series, style
from plots.series import Series
from sim.studies.sweep import Swept

PRICE = "economics.usd_per_mtok"


def draw(swept: Swept) -> Figure:
    """Each line is one system under rising load.  Power is that of its chips alone; dollars are those of the run's economics, where
    prices are known."""
    lines = series.series(swept, series.load(swept))
    power = watts(lines)
    priced = any(each.knows(PRICE) for each in lines)
    figure = style.figure(11.5 if priced else 8.5, 4.4)
    per_chip, per_kw, *per_dollar = figure.subplots(1, 3 if priced else 2)
    panels = [
        (per_chip, "chips", "output tokens per second, per chip"),
        (per_kw, power, "output tokens per second, per kW of chips"),
    ]
    panels += [(axis, PRICE, "output tokens per dollar") for axis in per_dollar]
    for axis, divisor, label in panels:
        for each in lines:
            if each.knows(divisor):
                series.plot(axis, each, each.speeds, throughput(each, divisor), each.hollow)
        axis.set(xlabel="output tokens per second of one user", ylabel=label, yscale="log")
        axis.set_xlim(0, None)
        style.plain_log(axis.yaxis)
    handles = series.key(lines)
    if any(True in each.hollow for each in lines):
        handles.append(series.hollow())
    style.title(figure, finding(lines), style.keyed(figure, handles))
    unknown = [each.label for each in lines if None in each.values(power)]
    told = f"; not known of {', '.join(unknown)}" if unknown else ""
    series.footnote(
        figure,
        swept,
        f"power: {power.partition('_')[0]} of the chips, without hosts and cooling{told}",
    )
    return figure


def watts(lines: Sequence[Series]) -> str:
    """The column of power that compares like with like: the typical one where all chips have it, else the maximum."""
    return (
        "maximum_watts"
        if any(None in each.values("typical_watts") for each in lines)
        else "typical_watts"
    )


def throughput(each: Series, divisor: str) -> list[float]:
    """Output tokens per second of all users, by chip or by kW; by the price of a million, tokens per dollar."""
    if divisor == PRICE:
        return [1e6 / price for price in each.values(PRICE)]
    unit = 1 if divisor == "chips" else 1000
    return [
        unit * total / by
        for total, by in zip(each.values("output_throughput"), each.values(divisor), strict=True)
    ]


def most(plans: Sequence[Series], divisor: str, speed: float) -> float:
    """Return the highest throughput at which a user still gets `speed`, of the points that are not overloaded."""
    return max(
        (
            y
            for each in plans
            for x, y, full in zip(
                each.speeds, throughput(each, divisor), each.overloaded, strict=True
            )
            if x >= speed and not full
        ),
        default=0.0,
    )


def finding(lines: Sequence[Series]) -> str:
    """Who is fastest for a user, and what that costs in throughput per kW at the slower one's best speed."""
    if not lines:
        return "No system served a request"
    fastest = max(lines, key=lambda each: max(each.speeds))
    own_plans = [each for each in lines if each.chips == fastest.chips]
    rest = [each for each in lines if each not in own_plans]
    if not rest:
        top = f"{style.number(max(throughput(fastest, 'chips')))} token/s per chip"
        return f"{fastest.label}: up to {style.number(max(fastest.speeds))} token/s for a user, and up to {top}"
    rival = max(rest, key=lambda each: max(each.speeds))
    limit = max(rival.speeds)
    rival_plans = [each for each in rest if each.chips == rival.chips]
    text = f"Beyond {style.number(limit)} token/s for a user there is only {fastest.label}"
    power = watts(lines)
    known = None not in rival.values(power) + fastest.values(power)
    divisor, unit = (power, "kW") if known else ("chips", "chip")
    # The slower one's knee: the speed at which half of its best throughput is left.
    speeds = sorted((v for each in rival_plans for v in each.speeds), reverse=True)
    half = most(rival_plans, divisor, 0.0) / 2
    knee = next((v for v in speeds if most(rival_plans, divisor, v) >= half > 0), None)
    if knee is None:
        return text
    theirs, own = most(rival_plans, divisor, knee), most(own_plans, divisor, knee)
    if own > 0:
        (high, who), (low, other) = sorted([(own, fastest), (theirs, rival)], key=lambda e: -e[0])
        best = ", each in its best plan" if len(own_plans) + len(rival_plans) > 2 else ""
        text += (
            f"; at {style.number(knee)} token/s {who.label} makes {style.times(high / low)} the tokens "
            f"per {unit} of {other.label}{best}"
        )
    return text
