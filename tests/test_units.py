"""Quantities at the door: what a text is worth, and that every other text is refused in words."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.inputs.values import Value
from sim.units import (
    MAX_SIZE,
    MIN_SIZE,
    Bytes,
    BytesPerSecond,
    Count,
    Fraction,
    JoulesPerByte,
    RequestsPerSecond,
    Seconds,
    Tokens,
    UnitError,
    Watts,
    format_quantity,
    parse_quantity,
)

DECIMAL = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9, "p": 1e-12}
WHOLE = ["B", "bit", "FLOP", "OP", "token", "request"]  # nobody has a thousandth of these
DIVISIBLE = ["s", "Hz", "J", "W", "Wh", "USD"]
UNITS = [
    "s",
    "Hz",
    "B",
    "B/s",
    "FLOP",
    "FLOP/s",
    "W",
    "J/B",
    "J/FLOP",
    "USD",
    "token",
    "request/s",
    "failure/s",
    "token/s",
]


class Sample(Value):
    time: Seconds = 0.0
    size: Bytes = 0.0
    rate: BytesPerSecond = 1.0
    power: Watts = 0.0
    energy: JoulesPerByte = 0.0
    requests: RequestsPerSecond = 1.0
    length: Tokens = 1
    share: Fraction = 1.0
    count: Count = 1


def from_file(**values: object) -> Sample:
    return Sample.model_validate(values, context={"file": "x.yaml"})


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("80 TB/s", "B/s", 80e12),
        ("230.7 MB", "B", 230.7e6),
        ("220 MiB", "B", 220 * 2**20),
        ("30 Gb/s", "B/s", 3.75e9),
        ("30 Gbit/s", "B/s", 3.75e9),
        ("0.2 pJ/bit", "J/B", 1.6e-12),
        ("737 TOP/s", "FLOP/s", 737e12),
        ("0.9 GHz", "Hz", 0.9e9),
        ("0.6 us", "s", 0.6e-6),
        ("0.6 µs", "s", 0.6e-6),  # the micro sign
        ("0.6 μs", "s", 0.6e-6),  # the Greek letter
        ("2 day", "s", 172_800),
        ("30 request/min", "request/s", 0.5),
        ("0.36 USD/kWh", "USD/J", 1e-7),
        ("300 J/s", "W", 300),
        ("512 token", "token", 512),
        ("1e3 s", "s", 1000),
        ("1.5E-3 s", "s", 0.0015),
        (".5 s", "s", 0.5),
        ("5. s", "s", 5),
        ("-3 s", "s", -3),
        ("0 s", "s", 0),
        ("  1   s ", "s", 1),
        ("80TB/s", "B/s", 80e12),
        ("512token", "token", 512),
        ("1e3s", "s", 1000),
        ("1560 TOPS", "FLOP/s", 1560e12),
        ("989 TFLOPS", "FLOP/s", 989e12),
    ],
)
def test_a_quantity_is_worth_its_number_times_its_unit(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-12)


@given(
    st.floats(1e-3, 1e3),
    st.sampled_from(
        [(p, size, u) for p, size in (DECIMAL | BINARY).items() for u in WHOLE + DIVISIBLE]
    )
    | st.sampled_from([(p, size, u) for p, size in SMALL.items() for u in DIVISIBLE]),
)
def test_prefixes_are_decimal_and_with_an_i_binary_for_every_unit(number, prefixed):
    prefix, size, unit = prefixed
    assert parse_quantity(f"{number} {prefix}{unit}", unit) == pytest.approx(
        number * size, rel=1e-12
    )


@pytest.mark.parametrize("unit", WHOLE)
@pytest.mark.parametrize("prefix", SMALL)
def test_what_is_counted_has_no_fractions(prefix, unit):
    with pytest.raises(UnitError, match="expected a quantity"):
        parse_quantity(f"1 {prefix}{unit}", unit)


@given(st.floats(1e-14, 1e24) | st.just(0.0), st.sampled_from(UNITS))
@example(0.5, "B/s")
@example(999.96, "B")
def test_what_is_shown_can_be_read_back(value, unit):
    assert parse_quantity(format_quantity(value, unit), unit) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("80", "B/s", "got '80'; expected a quantity in B/s"),
        ("80 TB", "B/s", "got '80 TB'; expected a quantity in B/s"),
        ("80 tb/s", "B/s", "got '80 tb/s'; expected a quantity in B/s"),
        ("TB/s", "B/s", "got 'TB/s'; expected a quantity in B/s"),
        ("80 TB / s", "B/s", "got '80 TB / s'; expected a quantity in B/s"),
        ("80 TFLOP", "FLOP/s", "got '80 TFLOP'; expected a quantity in FLOP/s"),
        ("80 TOPS", "FLOP", "got '80 TOPS'; expected a quantity in FLOP"),
        ("80e", "s", "got '80e'; expected a quantity in s"),
        ("5 /s", "request/s", "got '5 /s'; expected a quantity in request/s"),
        ("5 Hz", "request/s", "got '5 Hz'; expected a quantity in request/s"),
        ("5 token", "request", "got '5 token'; expected a quantity in request"),
        ("", "s", "got ''; expected a quantity in s"),
        ("inf s", "s", "got 'inf s'; expected a quantity in s"),
        ("nan s", "s", "got 'nan s'; expected a quantity in s"),
        ("1_000 s", "s", "got '1_000 s'; expected a quantity in s"),
        ("1,5 s", "s", "got '1,5 s'; expected a quantity in s"),
        ("0x10 s", "s", "got '0x10 s'; expected a quantity in s"),
        ("٣ s", "s", "got '٣ s'; expected a quantity in s"),
        ("1 s\n1 s", "s", "got '1 s\\n1 s'; expected a quantity in s"),
        ("9**9**9 B/s", "B/s", "got '9**9**9 B/s'; expected a quantity in B/s"),
        ("1e999 s", "s", "got '1e999 s'; expected a quantity in s, at most 1e+30 s"),
        ("1e31 s", "s", "got '1e31 s'; expected a quantity in s, at most 1e+30 s"),
        ("-1e31 s", "s", "got '-1e31 s'; expected a quantity in s, at most 1e+30 s"),
        ("1e-31 s", "s", "got '1e-31 s'; expected a quantity in s, at least 1e-30 s"),
        ("1e-999 s", "s", "got '1e-999 s'; expected a quantity in s, at least 1e-30 s"),
    ],
)
def test_every_other_text_is_refused(text, unit, message):
    with pytest.raises(UnitError) as refused:
        parse_quantity(text, unit)
    assert str(refused.value) == message


@given(
    st.text()
    | st.text("0123456789.eE+-*/ kMGiTmunpBbsWhJFLOPtokenrequestUSDdaymonth", max_size=80),
    st.sampled_from(UNITS),
)
@example("9" * 20_000, "s")
@example("9" * 20_000 + " s", "s")
@example("1 " + "s/" * 10_000 + "s", "s")
@example("1 " + "k" * 5_000, "s")
@example("1" + " " * 100_000, "s")
@example("1 s" + "*s/s" * 14, "s")
def test_any_text_is_a_quantity_or_an_error_in_one_short_line(text, unit):
    refused = ""
    value = 0.0
    try:
        value = parse_quantity(text, unit)
    except UnitError as error:
        refused = str(error)
    assert value == 0 or MIN_SIZE <= abs(value) <= MAX_SIZE
    assert len(refused.splitlines()) <= 1
    assert len(refused) < 1000


def test_a_number_without_unit_is_an_error_in_a_file_and_fine_in_code():
    assert Sample(time=3).time == 3
    with pytest.raises(ValidationError, match=r"got 3 without a unit; try '3 s'"):
        from_file(time=3)


@pytest.mark.parametrize("value", [True, None, math.inf, math.nan, [1], {"a": 1}])
@pytest.mark.parametrize("field", ["time", "rate", "length"])
def test_what_is_neither_text_nor_number_is_no_quantity(field, value):
    with pytest.raises(ValidationError, match="expected a quantity in"):
        from_file(**{field: value})


@pytest.mark.parametrize(
    ("field", "zero", "negative"),
    [
        ("time", "0 s", "-1 s"),
        ("size", "0 B", "-1 B"),
        ("power", "0 W", "-1 W"),
        ("energy", "0 J/B", "-1 J/B"),
    ],
)
def test_amounts_may_be_zero_and_not_negative(field, zero, negative):
    assert getattr(from_file(**{field: zero}), field) == 0
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        from_file(**{field: negative})


@pytest.mark.parametrize(("field", "unit"), [("rate", "B/s"), ("requests", "request/s")])
@pytest.mark.parametrize("number", [0, -1])
def test_rates_are_positive(field, unit, number):
    with pytest.raises(ValidationError, match="greater than 0"):
        from_file(**{field: f"{number} {unit}"})


@pytest.mark.parametrize("number", [math.inf, math.nan, -1.0])
def test_code_is_held_to_the_same_limits(number):
    with pytest.raises(ValidationError):
        Sample(time=number)


@pytest.mark.parametrize("text", ["2000 token", "2 ktoken", "2e3 token"])
def test_lengths_are_whole_tokens(text):
    length = from_file(length=text).length
    assert length == 2000
    assert type(length) is int


@pytest.mark.parametrize("text", ["0 token", "-1 token", "1.5 token", "1 B", "1e10 token"])
def test_other_lengths_are_refused(text):
    with pytest.raises(ValidationError):
        from_file(length=text)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, 10**10, 10**40])
def test_counts_are_whole_numbers_from_one_to_a_billion(value):
    assert from_file(count=10**9).count == 10**9
    with pytest.raises(ValidationError):
        from_file(count=value)


@pytest.mark.parametrize("value", [0, -0.1, 1.1, True, "1", "0.5 s"])
def test_fractions_are_above_zero_and_at_most_one(value):
    assert from_file(share=1).share == 1
    with pytest.raises(ValidationError):
        from_file(share=value)
