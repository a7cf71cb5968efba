"""Digests of code: of this package, and of a user's module with all that it imports of theirs.  Points of a sweep keep them."""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = [
    PACKAGE,
    *(
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ),
]


@cache
def package_digest() -> str:
    """Return the digest of this package's modules, whatever their version is called.  Read once in a process."""
    return _digest(PACKAGE, sorted(PACKAGE.rglob("*.py")))


def users_digest(path: Path) -> str:
    """Return the digest of a user's module and of every file of theirs that it imports, directly or not."""
    return _digest(path.parent, sorted(users_files(path)))


def users_files(path: Path) -> set[Path]:
    """Return a user's module and every file of theirs that it imports, also where a function imports it only when called.

    Left out: the standard library, installed packages (but the module's own), files that are read and not imported, and imports
    whose names are computed.
    """
    top = _top(path)
    left, found = [path.resolve()], set[Path]()
    package = top / left[0].relative_to(top).parts[0]  # the module's own, or the module
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        status = file.stat()
        for name in _imports(file, status.st_mtime_ns, status.st_size):
            left += [
                each
                for each in _located(name, top)
                if each.is_relative_to(package) or not _library(each)
            ]
    return found


def _digest(folder: Path, files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
        total.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _top(path: Path) -> Path:
    """The folder from which the module's package, or the module itself, is imported."""
    folder = path.resolve().parent
    while (folder / "__init__.py").exists() and folder != folder.parent:
        folder = folder.parent
    return folder


@lru_cache(maxsize=1000)
def _imports(file: Path, changed: int, size: int) -> tuple[str, ...]:
    """The dotted names that a file imports, those of a package's own absolute; `changed` and `size` tell its versions apart."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return ()
    top = _top(file)
    package = file.parent.relative_to(top).parts
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [
                base,
                *(f"{base}.{alias.name}" if base else alias.name for alias in node.names),
            ]
    return tuple(dict.fromkeys(name for name in names if name))


def _located(name: str, top: Path) -> Iterator[Path]:
    """The files of a dotted name, those of the packages above it too: beside the user's module, and where the path has it."""
    first, *rest = name.split(".")
    for folder in dict.fromkeys([top, *_origin(first)]):
        for part in (first, *rest):
            yield from (
                file.resolve()
                for file in (folder / part / "__init__.py", folder / f"{part}.py")
                if file.is_file()
            )
            folder = folder / part


def _origin(name: str) -> list[Path]:
    """The folder from which a module is imported, or would be; none where there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # it hides where it is from
        spec = None
    if spec is None or not spec.has_location or spec.origin is None:
        return []
    file = Path(spec.origin).resolve()
    return [file.parent.parent if file.name == "__init__.py" else file.parent]


def _library(file: Path) -> bool:
    """Whether a file is of this package, the standard library or an installed package."""
    return any(file.is_relative_to(folder) for folder in LIBRARIES)
