"""Every file of the catalogue reads, and every number in it says where it comes from."""

import re
import typing
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from sim import chip, topology
from sim.chip import Chip, Memory, Power
from sim.engine import Engine
from sim.files import Sourced, catalogue, names, read
from sim.measurements import Speed, Speeds
from sim.model import Model
from sim.scenario import Scenario
from sim.scenario import read as read_scenario
from sim.topology import Link
from sim.units import Unit

# What a file of each folder is.  A folder that is not named here has no reader, and must be empty.
CLASSES = {"chips": Chip, "engines": Engine, "models": Model, "measurements": Speeds}
FILES = [(kind, name) for kind in CLASSES for name in names(kind)]
SOURCED = [(kind, name) for kind, name in FILES if issubclass(CLASSES[kind], Sourced)]


def entry(kind: str, name: str):
    return read(names(kind)[name], CLASSES[kind])


# Files.


def test_every_file_of_the_catalogue_is_found_by_name():
    folder = catalogue()
    shipped = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    found = {path.relative_to(folder) for kind in ("scenarios", *CLASSES) for path in names(kind).values()}
    assert shipped == found


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_entry_of_the_catalogue_reads_and_is_known_by_its_name(kind, name):
    assert entry(kind, name).id == name


@pytest.mark.parametrize("name", names("scenarios"))
def test_every_scenario_of_the_catalogue_reads(name):
    assert isinstance(read_scenario(name), Scenario)


# Sources.


def numbers(value: object, path: str = "") -> Iterator[str]:
    """The paths of all numbers of a value: quantities, fractions and counts."""
    if isinstance(value, BaseModel):
        value = {field: getattr(value, field) for field in type(value).model_fields if field != "source"}
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from numbers(part, f"{path}.{i}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def unsourced(value: Sourced) -> list[str]:
    return [path for path in numbers(value) if not value.source_of(path)]


@pytest.mark.parametrize(("kind", "name"), SOURCED)
def test_every_number_has_a_source(kind, name):
    value = entry(kind, name)
    assert list(numbers(value)), "no number found: the check is blind"
    assert unsourced(value) == []


@pytest.mark.parametrize(("kind", "name"), SOURCED)
def test_every_source_serves_a_number(kind, name):
    value = entry(kind, name)
    idle = [key for key in value.source if not any(path == key or path.startswith(key + ".") for path in numbers(value))]
    assert idle == [], "misspelt, or of a number that is gone"


CHIP = """
memory:
  sram: {capacity: 1 MB, bandwidth: 1 TB/s}
compute: {kind: roofline, fp16: 1 TFLOP/s}
topology: {kind: switch, limit: 8, link: {latency: 1 us, bandwidth: 1 GB/s}}
source:
  memory: "data sheet: 1 MB, 1 TB/s"
  compute.fp16: "data sheet"
  topology: "assumed: for this test"
"""


@pytest.mark.parametrize(
    ("without", "left"),
    [
        ("  memory: ", ["memory.sram.capacity", "memory.sram.bandwidth"]),
        ("  compute.fp16: ", ["compute.fp16"]),
        ("  topology: ", ["topology.limit", "topology.link.latency", "topology.link.bandwidth"]),
        ("nothing", []),
    ],
)
def test_a_number_without_a_source_is_found(tmp_path, without, left):
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(line for line in CHIP.splitlines() if not line.startswith(without)), encoding="utf-8")
    assert unsourced(read(file, Chip)) == left


def test_a_fraction_by_bits_without_a_source_is_found():
    engine = entry("engines", "ideal")
    less = engine.model_copy(update={"source": {k: v for k, v in engine.source.items() if k != "memory_efficiency"}})
    assert unsourced(less) == [f"memory_efficiency.{bits}" for bits in engine.memory_efficiency]


def test_the_nearest_prefix_serves():
    sources = {"memory": "all of it", "memory.sram.energy": "this alone"}
    value = entry("chips", "groq-lpu-v1").model_copy(update={"source": sources})
    assert value.source_of("memory.sram.capacity") == "all of it"
    assert value.source_of("memory.sram.energy") == "this alone"
    assert value.source_of("memory_of_another") is None


# A source says where to look (an address) or who says what ("H100 data sheet: 700 W"), or it owns up: "assumed: why",
# "fitted: to what", "by definition".
ADDRESS = re.compile(r"https?://[\w.-]+\.\w+\S*")
WHO_SAYS_WHAT = re.compile(r"(?!unsourced|unknown|todo)[^:]{4,}: \S", re.IGNORECASE)


def followable(source: str) -> bool:
    return bool(ADDRESS.search(source) or WHO_SAYS_WHAT.match(source) or source == "by definition")


@pytest.mark.parametrize(("kind", "name"), SOURCED)
def test_a_source_can_be_followed_or_owns_up(kind, name):
    value = entry(kind, name)
    assert [text for text in value.source.values() if not followable(text)] == []


@pytest.mark.parametrize("source", ["", "unsourced", "unknown: no idea", "assumed", "assumed: ", "fitted", "5 or so", "http:"])
def test_a_source_that_leads_nowhere_is_told(source):
    assert not followable(source)


# Measurements.


@pytest.mark.parametrize("point", entry("measurements", "single-user").points, ids=lambda point: point.id)
def test_every_measurement_can_be_followed_and_is_of_what_the_catalogue_has(point):
    assert followable(point.source)
    assert point.model in names("models")
    assert point.chip in names("chips")
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", point.date)


def test_measurements_have_names_of_their_own():
    for name in names("measurements"):
        ids = [point.id for point in entry("measurements", name).points]
        assert len(set(ids)) == len(ids)


# Quantities are marked as such, so that files cannot give them without a unit.

QUANTITIES = [Memory, Power, Chip, Engine, Link, Speed, *chip.KINDS.values(), *topology.KINDS.values()]


def markers(annotation: object) -> list[object]:
    """What an annotation says beside its type, inside unions and mappings too."""
    own = [part for mark in getattr(annotation, "__metadata__", ()) for part in (mark, *getattr(mark, "metadata", ()))]
    return own + [mark for part in typing.get_args(annotation) for mark in markers(part)]


def says_float(annotation: object) -> bool:
    return annotation is float or any(says_float(part) for part in typing.get_args(annotation))


@pytest.mark.parametrize("cls", QUANTITIES, ids=lambda cls: cls.__name__)
def test_a_float_of_a_file_has_a_unit_or_is_a_fraction(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in cls.model_fields:
        if says_float(hints[name]):
            marks = markers(hints[name])
            assert any(isinstance(mark, Unit) or getattr(mark, "le", None) == 1 for mark in marks), f"{cls.__name__}.{name}"
