"""Errors about unknown names, with the names that look like them.

>>> str(unknown_name("catalog", "chip", ("chips", "engines")))
"catalog: got 'chip'; expected chips or engines; did you mean 'chips'?"
"""

from collections.abc import Iterable

from sim.inputs.errors import UserError, nearest_name


def spelling_hint(word: str, names: Iterable[str], otherwise: str) -> str:
    """Return "did you mean 'chips'?", or `otherwise` if no name looks like the word."""
    near = nearest_name(word, names)
    return f"did you mean {near}?" if near else otherwise


def unknown_name(where: str, name: str, names: Iterable[str]) -> UserError:
    """Return the error that a name is none of the expected ones.

    where: command, option, or file with line and key.
    """
    expected = list(names)
    *most, last = expected or ["none"]
    choice = f"{', '.join(most)} or {last}" if most else last
    hint = spelling_hint(name, expected, "")
    return UserError(
        "; ".join(filter(None, (f"{where}: got {name!r}", f"expected {choice}", hint)))
    )
