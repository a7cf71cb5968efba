"""Availability: closed forms against numbers, enumeration, a Markov chain and the simulation."""

import itertools
import math

import numpy as np
import pytest

from sim.reliability.availability import DownTimes, require_simulable, simulate_availability
from sim.reliability.closed_forms import (
    closed_form_availability,
    enough_parts,
    failed_parts_distribution,
    mtbf,
    series_availability,
)
from sim.reliability.failures import Failures, Faults, PartGroup, part_groups
from sim.scenario.scenario import read
from sim.units import HOUR, YEAR

CHIP = Failures(rate=1.2621e-5 / HOUR)  # Llama 3 (arXiv 2407.21783): category GPU
NODE = (CHIP,) * 8
OFTEN = Failures(rate=1e-3 / HOUR)
# Ten nodes of one chip with two spares, whose chips fail every 1,000 hours.
SMALL = {
    "chip": OFTEN,
    "spares": 2,
    "repair": 24 * HOUR,
    "detection": HOUR / 6,
    "horizon": YEAR,
    "samples": 60,
}


@pytest.mark.parametrize(
    ("chips", "hours"),
    [(8, 9904), (256, 309), (572, 138), (2560, 30.9), (10440, 7.6)],
)
def test_chips_that_are_all_needed_fail_so_often(chips, hours):
    assert mtbf([PartGroup(chips, 0, (CHIP,))]) / HOUR == pytest.approx(hours, rel=5e-3)


@pytest.mark.parametrize(("hours", "share"), [(1 / 6, 0.9988), (1, 0.9928), (24, 0.852)])
def test_572_chips_without_a_spare(hours, share):
    assert series_availability(mtbf([PartGroup(572, 0, (CHIP,))]), hours * HOUR) == pytest.approx(
        share, abs=5e-4 if share < 0.9 else 5e-5
    )


@pytest.mark.parametrize(("spares", "share"), [(0, 0.840), (1, 0.9863), (2, 0.99919), (3, 0.99996)])
def test_72_nodes_with_pooled_spares(spares, share):
    assert enough_parts([PartGroup(72, spares, NODE)], 24 * HOUR, None) == pytest.approx(
        share, abs=10.0 ** -len(f"{share}"[2:])
    )


def test_three_pooled_spares_beat_one_in_each_of_nine_racks():
    per_rack = enough_parts([PartGroup(8, 1, NODE)] * 9, 24 * HOUR, None)
    assert per_rack == pytest.approx(0.9981, abs=5e-5)
    assert per_rack < enough_parts([PartGroup(72, 3, NODE)], 24 * HOUR, None)


def test_with_a_crew_for_each_part_they_are_out_independently():
    out = 0.024 / 1.024
    binomial = [math.comb(12, j) * out**j * (1 - out) ** (12 - j) for j in range(13)]
    assert failed_parts_distribution(12, OFTEN.rate, 24 * HOUR, 12) == pytest.approx(binomial)


@pytest.mark.parametrize("crews", [1, 2, 6])
def test_groups_that_share_crews_are_as_the_markov_chain_of_all_parts_says(crews):
    """Two groups of 2 + 1 parts share crews, which repair any part: a chain over all 64 states."""
    rate, mend = 0.3, 1.0
    states = list(itertools.product((0, 1), repeat=6))
    rates = np.zeros((64, 64))
    for i, state in enumerate(states):
        for part, out in enumerate(state):
            other = states.index((*state[:part], 1 - out, *state[part + 1 :]))
            rates[i, other] = mend * min(crews, sum(state)) / sum(state) if out else rate
    balance = np.vstack([(rates - np.diag(rates.sum(axis=1))).T, np.ones(64)])
    long_run = np.linalg.lstsq(balance, np.array([0.0] * 64 + [1.0]), rcond=None)[0]
    good = sum(
        p
        for p, state in zip(long_run, states, strict=True)
        if max(sum(state[:3]), sum(state[3:])) <= 1
    )
    assert enough_parts(
        [PartGroup(2, 1, (Failures(rate=rate),))] * 2, 1 / mend, crews
    ) == pytest.approx(good)


LAWS = {
    "pooled": {"samples": 120},
    "no spare": {"spares": 0, "detection": HOUR},
    "one per rack": {"spares": 1, "spares_per": "rack", "nodes_per_rack": 5},
    "nodes of two kinds of cause": {"chips_per_node": 2, "node": Failures(rate=2e-4 / HOUR)},
    "racks and links": {
        "nodes_per_rack": 5,
        "rack": Failures(rate=1e-4 / HOUR),
        "link": Failures(rate=1e-5 / HOUR),
        "links": 20,
    },
    "one crew": {"crews": 1, "repair": 12 * HOUR, "samples": 120},
    "another model each day": {"model_swap_every": 24 * HOUR, "samples": 120},
    "the young die first, and no swaps": {
        "chip": Failures(rate=OFTEN.rate, shape=0.7),
        "detection": 0.0,
        "samples": 180,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", LAWS.values(), ids=LAWS.keys())
def test_simulated_availability_is_that_of_the_closed_form(changes):
    """Within three standard errors.

    The standard error is below 10 % of the unavailability.

    Parts fail independently, and lives and repairs are exponential.
    Each part has a crew, except in "one crew".
    """
    faults = Faults.model_validate(SMALL | changes)
    found = simulate_availability(
        faults, 10 * faults.chips_per_node, 600.0 if faults.model_swap_every else 0.0, [0]
    )
    assert found.closed is not None
    assert found.standard_error < 0.1 * (1 - found.closed.availability)
    assert abs(found.mean - found.closed.availability) < 3 * found.standard_error


def test_parts_that_are_settled_fail_as_often_in_their_first_year_as_later():
    """This holds for every shape, though a life is 114 years.

    New parts of shape 0.7 fail more often, and of shape 2 hardly ever.
    """
    for shape, compares in ((0.7, "more"), (2.0, "less")):
        rare = Failures(rate=1e-6 / HOUR, shape=shape)
        faults = Faults.model_validate(
            SMALL | {"chip": rare, "chips_per_node": 100, "samples": 150}
        )
        settled = simulate_availability(faults, 1000, 0.0, [0])
        new = simulate_availability(faults.model_copy(update={"age": "new"}), 1000, 0.0, [0])
        assert settled.outages_per_second * YEAR == pytest.approx(1000 * 1e-6 * 8760, rel=0.1)
        assert (new.outages_per_second > settled.outages_per_second) == (compares == "more")
        assert new.closed is None


def test_what_is_left_of_a_life_is_on_average_half_of_its_second_moment_over_its_mean():
    rng, failures = np.random.default_rng(0), Failures(rate=0.5, shape=2.0)
    lives = [failures.rest(rng) for _ in range(50_000)]
    second = failures.scale**2 * math.gamma(1 + 2 / failures.shape)
    assert np.mean(lives) == pytest.approx(second / 2 / 2.0, rel=0.02)


def test_a_system_that_is_never_whole_has_no_availability_at_all():
    faults = Faults.model_validate(
        SMALL | {"chip": Failures(rate=1 / HOUR), "spares": 0, "repair": 1e6 * HOUR, "samples": 2}
    )
    assert simulate_availability(faults, 10, 0.0, [0]).samples == (0, 0)


def test_weibulls_scale_gives_the_mean_that_the_rate_says():
    lives = Failures(rate=0.5, shape=0.7).scale * np.random.default_rng(0).weibull(0.7, 100_000)
    assert lives.mean() == pytest.approx(2, rel=0.02)


def test_an_outage_lasts_until_no_place_is_empty_and_the_last_swap_is_over():
    down_times = DownTimes(swap=2.0)
    down_times.part_failed(10, replaced=True)  # 10 to 13: a second swap begins in the first one
    down_times.part_failed(11, replaced=True)
    down_times.part_failed(20, replaced=False)  # 20 to 32: no spare until 30
    down_times.place_filled(30)
    down_times.part_failed(40, replaced=False)  # 40 on
    assert down_times.between(0, 50) == (3 + 12 + 10, 3)
    assert down_times.between(12, 50) == (1 + 12 + 10, 2)


def test_fewer_crews_wait_longer():
    faults = Faults.model_validate(SMALL)
    shares = [
        simulate_availability(faults.model_copy(update={"crews": crews}), 10, 0.0, [0]).mean
        for crews in (1, None)
    ]
    assert shares[0] < shares[1] - 0.001


def test_the_same_seed_gives_the_same_samples():
    first, second, other = (
        simulate_availability(Faults.model_validate(SMALL | {"samples": 3}), 10, 0.0, [seed])
        for seed in (0, 0, 1)
    )
    assert first.samples == second.samples != other.samples


def test_what_waits_for_the_same_few_crews_has_no_closed_form():
    parts = [PartGroup(10, 1, (OFTEN,)), PartGroup(2, 0, (CHIP,))]
    assert closed_form_availability(parts, HOUR, 0.0, 1, 0.0) is None
    assert closed_form_availability(parts, HOUR, 0.0, 13, 0.0) == closed_form_availability(
        parts, HOUR, 0.0, None, 0.0
    )


def test_a_swap_costs_what_all_parts_at_work_fail_in_it():
    found = closed_form_availability([PartGroup(72, 3, NODE)], 24 * HOUR, HOUR / 6, None, 0.0)
    assert found is not None
    assert found.swaps == pytest.approx(math.exp(-576 * 1.2621e-5 / 6))


def test_the_parts_of_a_system():
    rack = Failures(rate=1e-9)
    faults = Faults.model_validate(
        SMALL | {"chip": CHIP, "chips_per_node": 8, "nodes_per_rack": 8, "rack": rack}
    )
    assert part_groups(faults, 80) == [PartGroup(10, 2, NODE), PartGroup(2, 0, (rack,))]
    per_rack = faults.model_copy(update={"spares_per": "rack"})
    assert part_groups(per_rack, 80) == [
        PartGroup(8, 2, NODE),
        PartGroup(2, 2, NODE),
        PartGroup(2, 0, (rack,)),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chips_per_node": 3}, "got 3; expected a divisor of 10; try 2"),
        ({"chip": None}, "got no failure rate; expected chip, node, rack or link"),
        ({"spares_per": "rack"}, "got spares_per without nodes_per_rack; expected both"),
        (
            {"chip": None, "link": OFTEN, "links": 3},
            "got 2 without a failure rate of nodes; expected chip or node",
        ),
        ({"rack": OFTEN}, "got rack without nodes_per_rack; expected both"),
        ({"link": OFTEN}, "got link without links; expected the rate of a link and the number"),
    ],
)
def test_parts_that_cannot_be_counted(changes, reason):
    with pytest.raises(ValueError, match=reason):
        part_groups(Faults.model_validate(SMALL | changes), 10)


def test_a_model_is_swapped_only_where_it_can_be_loaded_in_time():
    faults = Faults.model_validate(SMALL | {"model_swap_every": 60.0})
    require_simulable(faults, 10, 59.0)
    with pytest.raises(
        ValueError, match="got 60 s; expected more than the 60 s that a model takes to load"
    ):
        require_simulable(faults, 10, 60.0)
    with pytest.raises(ValueError, match="got a chip without host_link"):
        require_simulable(faults, 10, None)


@pytest.mark.parametrize(
    "changes", [{"horizon": 1e9 * HOUR}, {"link": OFTEN, "links": 20_000_000}, {"samples": 100_000}]
)
def test_what_would_take_hours_is_refused(changes):
    with pytest.raises(ValueError, match="lives of parts to simulate; expected at most 10,000,000"):
        require_simulable(
            Faults.model_validate(SMALL | {"chip": Failures(rate=0.1 / HOUR)} | changes), 10, None
        )


def test_swaps_of_the_model_take_their_share_and_are_no_outages():
    plain = Faults.model_validate(
        SMALL | {"samples": 2, "chip": Failures(rate=1e-12), "horizon": 100 * HOUR}
    )
    swapped = simulate_availability(
        plain.model_copy(update={"model_swap_every": 100.0}), 10, 2.0, [0]
    )
    assert swapped.mean == pytest.approx(0.98, abs=1e-6)
    assert swapped.outages_per_second == 0
    assert swapped.metrics.faults.lost_to_model_swaps == 0.02
    assert simulate_availability(plain, 10, 2.0, [0]).mean == 1


def test_a_searched_plan_has_the_spares_of_each_replica():
    """The search lays three replicas on 24 chips; each has a spare node of two chips."""
    scenario = read(
        "llama3-8b-lpu-vs-h100",
        [
            "systems={h100: {chip: h100-sxm, chips: 24, engine: ideal, plan: {search: speed},"
            " faults: {node: {rate: 1e-5 failure/h}, chips_per_node: 2, spares: 1, repair: 10 h, detection: 1 min, horizon: 10 h, samples: 2}}}"
        ],
    )
    replicas = scenario.deploy("h100").layout.plan.replicas
    assert replicas > 1
    assert scenario.spare_chips("h100") == 2 * replicas
