"""Numba's compiler with a cache on disk. The cache saves seconds, and its failure is no error."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


class OptionalCache:
    """A cache of compiled code that is empty if it cannot be read, or cannot be written."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def load_overload(self, *key: Any) -> Any:
        """Return compiled code; None if a file is cut off, or belongs to another user."""
        with suppress(Exception):
            return self.cache.load_overload(*key)
        return None

    def save_overload(self, *entry: Any) -> None:
        # The disk may be full, or over quota.
        with suppress(OSError):
            self.cache.save_overload(*entry)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, or load what an earlier process compiled."""
    try:
        dispatcher: Any = njit(cache=True)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written.
        return njit(function)
    # Numba has no public way to continue when the disk is full.
    dispatcher._cache = OptionalCache(dispatcher._cache)
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function a part of the compiled functions that call it.

    A call with a dozen arrays would take a quarter of a step's time.
    """
    return njit(inline="always")(function)
