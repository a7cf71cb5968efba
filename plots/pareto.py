"""The Pareto frontier: throughput per chip, per kW and per dollar over the speed of one user."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from plots import series, style
from plots.claims import listed
from plots.frontier import SPEED_TOLERANCE
from plots.series import Series
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

PRICE = "economics.usd_per_mtok"


def draw(swept: Swept) -> Figure:
    """Draw one line for each system under rising load.

    Power is that of the chips alone. Dollars are those of the run's economics.
    Left out: the panel of dollars if no price is known.
    """
    lines = series.series(swept, series.load(swept))
    power = watts(lines)
    priced = any(line.knows(PRICE) for line in lines)
    figure = style.figure(11.5 if priced else 8.5, 4.4)
    per_chip, per_kw, *per_dollar = figure.subplots(1, 3 if priced else 2)
    panels = [
        (per_chip, "chips", "output tokens per second, per chip"),
        (per_kw, power, "output tokens per second, per kW of chips"),
    ]
    panels += [(axis, PRICE, "output tokens per dollar") for axis in per_dollar]
    for axis, divisor, label in panels:
        for line in lines:
            if line.knows(divisor):
                series.plot(axis, line, line.speeds, throughput(line, divisor), line.hollow)
        axis.set(xlabel="output tokens per second of one user", ylabel=label, yscale="log")
        axis.set_xlim(0, None)
        style.plain_log(axis.yaxis)
    handles = series.marked_key(lines)
    style.title(figure, finding(lines), style.keyed(figure, handles))
    unknown = [line.label for line in lines if None in line.values(power)]
    gap = f"; not known of {', '.join(unknown)}" if unknown else ""
    series.sweep_footnote(
        figure,
        swept,
        f"power: {power.partition('_')[0]} of the chips, without hosts and cooling{gap}",
    )
    return figure


def watts(lines: Sequence[Series]) -> str:
    """Return the column of power that all lines have, so that chips are compared alike.

    It is the typical power if all chips have one, and else the maximum power.
    """
    return (
        "maximum_watts"
        if any(None in line.values("typical_watts") for line in lines)
        else "typical_watts"
    )


def throughput(line: Series, divisor: str) -> list[float]:
    """Return output tokens per second of all users, per chip or per kW, at each point.

    With `PRICE` as the divisor it is output tokens per dollar.
    """
    if divisor == PRICE:
        return [1e6 / price for price in line.values(PRICE)]
    unit = 1 if divisor == "chips" else 1000
    return [
        unit * total / by
        for total, by in zip(line.values("output_throughput"), line.values(divisor), strict=True)
    ]


def top_speed(line: Series) -> float:
    """Return the highest speed of a user at a load that the system keeps up with."""
    return max((x for x, steady in zip(line.speeds, line.steady, strict=True) if steady), default=0)


def most_tokens(plans: Sequence[Series], divisor: str, speed: float) -> tuple[float, str]:
    """Return the highest throughput at which a user still gets `speed`, and the label of its plan.

    (0, '') if there is none. Left out: points at which the system does not keep up.
    """
    return max(
        (
            (y, line.label)
            for line in plans
            for x, y, steady in zip(
                line.speeds, throughput(line, divisor), line.steady, strict=True
            )
            if x >= speed and steady
        ),
        default=(0.0, ""),
    )


def finding(lines: Sequence[Series]) -> str:
    """Return the title: the fastest chips for a user, and their throughput against the next ones.

    Throughput per kW, or per chip, is compared at the knee of the slower chips. Each plan is named
    by its own label.
    """
    if not lines:
        return "No system served a request"
    able = [line for line in lines if True in line.steady]
    if not able:
        return "No system keeps up with any of these loads"
    fastest = max(able, key=top_speed)
    own_plans = [line for line in able if line.chips == fastest.chips]
    rest = [line for line in able if line not in own_plans]
    if not rest:
        top = f"{trimmed_number(most_tokens([fastest], 'chips', 0.0)[0])} token/s per chip"
        speed = f"{trimmed_number(top_speed(fastest))} token/s for a user"
        return f"{fastest.label}: up to {speed}, and up to {top}"
    rival = max(rest, key=top_speed)
    limit = top_speed(rival)
    rival_plans = [line for line in rest if line.chips == rival.chips]
    beyond = [line.label for line in own_plans if top_speed(line) > limit]
    give = "give" if len(beyond) > 1 else "gives"
    text = f"Only {listed(beyond)} {give} a user more than {trimmed_number(limit)} token/s"
    if limit > SPEED_TOLERANCE * top_speed(fastest):
        both = listed([fastest.label, rival.label])
        text = f"{both} give a user up to {trimmed_number(top_speed(fastest))} token/s"
    power = watts(lines)
    known = None not in rival.values(power) + fastest.values(power)
    divisor, unit = (power, "kW") if known else ("chips", "chip")
    # The slower system's knee: the speed at which half of its best throughput is left.
    speeds = sorted((v for line in rival_plans for v in line.speeds), reverse=True)
    half = most_tokens(rival_plans, divisor, 0.0)[0] / 2
    knee = next((v for v in speeds if most_tokens(rival_plans, divisor, v)[0] >= half > 0), None)
    if knee is None:
        return text
    ((low, other), lower), ((high, better), _) = sorted(
        ((most_tokens(plans, divisor, knee), plans) for plans in (own_plans, rival_plans)),
        key=lambda pair: pair[0],
    )
    # A point at which a system does not keep up is drawn, too. If it is higher, the picture would
    # contradict the title.
    drawn = [
        tokens
        for line in lower
        for speed, tokens in zip(line.speeds, throughput(line, divisor), strict=True)
        if speed >= SPEED_TOLERANCE * knee
    ]
    if low > 0 and max(drawn) < high:
        text += (
            f"; at {trimmed_number(knee)} token/s {better} makes {style.times(high / low)} "
            f"the tokens per {unit} of {other}"
        )
    return text
