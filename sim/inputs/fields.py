"""Fields with several spellings: a short form, a catalogue name, a kind, or a user's own code."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, core_schema

from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.files import shorten
from sim.inputs.key_paths import JsonObject
from sim.inputs.names import find_entry
from sim.inputs.overrides import overridden
from sim.inputs.read_files import record_file
from sim.inputs.suggestions import spelling_hint
from sim.inputs.values import Entry, Text, Value
from sim.units import brief, value_error

NUMBER_STARTS = tuple("0123456789.+-")
_OWN_FILES: set[str] = set()  # files of modules that users wrote, imported so far


class Shorthand:
    """A mark for a field with a short form, which `expand` turns into what the class reads.

    `schema` is the JSON Schema of the short form.
    """

    def __init__(self, expand: Callable[[object], object], schema: JsonObject) -> None:
        self.expand, self.schema = expand, schema

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        return {"anyOf": [self.schema, handler(schema)]}


def preset_shorthand(
    presets: Mapping[str, object], what: str, or_quantity: bool = False
) -> Shorthand:
    """Return the mark for a field that takes the name of a preset in place of its value.

    what: such as 'an SLO preset', for errors.
    or_quantity: whether a text that begins as a number does is left as it is.
    """

    def preset_value(value: object) -> object:
        if not isinstance(value, str) or (or_quantity and value.startswith(NUMBER_STARTS)):
            return value
        if value not in presets:
            hint = spelling_hint(value, presets, f"there are {', '.join(presets)}")
            raise value_error(f"got '{value}'; expected {what}; {hint}")
        return presets[value]

    return Shorthand(preset_value, {"enum": list(presets)})


class FromCatalogue:
    """A mark for a field that takes a catalogue name, a path, a mapping, or a change of an entry.

    `{like: groq-lpu-v1, memory.sram.capacity: 512 MB}` is the entry of that name with another
    capacity.
    """

    def __init__(self, kind: str, cls: type[Entry]) -> None:
        self.kind, self.cls = kind, cls

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self.load, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        text: JsonObject = {
            "type": "string",
            "description": f"a name among the catalogue's {self.kind}, or a file's path",
        }
        like: JsonObject = {"type": "object", "properties": {"like": text}, "required": ["like"]}
        description = "a mapping with `like` (a name or a path) and the keys to change"
        return {"anyOf": [text, {**like, "description": description}, handler(schema)]}

    def load(self, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        """Return the entry that the file's value names, changes or holds.

        Raises: PydanticCustomError or ScenarioError if there is none, or it is wrong.
        """
        if isinstance(value, str):
            return read_value(find_entry(value, self.kind), self.cls)
        if not (isinstance(value, Mapping) and "like" in value):
            return validate(value)
        return overridden(value, self.kind, self.cls, validate)[1]


class OfKind:
    """A mark for a field whose mapping names its `kind`: one of ours, or 'module:Class'."""

    def __init__(self, kinds: Mapping[str, type[Value]], base: type[Value]) -> None:
        self.kinds, self.base = kinds, base
        self._describing = False

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.choose, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        kind = f"Kind of {self.base.noun()}."
        if self._describing:  # a kind that holds others of its own: described once
            inner: JsonObject = {
                "type": "object",
                "properties": {"kind": {"type": "string", "description": kind}},
                "required": ["kind"],
            }
            return {**inner, "description": f"a {self.base.noun()} of any kind"}
        options = []
        self._describing = True
        for name, cls in sorted(self.kinds.items()):
            option = handler(cls.__pydantic_core_schema__)
            fields = handler.resolve_ref_schema(option)
            fields["properties"] = {
                "kind": {"const": name, "description": kind},
                **fields["properties"],
            }
            fields["required"] = list(dict.fromkeys(["kind", *fields.get("required", [])]))
            options.append(option)
        self._describing = False
        own: JsonObject = {
            "type": "object",
            "properties": {"kind": {"type": "string", "pattern": ":", "description": kind}},
            "required": ["kind"],
        }
        return {
            "anyOf": [*options, {**own, "description": "a class of your own: kind: module:Class"}]
        }

    def choose(self, value: object, info: ValidationInfo) -> object:
        """Return the value of the class that `kind` names.

        Raises: PydanticCustomError without a kind. Raises: ScenarioError as `custom_class`.
        """
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind")
        if not isinstance(kind, str):
            names = ", ".join(sorted(self.kinds))
            problem = f"got no kind of {self.base.noun()}; expected one of {names}"
            raise value_error(problem)
        cls = self.kinds.get(kind) or custom_class(kind, self.base, self.kinds)
        return cls.model_validate(
            {key: part for key, part in value.items() if key != "kind"}, context=info.context
        )


class Named:
    """A mark for a field that names a function: one of ours, or a user's 'module:function'."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], what: str) -> None:
        self.functions, self.what = functions, what

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.choose)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        own = {
            "type": "string",
            "pattern": ":",
            "description": "a function of your own, as module:function",
        }
        return {"anyOf": [{"enum": sorted(self.functions)}, own]}

    def choose(self, value: object) -> Callable[..., Any]:
        """Return the function that a text names.

        Raises: PydanticCustomError for anything else. Raises: ScenarioError without a function.
        """
        if callable(value):
            return value
        if not isinstance(value, str):
            names = ", ".join(sorted(self.functions))
            reason = f"expected {self.what}: {names}, or a function as module:function"
            raise value_error(reason)
        if value in self.functions:
            return self.functions[value]
        return _function(_custom_name(value, self.what, self.functions))


def own_function(text: str, what: str) -> Callable[..., Any]:
    """Return the function that 'my_figures.py:draw' names, of a file or an importable module.

    Raises: ScenarioError if there is no such file, module or function.
    """
    return _function(_custom_name(text.replace(".py:", ":", 1), what, ("my.py:draw",)))


def own_file(text: str) -> Path | None:
    """Return the file of the imported module that 'my_chips:MyCompute' names; None without one."""
    module_name, _, name = text.partition(":")
    if not (module_name and name.isidentifier()):
        return None
    path = _module_path(text, module_name)
    if path.is_file():
        return path
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return Path(file) if file else None


def custom_class(kind: str, base: type[Value], kinds: Iterable[str]) -> type[Value]:
    """Return the class that 'my_chips:MyCompute' names.

    The module is my_chips.py in the folder of the file, or else importable.

    Raises: ScenarioError if there is no such subclass of `base`, or it lacks one of its methods.
    """
    custom = _custom_name(kind, f"a kind of {base.noun()}", kinds)
    cls = getattr(custom.module, custom.name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise custom.error(
            f"{custom.module_name} has no class {custom.name} that is a {base.__name__}"
        )
    if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
        raise custom.error(f"{custom.name} does not define {', '.join(lacking)}")
    return cls


@dataclass(frozen=True, slots=True)
class _CustomName:
    """A user's 'module:name', with its module imported."""

    text: str
    module_name: str
    module: ModuleType
    name: str

    def error(self, reason: str) -> ScenarioError:
        """Return an error at the place of the text."""
        return ScenarioError(f"{_where(self.text)}{brief(self.text)!r}: {reason}")


def _custom_name(text: str, what: str, kinds: Iterable[str]) -> _CustomName:
    """Return the module and the name of 'my_chips:MyCompute'.

    Raises: ScenarioError if the text names no module, or the module cannot be imported.
    """
    module_name, colon, name = text.partition(":")
    if not (colon and module_name and name):
        hint = spelling_hint(text, kinds, f"choose from {', '.join(sorted(kinds))}")
        raise ScenarioError(f"{_where(text)}got {brief(text)!r}; expected {what}; {hint}")
    try:
        module = _import(module_name, _module_path(text, module_name))
    except (Exception, SystemExit) as error:
        reason = f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        raise ScenarioError(f"{_where(text)}{brief(text)!r}: {reason}") from error
    return _CustomName(text, module_name, module, name)


def _module_path(text: str, module_name: str) -> Path:
    """Return where a module would be next to the file that names it."""
    folder = text.folder if isinstance(text, Text) else Path.cwd()
    return folder / f"{module_name}.py"


def _function(custom: _CustomName) -> Callable[..., Any]:
    """Return the function of a user's name.  Raises: ScenarioError if the module has none."""
    function = getattr(custom.module, custom.name, None)
    if not callable(function):
        raise custom.error(f"{custom.module_name} has no function {custom.name}")
    chosen: Callable[..., Any] = function
    return chosen


def _import(module_name: str, path: Path) -> ModuleType:
    """Return the module of a file, if the file exists, or else of the Python path."""
    record_file(path)
    if not os.path.isfile(path):
        return importlib.import_module(module_name)
    spec = importlib.util.spec_from_file_location(f"{module_name} ({path})", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _OWN_FILES.add(os.path.abspath(path))
    # Dataclasses and pydantic look up the names in annotations there.
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def own_code_error(error: BaseException) -> str | None:
    """Return the message for an error in a user's module, with the last line of it that ran.

    None if it passed through none, so that it is no error of the user's code.
    """
    lines = traceback.extract_tb(error.__traceback__)
    own = [line for line in lines if line.filename in _OWN_FILES]
    if not own:
        return None
    text = " ".join(str(error).splitlines())
    place = f"{shorten(Path(own[-1].filename))}:{own[-1].lineno}"
    return f"{place}: got {type(error).__name__}: {text}; try correcting this line"


def _where(text: str) -> str:
    """Return the place of a text from a file, as an error begins with it."""
    return f"{text.where}: " if isinstance(text, Text) else ""
