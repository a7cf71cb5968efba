"""What a run used: joules and dollars of its tokens, the share of its time for which chips are busy, its availability."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.energy import EnergyPart, energy, summed
from sim.economics.owner_costs import (
    Capex,
    OwnerCosts,
    ServedTokens,
    host_power,
    joules_per_token,
    token_price,
)
from sim.reliability.availability import Availability, simulate_availability
from sim.reliability.link_errors import expected_retries
from sim.results.metrics import came_out
from sim.results.rows import Rows
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.units import DAY, Seconds


def reliability(
    scenario: Scenario, name: str, members: Mapping[str, Member], rows: Rows
) -> dict[str, Any]:
    """The availability of a system whose parts fail; of a fleet the mean of its members', by the tokens that each gave."""
    found: dict[str, Availability] = {}
    for member, of in members.items():
        if faults := scenario.plain(member).faults:
            deployment, seed = of.deployment, [scenario.seed, *f"faults of {member}".encode()]
            chips = deployment.chips // deployment.layout.plan.replicas
            found[member] = simulate_availability(faults, chips, deployment.load or 0.0, seed)
    if name in found:
        return found[name].metrics()
    done = rows.finished
    given = dict.fromkeys(members, 0)
    for replica, tokens in zip(
        rows.replica[done].tolist(), rows.requests.output[done].tolist(), strict=True
    ):
        given[rows.systems[replica]] += tokens
    if not found or not any(given.values()):
        return {}
    shares = {member: tokens / sum(given.values()) for member, tokens in given.items()}
    widths = [shares[member] * each.half_width for member, each in found.items()]
    lost = sum(shares[member] * (1 - each.mean) for member, each in found.items())
    return {"availability": 1 - lost, "ci95_availability": math.hypot(*widths)}


def costs(
    scenario: Scenario, members: Mapping[str, Member], rows: Rows, availability: float
) -> dict[str, Any]:
    """Return the joules and dollars of a system and of each of its output tokens, by cause, over the time that is counted.

    That is the whole run, or what `measure` says.  A number that is not known is left out, and so are all where no token came.
    `availability` is that of its faults.  `busy_share` is the share of that time for which a chip works, the mean over all
    chips that serve: J and $ of a token hold for that load.
    """
    if scenario.measure:
        start, end = scenario.measure.span(rows)
        finished, _, tokens, _ = came_out(rows, start, end, None)
        elapsed, span = end - start, rows.span
        tallies, busy, worked = (
            (span.tallies, span.busy, span.end - span.start) if span else ([], [], 0.0)
        )
    else:
        done = rows.finished
        finished, elapsed = int(done.sum()), rows.elapsed
        tokens = float(rows.requests.output[done].sum())
        tallies, busy, worked = rows.tallies, rows.busy, elapsed
    if not tokens or elapsed <= 0 or worked <= 0:
        return {}
    told: dict[str, Any] = {"busy_share": busy_share(members, rows.systems, busy, worked)}
    money, replicas = scenario.money, list(zip(rows.systems, tallies, strict=True))
    parts = {}
    for name, of in members.items():
        around = host_power(of.deployment.layout.chip, money.systems.get(name, OwnerCosts()))
        chips = of.chips + of.copies * scenario.spare_chips(name)
        tally = summed(tally for each, tally in replicas if each == name)
        parts[name] = EnergyPart(of.deployment.costs, chips, tally, around)
    used = energy(parts.values(), worked, money.pue)
    if used:
        by_cause = {
            cause: joules_per_token(joules / worked, tokens / elapsed)
            for cause, joules in used.items()
        }
        power = sum(used.values()) / worked
        told["energy"] = {
            "joules_per_token": sum(by_cause.values()),
            "joules_per_token_by_cause": by_cause,
            "mean_power_w": power,
            "pue": money.pue,
        }
    if has := total_owned(scenario, {name: of.copies for name, of in members.items()}):
        bought = [
            part
            for name, part in parts.items()
            if name not in money.systems or money.systems[name].rent is None
        ]
        paid = energy(bought, worked, 1.0) if money.electricity is not None else None
        drawn = sum(paid.values()) / worked if paid else None
        if price := token_price(
            money, has, drawn, ServedTokens(tokens, finished, elapsed), availability
        ):
            told["economics"] = price
    return told


def busy_share(
    members: Mapping[str, Member],
    systems: list[str],
    busy: list[NDArray[np.float64]],
    elapsed: Seconds,
) -> float:
    """Return the share of the time for which a chip of the replicas works, the mean over chips.

    A chip works while its stage does; `systems` and `busy` (s, by stage) are by replica.
    """
    chips = [members[name].chips / members[name].replicas for name in systems]
    return sum(n * float(seconds.mean()) for n, seconds in zip(chips, busy, strict=True)) / (
        sum(chips) * elapsed
    )


def replays(scenario: Scenario, members: Mapping[str, Member], rows: Rows) -> dict[str, float]:
    """Steps of the run that links spoiled, beside how many are to be expected of as many; nothing where links make no errors."""
    expected, steps, told = 0.0, 0.0, False
    for name, tally in zip(rows.systems, rows.tallies, strict=True):
        if errors := scenario.plain(name).link_errors:
            told = True
            expected += expected_retries(errors, members[name].deployment.costs, tally)
            steps += sum(tally.batch_steps.values())
    if not told or not rows.elapsed:
        return {}
    return {
        "replays": sum(rows.replays),
        "expected_replays": expected,
        "replayed_share": expected / steps
        if steps
        else 0.0,  # a member of a fleet may serve nothing
        "replays_per_day": expected / rows.elapsed * DAY,
    }


def total_owned(scenario: Scenario, copies: Mapping[str, int]) -> Capex | None:
    """What copies of plain systems cost together; None where one's prices are not known."""
    each = [one for name, n in copies.items() if (one := scenario.capex(name, n))]
    return Capex(*map(sum, zip(*each, strict=True))) if len(each) == len(copies) else None
