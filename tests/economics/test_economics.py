"""The formulas against hand-computed figures, prices from files, the estimate of February 2024."""

import json

import pytest

import sim
from sim.economics.owner_costs import (
    ELECTRICITY,
    HOSTING,
    Capex,
    CostEstimate,
    Economics,
    OwnerCosts,
    annual_capital,
    annual_costs,
    capital_recovery,
    host_power,
    joules_per_token,
    lifetime_costs,
    system_capex,
    usd_per_mtok,
)
from sim.economics.token_price import ServedTokens, token_price
from sim.hardware.power import Power, Server
from sim.inputs.errors import ScenarioError
from sim.studies.accounts import lifetime_estimates
from sim.units import YEAR, parse_quantity


def rate(text):
    return parse_quantity(text, "USD/J")


# Formulas.


def test_a_loan_is_paid_off_in_equal_years():
    """Each payment covers the interest and reduces the debt, which is zero after the last one."""
    for interest, years in ((0.05, 3), (0.1, 5), (0.2, 10)):
        left = 1.0
        for _ in range(years):
            left = left * (1 + interest) - capital_recovery(interest, years)
        assert left == pytest.approx(0, abs=1e-12)


def test_without_interest_a_loan_is_its_years_and_little_interest_is_almost_none():
    assert capital_recovery(0, 4) == 0.25
    assert capital_recovery(1e-7, 4) == pytest.approx(0.25, rel=1e-6)


def test_what_is_left_over_costs_interest_only():
    assert annual_capital(1000, 1000, 0.08, 3) == pytest.approx(80)
    assert annual_capital(1000, 400, 0, 3) == pytest.approx(200)


@pytest.mark.parametrize(
    ("throughput", "dear", "cheap"),
    [(900, 144, 15.8), (5000, 26, 2.84), (20_000, 6.5, 0.71), (60_000, 2.2, 0.24)],
)
def test_576_cards_by_throughput(throughput, dear, cheap):
    """185 W a card, $200 a kW and month, three years: $20,000 a card, then $1,000."""
    for card, told in ((20_000, dear), (1000, cheap)):
        economics = Economics(years=3, hosting=rate("200 USD/kW/month"))
        paid = annual_costs(economics, Capex(576, 576 * card, 0, 576 * 185), None)
        assert usd_per_mtok(sum(paid.values()), throughput) == pytest.approx(told, rel=0.02)


@pytest.mark.parametrize(
    ("throughput", "joules"), [(900, 118), (5000, 21), (20_000, 5.3), (60_000, 1.8)]
)
def test_576_cards_in_joules(throughput, joules):
    assert joules_per_token(576 * 185, throughput) == pytest.approx(joules, rel=0.02)


def test_a_rented_gpu():
    """InferenceX: an H100 at $1.30 an hour, all in 1.73 kW, that gives 1,000 tokens a second."""
    assert usd_per_mtok(1.30 / 3600 * YEAR, 1000) == pytest.approx(0.3611, rel=1e-3)
    assert joules_per_token(1730, 1000) == pytest.approx(1.73)


def test_idle_time_and_outages_cost():
    assert usd_per_mtok(YEAR, 1e6) == pytest.approx(1)
    assert usd_per_mtok(YEAR, 1e6, 0.5, 0.8) == pytest.approx(2.5)


@pytest.mark.parametrize("interest", [1e-300, 1e-17, 1e-12, 1e-6])
def test_an_interest_that_is_next_to_nothing_is_nothing(interest):
    assert capital_recovery(interest, 4) == pytest.approx(0.25, rel=1e-5)
    assert capital_recovery(interest, 1e-3) == pytest.approx(1000, rel=1e-5)


# What is paid for.


def test_hosting_is_of_what_may_be_drawn_and_electricity_of_what_was():
    has = Capex(1, 0, 0, 1000)
    assert annual_costs(Economics(hosting=rate("100 USD/kW/month")), has, 500)[
        "power"
    ] == pytest.approx(1200)
    assert annual_costs(Economics(electricity=rate("0.1 USD/kWh"), pue=1.5), has, 500)[
        "power"
    ] == pytest.approx(0.5 * 1.5 * 8760 * 0.1)
    assert annual_costs(Economics(electricity=rate("0.1 USD/kWh")), has, None) is None


def test_what_is_rented_and_what_is_bought_add_up():
    """As in a fleet of both; the power that is paid for is that of what was bought."""
    rented, bought = Capex(1, 0, 0, 0, rent=2.0), Capex(1, 100, 50, 1000)
    both = Capex(*map(sum, zip(rented, bought, strict=True)))
    economics = Economics(maintenance=0.1)
    parts = [sum(annual_costs(economics, each, None).values()) for each in (rented, bought)]
    assert sum(annual_costs(economics, both, None).values()) == pytest.approx(sum(parts))
    assert annual_costs(Economics(electricity=1e-8), rented, None) == {"rent": 2 * YEAR}


def test_presets_are_quantities():
    assert Economics(hosting="us-colocation").rate == Economics().rate == rate("184 USD/kW/month")
    assert all(rate(text) > 0 for text in (*HOSTING.values(), *ELECTRICITY.values()))


def test_a_price_is_the_files_or_the_owners(make_chip):
    server = Server(chips=4, power=400.0, price=8000.0)
    chip = make_chip(power=Power(maximum=300.0), price=1000.0, server=server)
    assert system_capex(chip, 8, OwnerCosts()) == Capex(8, 8000, 16_000, 3200)
    assert system_capex(
        chip, 8, OwnerCosts(chips=10, card=500.0, card_power=100.0, server=0.0, server_power=0.0)
    ) == Capex(10, 5000, 0, 1000)
    provided = make_chip(
        power=Power(maximum=300.0),
        price=1000.0,
        server=server.model_copy(update={"maximum": 600.0}),
    )
    assert system_capex(provided, 8, OwnerCosts()).power == 3600
    assert host_power(provided, OwnerCosts()) == host_power(chip, OwnerCosts()) == 100
    assert system_capex(chip, 8, OwnerCosts(capital=300_000.0, power=10_000.0)) == Capex(
        8, 0, 300_000, 10_000
    )
    assert system_capex(chip, 8, OwnerCosts(rent=2 / 3600)).rent == pytest.approx(16 / 3600)


def test_what_is_not_known_is_not_priced(make_chip):
    assert system_capex(make_chip(power=Power(maximum=300.0)), 8, OwnerCosts()) is None
    assert system_capex(make_chip(price=1000.0), 8, OwnerCosts()) is None


def test_the_causes_of_a_tokens_price_add_up():
    economics = Economics(years=5, interest=0.07, residual=0.1, maintenance=0.03, utilisation=0.5)
    price = token_price(
        economics, Capex(2, 1e5, 5e4, 2000), None, ServedTokens(1_000_000, 500, 100.0)
    )
    assert sum(price.usd_per_mtok_by_cause.values()) == pytest.approx(price.usd_per_mtok)
    assert price.usd_per_mtok == pytest.approx(price.usd_per_year / (1e4 * YEAR * 0.5) * 1e6)
    assert price.usd_per_request == pytest.approx(price.usd_per_mtok * 2000 / 1e6)
    assert price.card_usd == 5e4


@pytest.mark.parametrize(
    ("given", "of_faults", "counts"), [(None, 0.8, 0.8), (0.5, 0.8, 0.5), (None, 1.0, 1.0)]
)
def test_a_token_pays_for_the_time_that_its_system_is_down(given, of_faults, counts):
    """By what the scenario says, else what the system's faults come to."""
    has = Capex(2, 1e5, 5e4, 2000)
    price = token_price(
        Economics(availability=given), has, None, ServedTokens(1_000_000, 500, 100.0), of_faults
    )
    always = token_price(Economics(), has, None, ServedTokens(1_000_000, 500, 100.0))
    assert price.usd_per_mtok * counts == pytest.approx(always.usd_per_mtok)


@pytest.mark.parametrize(("utilisation", "availability"), [(1.0, 0.0), (1e-310, 1e-310)])
def test_what_never_works_has_no_price(utilisation, availability):
    economics = Economics(utilisation=utilisation)
    assert (
        token_price(
            economics,
            Capex(2, 1e5, 5e4, 2000),
            None,
            ServedTokens(1_000_000, 500, 100.0),
            availability,
        )
        is None
    )


def test_years_of_a_rented_system_are_all_running_cost():
    estimate = lifetime_costs(Economics(years=2), Capex(1, 0, 0, 0, 1.0))
    assert estimate == CostEstimate(capex_usd=0, opex_usd=2 * YEAR, total_usd=2 * YEAR)


# Scenarios.


def ratios(*changes):
    told = lifetime_estimates(sim.read("jia-2024", list(changes)))
    return [
        round(getattr(told["lpu"], key) / getattr(told["h100x8"], key), 2)
        for key in ("capex_usd", "opex_usd", "total_usd")
    ]


def test_the_estimate_of_february_2024():
    assert ratios() == [38.13, 10.58, 32.80]
    assert ratios("systems.lpu.chips=305")[:2] == [20.33, 5.64]
    assert ratios("economics.systems.lpu.card=524 USD")[0] == 1.00


def test_neither_ratio_depends_on_the_years_or_the_hosting():
    assert ratios("economics.years=5", "economics.hosting=150 USD/kW/month")[:2] == [38.13, 10.58]


def test_a_run_of_it_tells_of_tokens_too():
    told = sim.run(sim.read("jia-2024", ["workload.requests=16", "workload.users=8"])).as_json()
    assert set(told["estimate"]) == set(told["systems"])
    for system in told["systems"].values():
        assert system["economics"]["usd_per_mtok"] > 0
        assert system["energy"]["joules_per_token"] > 0
    json.dumps(told, allow_nan=False)


def test_a_system_for_nothing_is_compared_with_nobody():
    free = "economics.systems.h100x8={capital: 0 USD, power: 0 W}"
    told = sim.run(sim.read("jia-2024", [free, "workload.requests=16", "workload.users=8"]))
    assert told.as_json()["systems"]["h100x8"]["economics"]["usd_per_mtok"] == 0
    assert "one of 8 H100 (TP8) " not in told._repr_html_()


def test_a_chip_without_price_has_no_price_of_a_token():
    told = sim.run(sim.read("tpu-generations", ["workload.requests=2"])).as_json()["systems"]
    assert all("economics" not in system for system in told.values())


def test_a_fleet_costs_what_its_members_cost():
    members = sim.run(sim.read("fleet", ["workload.requests=20"])).as_json()["systems"]
    parts = {name: s["economics"] for name, s in members.items()}
    fleet = parts["by-room"]
    assert fleet["capital_usd"] == parts["lpus"]["capital_usd"] + parts["gpus"]["capital_usd"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "economics.systems.lpux={card: 1 USD}",
            "got 'lpux'; expected a system with chips; did you mean 'lpu'?",
        ),
        (
            "economics.hosting=us-colo",
            "got 'us-colo'; expected a known hosting; did you mean 'us-colocation'?",
        ),
        ("economics.hosting=200 USD/kW", "got '200 USD/kW'; expected a quantity in USD/J"),
        ("economics.electricity=us-industrial", "expected one of hosting and electricity"),
        ("economics.systems.lpu.rent=1 USD/h", "rent: got rent and card; expected"),
        (
            "economics.systems.lpu.capital=1 USD",
            "capital: got capital and card; .*; try leaving card, server out",
        ),
        (
            "economics.systems.h100x8.card_power=1 W",
            "power: got power and card_power; .*; try leaving card_power out",
        ),
        ("economics.systems.lpu.chips=571", "got 571; expected at least the 572 that serve"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(change, told):
    with pytest.raises(ScenarioError, match=told.replace("?", r"\?")):
        sim.read("jia-2024", [change])
