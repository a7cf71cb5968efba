"""Parts that are like an entry of the catalogue: equal however the change is written, refused at its line, named in the result."""

import json
import pickle
from pathlib import Path

import pytest

import sim
from sim import ScenarioError, read, run
from sim.inputs.names import find_entry
from sim.scenario.scenario import Scenario, open_document, scenario_from
from sim.scenario.system import System
from sim.studies.sensitivity import sensitivity
from sim.studies.sweep import sweep
from sim.studies.sweep_points import sweep_points

MINE = """\
# Does a small model run on some LPUs?
model: llama-3.2-1b
workload: {kind: poisson, rate: 1 request/s, requests: 3, prompt: 64 token, output: 8 token}
systems:
  lpu:
    chip: groq-lpu-v1
    chips: 64
    engine: groq-compiler
    plan: {tensor: 8, weights: int8, activations: int8, kv: fp16, head: int8}
"""
CHIP = "systems.lpu.chip."
CAPACITY = f"{CHIP}memory.sram.capacity"
LP30 = f"{CHIP}topology.levels."  # of groq-lp30, which has three


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder that holds mine.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE)
    return tmp_path


def mine(*changes: tuple[str, str], assignments: tuple[str, ...] = ()) -> Scenario:
    """The scenario with other lines in its file, and with assignments."""
    text = MINE
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    Path("mine.yaml").write_text(text)
    return read("mine.yaml", list(assignments))


def assigned(*assignments: str) -> Scenario:
    return read("mine.yaml", list(assignments))


def parts(scenario: Scenario) -> object:
    """What is simulated, without what the file said."""
    return scenario.model, scenario.systems


# Laws.

ENTRIES = [
    ("chip: groq-lpu-v1", "chip: {like: groq-lpu-v1}"),
    ("chip: groq-lpu-v1", "chip: {like: lpu}"),
    ("chip: groq-lpu-v1", "chip: {like: groq-lpu-v1, memory.sram.capacity: 230.7 MB}"),
    ("engine: groq-compiler", "engine: {like: groq-compiler}"),
    ("model: llama-3.2-1b", "model: {like: llama-3.2-1b}"),
]


@pytest.mark.parametrize("change", ENTRIES, ids=lambda change: change[1])
def test_what_is_like_an_entry_and_changes_nothing_is_the_entry(change):
    assert parts(mine(change)) == parts(mine())


def test_what_is_like_a_cluster_and_changes_nothing_is_the_cluster():
    clusters = [
        mine(("chip: groq-lpu-v1\n    chips: 64", f"cluster: {cluster}")).plain("lpu")
        for cluster in ("groq-rack", "{like: groq-rack}")
    ]
    assert clusters[0] == clusters[1]
    assert clusters[0].changed == {}


WRITTEN = [
    (
        ("chip: groq-lpu-v1", "chip: {like: groq-lpu-v1, memory.sram.capacity: 512 MB}"),
        (f"{CAPACITY}=512 MB",),
    ),
    (
        ("chip: groq-lpu-v1", "chip: {like: groq-lpu-v1, memory: {sram: {capacity: 512 MB}}}"),
        (f"{CAPACITY}=512 MB",),
    ),
    (
        ("chip: groq-lpu-v1", "chip: {like: lpu, memory.sram: {capacity: 512 MB}}"),
        (f"{CAPACITY}=512 MB",),
    ),
    (("chip: groq-lpu-v1", "chip: {like: lpu, memory.sram.capacity: 1 MB}"), (f"{CAPACITY}=1 MB",)),
    (
        (
            "engine: groq-compiler",
            "engine: {like: groq-compiler, layer_overhead: 20 us, memory_efficiency.8: 0.5}",
        ),
        ("systems.lpu.engine.layer_overhead=20 us", "systems.lpu.engine.memory_efficiency.8=0.5"),
    ),
    (
        ("model: llama-3.2-1b", "model: {like: llama-3.2-1b, num_hidden_layers: 8}"),
        ("model.num_hidden_layers=8",),
    ),
    (
        ("plan: {", "model: {like: llama-3.2-1b, num_hidden_layers: 8}\n    plan: {"),
        ("systems.lpu.model=llama-3.2-1b", "systems.lpu.model.num_hidden_layers=8"),
    ),
    (
        (
            "chip: groq-lpu-v1",
            "chip: {like: groq-lp30, topology: {levels: {0: {link: {latency: 1 us}}}}}",
        ),
        (f"{CHIP[:-1]}=groq-lp30", f"{CHIP}topology.levels.0.link.latency=1 us"),
    ),
    (
        (
            "chip: groq-lpu-v1\n    chips: 64",
            "cluster: {like: groq-rack, chips: 64, chip: {memory: {sram: {capacity: 512 MB}}}}",
        ),
        ("systems.lpu.cluster.chips=64", "systems.lpu.cluster.chip.memory.sram.capacity=512 MB"),
    ),
    (
        (
            "chip: groq-lpu-v1",
            "exceptions: [{chip: 3, like: {like: lpu, price: 5 USD}}]\n    fidelity: chip\n    chip: groq-lpu-v1",
        ),
        (
            "systems.lpu.exceptions=[{chip: 3, like: lpu}]",
            "systems.lpu.exceptions.0.like.price=5 USD",
            "systems.lpu.fidelity=chip",
        ),
    ),
]


@pytest.mark.parametrize(
    ("change", "assignments"), WRITTEN, ids=[assignments[-1] for _, assignments in WRITTEN]
)
def test_a_part_that_is_assigned_is_the_same_as_one_that_the_file_changes(change, assignments):
    from_file = parts(mine(change))
    as_it_was = (
        [("chip: groq-lpu-v1\n    chips: 64", "cluster: groq-rack")]
        if "cluster" in change[1]
        else []
    )
    assert parts(mine(*as_it_was, assignments=assignments)) == from_file
    assert from_file != parts(mine())


def test_only_the_number_that_is_named_changes():
    was, now = mine().plain("lpu").chip, assigned(f"{CAPACITY}=512 MB").plain("lpu").chip
    assert now.memory["sram"].capacity == 512e6
    assert now.memory["sram"].model_copy(update={"capacity": 230.7e6}) == was.memory["sram"]
    kept = {"id", "name", "compute", "topology", "power", "price", "server"}
    assert now.model_dump(include=kept) == was.model_dump(include=kept)


def test_assignments_apply_in_their_order():
    whole, part = "systems.lpu.chip=h100-sxm", f"{CHIP}price=5 USD"
    assert parts(assigned(part, whole)) == parts(assigned(whole))
    chip = assigned(whole, part).plain("lpu").chip
    assert (chip.id, chip.price, list(chip.changed)) == ("h100-sxm", 5.0, ["price"])
    assert parts(assigned(part, f"{CHIP}price=6 USD")) == parts(assigned(f"{CHIP}price=6 USD"))
    assert parts(assigned(part, f"{CHIP}like=h100-sxm")) == parts(assigned(whole, part))


def test_an_assignment_changes_what_the_file_changes_already():
    old = "chip: groq-lpu-v1"
    given = (
        old,
        "chip: {like: groq-lpu-v1, memory.sram.capacity: 300 MB, memory: {sram: {energy: 0.3 pJ/bit}}, price: 1 USD}",
    )
    wanted = (
        old,
        "chip: {like: lpu, price: 5 USD, memory.sram: {energy: 0.3 pJ/bit, capacity: 512 MB}}",
    )
    assert parts(mine(given, assignments=(f"{CAPACITY}=512 MB", f"{CHIP}price=5 USD"))) == parts(
        mine(wanted)
    )


def test_another_kind_replaces_what_stands_there():
    scenario = assigned(
        f"{CHIP}topology={{kind: switch, link: {{latency: 1 us, bandwidth: 9 GB/s}}}}"
    )
    chip = scenario.plain("lpu").chip
    assert type(chip.topology).__name__ == "Switch"
    assert [key for key in (*chip.source, *chip.range) if key.startswith("topology.")] == []
    assert chip.source_of("topology.link.latency").startswith(
        "changed: set by the scenario (catalogue: {kind: dragonfly, "
    )


def test_a_number_of_a_list_that_stands_in_place_is_assigned():
    topology = "topology: {kind: hierarchical, levels: [{kind: switch, chips: 8, link: {latency: 1 us, bandwidth: 9 GB/s}}]}"
    scenario = mine(
        ("plan: {", f"{topology}\n    plan: {{"),
        assignments=("systems.lpu.topology.levels.0.link.latency=2 us",),
    )
    assert scenario.plain("lpu").topology.levels[0].link.latency == pytest.approx(2e-6)
    assert scenario.plain("lpu").changed == {}  # what a scenario writes itself is of no entry


def test_a_path_is_relative_to_the_file_and_its_own_texts_to_its_own_folder(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "chip.yaml").write_text(find_entry("groq-lpu-v1", "chips").read_text())
    (folder / "deep" / "cluster.yaml").write_text("chip: ./chip.yaml\nchips: 64\n")
    old = "chip: groq-lpu-v1\n    chips: 64"
    scenario = mine((old, "cluster: {like: deep/cluster.yaml, chip.price: 5 USD}"))
    cluster = scenario.plain("lpu").cluster
    assert (cluster.id, cluster.chip.id, cluster.chip.price) == ("cluster", "chip", 5.0)
    assert cluster.chip.source_of("price").startswith(
        "changed: set by the scenario (deep/chip.yaml: 20000 USD, Mouser"
    )


def test_a_config_is_changed_by_the_names_of_the_fields_whatever_it_calls_them(folder):
    """Maverick's stands in text_config; Qwen's experts have another name."""
    assert (
        mine(
            assignments=("model=llama-4-maverick", "model.num_hidden_layers=4")
        ).model.num_hidden_layers
        == 4
    )
    model = mine(assignments=("model=qwen3-235b-a22b", "model.num_local_experts=64")).model
    assert model.num_local_experts == 64
    assert model.changed == {"num_local_experts": ("128", "64")}


def test_a_chip_that_a_cluster_holds_in_place_has_changed_sources_too(folder):
    chip = find_entry("groq-lpu-v1", "chips").read_text().replace("\n", "\n  ")
    (folder / "own.yaml").write_text(f"chips: 64\nchip:\n  {chip}\n")
    cluster = (
        mine(("chip: groq-lpu-v1\n    chips: 64", "cluster: {like: own.yaml, chip.price: 5 USD}"))
        .plain("lpu")
        .cluster
    )
    assert cluster.chip.source_of("price").startswith(
        "changed: set by the scenario (own.yaml: 20000 USD, Mouser"
    )
    assert "price" not in cluster.chip.range


def test_a_changed_part_survives_the_way_to_another_process():
    opened = open_document("mine.yaml", [f"{CAPACITY}=512 MB"])
    copied = scenario_from(pickle.loads(pickle.dumps(opened)))
    assert copied == scenario_from(opened)
    assert pickle.loads(pickle.dumps(copied.plain("lpu"))).changed == {
        "chip.memory.sram.capacity": ("230.7 MB", "512 MB")
    }


# Errors.


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "systems.lpu.engine.layer_overhed=3 us",
            "engine has no 'layer_overhed'; did you mean 'layer_overhead', ",
        ),
        (f"{CHIP}memory.sram.capcity=3 MB", "memory has no 'capcity'; did you mean 'capacity'?"),
        (f"{CAPACITY}=3 s", "got '3 s'; expected a quantity in B"),
        (f"{CAPACITY}=3", "got 3 without a unit; try '3 B'"),
        (f"{CAPACITY}=-3 MB", "got '-3 MB'; expected at least 0"),
        (
            f"{CAPACITY}.x=3",
            "got a key below 'memory.sram.capacity', which is no mapping; expected none",
        ),
        (
            f"{CHIP}memory.dram.capacity=3 GB",
            "systems.lpu.chip.memory.dram.bandwidth: got nothing; expected",
        ),
        (f"{CHIP}memory=3", "got 3; expected a mapping"),
        (
            f"{CHIP}compute.planes=5",
            "systems.lpu.chip.compute: got 737 TFLOP/s as the fastest rate; expected ",
        ),
        (f"{CHIP}aliases.0.x=3", "got a key below 'aliases.0', which is no mapping; expected none"),
        (f"{CHIP}aliases.9=x", "got '9' of the list 'aliases'; expected a number below 4"),
        (
            f"{LP30}3.link.latency=3 us",
            "got '3' of the list 'topology.levels'; expected a number below 3",
        ),
        (f"{LP30}0.link.latency=3 GB", "got '3 GB'; expected a quantity in s"),
        (f"{LP30}0.link.latency=-3 us", "got '-3 us'; expected at least 0"),
        (
            f"{CHIP}like=h100-smx",
            "got 'h100-smx'; expected one of the catalogue's chips; did you mean 'h100-sxm', ",
        ),
        (f"{CHIP}like=./nope.yaml", "./nope.yaml: no such file"),
        (
            f"{CHIP}like=3",
            "like: got 3; expected a name among the catalogue's chips, or a file's path",
        ),
        (
            f"{CHIP}like.x=3",
            "like: got a mapping; expected a name among the catalogue's chips, or a file's path",
        ),
        (
            "systems.lpu.chip={like: lpu, price: 1 USD, price: 2 USD}",
            "got 'price' twice; expected it once",
        ),
        (
            "systems.lpu.chip={like: lpu, memory.sram.capacity: 1 MB, memory: {sram: {capacity: 1 MB}}}",
            "got 'memory.sram.capacity' twice; expected it once",
        ),
        (
            "systems.lpu.chip={like: lpu, price: 1 USD, price.x: 2}",
            "got a key below 'price', which is no mapping; expected none",
        ),
        ("systems.lpu.chip={like: lpu, memory..x: 2}", "got 'memory..x'; expected a.b.c"),
        (
            "systems.lpu.chip={like: lpu, source: 5, price: 3 USD}",
            "systems.lpu.chip.source: got 5; expected a mapping",
        ),
        (
            "systems.lpu={fleet: {lpu: 1}, like: lpu}",
            "fleet has no 'like'; it has label, colour, fleet, router",
        ),
        (
            "model.num_hidden_layer=4",
            "model has no 'num_hidden_layer'; did you mean 'num_hidden_layers', ",
        ),
        ("model.num_experts=4", "a change of 'num_experts' is written as 'num_local_experts'"),
        ("model.num_hidden_layers=4.5", "got 4.5; expected a whole number"),
        ("seed.x=4", "got a key below 'seed', which is no mapping; expected none"),
        (
            "workload.kind.x=4",
            "got a key below 'workload.kind', which is no mapping; expected none",
        ),
        (f"{'a.' * 200}b=4", "more than 100000 values, or nested too deep: aliases that multiply?"),
    ],
)
def test_an_assignment_that_is_wrong_is_refused_in_its_name(assignment, message):
    before = ("systems.lpu.chip=groq-lp30",) if assignment.startswith(LP30) else ()
    with pytest.raises(ScenarioError) as refused:
        mine(("model: llama", "seed: 0\nmodel: llama"), assignments=(*before, assignment))
    key = assignment.partition("=")[0]
    assert str(refused.value).startswith(f"--set {key}: {message}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            "like: lpu, memory.sram.capacity: 3 s",
            "9: systems.lpu.chip.memory.sram.capacity: got '3 s'; expected a quantity in B",
        ),
        (
            "like: lpu, memory.sram.capacity: -3 MB",
            "9: systems.lpu.chip.memory.sram.capacity: got '-3 MB'; expected at least 0",
        ),
        (
            "like: lpu, memory: {sram: {capacity: 3}}",
            "9: systems.lpu.chip.memory.sram.capacity: got 3 without a unit; try '3 B'",
        ),
        ("like: lpu, prise: 3 USD", "9: chip has no 'prise'; did you mean 'price'?"),
        ("like: lpuu", "8: got 'lpuu'; expected one of the catalogue's chips; did you mean 'lpu'?"),
        ("like: 7", "8: like: got 7; expected a name among "),
        ("like: lpu, price.x: 3", "9: got a key below 'price', which is no mapping; expected none"),
        ("like: lpu, topology.levels.0.chips: 3", "9: dragonfly has no 'levels'; it has "),
        ("memory.sram.capacity: 3 MB", "8: chip has no 'memory.sram.capacity'; it has "),
    ],
)
def test_a_change_that_is_wrong_is_refused_at_its_line(like, message):
    lines = "".join(f"\n      {line}," for line in like.split(", "))
    with pytest.raises(ScenarioError) as refused:
        mine(
            ("    chip: groq-lpu-v1", f"    chips: 64\n    chip: {{{lines}\n    }}"),
            ("    chips: 64\n    engine", "    engine"),
        )
    assert str(refused.value).startswith(f"mine.yaml:{message}")


def test_an_entry_that_is_wrong_itself_is_refused_at_its_own_line(folder):
    (folder / "chip.yaml").write_text(
        find_entry("groq-lpu-v1", "chips").read_text().replace("price: 20000 USD", "price: 20000 s")
    )
    line = 1 + (folder / "chip.yaml").read_text().split("\n").index("price: 20000 s")
    with pytest.raises(
        ScenarioError, match=f"^chip.yaml:{line}: price: got '20000 s'; expected a quantity in USD$"
    ):
        mine(("chip: groq-lpu-v1", "chip: {like: ./chip.yaml, price: 5 USD}"))


def test_the_command_refuses_in_one_line(sramsim):
    assert sramsim("check", "mine.yaml", "--set", f"{CAPACITY}.x=3") == (
        2,
        "",
        f"--set {CAPACITY}.x: got a key below 'memory.sram.capacity', which is no mapping; expected none\n",
    )


# What the result names.


def test_a_result_names_what_was_changed(sramsim):
    status, out, _ = sramsim(
        *(
            "run",
            "mine.yaml",
            "--set",
            f"{CAPACITY}=512 MB",
            "--set",
            "systems.lpu.engine.jitter=0.1",
        ),
        *("--set", "systems.lpu.engine.layer_overhead=20 us"),
    )
    assert status == 0
    assert "64 x groq-lpu-v1†" in out
    assert "groq-compiler†" in out
    assert "† lpu: chip groq-lpu-v1 with memory.sram.capacity 512 MB (instead of 230.7 MB)." in out
    words = " ".join(out.split())
    assert (
        "† lpu: engine groq-compiler with jitter 0.1 (new), layer_overhead 20 us (instead of 19.7 us)."
        in words
    )
    assert "†" not in sramsim("run", "mine.yaml")[1]


def test_json_has_the_changes_and_nothing_where_there_are_none():
    assert "changed" not in run(mine()).as_json()["systems"]["lpu"]
    changed = run(assigned(f"{CAPACITY}=512 MB", "model.num_hidden_layers=8")).as_json()["systems"][
        "lpu"
    ]["changed"]
    assert changed == {
        "model.num_hidden_layers": {"from": "16", "to": "8"},
        "chip.memory.sram.capacity": {"from": "230.7 MB", "to": "512 MB"},
    }
    assert "changed" not in run(assigned(f"{CAPACITY}=230.7 MB")).as_json()["systems"]["lpu"]


def test_a_fleet_names_the_changes_of_its_members(sramsim):
    fleet = "  both: {fleet: {lpu: 2}}\n"
    Path("mine.yaml").write_text(MINE + fleet)
    told = run(assigned(f"{CAPACITY}=512 MB")).as_json()["systems"]
    assert told["both"]["members"]["lpu"]["changed"] == told["lpu"]["changed"]
    for command in ("run", "plan"):
        assert (
            sramsim(command, "mine.yaml", "--set", f"{CAPACITY}=512 MB")[1].count(
                "† lpu: chip groq-lpu-v1 with"
            )
            == 1
        )


def test_a_cluster_names_the_changes_of_its_chip(sramsim):
    mine(
        (
            "chip: groq-lpu-v1\n    chips: 64",
            "cluster: {like: groq-rack, chips: 64, chip.price: 5 USD}",
        )
    )
    cluster = read("mine.yaml").plain("lpu").cluster
    assert (cluster.changed, cluster.source.keys()) == (
        {"chips": ("72", "64")},
        {"chips"},
    )  # what is the chip's is not its
    told = run("mine.yaml").as_json()["systems"]["lpu"]["changed"]
    assert told == {
        "cluster.chips": {"from": "72", "to": "64"},
        "cluster.chip.price": {"from": "20000 USD", "to": "5 USD"},
    }
    out = sramsim("run", "mine.yaml")[1]
    assert "64 x groq-lpu-v1†" in out
    assert "† lpu: chip groq-lpu-v1 with price 5 USD (instead of 20000 USD)." in out
    assert "† lpu: cluster with chips 64 (instead of 72)." in out


def test_a_cluster_of_other_chips_names_them():
    old = "chip: groq-lpu-v1\n    chips: 64"
    cluster = (
        mine(
            (old, "cluster: {like: groq-rack, chip: {like: groq-lp30, memory.sram.capacity: 1 GB}}")
        )
        .plain("lpu")
        .cluster
    )
    assert (cluster.chip.id, cluster.changed) == (
        "groq-lp30",
        {"chip": ("groq-lpu-v1", "groq-lp30")},
    )
    assert cluster.chip.changed == {"memory.sram.capacity": ("500 MB", "1 GB")}


def facts(scenario: Scenario, entry: str) -> dict[str, tuple[str, str]]:
    return {key: (value, source) for key, value, source in scenario.origin.sources[entry].facts}


def test_a_changed_number_has_no_source_but_the_scenario():
    scenario = assigned(
        f"{CAPACITY}=512 MB",
        "systems.lpu.engine.layer_overhead=20 us",
        "systems.lpu.engine.jitter=0.1",
        "model.vocab_size=64000",
    )
    chip, engine = (
        facts(scenario, "chip systems.lpu.chip"),
        facts(scenario, "engine systems.lpu.engine"),
    )
    value, source = chip["memory.sram.capacity"]
    assert value == "512 MB"
    assert source.startswith(
        "changed: set by the scenario (catalogue: 230.7 MB, Abts et al., 'Think Fast', ISCA 2020"
    )
    assert (
        chip["memory.sram.bandwidth"] == facts(mine(), "chip groq-lpu-v1")["memory.sram.bandwidth"]
    )
    assert engine["layer_overhead"][0] == "20 us"
    assert engine["layer_overhead"][1].startswith(
        "changed: set by the scenario (catalogue: 19.7 us, fitted: 19.7 us +- "
    )
    assert engine["jitter"] == ("0.1", "changed: set by the scenario (catalogue: none)")
    scenario = assigned("model.vocab_size=64000")
    assert facts(scenario, "model model")["vocab_size"] == (
        "64000",
        "changed: set by the scenario (config.json: 128256)",
    )


def test_nothing_claims_that_a_changed_number_is_fitted():
    scenario = assigned(
        "systems.lpu.engine.layer_overhead=20 us", "systems.lpu.engine.memory_efficiency.8=0.9"
    )
    engine = scenario.plain("lpu").engine
    assert engine.source_of("moe_layer_overhead").startswith("assumed: the points")
    for key in ("layer_overhead", "memory_efficiency.8"):
        assert engine.source_of(key).startswith("changed: ")
    assert engine.source_of("memory_efficiency.16").startswith("assumed: ")
    note = scenario.origin.sources["engine systems.lpu.engine"].note
    assert note.endswith("Changed since: layer_overhead, memory_efficiency.8.")


def test_a_source_that_comes_with_the_change_is_kept():
    chip = (
        mine(("chip: groq-lpu-v1", "chip: {like: lpu, price: 9 USD, source: {price: my offer}}"))
        .plain("lpu")
        .chip
    )
    assert chip.source["price"].startswith("changed: my offer (catalogue: 20000 USD, Mouser")
    assert chip.source["power"] == mine().plain("lpu").chip.source["power"]


def test_the_chip_of_a_cluster_is_in_the_sources_as_it_was_changed():
    scenario = mine(
        (
            "chip: groq-lpu-v1\n    chips: 64",
            "cluster: {like: groq-rack, chips: 64, chip.price: 5 USD}",
        )
    )
    assert facts(scenario, "chip systems.lpu.cluster.chip")["price"][0] == "5 USD"
    assert facts(scenario, "cluster systems.lpu.cluster")["chip"][0] == "groq-lpu-v1"
    assert facts(scenario, "cluster systems.lpu.cluster")["chips"][1].startswith(
        "changed: set by the scenario (catalogue: 72, "
    )


def test_nothing_is_published_of_a_changed_chip():
    scenario = read("llama2-70b-lpu-vs-h100")
    assert sim.plan(scenario).as_json([1])["systems"]["lpu"]["published"] != []
    changed = read("llama2-70b-lpu-vs-h100", ["systems.lpu.chip.price=5 USD"])
    told = sim.plan(changed).as_json([1])["systems"]["lpu"]
    assert (told["published"], list(told["changed"])) == ([], ["chip.price"])


def test_a_range_is_not_that_of_a_changed_number():
    def moved(scenario: Scenario) -> set[str]:
        return {swing.key for swing in sensitivity(scenario)["lpu"].swings}

    was, now = (
        moved(mine()),
        moved(
            assigned(
                "systems.lpu.engine.layer_overhead=5 us", f"{CHIP}compute.weight_load=9.3 TB/s"
            )
        ),
    )
    assert was - now == {"engine.layer_overhead", "chip.compute.weight_load"}
    assert now < was
    own = ("chip: groq-lpu-v1", "chip: {like: lpu, price: 9 USD, range: {price: [5 USD, 9 USD]}}")
    assert mine(own).plain("lpu").chip.range["price"] == ("5 USD", "9 USD")


# Sweeps.

SWEEP = f"sweep: {{{CAPACITY}: [512 MB, 300 MB], systems.lpu.engine.layer_overhead: [20 us]}}\n"


def test_a_point_of_a_sweep_is_a_run_with_assignments():
    Path("mine.yaml").write_text(MINE + SWEEP)
    table = sweep("mine.yaml", Path("out"), jobs=1).table
    assert list(table["error"]) == ["", ""]
    assert list(table[CAPACITY]) == ["512 MB", "300 MB"]
    assert not any(column.startswith("changed") for column in table.columns)
    for row, capacity in zip(table.iter_rows(named=True), ("512 MB", "300 MB"), strict=True):
        told = run(
            assigned(f"{CAPACITY}={capacity}", "systems.lpu.engine.layer_overhead=20 us")
        ).as_json()["systems"]["lpu"]
        assert row["lone_request.tpot_ms"] == told["lone_request"]["tpot_ms"]
        assert row["kv_tokens"] == told["kv_tokens"]
    assert table["kv_tokens"][0] > table["kv_tokens"][1]


def digests(*sweeps: str) -> list[str]:
    names = []
    for each in sweeps:
        Path("mine.yaml").write_text(MINE + each)
        opened = open_document("mine.yaml")
        names += [point.digest for point in sweep_points(opened, scenario_from(opened))]
    return names


def test_the_name_of_a_point_changes_with_a_changed_number_and_with_the_file_behind_like(folder):
    (folder / "chip.yaml").write_text(find_entry("groq-lpu-v1", "chips").read_text())
    as_grid = digests("sweep: {seed: [0]}\n", SWEEP)
    assert len(set(as_grid)) == 3
    as_list = f"sweep: [{{{CAPACITY}: 512 MB, systems.lpu.engine.layer_overhead: 20 us}}]\n"
    assert digests(as_list) == as_grid[1:2]
    like = "sweep: {systems.lpu.chip: [{like: ./chip.yaml, memory.sram.capacity: 512 MB}]}\n"
    before = digests(like)
    assert digests(like) == before
    (folder / "chip.yaml").write_text(
        (folder / "chip.yaml").read_text().replace("price: 20000 USD", "price: 20001 USD")
    )
    assert digests(like) != before


def test_a_point_that_changes_what_is_not_there_is_a_row_with_its_error():
    text = "sweep: {systems.lpu.chip: [{like: lpu, price: 5 USD}, {like: lpu, prise: 5 USD}, {like: nope}]}\n"
    Path("mine.yaml").write_text(MINE + text)
    swept = sweep("mine.yaml", Path("out"), jobs=1)
    assert [error[:47] for error in swept.table["error"]] == [
        "",
        *(f"mine.yaml:10: {said}"[:47] for said in ERRORS),
    ]
    assert "chip sweep.systems.lpu.chip.0" in swept.summary.origin.sources


ERRORS = (
    "chip has no 'prise'; did you mean 'price'?",
    "got 'nope'; expected one of the catalogue's chips; ",
)


def test_a_system_may_be_called_as_a_part_is():
    Path("mine.yaml").write_text(MINE.replace("  lpu:\n", "  chip:\n"))
    scenario = assigned("systems.chip.chip.price=5 USD")
    assert isinstance(scenario.plain("chip"), System)
    assert facts(scenario, "chip systems.chip.chip")["price"][0] == "5 USD"


def test_inputs_that_a_result_keeps_are_a_scenario_that_gives_the_same(folder):
    scenario = assigned(f"{CAPACITY}=512 MB", "systems.lpu.engine.memory_efficiency.8=0.9")
    kept = json.loads(json.dumps(scenario.origin.inputs))
    Path("kept.yaml").write_text(json.dumps(kept))
    assert parts(read("kept.yaml")) == parts(scenario)


# A part of a system that is not there.


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("systems.lpus.chips", "got system 'lpus'; expected lpu or pd; did you mean 'lpu'?"),
        (
            "systems.pd.prefill.plan.tensor",
            "got a key of prefill, which names system 'lpu'; expected a key of that system;"
            " try systems.lpu.plan.tensor",
        ),
    ],
)
def test_a_part_of_a_system_that_is_not_there_is_no_new_system(key, reason):
    pools = "  pd: {prefill: lpu, decode: lpu, transfer: {bandwidth: 50 GB/s}}\n"
    Path("mine.yaml").write_text(MINE + pools)
    with pytest.raises(ScenarioError) as wrong:
        read("mine.yaml", [f"{key}=2"])
    assert str(wrong.value) == f"--set {key}: {reason}"
