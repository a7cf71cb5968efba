"""Every file of the catalogue reads, and every number in it says where it comes from."""

import json
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sim.catalogue.measurements import (
    NetworkMeasurements,
    PublishedSpeed,
    PublishedSpeeds,
    Rules,
    SpeculationMeasurements,
    StepMeasurements,
)
from sim.cost.acceptance import AcceptanceCurve
from sim.hardware import chip, topology
from sim.hardware.chip import Chip, Cluster, Memory
from sim.hardware.engine import Engine
from sim.hardware.kernels import Kernels, MultiplyKernel
from sim.hardware.power import Power
from sim.hardware.topology import Link
from sim.inputs import names
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_folder, catalogue_names, find_entry
from sim.inputs.values import Sourced
from sim.model.config import NOT_COVERED, SPELLINGS
from sim.model.transformer import Model
from sim.scenario.scenario import Scenario
from sim.scenario.scenario import read as read_scenario
from sim.units import Unit, UnitError, parse_quantity
from sim.validation.validate import POOL_SETS, SETS

# What a file of each folder is.  A folder that is not named here has no reader, and must be empty.
CLASSES = {
    "acceptance": AcceptanceCurve,
    "chips": Chip,
    "engines": Engine,
    "kernels": Kernels,
    "models": Model,
    "clusters": Cluster,
    "measurements": PublishedSpeeds,
}
OTHERS = {
    "network": NetworkMeasurements,
    "rules": Rules,
    "speculation": SpeculationMeasurements,
    "afd": StepMeasurements,
}
FILES = [(kind, name) for kind in CLASSES for name in catalogue_names(kind)]
SOURCED = [(kind, name) for kind, name in FILES if issubclass(CLASSES[kind], Sourced)]


read_once = cache(read_value)  # an entry is frozen, so that one reading serves all tests


def entry(kind: str, name: str):
    return read_once(catalogue_names(kind)[name], OTHERS.get(name, CLASSES[kind]))


# Files.


def broken(law: Callable[..., object], entries: Iterable[Any]) -> dict[Any, object]:
    """The entries that break a law, with what it returns of each: a law that holds returns nothing."""
    found = {each: law(*each) if isinstance(each, tuple) else law(each) for each in entries}
    return {each: wrong for each, wrong in found.items() if wrong}


def test_every_file_of_the_catalogue_is_found_by_name():
    folder = catalogue_folder()
    pages = {Path("README.md"), Path("REFERENCE.md"), Path("notebook.ipynb")}
    tables = (
        "kernels",
        "network",
        "replay-vllm-rtx4090",
        *SETS,
        *POOL_SETS,
    )  # of kernels, network.yaml, the scenario of that name, and `sramsim validate`
    named_by_others = {
        Path("by_length.py"),
        *(Path("measurements", f"{name}.csv") for name in tables),
    }  # the first by fleet.yaml
    files = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    )
    shipped = set(files) - pages - named_by_others
    found = {
        path.relative_to(folder)
        for kind in ("scenarios", *CLASSES)
        for path in catalogue_names(kind).values()
    }
    assert shipped == found


def test_every_entry_of_the_catalogue_reads_and_is_known_by_its_name():
    assert {(kind, name): entry(kind, name).id for kind, name in FILES} == {
        (kind, name): name for kind, name in FILES
    }


def test_every_scenario_of_the_catalogue_reads():
    for name in catalogue_names("scenarios"):
        assert isinstance(read_scenario(name), Scenario), name


# Sources.


def numbers(value: object, path: str = "") -> Iterator[str]:
    """The paths of all numbers of a value: quantities, fractions and counts.  A cluster's chip answers for its own."""
    if isinstance(value, BaseModel):
        given = {
            field: getattr(value, field)
            for field in type(value).model_fields
            if field not in ("source", "range", "fit")
        }
        value = {
            field: part
            for field, part in given.items()
            if part != 0.0 or field in value.model_fields_set
        }  # a nought by default
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(part, Sourced):
                yield from numbers(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from numbers(part, f"{path}.{i}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def unsourced(value: Sourced) -> list[str]:
    return [path for path in numbers(value) if not value.source_of(path)]


def test_every_number_has_a_source():
    for kind, name in SOURCED:
        assert list(numbers(entry(kind, name))), f"no number in {name}: the check is blind"
    assert broken(lambda kind, name: unsourced(entry(kind, name)), SOURCED) == {}


def idle_sources(kind: str, name: str) -> list[str]:
    """The sources of no number: misspelt, or of a number that is gone."""
    value = entry(kind, name)
    paths = list(numbers(value))
    return [
        key
        for key in value.source
        if not any(path == key or path.startswith(key + ".") for path in paths)
    ]


def test_every_source_serves_a_number():
    assert broken(idle_sources, SOURCED) == {}


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
    file.write_text(
        "\n".join(line for line in CHIP.splitlines() if not line.startswith(without)),
        encoding="utf-8",
    )
    assert unsourced(read_value(file, Chip)) == left


def test_a_fraction_by_bits_without_a_source_is_found():
    engine = entry("engines", "ideal")
    less = engine.model_copy(
        update={"source": {k: v for k, v in engine.source.items() if k != "memory_efficiency"}}
    )
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


def test_a_source_can_be_followed_or_owns_up():
    def lost(kind: str, name: str) -> list[str]:
        return [text for text in entry(kind, name).source.values() if not followable(text)]

    assert broken(lost, SOURCED) == {}


@pytest.mark.parametrize(
    "source",
    ["", "unsourced", "unknown: no idea", "assumed", "assumed: ", "fitted", "5 or so", "http:"],
)
def test_a_source_that_leads_nowhere_is_told(source):
    assert not followable(source)


# Ranges.


def is_share(mark: object) -> bool:
    """Whether a mark bounds a share: by 1, or by 2 if it is one of what kernels reach alone."""
    return getattr(mark, "le", None) in (1, 2)


def at(value: object, path: str) -> tuple[object, list[object]]:
    """What stands at 'memory.sram.bandwidth', and what the annotation of its field says."""
    marks: list[object] = []
    for key in path.split("."):
        if isinstance(value, BaseModel):
            marks = markers(typing.get_type_hints(type(value), include_extras=True)[key])
            value = getattr(value, key)
        else:
            value = value[int(key)] if isinstance(value, tuple) else value[key]
    return value, marks


def strays(value: Sourced) -> list[str]:
    """The ranges that do not contain the value, are of another unit, or of nothing that the file has."""
    found = []
    for path, ends in value.range.items():
        try:
            given, marks = at(value, path)
            if all(isinstance(end, float) for end in ends) and any(map(is_share, marks)):
                low, high = ends  # of a fraction
            else:
                unit = next(mark.name for mark in marks if isinstance(mark, Unit))
                low, high = (parse_quantity(end, unit) for end in ends)
        except (AttributeError, KeyError, StopIteration, UnitError) as error:
            found.append(f"{path}: {error!r}")
        else:
            if given is None or not low <= given <= high or low == high:
                found.append(f"{path}: {given} is not within {ends}")
    return found


def test_a_range_contains_its_value_in_its_unit():
    assert broken(lambda kind, name: strays(entry(kind, name)), SOURCED) == {}


def test_ranges_are_given_where_sources_disagree():
    assert {"compute.weight_load", "topology.link.latency", "power.typical"} <= entry(
        "chips", "groq-lpu-v1"
    ).range.keys()


@pytest.mark.parametrize(
    "given",
    [
        "{memory.sram.bandwidth: [2 TB/s, 3 TB/s]}",
        "{memory.sram.bandwidth: [3 TB/s, 0.5 TB/s]}",
        "{memory.sram.bandwidth: [1 TB/s, 1 TB/s]}",
        "{memory.sram.bandwidth: [1 TB, 2 TB]}",
        "{memory.sram.bandwidth: ['1', '2']}",
        "{memory.dram.bandwidth: [1 TB/s, 2 TB/s]}",
        "{memory.sram.speed: [1 TB/s, 2 TB/s]}",
        "{compute.fp8: [1 TFLOP/s, 2 TFLOP/s]}",
        "{topology.limit: ['1', '9']}",
    ],
)
def test_a_range_that_does_not_fit_is_found(tmp_path, given):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{CHIP}range: {given}\n", encoding="utf-8")
    assert len(strays(read_value(file, Chip))) == 1


# Names.


def ambiguous(kind: str) -> list[str]:
    """Names that mean two entries: aliases given twice, or equal to a file's name."""
    uses = [
        *catalogue_names(kind),
        *(
            alias
            for name in catalogue_names(kind)
            for alias in getattr(entry(kind, name), "aliases", ())
        ),
    ]
    return [name for name, times in Counter(uses).items() if times > 1]


def test_a_name_means_one_entry():
    assert broken(ambiguous, CLASSES) == {}


@pytest.mark.parametrize(
    ("second", "doubtful"),
    [("mine", []), ("cs", ["cs"]), ("wafer", ["wafer"])],
)
def test_a_name_that_means_two_is_found(tmp_path, monkeypatch, second, doubtful):
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips" / "wafer.yaml").write_text(f"{CHIP}aliases: [cs]\n", encoding="utf-8")
    (tmp_path / "chips" / "die.yaml").write_text(f"{CHIP}aliases: [{second}]\n", encoding="utf-8")
    monkeypatch.setattr(names, "catalogue_folder", lambda: tmp_path)
    assert ambiguous("chips") == doubtful


# The names that measurement tables use.
CHIPS_OF_TABLES = """
groq_tsp_v1 groq3_lp30 cerebras_wse2 cerebras_wse3 cerebras_cs4_wafer graphcore_mk2 graphcore_bow sambanova_sn40l dmatrix_corsair
tt_wormhole_n150 tt_wormhole_n300 tt_blackhole_p150a tpu_v1 tpu_v4 tpu_v5e tpu_v5p tpu_v6e tpu_v7 nv_a100_80g_sxm nv_h100_sxm
nv_h100_pcie nv_h200_sxm nv_b200_sxm nv_gb200 nv_b300 nv_rubin_r200 rtx_3090 rtx_4090 amd_mi250x_gcd amd_mi300x amd_mi355x aws_trn2
h100_sxm b200_sxm h100 lpu
"""
MODELS_OF_TABLES = """
Llama-2-7B Llama-2-70B LLaMA-7B Llama-3-8B Llama-3-70B Llama-3.1-8B Llama-3.1-70B Llama-3.1-405B Llama-3.2-1B Llama-3.3-70B
Llama-4-Maverick Mixtral-8x7B Qwen3-32B Qwen3-235B-A22B DeepSeek-V3 DeepSeek-R1 gpt-oss-120b gpt-oss-120B Kimi-K2 Falcon-180B
llama-3-8b llama-3-70b llama-3.1-8b llama-3.1-70b llama-3.1-405b llama-3.3-70b r1-distill-llama-70b llama-4-maverick llama-4-scout
mixtral-8x7b qwen3-32b qwen2.5-32b qwq-32b deepseek-v3 gemma2-9b gpt-oss-20b kimi-k2
"""
NAMES_OF_TABLES = [("chips", name) for name in CHIPS_OF_TABLES.split()] + [
    ("models", name) for name in MODELS_OF_TABLES.split()
]


def test_the_names_of_measurement_tables_are_known():
    for kind, name in NAMES_OF_TABLES:
        assert find_entry(name, kind) in catalogue_names(kind).values(), name


# What a chip must be.


def test_a_chip_at_work_draws_no_more_than_its_limit():
    for name in catalogue_names("chips"):
        power = entry("chips", name).power
        assert power is None or (power.typical or 0) <= power.maximum, name


def test_a_chips_memories_stand_fastest_first():
    for name in catalogue_names("chips"):
        bandwidths = [memory.bandwidth for memory in entry("chips", name).memory.values()]
        assert bandwidths == sorted(bandwidths, reverse=True), name


def test_a_chip_multiplies_at_16_bits_and_no_slower_below():
    for name in catalogue_names("chips"):
        compute = entry("chips", name).compute
        wide, eight, four = compute.peak("fp16"), compute.peak("fp8"), compute.peak("fp4")
        assert wide <= eight <= four, name
        assert wide <= compute.peak("int8") <= compute.peak("int4"), name


def test_a_clusters_chips_are_joined():
    for name in catalogue_names("clusters"):
        cluster = entry("clusters", name)
        topology = (cluster.topology or cluster.chip.topology).sized(cluster.chips)
        assert topology.chips == cluster.chips, name
        assert cluster.chips == 1 or topology.hops(0, cluster.chips - 1), name


# What a model's file keeps: the keys that are read, and no others.

READ = {
    *Model.model_fields,
    *NOT_COVERED,
    *(spelling for spellings in SPELLINGS.values() for spelling in spellings),
}


def unread_keys(name: str) -> set[str]:
    config = json.loads(catalogue_names("models")[name].read_text(encoding="utf-8"))
    inner = config.pop("text_config", {})
    return {*config, *inner} - READ


def test_a_models_file_keeps_the_keys_that_are_read():
    assert broken(unread_keys, catalogue_names("models")) == {}


# Measurements.


def test_every_measurement_can_be_followed_and_is_of_what_the_catalogue_has():
    for point in entry("measurements", "single-user").points:
        assert followable(point.source), point.id
        assert point.model in catalogue_names("models"), point.id
        assert point.chip in catalogue_names("chips"), point.id
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", point.date), point.id


def test_measurements_have_names_of_their_own():
    for name in catalogue_names("measurements").keys() - {"rules"}:
        ids = [point.id for point in entry("measurements", name).points]
        assert len(set(ids)) == len(ids)


# Quantities are marked as such, so that files cannot give them without a unit.

QUANTITIES = [
    Memory,
    Power,
    Chip,
    Engine,
    MultiplyKernel,
    Link,
    PublishedSpeed,
    *chip.COMPUTE_KINDS.values(),
    *topology.TOPOLOGY_KINDS.values(),
]


def markers(annotation: object) -> list[object]:
    """What an annotation says beside its type, inside unions and mappings too."""
    own = [
        part
        for mark in getattr(annotation, "__metadata__", ())
        for part in (mark, *getattr(mark, "metadata", ()))
    ]
    return own + [mark for part in typing.get_args(annotation) for mark in markers(part)]


def says_float(annotation: object) -> bool:
    return annotation is float or any(says_float(part) for part in typing.get_args(annotation))


@pytest.mark.parametrize("cls", QUANTITIES, ids=lambda cls: cls.__name__)
def test_a_float_of_a_file_has_a_unit_or_is_a_fraction(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in cls.model_fields:
        if (
            says_float(hints[name]) and name != "range"
        ):  # whose ends are as those of what they are of
            marks = markers(hints[name])
            assert any(isinstance(mark, Unit) or is_share(mark) for mark in marks), (
                f"{cls.__name__}.{name}"
            )
