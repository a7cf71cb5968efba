"""A file that was read is not read again while it and the files that it names stay the same."""

import os
from pathlib import Path

import pytest

from sim.catalogue.measurements import NetworkMeasurements
from sim.hardware.chip import Chip, Cluster
from sim.inputs import document
from sim.inputs.document import read_document, read_value
from sim.inputs.names import find_entry

CLUSTER = "chip: card.yaml\nchips: 8\n"
CHIP = find_entry("h100-sxm", "chips").read_text(encoding="utf-8")


def write(name: str, text: str, age: float = 100.0) -> Path:
    """Write a file whose last change is `age` seconds ago."""
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    changed = path.stat().st_mtime - age
    os.utime(path, (changed, changed))
    return path


@pytest.fixture
def loads(tmp_path, monkeypatch):
    """The names of the files that are read, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []
    load = document.load_text

    def loading(path, shown):
        names.append(Path(path).name)
        return load(path, shown)

    monkeypatch.setattr(document, "load_text", loading)
    return names


def test_an_entry_is_read_and_checked_once(loads):
    path = write("card.yaml", CHIP)
    first = read_value(path, Chip)
    assert read_value(path, Chip) is first
    assert read_document(path).value(Chip) == first
    assert loads == ["card.yaml"]


def test_a_changed_file_is_read_again(loads):
    path = write("card.yaml", CHIP)
    assert read_value(path, Chip).name != "mine"
    write("card.yaml", CHIP.replace("name: ", "name: mine # ", 1), age=50.0)
    assert read_value(path, Chip).name == "mine"


def test_a_value_is_read_again_if_a_file_that_it_names_changed(loads):
    write("card.yaml", CHIP)
    cluster = write("box.yaml", CLUSTER)
    assert read_value(cluster, Cluster) is read_value(cluster, Cluster)
    write("card.yaml", CHIP.replace("name: ", "name: mine # ", 1), age=50.0)
    assert read_value(cluster, Cluster).chip.name == "mine"
    write("card.yaml", CHIP, age=20.0)  # also where the chip came from the cache
    read_value("card.yaml", Chip)
    assert read_value(cluster, Cluster).chip.name != "mine"
    write("card.yaml", CHIP.replace("name: ", "name: mine # ", 1), age=10.0)
    assert read_value(cluster, Cluster).chip.name == "mine"


def test_a_file_that_changed_just_now_is_read_each_time(loads):
    """Two changes may fall into one tick of the file's clock."""
    path = write("card.yaml", CHIP, age=0.0)
    assert read_value(path, Chip) == read_value(path, Chip)
    assert loads == ["card.yaml", "card.yaml"]


def test_a_missing_file_is_an_error_each_time(loads):
    path = write("card.yaml", CHIP)
    read_value(path, Chip)
    path.unlink()
    for _ in range(2):
        with pytest.raises(document.ScenarioError, match=r"card.yaml: no such file"):
            read_value(path, Chip)


def test_errors_name_the_file_from_the_working_folder(loads, monkeypatch):
    path = write("card.yaml", CHIP).absolute()
    assert read_document(path).shown == "card.yaml"
    Path("inner").mkdir()
    monkeypatch.chdir("inner")
    assert read_document(path).shown == str(path)


def test_a_table_beside_the_file_counts_too(loads):
    """The rows of `points: network.csv` are in another file."""
    shipped = find_entry("network", "measurements")
    table = shipped.with_name("network.csv").read_text(encoding="utf-8")
    write("network.csv", table)
    network = write("network.yaml", shipped.read_text(encoding="utf-8"))
    points = read_value(network, NetworkMeasurements).points
    first = table.splitlines(keepends=True)
    write("network.csv", "".join(first[:-1]), age=50.0)
    assert len(read_value(network, NetworkMeasurements).points) == len(points) - 1
