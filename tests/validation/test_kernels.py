"""Times of single multiplies: simulated by hand, compared by row, and fitted."""

import csv
from pathlib import Path

import pytest

from sim.hardware.kernels import Kernels
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names
from sim.validation.kernel_fits import fit_kernel, timed_groups
from sim.validation.kernels import kernel_rows, kernel_set, kernel_summary, timed_multiply
from sim.validation.validate import shipped_table

ROW = {
    "op": "gemm",
    "chip": "H200 SXM",
    "backend": "vllm",
    "dtype": "bf16",
    "m": "1",
    "n": "8192",
    "k": "4096",
    "latency_us": "25",
    "doubt": "",
}


def table(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "own.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)
    return path


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [("1", "51200", "5120"), ("8192", "8192", "8192"), ("1", "256", "16384")],
)
def test_a_multiply_takes_its_fixed_time_and_the_longest_of_three(m, n, k):
    timed = timed_multiply(ROW | {"m": m, "n": n, "k": k})
    kernel = read_value(catalogue_names("kernels")["vllm"], Kernels).multiplies["hopper"]["bf16"]
    tokens, outputs, inputs = int(m), int(n), int(k)
    nbytes = 2 * (outputs * inputs + tokens * (outputs + inputs))
    sides = (
        nbytes / (4.8e12 * kernel.memory_efficiency),
        2 * tokens * outputs * inputs / (989e12 * kernel.compute_efficiency),
        inputs * kernel.per_input,
    )
    longest = {"51200": 0, "8192": 1, "256": 2}[n]
    assert max(sides) == sides[longest]
    assert timed.simulated == pytest.approx(kernel.fixed + max(sides), rel=1e-9)


def test_rows_of_an_own_table_are_tested_listed_or_not_expressed(tmp_path):
    with shipped_table("kernels").open(encoding="utf-8") as file:
        shipped = next(csv.DictReader(file))
    known = {key: shipped[key] for key in ROW if key != "doubt"}
    path = table(
        tmp_path,
        {},
        known,
        {"doubt": "weights in L2"},
        {"dtype": "w4a16"},
        {"chip": "MI300X", "dtype": "fp8"},
        {"op": "moe"},
        {"backend": "another"},
        {"chip": "unheard of"},
    )
    rows = kernel_rows(path)
    assert [row.status for row in rows] == [
        "tested",
        "fitted",
        "listed",
        "not expressed",
        "assumed",
        "not expressed",
        "not expressed",
        "not expressed",
    ]
    assert [row.reason for row in rows if row.simulated is None][1:] == [
        "no model of single kernels of moe",
        "no kernels of backend another",
        "no chip unheard of in the catalogue",
    ]
    summary = kernel_summary(rows)
    assert (summary.expressed, summary.total, summary.metrics["gemm"].n) == (4, 8, 3)
    assert summary.groups["h200-sxm, vllm"]["gemm"].n == 1


def test_a_cell_that_is_no_number_is_refused_with_its_line(tmp_path):
    with pytest.raises(ScenarioError, match=r"own\.csv:3: n: got 'many'; expected a whole number"):
        kernel_rows(table(tmp_path, {}, {"n": "many"}))


def test_multiplies_of_few_tokens_are_within_8_percent_on_every_chip():
    (summary,) = kernel_set("kernels", None).values()
    chips = ("h100-sxm", "a100-80gb", "b200-sxm", "gb200", "l40s", "rtx-pro-6000")
    assert all(summary.groups[chip]["gemm"].median_ape <= 8 for chip in chips)
    pairs = [name for name in summary.groups if ", " in name]
    assert len(pairs) == 18
    assert all(summary.groups[pair]["gemm"].median_ape <= 8 for pair in pairs)


def test_a_fit_gives_the_numbers_of_the_file():
    rows = timed_groups("sglang")["hopper", "bf16"]
    file = read_value(catalogue_names("kernels")["sglang"], Kernels)
    fit = fit_kernel(rows)
    assert fit.kernel == file.multiplies["hopper"]["bf16"]
    assert f"median error {fit.error:.1f} %" in file.source["multiplies.hopper.bf16"]
