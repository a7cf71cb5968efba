"""YAML files as plain data with the line of every key.

A file is composed into nodes, and these into plain data whose texts know their place.
Then a pydantic class validates the data. An error is one line: `file:line: key: what is wrong`.
"""

import itertools
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from yaml.composer import Composer

from sim.inputs.errors import ScenarioError, expectation, quoted_value
from sim.inputs.files import load_text, shorten
from sim.inputs.key_paths import MAX_DEPTH, JsonObject, PathError, dots, replaced, value_at
from sim.inputs.meanings import key_meaning
from sim.inputs.read_files import ReadFiles, record_again, recorded_files
from sim.inputs.values import Text, Value
from sim.units import brief

MAX_NODES = 100_000  # before and after aliases are followed, which stops an alias bomb
# 1e-5 is a number in JSON and YAML 1.2, and a text in the YAML 1.1 that PyYAML reads.
EXPONENT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][+-]?[0-9]+")

IN_PYTHON = "scenario in Python"  # the place of keys that stand in no file
ASSIGNED = ("--set ", "argument ")  # beginnings of the places of assigned values

V = TypeVar("V", bound=Value)


class Document:
    """The plain data of one file, and the line of each key."""

    def __init__(self, path: Path, shown: str | None = None, text: str | None = None) -> None:
        self.path = path
        self.shown = shown or shorten(path)
        self.lines: dict[tuple[str, ...], str] = {}  # by path; list indices are texts
        text = load_text(path, self.shown) if text is None else text
        self.comment = opening_comment(text)
        node = _compose(text, self.shown)
        if not isinstance(node, yaml.MappingNode):
            line = _place(self.shown, node.start_mark)
            raise ScenarioError(f"{line}: expected a mapping of keys to values")
        self._nodes = 0
        self.data: JsonObject = self._plain(node, (), self.shown, path.parent)

    @classmethod
    def from_text(cls, text: str) -> "Document":
        """Return the document of a text without a file; paths are relative to the working folder.

        Raises: ScenarioError if it is no mapping. Errors name no line.
        """
        return cls(Path.cwd() / "scenario.yaml", IN_PYTHON, text)

    @property
    def name(self) -> str:
        """The file's name without suffix; of a config.json that of its folder."""
        path = self.path.absolute()
        name = path.parent.name if path.name == "config.json" else path.stem
        # Bytes that are not a text could not be written to files later.
        return os.fsencode(name).decode(errors="replace")

    def set(self, assignment: str, place: str = "") -> None:
        """Apply 'a.b.c=value', where value is YAML with paths relative to the working folder.

        place: what errors name, such as 'argument a__b__c'; '' names the option `--set a.b.c`.
        Raises: ScenarioError if there is no '=', or a key on the way has no keys of its own.
        """
        dotted, equals, text = assignment.partition("=")
        where = place or assigned_place(dotted)
        if not equals or not all(dotted.split(".")):
            raise ScenarioError(
                f"{where}{equals}{text}: got no key and value; expected a.b.c=value"
            )
        path = tuple(dotted.split("."))
        self._forget(path, where)
        self._put(path, self._plain(_compose(text, where), path, where, Path.cwd()), where)

    def put(self, dotted: str, value: object, source: tuple[str | int, ...]) -> None:
        """Put at 'a.b.c' a value from another place of the document; errors name its line there.

        Raises: ScenarioError if a key on the way has no keys of its own.
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
        """Forget the lines at and below a path; a new mapping on the way gets the line `where`."""
        for depth in range(1, len(path)):
            self.lines.setdefault(path[:depth], where)
        self.lines = {at: line for at, line in self.lines.items() if at[: len(path)] != path}

    def _copy_lines(self, source: tuple[str, ...], path: tuple[str, ...]) -> None:
        """Copy the lines at and below `source` to `path`."""
        for depth in range(1, len(path) + 1):
            self.lines.setdefault(path[:depth], self._line(source))
        self.lines |= {
            (*path, *at[len(source) :]): line
            for at, line in self.lines.items()
            if at[: len(source)] == source
        }

    def value(self, cls: type[V]) -> V:
        """Return the document as a value of `cls`.

        Raises: ScenarioError for the first thing that is wrong.
        """
        data = self.data
        if "id" in cls.model_fields and "id" not in data:
            data = {"id": self.name, **data}
        try:
            return cls.model_validate(data, context={"file": self.shown})
        except ValidationError as error:
            raise ScenarioError(self._first(error, cls)) from None

    def where(self, *path: str) -> str:
        """Return the place of a key: an assignment at or below it, or else its line.

        A key that the file does not have has the line of the nearest key above it.
        """
        assigned = (
            line
            for at, line in self.lines.items()
            if at[: len(path)] == path and line.startswith(ASSIGNED)
        )
        return next(assigned, self._line(path))

    def _first(self, error: ValidationError, cls: type[Value]) -> str:
        """Return the line of error for the first problem of a value of a class."""
        problem = error.errors(include_url=False)[0]
        kind, at, context = problem["type"], problem["loc"], problem.get("ctx", {})
        if kind == "key":
            at = (*at, *context["key"])
        line = self._line(at)
        if kind == "key":
            reason = str(context["reason"])
            if line != IN_PYTHON:
                return f"{line}: {reason}"
            return f"{line}: {dots(at)}: {reason.removeprefix(f'{at[-1]}: ')}"
        if kind == "missing":
            *above, key = at
            if isinstance(key, int):
                return f"{line}: {dots(above)}: got a list of {key}; expected {key + 1} or more"
            expected = key_meaning(cls, at) or "a value, since it has no default"
            return f"{line}: {dots(at)}: got nothing; expected {expected}"
        at, value = self._as_written(at, problem["input"])
        if kind == "quantity":
            reason = context["reason"]
        elif kind in ("value_error", "assertion_error"):
            reason = str(context["error"])
        else:
            expected = expectation(kind, context)
            reason = f"expected {expected}" if expected else problem["msg"]
            reason = f"got {quoted_value(value)}; {reason}"
        if not at or is_assigned_place(line, dots(at)):
            return f"{line}: {reason}"
        return f"{line}: {dots(at)}: {reason}"

    def _as_written(
        self, at: tuple[str | int, ...], converted: object
    ) -> tuple[tuple[str | int, ...], object]:
        """Return the part of a path that the file has, and the value there as the user wrote it."""
        data: Any = self.data
        for depth, key in enumerate(at):
            try:
                data = data[str(key)] if isinstance(data, Mapping) else data[key]
            except (KeyError, TypeError, IndexError):
                return at[:depth], data if depth else converted
        return at, data

    def _line(self, at: tuple[str | int, ...]) -> str:
        """Return the line of a path, or of the nearest key above it."""
        path = tuple(map(str, at))
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, _place(self.shown, None))

    def _plain(self, node: yaml.Node, at: tuple[str, ...], where: str, folder: Path) -> Any:
        """Return the plain data of a node, with texts as Text, and note the line of each key."""
        self._nodes += 1
        line = _place(where, node.start_mark)
        if self._nodes > MAX_NODES or len(at) > MAX_DEPTH:
            raise ScenarioError(
                f"{line}: more than {MAX_NODES} values, or nested too deep: aliases that multiply?"
            )
        self.lines.setdefault(at, line)
        if isinstance(node, yaml.MappingNode):
            mapping = self._mapping(node, at, where, folder)
            return self._nested(mapping, at) if isinstance(mapping.get("like"), str) else mapping
        if isinstance(node, yaml.SequenceNode):
            return tuple(
                self._plain(item, (*at, str(i)), where, folder) for i, item in enumerate(node.value)
            )
        assert isinstance(node, yaml.ScalarNode)
        # A place without a line says nothing about which key is wrong.
        place = f"{line}: {dots(at)}" if where == IN_PYTHON and at else line
        return _scalar(node, place, folder)

    def _mapping(
        self, node: yaml.MappingNode, at: tuple[str, ...], where: str, folder: Path
    ) -> JsonObject:
        """Return the plain data of a mapping."""
        mapping: JsonObject = {}
        for key_node, value_node in node.value:
            line = _place(where, key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ScenarioError(f"{line}: got a list or a mapping as a key; expected a word")
            key = key_node.value
            if key_node.tag.endswith(":merge"):
                reason = "got '<<'; expected plain keys; try to alias the whole mapping"
                raise ScenarioError(f"{line}: {reason}")
            if key in mapping:
                raise ScenarioError(
                    f"{line}: got {brief(key)!r} twice; expected it once; try deleting one"
                )
            self.lines[(*at, key)] = line
            mapping[key] = self._plain(value_node, (*at, key), where, folder)
        return mapping

    def _nested(self, mapping: JsonObject, at: tuple[str, ...]) -> JsonObject:
        """Return a mapping with its dotted keys nested: {a.b: 1} becomes {a: {b: 1}}.

        Only mappings with `like` have dotted keys.
        """
        plain: JsonObject = {key: value for key, value in mapping.items() if "." not in key}
        for key in (key for key in mapping if "." in key):
            path, line = tuple(key.split(".")), self.lines[(*at, key)]
            if not all(path):
                raise ScenarioError(f"{line}: got {brief(key)!r}; expected a.b.c")
            if value_at(plain, path) is not None:
                raise ScenarioError(
                    f"{line}: got {brief(key)!r} twice; expected it once; try deleting one"
                )
            try:
                plain = replaced(plain, path, mapping[key])
            except PathError as error:
                raise ScenarioError(f"{line}: {error}") from None
            self._copy_lines((*at, key), (*at, *path))
        return plain


# Documents and values of files, with the files behind them. A scenario names an engine several
# times, and a result reads the sources of all entries again. Texts show paths relative to the
# working folder, so the folder is part of the key.
_documents: dict[tuple[Path, str], tuple[Document, ReadFiles]] = {}
_values: dict[tuple[Path, str, type[Value]], tuple[Value, ReadFiles]] = {}


def read_document(path: Path) -> Document:
    """Return the document of a file, which is shared and must not be changed.

    Raises: ScenarioError if the file is missing, unreadable or no mapping.
    """
    key = path, os.getcwd()
    if key in _documents and _documents[key][1].are_unchanged():
        document, files = _documents[key]
        record_again(files)
        return document
    with recorded_files() as files:
        document = Document(path)
    if files.are_settled():
        _documents[key] = document, files
    return document


def read_value(path: Path | str, cls: type[V]) -> V:
    """Return the value of class `cls` that a file describes.

    Raises: ScenarioError if the file is missing, unreadable or wrong.
    """
    path = Path(path)
    key = path, os.getcwd(), cls
    if key in _values and _values[key][1].are_unchanged():
        known, files = _values[key]
        assert isinstance(known, cls)
        record_again(files)
        return known
    with recorded_files() as files:
        value = read_document(path).value(cls)
    if files.are_settled():
        _values[key] = value, files
    return value


def opening_comment(text: str) -> str:
    """Return a file's opening comment on one line; in a scenario, the question that it answers."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(" ".join(lines).replace("#", " ").split())


def _scalar(node: yaml.ScalarNode, line: str, folder: Path) -> object:
    """Return None, a truth value, a number or a Text.

    YAML's dates, sexagesimal numbers, inf and nan stay texts, so that no field accepts them.
    """
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
        if kind == "float" or (not node.style and EXPONENT.fullmatch(text)):
            number = float(digits)
            return number if math.isfinite(number) else Text(text, line, folder)
    return Text(text, line, folder)


class _Loader(Composer, yaml.CSafeLoader):
    """PyYAML's loader without tags, and with bounds on size and depth instead of all memory.

    LibYAML scans the text, ten times as fast as Python does. Python composes the nodes.
    """

    nodes = depth = 0

    def __init__(self, text: str) -> None:
        yaml.CSafeLoader.__init__(self, text)
        Composer.__init__(self)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        problem = None
        if getattr(event, "tag", None):
            problem = f"the tag {event.tag} is not supported"
        elif self.nodes > MAX_NODES:
            problem = f"more than {MAX_NODES} values"
        elif self.depth > MAX_DEPTH:
            problem = "nested too deep"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def assigned_place(dotted: str, in_python: bool = False) -> str:
    """Return the place of an assigned value: '--set a.b', or 'argument a__b'."""
    return f"argument {dotted.replace('.', '__')}" if in_python else f"--set {dotted}"


def is_assigned_place(where: str, dotted: str) -> bool:
    """Return whether a place is that of a value assigned to exactly this key."""
    return where in (assigned_place(dotted, False), assigned_place(dotted, True))


def _place(where: str, mark: yaml.Mark | None) -> str:
    """Return `file:line`; an assignment of the command line has no lines."""
    lineless = where == IN_PYTHON or where.startswith(ASSIGNED)
    return where if lineless else f"{where}:{mark.line + 1 if mark else 1}"


def _compose(text: str, where: str) -> yaml.Node:
    """Return the nodes of a YAML text.

    Raises: ScenarioError if its syntax is wrong or it is empty.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = _place(where, error.problem_mark)
        raise ScenarioError(f"{line}: YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = _place(where, yaml.Mark("", 0, text.count("\n", 0, error.position), 0, None, 0))
        code = int(error.character)
        raise ScenarioError(f"{line}: YAML: the character #x{code:04x} is not allowed") from None
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ScenarioError(f"{where}: YAML: the character #x{code:04x} is not allowed") from None
    if node is None:
        empty = "got nothing; expected a value"
        if not where.startswith(ASSIGNED):
            empty = "got an empty file; expected a mapping of keys to values"
        raise ScenarioError(f"{_place(where, None)}: {empty}")
    return node
