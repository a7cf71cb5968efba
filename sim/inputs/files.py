"""YAML to frozen values.  Knows files, lines and the catalogue's folders; knows nothing of chips.

A document is composed into nodes, walked once into plain data whose texts remember where they stand, and validated by the
pydantic class that is due.  Whatever is wrong comes out as one line, `file:line: what was read: what is wrong`.
"""

import difflib
import itertools
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from sim.inputs.key_paths import MAX_DEPTH, PathError, dots, replaced, value_at
from sim.units import brief

MAX_FILE = 10_000_000  # bytes; a scenario is a few kB
MAX_NODES = 100_000  # before and after aliases are followed: an alias bomb stops here
SUFFIXES = (".yaml", ".yml", ".json")
# 1e-5 is a number in JSON and YAML 1.2, and a text in the YAML 1.1 that PyYAML reads.
EXPONENT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][+-]?[0-9]+")
# What is due where pydantic finds something else, by its name for the error.
DUE = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "string_type": "a text",
    "string_unicode": "a text",
    "too_long": "a list of at most {max_length}",
    "tuple_type": "a list",
}


class UserError(Exception):
    """What the user can mend: one line on stderr and exit status 2."""


class ScenarioError(UserError):
    """A file is wrong: `file:line: what was read: what is wrong; what would be right`."""


class Text(str):
    """A text from a file, which knows where it stands and to which folder its paths are relative."""

    where: str
    folder: Path

    def __new__(cls, text: str, where: str, folder: Path) -> Self:
        self = super().__new__(cls, text)
        self.where, self.folder = where, folder
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, Path]]:
        """For copies, and for the processes of a sweep."""
        return type(self), (str(self), self.where, self.folder)


class Value(BaseModel):
    """A frozen value made from a file: equal by content, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def noun(cls) -> str:
        """What an error calls it: TensorStreaming is a tensor-streaming."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy remembers nothing of what was worked out for the original."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        """An unknown key is reported once and first: a misspelt key would else be reported as a missing one."""
        if cls.model_config.get("extra") == "forbid" and isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise cls.unknown(key)
        return data

    @classmethod
    def unknown(cls, key: object) -> PydanticCustomError:
        """Return the error for a key that this class does not have."""
        near = nearest_name(str(key), cls.model_fields)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(cls.model_fields)}"
        return PydanticCustomError(
            "key",
            "{reason}",
            {"key": (key,), "reason": f"{cls.noun()} has no {brief(str(key))!r}; {hint}"},
        )

    @classmethod
    def spelled(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data of a file with every key under the name of its field."""
        return dict(data)


def rejected(at: tuple[int | str, ...], value: object, reason: str) -> ValidationError:
    """Return the error for a value at a path below the class that raises it; an error of that class would name the class's key."""
    problem = PydanticCustomError("value_error", "{error}", {"error": reason})
    details: InitErrorDetails = {"type": problem, "loc": at, "input": value}
    return ValidationError.from_exception_data(str(at[-1]), [details])


Change = tuple[
    str | None, str
]  # a value of an entry, None where it has none, and the one that replaces it


class Entry(Value):
    """A value that the catalogue may hold under a name."""

    id: str = "in-place"  # the file's name, by which the catalogue finds it
    _changed: dict[str, Change] = PrivateAttr(default_factory=dict)

    @property
    def changed(self) -> dict[str, Change]:
        """The values that a scenario changed, by dotted key."""
        return self._changed


class Sourced(Entry):
    """A catalogue entry: a name, notes, and a source for every quantity (an entry for a prefix serves all below it)."""

    name: str = ""
    aliases: tuple[str, ...] = ()  # other names that tables and people use
    note: str = ""
    source: dict[str, str] = {}
    range: dict[
        str, tuple[str | float, str | float]
    ] = {}  # 'compute.weight_load': [low, high], where the source gives one

    def source_of(self, path: str) -> str | None:
        """The source of 'memory.sram.capacity'."""
        return source_of(self.source, path)


def source_of(sources: Mapping[str, str], path: str) -> str | None:
    """Return the source of a path: its own entry, else that of the nearest prefix."""
    while path not in sources and "." in path:
        path = path.rpartition(".")[0]
    return sources.get(path) or sources.get(path + ":")


V = TypeVar("V", bound=Value)


class Document:
    """The plain data of one file, and on which line each key of it stands."""

    def __init__(self, path: Path, shown: str | None = None) -> None:
        self.path = path
        self.shown = shown or shorten(path)
        self.lines: dict[tuple[str, ...], str] = {}  # by path, the places of a list as texts
        text = load_text(path, self.shown)
        self.comment = opening(text)
        node = compose(text, self.shown)
        if not isinstance(node, yaml.MappingNode):
            raise ScenarioError(
                f"{self.shown}:{node.start_mark.line + 1}: a mapping of keys to values is due here"
            )
        self._nodes = 0
        self.data: dict[str, Any] = self._plain(node, (), self.shown, path.parent)

    def set(self, assignment: str) -> None:
        """Puts 'a.b.c=value' in: the value is YAML, its paths are relative to the working folder.

        Raises: ScenarioError where the assignment has no '=' or leads through something that is no mapping.
        """
        dotted, equals, text = assignment.partition("=")
        where = f"--set {dotted}"
        if not equals or not all(dotted.split(".")):
            raise ScenarioError(f"--set {assignment}: write it as a.b.c=value")
        path = tuple(dotted.split("."))
        self._forget(path, where)
        self._put(path, self._plain(compose(text, where), path, where, Path.cwd()), where)

    def put(self, dotted: str, value: object, source: tuple[str | int, ...]) -> None:
        """Puts in at 'a.b.c' a value that stands at another place of the document, for errors to name its line there.

        Raises: ScenarioError where the key leads through something that is no mapping.
        """
        path = tuple(dotted.split("."))
        self._forget(path, self._line(source))
        self._copy_lines(tuple(map(str, source)), path)
        self._put(path, value, self._line(source))

    def _put(self, path: tuple[str, ...], value: object, where: str) -> None:
        try:
            self.data = replaced(self.data, path, value)
        except PathError as error:
            raise ScenarioError(f"{where}: {error}") from None

    def _forget(self, path: tuple[str, ...], where: str) -> None:
        """Forget the lines of what stood at a path; a mapping that is made on the way gets the line of the assignment."""
        for depth in range(1, len(path)):
            self.lines.setdefault(path[:depth], where)
        self.lines = {at: line for at, line in self.lines.items() if at[: len(path)] != path}

    def _copy_lines(self, source: tuple[str, ...], path: tuple[str, ...]) -> None:
        """Copy the lines of what stands at `source` to `path`."""
        for depth in range(1, len(path) + 1):
            self.lines.setdefault(path[:depth], self._line(source))
        self.lines |= {
            (*path, *at[len(source) :]): line
            for at, line in self.lines.items()
            if at[: len(source)] == source
        }

    def value(self, cls: type[V]) -> V:
        """The document as a value of `cls`.  Raises: ScenarioError at the first thing that is wrong."""
        data = self.data
        if "id" in cls.model_fields and "id" not in data:
            stem = os.fsencode(self.path.stem).decode(
                errors="replace"
            )  # bytes that are no text cannot be written to files
            data = {"id": stem, **data}
        try:
            return cls.model_validate(data, context={"file": self.shown})
        except ValidationError as error:
            raise ScenarioError(self._first(error)) from None

    def where(self, *path: str) -> str:
        """Where a key stands: an assignment that changed something in it, else its line, or that of the nearest key above."""
        assigned = (
            line
            for at, line in self.lines.items()
            if at[: len(path)] == path and line.startswith("--set ")
        )
        return next(assigned, self._line(path))

    def _first(self, error: ValidationError) -> str:
        problem = error.errors(include_url=False)[0]
        kind, at, context = problem["type"], problem["loc"], problem.get("ctx", {})
        if kind == "key":
            at = (*at, *context["key"])
        line = self._line(at)
        if kind in ("key", "quantity"):
            return f"{line}: {context['reason']}"
        if kind == "missing":
            *above, key = at
            what = f"'{key}'" if isinstance(key, str) else f"number {key + 1} of a list"
            return f"{line}: {what} is missing" + (f" in {dots(above)}" if above else "")
        at, given = self._given(at, problem["input"])
        if kind in ("value_error", "assertion_error"):
            reason = str(context["error"])
        else:
            reason = f"{written(given)}: {due(kind, context) or problem['msg']}"
        return (
            f"{line}: {reason}"
            if not at or line == f"--set {dots(at)}"
            else f"{line}: {dots(at)}: {reason}"
        )

    def _given(
        self, at: tuple[str | int, ...], read_value: object
    ) -> tuple[tuple[str | int, ...], object]:
        """The last key of a path that the file has, and its value as the reader wrote it, not as it was converted."""
        data: Any = self.data
        for depth, key in enumerate(at):
            try:
                data = data[str(key)] if isinstance(data, Mapping) else data[key]
            except (KeyError, TypeError, IndexError):
                return at[:depth], data if depth else read_value
        return at, data

    def _line(self, at: tuple[str | int, ...]) -> str:
        path = tuple(map(str, at))
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, f"{self.shown}:1")

    def _plain(self, node: yaml.Node, at: tuple[str, ...], where: str, folder: Path) -> Any:
        """Plain data of a node; texts become Text, and the line of each key is noted."""
        self._nodes += 1
        line = place(where, node.start_mark)
        if self._nodes > MAX_NODES or len(at) > MAX_DEPTH:
            raise ScenarioError(
                f"{line}: more than {MAX_NODES} values, or nested too deep: aliases that multiply?"
            )
        self.lines.setdefault(at, line)
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key_line = place(where, key_node.start_mark)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise ScenarioError(f"{key_line}: a key must be a plain word")
                key = key_node.value
                if key_node.tag.endswith(":merge"):
                    raise ScenarioError(
                        f"{key_line}: '<<' is not read here; write the keys out, or alias the whole mapping"
                    )
                if key in mapping:
                    raise ScenarioError(f"{key_line}: {brief(key)!r} is given twice")
                self.lines[(*at, key)] = key_line
                mapping[key] = self._plain(value_node, (*at, key), where, folder)
            return self._nested(mapping, at) if isinstance(mapping.get("like"), str) else mapping
        if isinstance(node, yaml.SequenceNode):
            return tuple(
                self._plain(item, (*at, str(i)), where, folder) for i, item in enumerate(node.value)
            )
        assert isinstance(node, yaml.ScalarNode)
        return scalar(node, line, folder)

    def _nested(self, mapping: dict[str, Any], at: tuple[str, ...]) -> dict[str, Any]:
        """Return a mapping that has `like` with its dotted keys as mappings in each other: {a.b: 1} is {a: {b: 1}}."""
        plain: dict[str, Any] = {key: value for key, value in mapping.items() if "." not in key}
        for key in (key for key in mapping if "." in key):
            path, line = tuple(key.split(".")), self.lines[(*at, key)]
            if not all(path):
                raise ScenarioError(f"{line}: {brief(key)!r}: write it as a.b.c")
            if value_at(plain, path) is not None:
                raise ScenarioError(f"{line}: {brief(key)!r} is given twice")
            try:
                plain = replaced(plain, path, mapping[key])
            except PathError as error:
                raise ScenarioError(f"{line}: {error}") from None
            self._copy_lines((*at, key), (*at, *path))
        return plain


def opening(text: str) -> str:
    """The comment that a file opens with, on one line: in a scenario the question that it answers."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(" ".join(lines).replace("#", " ").split())


def written(value: object) -> str:
    """A value as an error quotes it: texts with quotes, numbers without, long ones cut."""
    match value:
        case dict():
            return "a mapping"
        case tuple():
            return "a list"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(brief(value))
    return brief(str(value))


def due(kind: str, context: Mapping[str, Any]) -> str:
    """What would be right, for one of pydantic's errors; '' where its own words must do."""
    write_whole = {
        name: int(v) if isinstance(v, float) and v.is_integer() else v
        for name, v in context.items()
    }
    return f"it must be {DUE[kind].format(**write_whole)}" if kind in DUE else ""


def scalar(node: yaml.ScalarNode, line: str, folder: Path) -> object:
    """null, a truth value, a number, or a Text; YAML's dates, sexagesimals, inf and nan stay texts, and so fit nowhere."""
    text = str(node.value)
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    digits = text.replace("_", "")
    with suppress(ValueError):
        if kind == "int":
            return int(digits, 10 if digits.lstrip("+-").isdigit() else 0)
        if kind == "float" or (node.style is None and EXPONENT.fullmatch(text)):
            number = float(digits)
            return number if math.isfinite(number) else Text(text, line, folder)
    return Text(text, line, folder)


class Loader(yaml.SafeLoader):
    """PyYAML's, which refuses tags, and stops where a file is too long or too deep rather than when memory ends."""

    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        problem = None
        if getattr(event, "tag", None):
            problem = f"the tag {event.tag} is not read here"
        elif self.nodes > MAX_NODES:
            problem = f"more than {MAX_NODES} values"
        elif self.depth > MAX_DEPTH:
            problem = "nested too deep"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def place(where: str, mark: yaml.Mark | None) -> str:
    """`file:line`; an assignment of the command line has no lines."""
    return where if where.startswith("--set ") else f"{where}:{mark.line + 1 if mark else 1}"


def compose(text: str, where: str) -> yaml.Node:
    """The nodes of a YAML text.  Raises: ScenarioError for bad syntax or nothing to read."""
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise ScenarioError(
            f"{place(where, error.problem_mark)}: YAML: {error.problem or error.context}"
        ) from None
    except yaml.reader.ReaderError as error:
        line = place(where, yaml.Mark("", 0, text.count("\n", 0, error.position), 0, None, 0))
        raise ScenarioError(
            f"{line}: YAML: the character #x{int(error.character):04x} is not allowed"
        ) from None
    if node is None:
        raise ScenarioError(
            f"{where}: is empty" if where.startswith("--set ") else f"{where}:1: the file is empty"
        )
    return node


def load_text(path: Path, shown: str, most: int = MAX_FILE) -> str:
    """A file's text.  Raises: ScenarioError where it is missing, over `most` bytes, unreadable or not UTF-8."""
    try:
        if path.stat().st_size > most:
            raise ScenarioError(f"{shown}:1: larger than {most // 1_000_000} MB")
        read_value = path.read_bytes()
        text = read_value.decode("utf-8")
    except FileNotFoundError:
        raise ScenarioError(f"{shown}: no such file") from None
    except OSError as error:
        raise ScenarioError(f"{shown}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = read_value.count(b"\n", 0, error.start) + 1
        raise ScenarioError(f"{shown}:{line}: not a UTF-8 text") from None
    return (
        text.replace("\t", " ") if path.suffix == ".json" else text
    )  # JSON may indent by tabs, YAML may not


def shorten(path: Path) -> str:
    """The path as a person would type it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def nearest_name(word: str, catalogue_names: Iterable[str]) -> str:
    """Up to three names that look like `word`, quoted, or ''."""
    return ", ".join(
        f"'{name}'" for name in difflib.get_close_matches(word, list(catalogue_names), 3, 0.6)
    )


def catalogue() -> Path:
    """The catalogue's folder: the package's own copy (in a wheel), else the checkout's."""
    package = Path(__file__).parents[1]
    return (
        package / "scenarios" if (package / "scenarios").is_dir() else package.parent / "scenarios"
    )


def catalogue_names(kind: str) -> dict[str, Path]:
    """The entries of one folder of the catalogue by name; kind 'scenarios' is the catalogue's own folder."""
    if kind == "scenarios":
        files = sorted([*catalogue().glob("*"), *catalogue().glob("claims/*")])
        return {
            p.relative_to(catalogue()).with_suffix("").as_posix(): p
            for p in files
            if p.suffix in SUFFIXES
        }
    return {p.stem: p for p in sorted((catalogue() / kind).glob("*")) if p.suffix in SUFFIXES}


def find_entry(text: str, kind: str) -> Path:
    """The file that a text names: a path (it has a '/' or ends in .yaml or .json), else a catalogue name or an alias.

    Raises: ScenarioError with the nearest names.
    """
    where = f"{text.where}: " if isinstance(text, Text) else ""
    folder = text.folder if isinstance(text, Text) else Path.cwd()
    known = catalogue_names(kind)
    if text in known:
        return known[text]
    path = "/" in text or text.endswith(SUFFIXES)
    if not path or not os.path.exists(folder / text):  # a Hugging Face id has a '/' too
        known |= aliases(kind)
    if text in known:
        return known[text]
    if path:
        return existing(folder / text, f"{where}{text}")
    near = nearest_name(text, known)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(catalogue_names(kind))}"
    raise ScenarioError(f"{where}{brief(text)!r} is not among the catalogue's {kind}; {hint}")


def aliases(kind: str) -> dict[str, Path]:
    """The other names of the entries of one folder."""
    if kind == "scenarios":
        return {}
    return {
        alias: path
        for path in catalogue_names(kind).values()
        for alias in Document(path).data.get("aliases", ())
    }


def existing(path: Path, shown: str) -> Path:
    """The path, if a file is there.  Raises: ScenarioError."""
    if os.path.isdir(path):
        raise ScenarioError(f"{shown}: is a folder, and a file is due")
    if not os.path.isfile(
        path
    ):  # unlike Path.is_file, not stopped by a name too long or a folder that may not be entered
        raise ScenarioError(f"{shown}: no such file")
    return path


def read_value(path: Path | str, cls: type[V]) -> V:
    """The value of class `cls` that a file describes.  Raises: ScenarioError."""
    return Document(Path(path)).value(cls)


@contextmanager
def write_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` at the end, all of them or (after an error) none.

    Raises: UserError where that cannot be written; folders made on the way are gone again if nothing came into them.
    """
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            yield Path(scratch)
            files = sorted(Path(scratch).iterdir())
            for file in files:
                if (folder / file.name).is_dir():
                    raise UserError(f"{folder / file.name}: cannot be written: it is a folder")
            for file in files:
                os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        for each in made:
            with suppress(OSError):  # not empty: it is needed
                each.rmdir()
