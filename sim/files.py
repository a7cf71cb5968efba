"""YAML to frozen values.  Knows files, lines and the catalogue's folders; knows nothing of chips.

A document is composed into nodes, walked once into plain data whose texts remember where they stand, and validated by the
pydantic class that is due.  Whatever is wrong comes out as one line, `file:line: what was read: what is wrong`.
"""

import difflib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

MAX_FILE = 10_000_000  # bytes; a scenario is a few kB
MAX_NODES = 100_000  # after aliases are followed: an alias bomb stops here
SUFFIXES = (".yaml", ".yml", ".json")


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


class Value(BaseModel):
    """A frozen value made from a file: equal by content, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def noun(cls) -> str:
        """What an error calls it: TensorStreaming is a tensor-streaming."""
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in cls.__name__).strip("-")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        """An unknown key is reported once and first: a misspelt key would else be reported as a missing one."""
        if cls.model_config.get("extra") == "forbid" and isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    near = nearest(str(key), cls.model_fields)
                    hint = f"did you mean {near}?" if near else f"it has {', '.join(cls.model_fields)}"
                    problem = {"key": key, "reason": f"{cls.noun()} has no '{key}'; {hint}"}
                    raise PydanticCustomError("key", "{reason}", problem)
        return data


class Sourced(Value):
    """A catalogue entry: a name, notes, and a source for every quantity (an entry for a prefix serves all below it)."""

    id: str = "in-place"  # the file's name, by which the catalogue finds it
    name: str = ""
    note: str = ""
    source: dict[str, str] = {}

    def source_of(self, path: str) -> str | None:
        """The source of 'memory.sram.capacity': its own entry, else that of the nearest prefix."""
        while path not in self.source and "." in path:
            path = path.rpartition(".")[0]
        return self.source.get(path) or self.source.get(path + ":")


V = TypeVar("V", bound=Value)


class Document:
    """The plain data of one file, and on which line each key of it stands."""

    def __init__(self, path: Path, shown: str | None = None) -> None:
        self.path = path
        self.shown = shown or shorten(path)
        self.lines: dict[tuple[str | int, ...], str] = {}
        node = compose(load_text(path, self.shown), self.shown)
        if not isinstance(node, yaml.MappingNode):
            raise ScenarioError(f"{self.shown}:{node.start_mark.line + 1}: a mapping of keys to values is due here")
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
        *parents, last = dotted.split(".")
        data: Any = self.data
        for depth, key in enumerate(parents):
            data = data.setdefault(key, {})
            self.lines.setdefault(tuple(parents[: depth + 1]), where)
            if not isinstance(data, dict):
                raise ScenarioError(f"{where}: '{'.'.join(parents[: depth + 1])}' is not a mapping")
        path = (*parents, last)
        self.lines = {at: line for at, line in self.lines.items() if at[: len(path)] != path}
        self.lines[path] = where
        data[last] = self._plain(compose(text, where), path, where, Path.cwd())

    def value(self, cls: type[V]) -> V:
        """The document as a value of `cls`.  Raises: ScenarioError at the first thing that is wrong."""
        data = self.data
        if "id" in cls.model_fields and "id" not in data:
            data = {"id": self.path.stem, **data}
        try:
            return cls.model_validate(data, context={"file": self.shown})
        except ValidationError as error:
            raise ScenarioError(self._first(error)) from None

    def _first(self, error: ValidationError) -> str:
        problem = error.errors(include_url=False)[0]
        context = problem.get("ctx", {})
        at: list[str | int] = list(problem["loc"])
        kind, given = problem["type"], problem["input"]
        if kind == "key":
            at.append(context["key"])
        dotted = ".".join(map(str, at))
        match kind:
            case "key" | "quantity":
                reason = context["reason"]
            case "missing":
                reason = f"'{at[-1]}' is missing" + (f" in {'.'.join(map(str, at[:-1]))}" if at[1:] else "")
            case "value_error" | "assertion_error":
                reason = f"{dotted}: {context['error']}" if dotted else str(context["error"])
            case "finite_number" | "greater_than" | "greater_than_equal" | "less_than_equal":
                # pydantic shows the value as converted; the reader knows it as written
                limits = " and ".join(f"{name.replace('_', ' ')}" for name in [kind])
                bound = next(iter(context.values()), "")
                reason = f"{dotted}: {self._written(at, given)}: it must be {limits} {bound}".rstrip()
                reason = reason.replace("be finite number", "be a finite number").replace("be greater", "be greater")
            case _:
                shown = "a mapping" if isinstance(given, Mapping) else "a list" if isinstance(given, tuple) else repr(given)
                message = problem["msg"].replace("Input should be", "it should be").replace("a valid dictionary", "a mapping")
                reason = f"{dotted}: {shown}: {message}"
        return f"{self._where(at)}: {reason}"

    def _written(self, at: list[str | int], given: object) -> str:
        data: Any = self.data
        try:
            for key in at:
                data = data[key]
            return f"'{data}'"
        except (KeyError, TypeError, IndexError):
            return repr(given)

    def _where(self, at: list[str | int]) -> str:
        while at and tuple(at) not in self.lines:
            at = at[:-1]
        return self.lines.get(tuple(at), f"{self.shown}:1")

    def _plain(self, node: yaml.Node, at: tuple[str | int, ...], where: str, folder: Path) -> Any:
        """Plain data of a node; texts become Text, and the line of each key is noted."""
        self._nodes += 1
        line = f"{where}:{node.start_mark.line + 1}" if not where.startswith("--set") else where
        if self._nodes > MAX_NODES or len(at) > 100:
            raise ScenarioError(f"{line}: more than {MAX_NODES} values, or nested too deep: aliases that multiply?")
        self.lines.setdefault(at, line)
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key_line = line if where.startswith("--set") else f"{where}:{key_node.start_mark.line + 1}"
                if not isinstance(key_node, yaml.ScalarNode):
                    raise ScenarioError(f"{key_line}: a key must be a plain word")
                key = key_node.value
                if key in mapping:
                    raise ScenarioError(f"{key_line}: '{key}' is given twice")
                self.lines[(*at, key)] = key_line
                mapping[key] = self._plain(value_node, (*at, key), where, folder)
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._plain(item, (*at, i), where, folder) for i, item in enumerate(node.value))
        return scalar(node, line, folder)


def scalar(node: yaml.Node, line: str, folder: Path) -> object:
    """null, a truth value, a number, or a Text; YAML's dates and sexagesimals stay texts."""
    text = str(node.value)
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int" if ":" not in text:
            return int(text.replace("_", ""), 0) if not text.lstrip("+-").isdigit() else int(text)
        case "float" if ":" not in text:
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").replace(".Inf", "inf"))
    return Text(text, line, folder)


def compose(text: str, where: str) -> yaml.Node:
    """The nodes of a YAML text.  Raises: ScenarioError for bad syntax or nothing to read."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        place = where if where.startswith("--set") else f"{where}:{line}"
        raise ScenarioError(f"{place}: YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ScenarioError(f"{where}:1: YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        raise ScenarioError(f"{where}: is empty" if where.startswith("--set") else f"{where}:1: the file is empty")
    return node


def load_text(path: Path, shown: str) -> str:
    """A file's text.  Raises: ScenarioError where it is missing, over 10 MB, unreadable or not UTF-8."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ScenarioError(f"{shown}:1: larger than 10 MB")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScenarioError(f"{shown}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
        raise ScenarioError(f"{shown}: {reason}") from None
    return text.replace("\t", " ") if path.suffix == ".json" else text  # JSON may indent by tabs, YAML may not


def shorten(path: Path) -> str:
    """The path as a person would type it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def nearest(word: str, names: Iterable[str]) -> str:
    """Up to three names that look like `word`, quoted, or ''."""
    return ", ".join(f"'{name}'" for name in difflib.get_close_matches(word, list(names), 3, 0.6))


def catalogue() -> Path:
    """The catalogue's folder: the package's own copy (in a wheel), else the checkout's."""
    package = Path(__file__).parent
    return package / "scenarios" if (package / "scenarios").is_dir() else package.parent / "scenarios"


def names(kind: str) -> dict[str, Path]:
    """The entries of one folder of the catalogue by name; kind 'scenarios' is the catalogue's own folder."""
    folder = catalogue() if kind == "scenarios" else catalogue() / kind
    return {p.stem: p for p in sorted(folder.glob("*")) if p.suffix in SUFFIXES}


def find(text: str, kind: str) -> Path:
    """The file that a text names: a path (it has a '/' or ends in .yaml or .json), else a catalogue name.

    Raises: ScenarioError with the nearest names.
    """
    where = f"{text.where}: " if isinstance(text, Text) else ""
    folder = text.folder if isinstance(text, Text) else Path.cwd()
    if "/" in text or text.endswith(SUFFIXES):
        path = folder / text
        if not path.is_file():
            raise ScenarioError(f"{where}{text}: no such file")
        return path
    known = names(kind)
    if text not in known:
        near = nearest(text, known)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
        raise ScenarioError(f"{where}'{text}' is not among the catalogue's {kind}; {hint}")
    return known[text]


def read(path: Path | str, cls: type[V]) -> V:
    """The value of class `cls` that a file describes.  Raises: ScenarioError."""
    return Document(Path(path)).value(cls)


def from_catalogue(kind: str, cls: type[Value]) -> BeforeValidator:
    """A field that may be given by catalogue name, by path, or as a mapping in place."""

    def load(given: object) -> object:
        return read(find(given, kind), cls) if isinstance(given, str) else given

    return BeforeValidator(load)


def of_kind(kinds: Mapping[str, type[Value]], base: type[Value]) -> BeforeValidator:
    """A field whose mapping says its `kind`: one of ours, or a user's class as 'module:Class'."""

    def choose(given: object, info: ValidationInfo) -> object:
        if not isinstance(given, Mapping):
            return given
        kind = given.get("kind")
        if not isinstance(kind, str):
            problem = f"{base.noun()} needs a kind: one of {', '.join(sorted(kinds))}"
            raise PydanticCustomError("quantity", "{reason}", {"reason": problem})
        cls = kinds.get(kind) or users_class(kind, base, kinds)
        return cls.model_validate({k: v for k, v in given.items() if k != "kind"}, context=info.context)

    return BeforeValidator(choose)


def users_class(kind: str, base: type[Value], kinds: Iterable[str]) -> type[Value]:
    """The class that 'my_chips:MyCompute' names, from my_chips.py beside the file, else from the path.

    Raises: ScenarioError where there is none, or it is not a subclass of `base`.
    """
    where = f"{kind.where}: " if isinstance(kind, Text) else ""
    module_name, colon, class_name = kind.partition(":")
    if not colon:
        near = nearest(kind, kinds)
        hint = f"did you mean {near}?" if near else f"choose of {', '.join(sorted(kinds))}"
        raise ScenarioError(f"{where}'{kind}' is not a kind of {base.noun()}; {hint}")
    beside = (kind.folder if isinstance(kind, Text) else Path.cwd()) / f"{module_name}.py"
    try:
        if beside.is_file():
            spec = importlib.util.spec_from_file_location(module_name, beside)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except Exception as error:
        raise ScenarioError(f"{where}'{kind}': {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ScenarioError(f"{where}'{kind}': {module_name} has no class {class_name} that is a {base.__name__}")
    return cls


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` at the end, all of them or (after an error) none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".writing-")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    with scratch as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            os.replace(file, folder / file.name)
