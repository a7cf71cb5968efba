"""Errors about unknown names, with the names that look like them.

>>> str(unknown_name("catalog", "chip", ("chips", "engines")))
"catalog: got 'chip'; expected chips or engines; did you mean 'chips'?"
"""

from collections.abc import Iterable

from sim.inputs.errors import UserError, nearest_name


def unknown_name(where: str, name: str, names: Iterable[str]) -> UserError:
    """Return the error that a name is none of the expected ones.

    where: command, option, or file with line and key.
    """
    expected = list(names)
    *most, last = expected or ["none"]
    choice = f"{', '.join(most)} or {last}" if most else last
    near = nearest_name(name, expected)
    return UserError(
        f"{where}: got {name!r}; expected {choice}" + (f"; did you mean {near}?" if near else "")
    )
