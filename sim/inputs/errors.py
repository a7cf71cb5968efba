"""Errors that the user can correct, and how they quote what the file says.

Each is one line: `file:line: key: got X; expected Y; try Z`.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

# Only a wrong file needs pydantic, which takes 0.1 s to import. `sramsim --help` does not.
if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import InitErrorDetails, PydanticCustomError

# The expected value, by the name that pydantic gives to the error.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "enum": "{expected}",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "string_type": "a text",
    "string_unicode": "a text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a length of at least {min_length}",
    "tuple_type": "a list",
}


class UserError(Exception):
    """An error that the user can correct: one line on stderr and exit status 2."""


class ArgumentError(UserError):
    """A wrong argument of a function; the command line names its own option instead."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(argument, reason)
        self.argument, self.reason = argument, reason

    def __str__(self) -> str:
        """Return the argument and the reason."""
        return f"{self.argument}: {self.reason}"


class ScenarioError(UserError):
    """An error in a file that the user wrote, with its line."""


def expectation(kind: str, context: Mapping[str, object]) -> str:
    """Return what was expected, for one of pydantic's errors; '' for a kind without words here."""
    numbers = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in context.items()
    }
    return _EXPECTED[kind].format(**numbers) if kind in _EXPECTED else ""


def quoted_value(value: object) -> str:
    """Return a value as an error quotes it: texts in quotes, long ones cut."""
    from sim.units import brief

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


def nearest_name(word: str, names: Iterable[str]) -> str:
    """Return up to three names that look like `word` or else contain it, quoted, or ''."""
    known = list(names)
    near = difflib.get_close_matches(word, known, 3, 0.6)
    if not near and len(word) > 2:
        near = [name for name in known if word in name][:3]
    return ", ".join(f"'{name}'" for name in near)


def error_at_key(path: tuple[str, ...], reason: str) -> "PydanticCustomError":
    """Return the error that `Document.value` reports at the line of a key, without the key."""
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("key", "{reason}", {"key": path, "reason": reason})


def missing_key(key: str, expected: str) -> "PydanticCustomError":
    """Return the error that a key is missing. expected: what its value means."""
    return error_at_key((key,), f"{key}: got nothing; expected {expected}")


def error_at_path(path: tuple[int | str, ...], value: object, reason: str) -> "ValidationError":
    """Return the error for a value at a path below the class that raises it.

    An error of that class itself would name the class's key instead.
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    problem = PydanticCustomError("value_error", "{error}", {"error": reason})
    details: InitErrorDetails = {"type": problem, "loc": path, "input": value}
    return ValidationError.from_exception_data(str(path[-1]), [details])


@contextmanager
def errors_below(*path: int | str) -> "Iterator[None]":
    """Report errors of values inside as errors at a path, followed by their own paths."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        at = (*path, *problem["loc"])
        raise error_at_path(at, problem["input"], problem["msg"]) from error
    except ValueError as error:
        raise error_at_path(path, None, str(error)) from error
