"""A fit recovers known numbers from simulated points, and a file records it."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.catalogue.measurements import Rule
from sim.cli.app import main
from sim.hardware.engine import Engine
from sim.inputs.document import Document, read_value
from sim.inputs.errors import UserError
from sim.validation import calibrate as module
from sim.validation import systems
from sim.validation.calibrate import calibrate
from sim.validation.engine_files import fitted_engine_file, yaml_lines
from sim.validation.points import measured_points
from sim.validation.simulate import simulate

START = """\
# An engine of these tests.
# Its second line.
name: "gpt-fast: a test's"
memory_efficiency: {16: 0.5, 8: 0.5}
compute_efficiency: {16: 0.6, 8: 0.6}
attention_memory_efficiency: 0.8
attention_compute_efficiency: 0.4
layer_overhead: 20 us
step_overhead: 0.1 ms
sequence_overhead: 0 us
collective_latency: 10 us
collective_latency_per_chip: 0.4 us
collective_efficiency: 0.8
memory_fraction: 0.9
reserve: 2 GB
source:
  memory_efficiency: "assumed: first guess"
  reserve: "assumed: 2 GB"
fit:
  bounds:
    memory_efficiency.16: [0.3, 1]
    layer_overhead: [0 us, 200 us]
    collective_latency: [0 us, 30 us]
"""
TRUTH = {"memory_efficiency.16": 0.72, "layer_overhead": 61.0, "collective_latency": 4.2}
BOUNDS = START[START.index("    memory_efficiency.16: [") :]
# One number is free, for laws of fits of any number of them.
ONE, ONE_BOUND = {"layer_overhead": 61.0}, "    layer_overhead: [0 us, 200 us]\n"
UNSEEN = "    memory_efficiency.8: [0.3, 1]\n"  # no point has eight-bit weights
CHIPS = [
    ("Llama-3.2-1B", 1),
    ("Llama-3.2-1B", 2),
    ("Llama-3.2-1B", 4),
    ("Llama-3.2-1B", 8),
    ("Llama-2-7B", 4),
    ("Llama-2-7B", 8),
]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes the engine's file, with one text in place of another."""
    monkeypatch.chdir(tmp_path)

    def write(old: str = "", new: str = ""):
        assert old in START
        path = tmp_path / "gpt-fast.yaml"
        path.write_text(START.replace(old, new, 1), encoding="utf-8")
        return path

    return write


@pytest.fixture
def measured(make_table, monkeypatch, file):
    """Replace the shipped tables by points that an engine of known numbers had on A100."""

    def make(
        truth: dict[str, float] = TRUTH,
        chips=CHIPS,
        scatter: float = 0.0,
        metric: str = "decode_tok_s_user",
        **cells: object,
    ):
        document = Document(file())
        for key, value in truth.items():
            unit = " us" if key.endswith(("overhead", "latency")) else ""
            document.set(f"{key}={value}{unit}")
        engine = document.value(Engine)
        rows = [
            {
                "point_id": f"P{n}",
                "model": model,
                "n_accelerators": n,
                "parallelism": f"TP{n}",
                "metric": metric,
                **cells,
            }
            | {"point_id": f"P{model}{n}", "accelerator_chip_id": "nv_a100_80g_sxm"}
            for model, n in chips
        ]
        for number, point in enumerate(measured_points(make_table("published", *rows))):
            system = point.system.model_copy(update={"engine": engine})
            times = simulate(replace(point, system=system))
            off = 1 + scatter * (-1) ** number
            rows[number]["value"] = (
                off / times["tpot"] if metric == "decode_tok_s_user" else off * 1000 * times["ttft"]
            )
        path = make_table("published", *rows)
        monkeypatch.setattr(module, "SETS", ("mine",))
        monkeypatch.setattr(module, "shipped_table", lambda name: path)
        monkeypatch.setattr(
            module, "fitted_ids", lambda: frozenset(row["point_id"] for row in rows)
        )

    return make


def values(found) -> dict[str, float]:
    return {key: each.value for each in found.moved for key in each.keys}


# What is found.


def test_the_numbers_that_were_simulated_are_found_again(measured, file):
    measured()
    lines = []
    found = calibrate(file(), lines.append)
    assert values(found) == pytest.approx(TRUTH, rel=0.01)
    assert (found.engine, found.degrees, len(found.points), found.tables) == (
        "gpt-fast",
        3,
        6,
        ("mine",),
    )
    assert found.unidentifiable == ()
    assert found.error < 0.002
    assert len(lines) > 3


def test_a_number_that_two_keys_share_is_found_once(measured, file):
    measured({"memory_efficiency.16": 0.72, "memory_efficiency.8": 0.72})
    bounds = "memory_efficiency.16: [0.3, 1]\n    layer_overhead: [0 us, 200 us]\n    collective_latency: [0 us, 30 us]"
    found = calibrate(file(bounds, '"memory_efficiency.16, memory_efficiency.8": [0.3, 1]'))
    assert values(found) == pytest.approx(
        {"memory_efficiency.16": 0.72, "memory_efficiency.8": 0.72}, rel=0.01
    )
    assert found.degrees == 1


def test_a_point_that_may_not_be_fitted_to_changes_nothing(measured, file, monkeypatch):
    measured(ONE)
    path = file(BOUNDS, ONE_BOUND)
    before = calibrate(path)
    monkeypatch.setattr(
        module, "fitted_ids", lambda: frozenset({point.id for point in before.points[:4]})
    )
    assert [point.id for point in calibrate(path).points] == [
        point.id for point in before.points[:4]
    ]


def test_rows_that_a_rule_keeps_from_fits_are_left_out(measured, monkeypatch):
    measured()
    path = module.shipped_table("mine")
    rule = Rule(when={"model": ("Llama-2-7B",)}, not_fitted="no warm-up", source="here")
    rules = (*systems.measurement_rules(), rule)
    monkeypatch.setattr(systems, "measurement_rules", lambda: rules)
    points = module.points_for_fits(path)
    assert {point.about["model"] for point in points} == {"Llama-3.2-1B"}
    assert len(points) == 4


def test_points_of_other_engines_count_as_if_this_engine_had_run_them(measured, file):
    measured(ONE)
    path = file(BOUNDS, ONE_BOUND + "  points_of: [gpt-fast]\n")
    found = calibrate(path.rename("another.yaml").absolute())
    assert (found.engine, len(found.points)) == ("another", len(CHIPS))
    assert values(found) == pytest.approx(ONE, rel=1e-3)


def test_a_fit_keeps_the_kernels_that_a_rule_gives_a_row(measured, file, monkeypatch):
    """The engine that is fitted replaces the row's engine, but not the kernels that its server set."""
    measured()
    of_rule = {"model": ("Llama-2-7B",)}, {"engine.block_kernels": "deepgemm"}
    rule = Rule(when=of_rule[0], system=of_rule[1], source="here")
    rules = (*systems.measurement_rules(), rule)
    monkeypatch.setattr(systems, "measurement_rules", lambda: rules)
    ran = []
    monkeypatch.setattr(module, "serve_point", lambda point: ran.append(point) or point.measured)
    points = module.points_for_fits(module.shipped_table("mine"))
    module.fit_residuals(read_value(file(), Engine), points, {})
    kernels = {point.about["model"]: point.system.engine.block_kernels for point in ran}
    assert kernels["Llama-2-7B"].id == "deepgemm"
    assert kernels["Llama-3.2-1B"] is None


def test_what_does_not_matter_is_not_identifiable_and_stays(measured, file):
    measured(ONE)
    lines = []
    found = calibrate(file(BOUNDS, UNSEEN + ONE_BOUND), lines.append)
    assert values(found) == pytest.approx(ONE, rel=0.01)
    (left,) = found.unidentifiable
    assert (left.keys, left.start) == (("memory_efficiency.8",), 0.5)
    assert any(
        line.startswith("memory_efficiency.8: not identifiable") and line.endswith("0.5")
        for line in lines
    )


def test_a_number_that_wants_beyond_its_bound_stays(measured, file):
    measured(ONE | {"collective_latency": 4.2})
    found = calibrate(file(BOUNDS, ONE_BOUND + "    collective_latency: [8 us, 30 us]\n"))
    assert [each.keys for each in found.unidentifiable] == [("collective_latency",)]
    assert set(values(found)) == {"layer_overhead"}
    without = calibrate(file(BOUNDS, ONE_BOUND))
    assert values(found) == pytest.approx(values(without), rel=1e-3), (
        "the others are fitted as if it could not move"
    )


def test_more_scatter_is_more_uncertainty(measured, file):
    fits = []
    for scatter in (0.004, 0.016):
        measured(ONE | {"memory_efficiency.16": 0.72}, scatter=scatter)
        fits.append(calibrate(file("    collective_latency: [0 us, 30 us]\n", "")))
        assert scatter / 2 < fits[-1].error < 1.5 * scatter
        assert fits[-1].left_out > fits[-1].error  # a point left out is farther off
    assert all(
        more.error > 2 * less.error > 0
        for less, more in zip(fits[0].moved, fits[1].moved, strict=True)
    )


def test_a_number_that_is_smaller_than_its_error_is_not_identifiable(measured, file):
    measured(TRUTH | {"collective_latency": 0.3}, scatter=0.004)
    found = calibrate(file())
    assert [each.keys for each in found.unidentifiable] == [("collective_latency",)]


# Paced points: bounds.


@pytest.fixture
def pace(monkeypatch):
    """Multiplies the measured speeds of Llama-2-7B, and says that a service throttled them."""

    def make(factor: float) -> None:
        path = module.shipped_table("mine")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["value"] = str(
                float(row["value"]) * (factor if row["model"] == "Llama-2-7B" else 1)
            )
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        rules = (
            *systems.measurement_rules(),
            Rule(when={"model": ("Llama-2-7B",)}, bound="throttled", source="here"),
        )
        monkeypatch.setattr(systems, "measurement_rules", lambda: rules)

    return make


def test_a_bound_that_holds_moves_nothing_and_does_not_flatter(measured, file, pace, monkeypatch):
    """At half the true speed it changes neither the fit nor its errors."""
    measured(ONE, scatter=0.02)
    pace(0.5)
    path = file(BOUNDS, ONE_BOUND)
    found = calibrate(path)
    monkeypatch.setattr(
        module, "fitted_ids", lambda: frozenset(f"PLlama-3.2-1B{n}" for n in (1, 2, 4, 8))
    )
    others = calibrate(path)
    assert (found.data, others.data) == ("4 points and 2 bounds of mine", "4 points of mine")
    assert values(found) == pytest.approx(values(others), rel=1e-6)
    assert (found.error, found.left_out) == pytest.approx((others.error, others.left_out))
    assert found.moved[0].error == pytest.approx(others.moved[0].error)


def test_a_bound_that_breaks_pulls_like_a_measurement(measured, file, pace, monkeypatch):
    measured(ONE)
    unpaced = systems.measurement_rules()
    pace(1.1)
    path = file(BOUNDS, ONE_BOUND)
    found = calibrate(path)
    monkeypatch.setattr(systems, "measurement_rules", lambda: unpaced)
    as_measured = calibrate(path)
    assert values(found)["layer_overhead"] < 0.99 * ONE["layer_overhead"]
    assert values(found) == pytest.approx(values(as_measured), rel=1e-4)
    assert "to 4 points and 2 bounds of mine; sramsim calibrate gpt-fast" in fitted_engine_file(
        path, found
    )


def test_bounds_alone_fit_nothing(measured, file, pace):
    measured(ONE, chips=[("Llama-2-7B", 4), ("Llama-2-7B", 8)])
    pace(0.5)
    with pytest.raises(UserError, match="got 1 numbers to fit to 0 measured ones"):
        calibrate(file(BOUNDS, ONE_BOUND))


# What is refused.


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            START[START.index("fit:") :],
            "",
            "fit: got none; expected the free numbers with their bounds; try fit: ",
        ),
        (
            "    layer_overhead: [",
            "    layer_overheat: [",
            "fit.bounds.layer_overheat: got a key that is not in the file",
        ),
        (
            "[0 us, 200 us]",
            "[0, 200]",
            "fit.bounds.layer_overhead: got bounds in none; expected us, the number's own",
        ),
        (
            "[0 us, 200 us]",
            "[0 us, 2 ms]",
            "fit.bounds.layer_overhead: got bounds in us and ms; expected us, the number's own",
        ),
        (
            "[0 us, 200 us]",
            "[200 us, 200 us]",
            "fit.bounds.layer_overhead: got 200 us to 200 us; expected a lower bound below the "
            "upper one",
        ),
        (
            "[0 us, 200 us]",
            "[none, much]",
            "fit.bounds.layer_overhead: got none, much for ",
        ),
        (
            "memory_efficiency.16: [0.3, 1]",
            "memory_efficiency: [0.3, 1]",
            "fit.bounds.memory_efficiency: got 0.3, 1.0 for ",
        ),
    ],
)
def test_bounds_that_say_nothing_are_refused(measured, file, old, new, reason):
    measured(chips=CHIPS[:1])
    with pytest.raises(UserError, match=r"^gpt-fast.yaml: ") as error:
        calibrate(file(old, new))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_fewer_points_than_numbers_are_refused(measured, file):
    measured(chips=CHIPS[:3])
    with pytest.raises(
        UserError, match=r"^gpt-fast.yaml: fit.bounds: got 3 numbers to fit to 3 measured ones; "
    ):
        calibrate(file())


def test_an_engine_without_points_is_refused(measured, file):
    measured(chips=CHIPS[:1])
    path = file()
    other = path.rename(path.with_name("other.yaml"))
    with pytest.raises(
        UserError,
        match=r"other.yaml: got no points for fits that were measured with engine other",
    ):
        calibrate(other)


def test_nothing_identifiable_is_refused(measured, file):
    measured(chips=CHIPS[:2])
    with pytest.raises(UserError, match="got no number that is identifiable from 2 measured ones"):
        calibrate(file(BOUNDS, UNSEEN))


# The file.


def read_back(path, found) -> Engine:
    path.write_text(fitted_engine_file(path, found), encoding="utf-8")
    return read_value(path, Engine)


def test_the_written_file_reads_back_with_the_fitted_numbers(measured, file):
    measured(scatter=0.03)
    path = file()
    before, found = read_value(path, Engine), calibrate(path)
    engine = read_back(path, found)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# An engine of these tests.\n# Its second line.\nname: ")
    told = {
        "memory_efficiency.16": engine.memory_efficiency["16"],
        "layer_overhead": 1e6 * engine.layer_overhead,
    }
    told["collective_latency"] = 1e6 * engine.collective_latency
    assert told == pytest.approx(values(found), rel=0.005)  # three digits
    moved = {
        "memory_efficiency",
        "layer_overhead",
        "collective_latency",
        "source",
        "range",
        "fit",
        "points",
    }
    assert (before.points, engine.points) == ((), ("a100-80gb",))
    assert engine.model_dump(exclude=moved) == before.model_dump(exclude=moved)
    assert engine.memory_efficiency["8"] == 0.5
    for key in TRUTH:
        assert engine.source[key].startswith("fitted: ")
        assert engine.source[key].endswith("to 6 points of mine; sramsim calibrate gpt-fast")
    assert engine.source["reserve"] == before.source["reserve"]
    assert engine.source_of("memory_efficiency.8") == "assumed: first guess"
    assert engine.fit.bounds == before.fit.bounds
    assert engine.fit.found.startswith("3 numbers, 6 points of mine: root mean square error ")
    for each in found.moved:  # two standard errors, within the bounds
        low, high = (float(str(end).split()[0]) for end in engine.range[each.keys[0]])
        assert low == pytest.approx(max(each.low, each.value - 2 * each.error), rel=0.005)
        assert high == pytest.approx(min(each.high, each.value + 2 * each.error), rel=0.005)


TEXTS = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=("Cc", "Cf")),
    max_size=20,
)
TEXTS |= st.sampled_from(
    [
        "no",
        "null",
        "1e5",
        "12",
        "0.5",
        "- a",
        "2024-01-01",
        "a: b",
        "a #b",
        "~",
        "",
        " x ",
        "47 us",
        '"',
        "'",
    ]
)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True),
        TEXTS | st.floats(0, 1) | st.lists(TEXTS) | st.booleans(),
        max_size=5,
    )
)
def test_what_is_written_reads_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("written") / "x.yaml"
    path.write_text("".join(yaml_lines(data | {"source": data | {"a": "b"}})), encoding="utf-8")
    expected = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    assert Document(path).data == expected | {"source": expected | {"a": "b"}}


# The command.


def test_the_command_prints_and_writes_the_fit(measured, file, monkeypatch, capsys):
    measured(ONE)
    path = file(BOUNDS, UNSEEN + ONE_BOUND)
    monkeypatch.setattr("sys.argv", ["sramsim", "calibrate", "./gpt-fast.yaml", "-o", "found.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 0
    assert "gpt-fast: 1 number fitted to 6 points of mine" in told.out
    assert "not identified" in told.out
    assert told.err.endswith("found.yaml: written\n")
    engine = read_value(path.with_name("found.yaml"), Engine)
    assert engine.layer_overhead == pytest.approx(61e-6, rel=0.01)
    assert read_value(path, Engine).layer_overhead == pytest.approx(20e-6), (
        "the file that was read stays as it was"
    )


def test_a_left_out_group_is_predicted_by_a_fit_to_the_others():
    rng = np.random.default_rng(0)
    jacobian, measured = rng.normal(size=(9, 2)), rng.normal(size=9)
    groups = ["a", "b", "a", "c", "b", "d", "d", "a", "d"]
    residuals = measured - jacobian @ np.linalg.lstsq(jacobian, measured)[0]
    left_out = module.left_out_residuals(residuals, jacobian, groups)
    for group in "abcd":
        own = np.array([each == group for each in groups])
        fit = np.linalg.lstsq(jacobian[~own], measured[~own])[0]
        assert left_out[own] == pytest.approx(measured[own] - jacobian[own] @ fit)


def test_a_number_that_one_group_alone_identifies_keeps_its_value():
    jacobian = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    for rest in (0.0, 0.05):  # a soft loss leaves a residual that the number could take away
        residuals = np.array([0.1, -0.1, 0.2 + rest, -0.2 + rest])
        left_out = module.left_out_residuals(residuals, jacobian, ["a", "b", "c", "c"])
        assert left_out == pytest.approx([0.2, -0.2, 0.2 + rest, -0.2 + rest])
