"""Numba's compiler, with a cache on disk where that works: it saves seconds, and is no reason to fail."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


class OptionalCache:
    """A cache of compiled code that is empty where it cannot be read, and forgets where it cannot be written."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def load_overload(self, *key: Any) -> Any:
        """Return compiled code, or None.  A file may be another user's, or half of what it was."""
        with suppress(Exception):
            return self.cache.load_overload(*key)
        return None

    def save_overload(self, *entry: Any) -> None:
        with suppress(OSError):  # the disk is full, or over quota
            self.cache.save_overload(*entry)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, or load what an earlier process compiled."""
    try:
        dispatcher: Any = njit(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(function)
    dispatcher._cache = OptionalCache(
        dispatcher._cache
    )  # Numba has no public way to outlive a full disk
    return dispatcher
