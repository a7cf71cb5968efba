"""YAML to frozen values: what is read, and that whatever is wrong comes out as one line with file and line."""

import json
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from sim.inputs import document, names
from sim.inputs.document import Document, read_value
from sim.inputs.errors import ScenarioError, UserError, nearest_name
from sim.inputs.fields import FromCatalogue, OfKind
from sim.inputs.files import write_whole
from sim.inputs.names import find_entry
from sim.inputs.values import Sourced, Value
from sim.units import Count, Fraction, Seconds, Watts


class Shade(Value, ABC):
    """A kind of thing that users may add to."""

    @abstractmethod
    def dims(self) -> float: ...


class PaperShade(Shade):
    layers: Count

    def dims(self) -> float:
        return 0.5**self.layers


class Bulb(Sourced):
    power: Watts
    life: Seconds = 1.0


class Lamp(Value):
    power: Watts
    bulbs: Count = 1
    share: Fraction = 1.0
    lit: bool = False
    name: str = ""
    colour: Literal["red", "blue"] = "red"
    ends: tuple[Count, Count] | None = None
    parts: dict[str, Bulb] | None = None
    bulb: Annotated[Bulb, FromCatalogue("bulbs", Bulb)] | None = None
    spares: tuple[Annotated[Bulb, FromCatalogue("bulbs", Bulb)], ...] = ()
    shade: Annotated[Shade, OfKind({"paper": PaperShade}, Shade)] | None = None

    @model_validator(mode="after")
    def _bright(self) -> "Lamp":
        if self.lit and self.bulbs > 99:
            raise ValueError("100 bulbs would blind")
        return self


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a catalogue of bulbs."""
    bulbs = tmp_path / "catalogue" / "bulbs"
    bulbs.mkdir(parents=True)
    (bulbs / "warm-white.yaml").write_text("power: 5 W\n")
    (bulbs / "cold-white.yaml").write_text("power: 7 W\nlfie: 1 s\n")
    monkeypatch.setattr(names, "catalogue_folder", lambda: tmp_path / "catalogue")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lamp(content: str | bytes, *assignments: str, name: str = "lamp.yaml") -> Lamp:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    document = Document(Path(name))
    for assignment in assignments:
        document.set(assignment)
    return document.value(Lamp)


def refusal(content: str | bytes, *assignments: str, name: str = "lamp.yaml") -> str:
    with pytest.raises(ScenarioError) as refused:
        lamp(content, *assignments, name=name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("blubs: 2", "lamp has no 'blubs'; did you mean 'bulbs', 'bulb'?"),
        (
            "xyz: 2",
            "lamp has no 'xyz'; it has power, bulbs, share, lit, name, colour, ends, parts, bulb, spares, shade",
        ),
        (
            "1: 2",
            "lamp has no '1'; it has power, bulbs, share, lit, name, colour, ends, parts, bulb, spares, shade",
        ),
        ("power: 6 W", "got 'power' twice; expected it once; try deleting one"),
        ('"power": 6 W', "got 'power' twice; expected it once; try deleting one"),
        ("[a]: 2", "got a list or a mapping as a key; expected a word"),
        ("{a: 1}: 2", "got a list or a mapping as a key; expected a word"),
        ("bulbs: 0", "bulbs: got 0; expected at least 1"),
        ("bulbs: -1", "bulbs: got -1; expected at least 1"),
        ("bulbs: 1000000000000", "bulbs: got 1000000000000; expected at most 1000000000"),
        ("bulbs: 1.0", "bulbs: got 1.0; expected a whole number"),
        ("bulbs: '1'", "bulbs: got '1'; expected a whole number"),
        ("bulbs: true", "bulbs: got true; expected a whole number"),
        ("bulbs:", "bulbs: got null; expected a whole number"),
        ("bulbs: [1]", "bulbs: got a list; expected a whole number"),
        ("bulbs: {a: 1}", "bulbs: got a mapping; expected a whole number"),
        ("bulbs: 0x_", "bulbs: got '0x_'; expected a whole number"),
        ("bulbs: 1:30", "bulbs: got '1:30'; expected a whole number"),
        (f"bulbs: {'9' * 5000}", f"bulbs: got '{'9' * 57}...'; expected a whole number"),
        (f"bulbs: {'9' * 50_000}x", f"bulbs: got '{'9' * 57}...'; expected a whole number"),
        ("share: 0", "share: got 0; expected more than 0"),
        ("share: 1.5", "share: got 1.5; expected at most 1"),
        ("share: 50 %", "share: got '50 %'; expected a number"),
        ("share: .nan", "share: got '.nan'; expected a number"),
        ("share: .INF", "share: got '.INF'; expected a number"),
        ("share: 1e999", "share: got '1e999'; expected a number"),
        ("share: true", "share: got true; expected a number"),
        ("lit: 1", "lit: got 1; expected true or false"),
        ("lit: 'yes'", "lit: got 'yes'; expected true or false"),
        ("name: 3", "name: got 3; expected a text"),
        ("name:", "name: got null; expected a text"),
        ("colour: green", "colour: got 'green'; expected 'red' or 'blue'"),
        ("ends: 3", "ends: got 3; expected a list"),
        ("ends: [1]", "ends: got a list of 1; expected 2 or more"),
        ("ends: [1, 2, 3]", "ends: got a list; expected a list of at most 2"),
        ("ends: [1, 0]", "ends.1: got 0; expected at least 1"),
        ("parts: []", "parts: got a list; expected a mapping"),
        ("parts: {a: 3}", "parts.a: got 3; expected a mapping"),
        ("parts: {a: {}}", "parts.a.power: got nothing; expected a value, since it has no default"),
        ("parts: {a: {power: 5}}", "parts.a.power: got 5 without a unit; try '5 W'"),
        ("parts: {a: {power: 5 s}}", "parts.a.power: got '5 s'; expected a quantity in W"),
        ("parts: {a: {power: -5 W}}", "parts.a.power: got '-5 W'; expected at least 0"),
        ("parts: {a: {power: null}}", "parts.a.power: got null; expected a quantity in W"),
        ("parts: {a: {power: .inf}}", "parts.a.power: got '.inf'; expected a quantity in W"),
        ("parts: {a: {pwoer: 5 W}}", "bulb has no 'pwoer'; did you mean 'power'?"),
        (
            "parts: {<<: {power: 5 W}}",
            "got '<<'; expected plain keys; try to alias the whole mapping",
        ),
        ("bulb: 3", "bulb: got 3; expected a mapping"),
        (
            "bulb: warm-whit",
            "got 'warm-whit'; expected one of the catalogue's bulbs; did you mean 'warm-white'?",
        ),
        (
            "bulb: xyz",
            "got 'xyz'; expected one of the catalogue's bulbs; there are cold-white, warm-white",
        ),
        ("spares: [warm-white, 3]", "spares.1: got 3; expected a mapping"),
        (
            "spares: [warm-white, {}]",
            "spares.1.power: got nothing; expected a value, since it has no default",
        ),
        ("bulb: ./nope.yaml", "./nope.yaml: no such file"),
        ("bulb: catalogue/", "catalogue/: is a directory; expected a file"),
        (f"bulb: {'x' * 300}/y", f"{'x' * 300}/y: no such file"),
        ('bulb: "a\\0/b"', "a\0/b: no such file"),
        ("shade: 3", "shade: got 3; expected a mapping"),
        ("shade: {layers: 2}", "shade: got no kind of shade; expected one of paper"),
        ("shade: {kind: 3}", "shade: got no kind of shade; expected one of paper"),
        ("shade: {kind: papper}", "got 'papper'; expected a kind of shade; did you mean 'paper'?"),
        ("shade: {kind: silk}", "got 'silk'; expected a kind of shade; choose from paper"),
        (
            "shade: {kind: paper}",
            "shade.layers: got nothing; expected a value, since it has no default",
        ),
        ("shade: {kind: paper, layers: 0}", "shade.layers: got 0; expected at least 1"),
        ("shade: {kind: paper, layer: 1}", "paper-shade has no 'layer'; did you mean 'layers'?"),
        ("bulbs: !!int 3", "YAML: the tag tag:yaml.org,2002:int is not supported"),
        (
            "bulbs: !!python/name:os.system 3",
            "YAML: the tag tag:yaml.org,2002:python/name:os.system is not supported",
        ),
        ("parts: !x {}", "YAML: the tag !x is not supported"),
        ("bulbs: *x", "YAML: found undefined alias 'x'"),
        ("\tbulbs: 1", "YAML: found a tab character that violates indentation"),
        ("name: a\x07b", "YAML: the character #x0007 is not allowed"),
        ("--- {}", "YAML: but found another document"),
    ],
)
def test_an_error_names_the_line_of_the_key_what_was_read_and_what_would_be_right(line, message):
    assert refusal(f"power: 5 W\n\n{line}\n") == f"lamp.yaml:3: {message}"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcde", "bcdef", strict=True)
)
FOLLOWED = "more than 100000 values, or nested too deep: aliases that multiply?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1: got an empty file; expected a mapping of keys to values"),
        ("\n  \n# a comment\n", "1: got an empty file; expected a mapping of keys to values"),
        ("\n- power: 5 W\n", "2: expected a mapping of keys to values"),
        ("power", "1: expected a mapping of keys to values"),
        ("null", "1: expected a mapping of keys to values"),
        ("bulbs: 2\n", "1: power: got nothing; expected a value, since it has no default"),
        ("bulbs: 2\nbulbs: 3\n", "2: got 'bulbs' twice; expected it once; try deleting one"),
        ("power: 5 W\nlit: true\nbulbs: 100\n", "1: 100 bulbs would blind"),
        ("power: [\n", "2: YAML: did not find expected node content"),
        ("power: {\n  a: 1\nbulbs: 2\n", "3: YAML: did not find expected ',' or '}'"),
        ("power: 'a\n", "2: YAML: found unexpected end of stream"),
        (
            "%YAML 3.0\n--- {}\n",
            "1: YAML: found incompatible YAML document",
        ),
        ("power: 5 W\n\0", "2: YAML: the character #x0000 is not allowed"),
        (
            b"power: 5 W\nname: caf\xe9\n",
            "2: got the byte 0xe9; expected a text in UTF-8; try converting the file",
        ),
        (
            "power: 5 W\n".encode("utf-16"),
            "1: got the byte 0xff; expected a text in UTF-8; try converting the file",
        ),
        ("#" * 10_000_001, "1: got a larger file; expected 10 MB at most"),
        (BOMB, f"1: {FOLLOWED}"),
        ("power: 5 W\nparts: &a {a: *a}\n", f"2: {FOLLOWED}"),
        ("&a\npower: *a\n", f"1: {FOLLOWED}"),
        ("power: 5 W\nname: " + "[" * 5000, "2: YAML: exceeded maximum nesting depth"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(3000)), "100: YAML: nested too deep"),
    ],
)
def test_a_file_that_is_no_mapping_of_keys_is_refused_with_its_line(content, message):
    assert refusal(content) == f"lamp.yaml:{message}"


def test_a_file_of_too_many_values_is_refused_while_it_is_read(monkeypatch):
    monkeypatch.setattr(document, "MAX_NODES", 50)
    assert refusal("power: 5 W\nname:\n" + "- 1\n" * 60).endswith(": YAML: more than 50 values")


def test_a_file_that_is_not_there_or_a_folder_is_refused(folder):
    for name, message in [
        ("nope.yaml", "nope.yaml: no such file"),
        ("catalogue", "catalogue: Is a directory"),
    ]:
        with pytest.raises(ScenarioError) as refused:
            read_value(name, Lamp)
        assert str(refused.value) == message


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("power: 5 W", {"power": 5}),
        ("\ufeffpower: 5 W\r\nbulbs: 2\r\n", {"bulbs": 2}),
        ("{power: 5 W, bulbs: 2}", {"bulbs": 2}),
        ("'power': \"5 W\" # a comment\n", {"power": 5}),
        ("power: 5 W\nbulbs: 1_000\n", {"bulbs": 1000}),
        ("power: 5 W\nbulbs: 0x10\n", {"bulbs": 16}),
        ("power: 5 W\nbulbs: 010\n", {"bulbs": 10}),
        ("power: 5 W\nshare: 5e-1\n", {"share": 0.5}),
        ("power: 5 W\nname: '5e-1'\n", {"name": "5e-1"}),
        ("power: 5 W\nname: 2024-01-01\n", {"name": "2024-01-01"}),
        ("power: 5 W\nlit: yes\n", {"lit": True}),
        ("power: 5 W\nends: [1, 2]\n", {"ends": (1, 2)}),
        ("power: 5 W\nbulb: warm-white\n", {"bulb": Bulb(id="warm-white", power=5)}),
        (
            "power: 5 W\nbulb: catalogue/bulbs/warm-white.yaml\n",
            {"bulb": Bulb(id="warm-white", power=5)},
        ),
        ("power: 5 W\nbulb: {power: 5 W}\n", {"bulb": Bulb(power=5)}),
        ("power: 5 W\nshade: {kind: paper, layers: 2}\n", {"shade": PaperShade(layers=2)}),
        (
            "power: &p 5 W\nparts: {a: &a {power: *p}, b: *a}\n",
            {"parts": {"a": Bulb(power=5), "b": Bulb(power=5)}},
        ),
    ],
)
def test_what_is_right_is_read(content, fields):
    value = lamp(content)
    assert {name: getattr(value, name) for name in fields} == fields
    assert value == lamp(content)


def test_an_error_in_a_list_names_the_line_of_its_part():
    assert (
        refusal("power: 5 W\nspares:\n- warm-white\n- 3\n")
        == "lamp.yaml:4: spares.1: got 3; expected a mapping"
    )


def test_json_may_be_indented_by_tabs():
    assert lamp('{\n\t"power": "5 W",\n\t"bulbs": 2\n}\n', name="lamp.json").bulbs == 2
    assert (
        refusal('{\n\t"power": "5 W",\n\t"bulbs": 0\n}\n', name="lamp.json")
        == "lamp.json:3: bulbs: got 0; expected at least 1"
    )


PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126)) | st.text("äßé€")
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4),
    max_leaves=20,
)


def tuples(data: object) -> object:
    if isinstance(data, dict):
        return {key: tuples(value) for key, value in data.items()}
    return tuple(map(tuples, data)) if isinstance(data, list) else data


@given(st.dictionaries(PLAIN, DATA, min_size=1, max_size=4))
def test_any_json_is_read_as_json_reads_it(data):
    path = Path("any.json")
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert Document(path).data == tuples(data)


@given(st.text() | st.text("power: 5W\n -[]{}&*!|>'\"%@`#?,.\t0123456789e", max_size=60))
def test_any_text_is_a_lamp_or_an_error_in_one_line_that_names_the_file(text):
    message = ""
    try:
        lamp(text.encode("utf-8", "surrogatepass"))
    except ScenarioError as error:
        message = str(error)
    assert message == "" or message.startswith("lamp.yaml:")
    assert "\n" not in message


# Assignments of the command line.

START = "power: 5 W\nname: desk\nparts:\n  a: {power: 1 W}\n"


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("power=6 W", "power", 6),
        ("bulbs=2", "bulbs", 2),
        ("name=a=b", "name", "a=b"),
        ("ends=[1, 2]", "ends", (1, 2)),
        ("parts.a.power=2 W", "parts", {"a": Bulb(power=2)}),
        ("parts.b.power=2 W", "parts", {"a": Bulb(power=1), "b": Bulb(power=2)}),
        ("parts={}", "parts", {}),
        ("bulb=warm-white", "bulb", Bulb(id="warm-white", power=5)),
    ],
)
def test_an_assignment_puts_a_value_in(assignment, field, value):
    assert getattr(lamp(START, assignment), field) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("bulbs", "--set bulbs: got no key and value; expected a.b.c=value"),
        ("", "--set : got no key and value; expected a.b.c=value"),
        ("=3", "--set =3: got no key and value; expected a.b.c=value"),
        ("a..b=3", "--set a..b=3: got no key and value; expected a.b.c=value"),
        ("bulbs=", "--set bulbs: got nothing; expected a value"),
        ("bulbs=[", "--set bulbs: YAML: did not find expected node content"),
        ("bulbs=\udcff", "--set bulbs: YAML: the character #xdcff is not allowed"),
        ("bulbs=&a [*a]", f"--set bulbs: {FOLLOWED}"),
        ("bulbs=x", "--set bulbs: got 'x'; expected a whole number"),
        ("bulbs=0", "--set bulbs: got 0; expected at least 1"),
        ("power=3", "--set power: got 3 without a unit; try '3 W'"),
        ("parts.a.power=x", "--set parts.a.power: got 'x'; expected a quantity in W"),
        ("parts.a.power=-1 W", "--set parts.a.power: got '-1 W'; expected at least 0"),
        ("parts.a={power: -1 W}", "--set parts.a: parts.a.power: got '-1 W'; expected at least 0"),
        (
            "parts.a={power: 1 W, power: 2 W}",
            "--set parts.a: got 'power' twice; expected it once; try deleting one",
        ),
        (
            "parts.a={life: 1 s}",
            "--set parts.a: parts.a.power: got nothing; expected a value, since it has no default",
        ),
        (
            "parts.b.life=2 s",
            "--set parts.b.life: parts.b.power: got nothing; expected a value, since it has no default",
        ),
        ("blubs=2", "--set blubs: lamp has no 'blubs'; did you mean 'bulbs', 'bulb'?"),
        ("prats.a.power=2 W", "--set prats.a.power: lamp has no 'prats'; did you mean 'parts'?"),
        ("name.a=2", "--set name.a: got a key below 'name', which is no mapping; expected none"),
        (
            "bulb=warmwhite",
            "--set bulb: got 'warmwhite'; expected one of the catalogue's bulbs; did you mean 'warm-white'?",
        ),
        ("bulb=nope.yaml", "--set bulb: nope.yaml: no such file"),
        (
            "shade={kind: silk}",
            "--set shade: got 'silk'; expected a kind of shade; choose from paper",
        ),
    ],
)
def test_an_error_in_an_assignment_names_the_assignment(assignment, message):
    assert refusal(START, assignment) == message


def test_what_is_wrong_in_the_file_still_names_its_line_after_an_assignment():
    assert (
        refusal("power: 5 W\nbulbs: 0\n", "power=6 W")
        == "lamp.yaml:2: bulbs: got 0; expected at least 1"
    )


def test_where_names_the_line_of_a_key_and_first_an_assignment_below_it(folder):
    Path("lamp.yaml").write_text(START)
    document = Document(Path("lamp.yaml"))
    assert document.where("parts", "a") == "lamp.yaml:4"
    assert document.where("parts", "z") == "lamp.yaml:3"
    document.set("parts.a.power=2 W")
    assert document.where("parts", "a") == "--set parts.a.power"
    assert document.where("name") == "lamp.yaml:2"


# One file refers to another.


def test_paths_are_relative_to_the_file_they_stand_in_and_assigned_ones_to_the_working_folder(
    folder,
):
    (folder / "deep" / "er").mkdir(parents=True)
    for place, power in [
        ("bulb.yaml", "1 W"),
        ("deep/bulb.yaml", "2 W"),
        ("deep/er/bulb.yaml", "3 W"),
    ]:
        (folder / place).write_text(f"power: {power}\n")
    text = "power: 5 W\nbulb: er/bulb.yaml\n"
    assert lamp(text, name="deep/lamp.yaml").bulb.power == 3
    assert lamp("power: 5 W\nspares: [er/bulb.yaml]\n", name="deep/lamp.yaml").spares[0].power == 3
    assert lamp(text, "bulb=./bulb.yaml", name="deep/lamp.yaml").bulb.power == 1
    assert lamp(text, "bulb=deep/bulb.yaml", name="deep/lamp.yaml").bulb.power == 2


def test_an_error_in_a_file_that_another_names_is_that_files():
    assert (
        refusal("power: 5 W\nbulb: cold-white\n")
        == "catalogue/bulbs/cold-white.yaml:2: bulb has no 'lfie'; did you mean 'life'?"
    )


def test_a_name_without_slash_or_suffix_is_the_catalogues_even_beside_a_file(folder):
    (folder / "warm-white").write_text("power: 9 W\n")
    assert find_entry("warm-white", "bulbs").parent.name == "bulbs"


def test_the_nearest_names_are_at_most_three():
    assert nearest_name("lamb", ["lamp", "lamps", "limb", "lamppost", "bulb"]).count("'") <= 6
    assert nearest_name("lamb", ["bulb", "switch"]) == ""


# Kinds of the user's own.

SILK = """
from __future__ import annotations
from dataclasses import dataclass
from sim.inputs.values import Value
from sim.units import Count
from lamps import Shade

@dataclass
class Fold:
    width: int

class Silk(Shade):
    layers: Count
    def dims(self) -> float:
        return 0.9

class Half(Shade):
    pass
"""


@pytest.fixture
def shades(folder, monkeypatch):
    """A module of the user's beside the lamp; `lamps` stands for this file, which it imports."""
    monkeypatch.setitem(sys.modules, "lamps", sys.modules[__name__])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "silks.py").write_text(SILK)


def test_a_users_class_is_found_beside_the_file(shades):
    value = lamp("power: 5 W\nshade: {kind: silks:Silk, layers: 2}\n")
    assert value.shade.dims() == 0.9
    assert type(value.shade).__name__ == "Silk"


def test_a_users_class_is_found_on_the_path(shades, folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(folder)
    assert (
        lamp(
            "power: 5 W\nshade: {kind: silks:Silk, layers: 2}\n", name="elsewhere/lamp.yaml"
        ).shade.layers
        == 2
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("silks:Silk", "shade.layers: got nothing; expected a value, since it has no default"),
        ("silks:Slik", "'silks:Slik': silks has no class Slik that is a Shade"),
        ("silks:Fold", "'silks:Fold': silks has no class Fold that is a Shade"),
        ("silks:Half", "'silks:Half': Half does not define dims"),
        (
            "nosilks:Silk",
            "'nosilks:Silk': nosilks cannot be imported: ModuleNotFoundError: No module named 'nosilks'",
        ),
        (
            "breaks:Silk",
            "'breaks:Silk': breaks cannot be imported: ZeroDivisionError: division by zero",
        ),
        ("leaves:Silk", "'leaves:Silk': leaves cannot be imported: SystemExit: 3"),
        (
            "typo:Silk",
            "'typo:Silk': typo cannot be imported: SyntaxError: invalid syntax (typo.py, line 1)",
        ),
        ("os:path", "'os:path': os has no class path that is a Shade"),
        ("':Silk'", "got ':Silk'; expected a kind of shade; choose from paper"),
        ("'silks:'", "got 'silks:'; expected a kind of shade; choose from paper"),
    ],
)
def test_a_users_class_that_cannot_be_had_is_refused(shades, folder, kind, message):
    for name, text in {"breaks": "1 / 0", "leaves": "raise SystemExit(3)", "typo": "def ("}.items():
        (folder / f"{name}.py").write_text(text)
    assert refusal(f"power: 5 W\nshade: {{kind: {kind}}}\n") == f"lamp.yaml:2: {message}"


# Files are written whole.


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}


def test_files_come_all_of_them(tmp_path):
    with write_whole(tmp_path / "new" / "out") as scratch:
        (scratch / "a").write_text("1")
        (scratch / "b").write_text("2")
        assert contents(tmp_path / "new" / "out") == {}
    assert contents(tmp_path / "new" / "out") == {"a": "1", "b": "2"}
    assert [p.name for p in (tmp_path / "new" / "out").iterdir() if p.is_dir()] == []


def write_then(folder: Path, error: BaseException | None = None) -> None:
    with write_whole(folder) as scratch:
        (scratch / "a").write_text("new")
        (scratch / "b").write_text("new")
        if error:
            raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_after_an_error_none_of_them_comes_and_no_folder_stays(tmp_path, error):
    old = tmp_path / "old"
    old.mkdir()
    (old / "a").write_text("old")
    for folder in (old, tmp_path / "new" / "out"):
        with pytest.raises(error):
            write_then(folder, error())
    assert contents(old) == {"a": "old"}
    assert [p.name for p in old.iterdir()] == ["a"]
    assert not (tmp_path / "new").exists()


def test_a_folder_in_the_way_of_one_file_stops_all(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b: cannot be written: it is a directory"):
        write_then(tmp_path)
    assert contents(tmp_path) == {"a": "old"}


def test_a_folder_that_cannot_be_made_or_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be written"):
            write_then(folder)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        write_then(tmp_path / "out", OSError(28, "No space left on device"))
    assert contents(tmp_path) == {"file": "x"}
