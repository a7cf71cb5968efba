"""Published and simulated figures of messages: none is lost, and large errors have reasons."""

import csv
import json
import math
import re
from statistics import median

import pytest
from pydantic import BaseModel

from sim.catalogue.measurements import NetworkMeasurements
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_folder, catalogue_names
from sim.validation.messages import FAR, medians, message_rows, network_rows, simulated_message

FOLDER = catalogue_folder() / "measurements"
with (FOLDER / "network.csv").open(encoding="utf-8", newline="") as table:
    PUBLISHED = list(csv.DictReader(table))


@pytest.fixture(scope="module")
def compared():
    return network_rows()


@pytest.fixture
def copied(tmp_path):
    """Return the shipped table with one text in place of another."""

    def change(old: str = "", new: str = "", file: str = "network.csv") -> NetworkMeasurements:
        for name in ("network.csv", "network.yaml"):
            text = (FOLDER / name).read_text(encoding="utf-8")
            assert old in text or name != file
            (tmp_path / name).write_text(
                text.replace(old, new, 1) if name == file else text, encoding="utf-8"
            )
        return read_value(tmp_path / "network.yaml", NetworkMeasurements)

    return change


# Every row, once, as published.


def test_every_published_row_appears_once(compared):
    assert [row.id for row in compared] == [row["id"] for row in PUBLISHED]
    assert len({row.id for row in compared}) == len(compared) > 70


def test_a_row_has_the_published_figure(compared):
    for row, published in zip(compared, PUBLISHED, strict=True):
        latency, bandwidth = published["latency_us"], published["bandwidth_GBps"]
        assert (row.measured, row.unit) == (
            (float(latency), "us") if latency else (float(bandwidth), "GB/s")
        )
        assert (row.devices, row.bytes, row.system) == (
            published["n_devices"],
            published["message_bytes"],
            published["system"],
        )


def test_a_group_and_its_bytes_are_those_that_were_printed():
    for row in PUBLISHED:
        if row["simulates"].startswith("all_") and row["message_bytes"].isdigit():
            assert (row["group"], row["bytes"]) == (row["n_devices"], row["message_bytes"])


# How near.


def test_the_median_is_within_fifteen_percent_with_and_without_the_rows_that_were_fitted(compared):
    told = medians(compared)
    assert told["tested"][0] <= 0.15
    assert told["free"][0] <= 0.15
    assert told["free"][1] >= 20
    assert told["tested"][1] == told["free"][1] + told["fitted"][1]


def test_what_was_given_is_not_counted(compared):
    errors = [
        abs(row.simulated / row.measured - 1)
        for row in compared
        if row.status in ("free", "fitted")
    ]
    assert medians(compared)["tested"] == (pytest.approx(median(errors)), len(errors))


def test_rows_far_off_or_not_simulated_have_a_reason(compared):
    for row in compared:
        assert row.far == (row.simulated is not None and abs(row.error) > FAR)
        if row.far or row.simulated is None:
            assert len(row.reason) > 20, row.id


def test_a_row_that_software_was_fitted_to_is_marked_so(compared):
    table = read_value(catalogue_names("measurements")["network"], NetworkMeasurements)
    for name, software in table.software.items():
        if name not in ("none", "nccl-eager"):  # nccl-eager takes what chips do from nccl-graph
            on = [row for row in compared if row.software == name]
            said = software.source["latency"]
            first, last = (
                int(number)
                for number in re.findall(r"N(\d{3})", said)[:: len(re.findall(r"N\d{3}", said)) - 1]
            )
            fitted = [int(row.id[1:]) for row in on if row.status == "fitted"]
            assert said.startswith("fitted: ")
            assert (min(fitted), max(fitted)) == (first, last)
            assert any(row.status == "free" for row in on), (
                f"{name} was fitted to all that there is of it"
            )


def test_every_number_of_the_file_has_a_source():
    table = read_value(catalogue_names("measurements")["network"], NetworkMeasurements)
    for part in (*table.systems.values(), *table.software.values()):
        for key in type(part).model_fields.keys() - {
            "id",
            "name",
            "aliases",
            "note",
            "source",
            "range",
            "chip",
        }:
            value = getattr(part, key)
            levels = (
                [f"{key}.levels.{i}" for i in range(len(getattr(value, "levels", ())))]
                if isinstance(value, BaseModel)
                else []
            )
            assert value is None or all(part.source_of(each) for each in levels or [key]), key


# By hand.


def test_an_all_reduce_by_hand(copied):
    """N030, 1 MiB on eight H100 behind NVSwitch.

    Two phases send an eighth of the bytes to each of seven peers over one cable.
    """
    table = copied()
    software = table.software["trt-llm-eager"]
    phase = (
        2 * 0.5e-6
        + software.latency
        + 8 * software.latency_per_chip
        + 7 * 2**20 / 8 / (450e9 * software.efficiency)
    )
    (point,) = [point for point in table.points if point.id == "N030"]
    assert simulated_message(table, point) == pytest.approx(2 * phase * 1e6)


def test_chips_wait_for_the_host(copied):
    table = copied("launch: 22.9 us", "launch: 30 us", "network.yaml")
    times = {row.id: row.simulated for row in message_rows(table)}
    assert times["N031"] == pytest.approx(30)
    assert times["N046"] > 30, "four megabytes take the chips longer than the host"
    assert times["N032"] < 30, "a graph does not wait"


def test_a_bus_bandwidth_counts_what_crosses_the_cables(copied):
    table = copied()
    (point,) = [point for point in table.points if point.id == "N048"]
    bare = point.model_copy(update={"software": "none"})
    assert simulated_message(table, bare) == pytest.approx(450, rel=1e-3)  # all of the cable
    assert simulated_message(table, point) == pytest.approx(
        450 * table.software["nccl-graph"].efficiency, rel=1e-3
    )


def test_results_follow_the_chip_and_the_software(copied):
    slower = message_rows(copied("latency: 2.4 us", "latency: 4.8 us", "network.yaml"))
    for before, after in zip(network_rows(), slower, strict=True):
        if before.software == "trt-llm-eager":
            assert after.simulated > before.simulated
        else:
            assert after.simulated == before.simulated


# What is wrong is an error, with its place.


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("N003,", "N002,", r"network.csv:4: N002 is there twice"),
        (",9.5,", ",fast,", r"network.csv:2: latency_us: "),
        (",9.5,", ",-1,", r"network.csv:2: latency_us: "),
        (",9.5,", ",inf,", r"network.csv:2: latency_us: "),
        (",9.5,", ",,", r"network.csv:2: N001 has neither latency_us nor bandwidth_GBps"),
        (",9.5,", ",9.5,,", r"network.csv:2: the row has more or fewer cells"),
        ("all_reduce,h100", "all_divide,h100", r"network.csv:2: simulates: "),
        ("all_reduce,h100", ",h100", r"network.csv:2: N001 does not say its simulates"),
        ("all_reduce,h100", "all_reduce,h101", r"N001 is on 'h101', and the systems are h100, "),
        ("vllm-eager,", "vllm-lazy,", r"N001 is with 'vllm-lazy', and the software is none, "),
        (
            "the number of GPUs is not published (the pull request measures 2, 4, 6 and 8)",
            "",
            r"N050 says neither what simulates it",
        ),
        ("n_devices", "devices", r"network.csv:2: .*devices"),
    ],
)
def test_a_broken_row_is_an_error(copied, old, new, reason):
    with pytest.raises(ScenarioError, match=reason):
        copied(old, new)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "vllm-eager,8,2,",
            "vllm-eager,9,2,",
            "N001: switch: got 9 chips; expected at most 8",
        ),
        (
            "vllm-eager,8,2,",
            "vllm-eager,2,4,",
            "N001: got a group of 4; expected at most 2, the chips",
        ),
    ],
)
def test_a_row_that_its_system_cannot_do_is_an_error(copied, old, new, reason):
    with pytest.raises(ScenarioError, match=reason):
        message_rows(copied(old, new))


def test_a_missing_table_is_an_error(copied):
    with pytest.raises(ScenarioError, match=r"mine.csv: no such file"):
        copied("points: network.csv", "points: mine.csv", "network.yaml")


# The command.


def test_the_command_prints_every_row_and_ends_with_the_median(sramsim, compared):
    status, out, err = sramsim("validate", "--network")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"N\d{3} ", line)] == [
        row["id"] for row in PUBLISHED
    ]
    middle, count = medians(compared)["tested"]
    assert f"median absolute error {100 * middle:.1f} % of {count} rows" in out
    assert "median absolute error" in "".join(lines[-2:])
    for row in compared:
        if row.far or row.simulated is None:
            assert f"{row.id}:" in out


def test_the_command_prints_json(sramsim, compared):
    status, out, _ = sramsim("validate", "--network", "--json")
    told = json.loads(out)
    assert status == 0
    assert [row["id"] for row in told["rows"]] == [row.id for row in compared]
    assert all(
        row["error"] is None or math.isclose(row["error"], row["simulated"] / row["measured"] - 1)
        for row in told["rows"]
    )


def test_the_command_takes_one_set(sramsim):
    status, out, error = sramsim("validate", "calibration", "--network")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "got more than one of NAME, --points and --network; expected one" in error
    status, _, error = sramsim("validate", "calibratoin")
    assert (status, error.count("\n")) == (2, 1)
    assert "expected calibration" in error


def test_the_network_is_a_set_as_others_are(sramsim):
    told = json.loads(sramsim("validate", "network", "--json")[1])["sets"]["network"]
    assert (told["expressed"], told["total"]) == (
        sum(p["error_pct"] is not None for p in told["points"]),
        len(PUBLISHED),
    )
    errors = [abs(p["error_pct"]) for p in told["points"] if p["status"] in ("tested", "fitted")]
    assert told["median_ape"] == pytest.approx(median(errors))
