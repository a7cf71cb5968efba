"""What a key may be given as beside its own value: a short form, a catalogue name, one of several kinds, code of a user's own."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sim.inputs.files import Entry, ScenarioError, Text, Value, find_entry, nearest_name, read_value
from sim.inputs.overrides import overridden
from sim.units import brief


class Shorthand:
    """Marks a field that may be given in a short form: `read` turns that into what the field's class reads.

    `says` is for the JSON Schema: the schema of the short form.
    """

    def __init__(self, read_value: Callable[[object], object], says: dict[str, Any]) -> None:
        self.read, self.says = read_value, says

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [self.says, handler(schema)]}


class FromCatalogue:
    """Marks a field that may be given by catalogue name, by path, as a mapping in place, or as what it changes of another.

    `{like: groq-lpu-v1, memory.sram.capacity: 512 MB}` is the entry of that name with another capacity.
    """

    def __init__(self, kind: str, cls: type[Entry]) -> None:
        self.kind, self.cls = kind, cls

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self.load, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        text = {
            "type": "string",
            "description": f"a name among the catalogue's {self.kind}, or a file's path",
        }
        like = {"type": "object", "properties": {"like": text}, "required": ["like"]}
        return {
            "anyOf": [
                text,
                {**like, "description": "a mapping of `like` (such a text) and the keys to change"},
                handler(schema),
            ]
        }

    def load(self, given: object, validate: ValidatorFunctionWrapHandler) -> object:
        if isinstance(given, str):
            return read_value(find_entry(given, self.kind), self.cls)
        if not (isinstance(given, Mapping) and "like" in given):
            return validate(given)
        return overridden(given, self.kind, self.cls, validate)[1]


class OfKind:
    """Marks a field whose mapping says its `kind`: one of ours, or a user's class as 'module:Class'."""

    def __init__(self, kinds: Mapping[str, type[Value]], base: type[Value]) -> None:
        self.kinds, self.base = kinds, base
        self._describing = False

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.choose, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if self._describing:  # a kind that holds others of its own: described once
            inner = {
                "type": "object",
                "properties": {"kind": {"type": "string"}},
                "required": ["kind"],
            }
            return {**inner, "description": f"a {self.base.noun()} of any kind"}
        options = []
        self._describing = True
        for name, cls in sorted(self.kinds.items()):
            option = handler(cls.__pydantic_core_schema__)
            fields = handler.resolve_ref_schema(option)
            fields["properties"] = {"kind": {"const": name}, **fields["properties"]}
            fields["required"] = list(dict.fromkeys(["kind", *fields.get("required", [])]))
            options.append(option)
        self._describing = False
        own = {
            "type": "object",
            "properties": {"kind": {"type": "string", "pattern": ":"}},
            "required": ["kind"],
        }
        return {
            "anyOf": [*options, {**own, "description": "a class of your own: kind: module:Class"}]
        }

    def choose(self, given: object, info: ValidationInfo) -> object:
        if not isinstance(given, Mapping):
            return given
        kind = given.get("kind")
        if not isinstance(kind, str):
            problem = f"{self.base.noun()} needs a kind: one of {', '.join(sorted(self.kinds))}"
            raise PydanticCustomError("quantity", "{reason}", {"reason": problem})
        cls = self.kinds.get(kind) or users_class(kind, self.base, self.kinds)
        return cls.model_validate(
            {k: v for k, v in given.items() if k != "kind"}, context=info.context
        )


def users_class(kind: str, base: type[Value], kinds: Iterable[str]) -> type[Value]:
    """The class that 'my_chips:MyCompute' names, from my_chips.py beside the file, else from the path.

    Raises: ScenarioError where there is none, it is not a subclass of `base`, or it lacks one of its methods.
    """
    where, module_name, module, class_name = users_module(kind, f"a kind of {base.noun()}", kinds)
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ScenarioError(
            f"{where}{brief(kind)!r}: {module_name} has no class {class_name} that is a {base.__name__}"
        )
    if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ScenarioError(
            f"{where}{brief(kind)!r}: {class_name} does not define {', '.join(lacking)}"
        )
    return cls


def users_module(kind: str, what: str, kinds: Iterable[str]) -> tuple[str, str, ModuleType, str]:
    """The module that 'my_chips:MyCompute' names, from my_chips.py beside the file, else from the path: where the text stands, the
    module's name, the module, the name behind the colon.

    Raises: ScenarioError where the text names no module, or it cannot be imported.
    """
    where = f"{kind.where}: " if isinstance(kind, Text) else ""
    module_name, colon, name = kind.partition(":")
    if not (colon and module_name and name):
        near = nearest_name(kind, kinds)
        hint = f"did you mean {near}?" if near else f"choose of {', '.join(sorted(kinds))}"
        raise ScenarioError(f"{where}{brief(kind)!r} is not {what}; {hint}")
    beside = (kind.folder if isinstance(kind, Text) else Path.cwd()) / f"{module_name}.py"
    try:
        if os.path.isfile(beside):
            spec = importlib.util.spec_from_file_location(f"{module_name} ({beside})", beside)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module.__name__] = (
                module  # where dataclasses and pydantic look up what annotations name
            )
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        raise ScenarioError(f"{where}{brief(kind)!r}: {reason}") from error
    return where, module_name, module, name


class Named:
    """Marks a field that names a function: one of ours, or a user's as 'module:function'."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], what: str) -> None:
        self.functions, self.what = functions, what

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.choose)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        own = {
            "type": "string",
            "pattern": ":",
            "description": "a function of your own, as module:function",
        }
        return {"anyOf": [{"enum": sorted(self.functions)}, own]}

    def choose(self, given: object) -> Callable[..., Any]:
        if callable(given):
            return given
        if not isinstance(given, str):
            reason = f"it must name {self.what}: {', '.join(sorted(self.functions))}, or a function as module:function"
            raise PydanticCustomError("quantity", "{reason}", {"reason": reason})
        if given in self.functions:
            return self.functions[given]
        where, module_name, module, name = users_module(given, self.what, self.functions)
        function = getattr(module, name, None)
        if not callable(function):
            raise ScenarioError(f"{where}{brief(given)!r}: {module_name} has no function {name}")
        chosen: Callable[..., Any] = function
        return chosen
