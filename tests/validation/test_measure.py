"""Measurements of a card as an engine file.  Left out: measuring, which needs a GPU."""

import sys
import types

import pytest

from sim.cli.app import main
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.names import find_entry
from sim.model.transformer import Model
from sim.validation.measure import (
    SMALL_KERNELS,
    CardMeasurements,
    MultiplyRate,
    measured_engine_file,
)

# 16 bits: at best half of H100's 3.35 TB/s, and a quarter of its 989.4 TFLOP/s in the long
# multiply, which reads slowly.
MULTIPLIES = [
    MultiplyRate(16, 1, 1e-3, 1.2e12, 1e12),
    MultiplyRate(16, 32, 1e-3, 1.675e12, 3e12),
    MultiplyRate(16, 2048, 1e-3, 3e12, 989.4e12 / 4),
]
EIGHT = [
    MultiplyRate(8, 1, 1e-3, 3.35e12 / 4, 1e12),
    MultiplyRate(8, 2048, 1e-3, 1e12, 1978.9e12 * 2),
]
CARD = CardMeasurements(
    "NVIDIA H100 80GB HBM3",
    "PyTorch 2.5.1, CUDA 12.4",
    MULTIPLIES + EIGHT,
    2.01e12,
    2e-6,
    {16384: 9e-6, 1 << 26: 9e-4},
)


@pytest.fixture
def made(tmp_path):
    """The engine that a file for the card describes."""

    def write(found: CardMeasurements = CARD) -> Engine:
        chip, model = (
            read_value(find_entry("h100-sxm", "chips"), Chip),
            read_value(find_entry("llama-3.1-8b", "models"), Model),
        )
        (tmp_path / "card.yaml").write_text(
            measured_engine_file(found, chip, model), encoding="utf-8"
        )
        return read_value(tmp_path / "card.yaml", Engine)

    return write


def test_efficiencies_are_relative_to_the_chips_peaks(made):
    engine = made()
    assert engine.memory_efficiency == pytest.approx({"16": 0.5, "8": 0.25}, abs=1e-3)
    assert engine.compute_efficiency == pytest.approx(
        {"16": 0.25, "8": 1.0}, abs=1e-3
    )  # never more than all
    assert engine.attention_memory_efficiency == pytest.approx(0.6, abs=1e-3)
    assert engine.layer_overhead == pytest.approx(SMALL_KERNELS * 2e-6)
    assert engine.collective_latency == pytest.approx(9e-6)


def test_every_number_of_the_file_has_a_source(made):
    engine = made()
    for key in engine.model_fields_set - {"id", "name", "source"}:
        value = getattr(engine, key)
        for path in [f"{key}.{bits}" for bits in value] if isinstance(value, dict) else [key]:
            assert engine.source_of(path), path
    assert engine.source_of("memory_efficiency.8").startswith(
        "measured: NVIDIA H100 80GB HBM3, PyTorch 2.5.1, CUDA 12.4, "
    )
    assert "sramsim measure, layer shapes of llama-3.1-8b" in engine.source_of("layer_overhead")
    assert engine.source_of("step_overhead").startswith("assumed: ")


def test_a_single_card_without_eight_bits_has_no_numbers_for_them(made):
    engine = made(CARD._replace(multiplies=MULTIPLIES, all_reduce={}))
    assert set(engine.memory_efficiency) == set(engine.compute_efficiency) == {"16"}
    assert engine.collective_latency == 0
    assert engine.source_of("collective_latency") == "assumed: none; one card"


@pytest.mark.parametrize(
    ("torch", "message"),
    [
        (None, "measure: got no PyTorch; expected it; try pip install 'sramsim[measure]'"),
        (False, "measure: got no CUDA GPU from PyTorch; expected one; try a machine with one"),
    ],
)
def test_without_torch_or_a_gpu_it_is_one_line(monkeypatch, capsys, tmp_path, torch, message):
    present = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: torch))
    monkeypatch.setitem(sys.modules, "torch", None if torch is None else present)
    monkeypatch.setattr(
        "sys.argv", ["sramsim", "measure", "--chip", "h100-sxm", "-o", str(tmp_path / "card.yaml")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err) == (2, "", f"{message}\n")
    assert list(tmp_path.iterdir()) == []
