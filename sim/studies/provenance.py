"""Digests of code, as kept in the points of a sweep: this package, and a user's modules.

users_digest(Path("my_chips.py"))  # changes with every file of the user that it imports
"""

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
    """Return the digest of this package's modules and model defaults, read once in a process.

    It changes with the code even if the version does not.
    """
    return _digest(PACKAGE, sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("model/*.yaml")]))


def users_digest(path: Path) -> str:
    """Return the digest of a user's module and of all the user's files that it imports.

    Direct and indirect imports count.
    """
    return _digest(path.parent, sorted(users_files(path)))


def users_files(path: Path) -> set[Path]:
    """Return a user's module and all the user's files that it imports, also inside functions.

    Left out: the standard library; installed packages, except the module's own; files that are
    read and not imported; imports with computed names.
    """
    top = _top(path)
    left, files = [path.resolve()], set[Path]()
    # The package of the module, or the module itself.
    package = top / left[0].relative_to(top).parts[0]
    while left:
        file = left.pop()
        if file in files:
            continue
        files.add(file)
        status = file.stat()
        for name in _imports(file, status.st_mtime_ns, status.st_size):
            left += [
                located
                for located in _located(name, top)
                if located.is_relative_to(package) or not _library(located)
            ]
    return files


def _digest(folder: Path, files: list[Path]) -> str:
    """Return a digest of the names, relative to a folder, and the contents of files."""
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
        total.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _top(path: Path) -> Path:
    """Return the folder from which a module, or its package, is imported."""
    folder = path.resolve().parent
    while (folder / "__init__.py").exists() and folder != folder.parent:
        folder = folder.parent
    return folder


@lru_cache(maxsize=1000)
def _imports(file: Path, changed: int, size: int) -> tuple[str, ...]:
    """Return the dotted names that a file imports; relative ones become absolute.

    changed, size: part of the cache's key, so that a changed file is read again.
    """
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
        elif isinstance(node, ast.Call):
            names += _named_import(node)
    return tuple(dict.fromkeys(name for name in names if name))


def _named_import(call: ast.Call) -> list[str]:
    """Return the name that `import_module("helpers")` or `__import__("helpers")` imports."""
    called = getattr(call.func, "id", getattr(call.func, "attr", ""))
    match call.args:
        case [ast.Constant(value=str(name)), *_] if called in ("import_module", "__import__"):
            return [name]
    return []


def _located(name: str, top: Path) -> Iterator[Path]:
    """Yield the files of a dotted name, and of the packages above it.

    They are looked up next to the user's module, and on the path.
    """
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
    """Return the folder from which a module is imported; nothing if there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # some modules hide their origin
        spec = None
    if spec is None or not spec.has_location or spec.origin is None:
        return []
    file = Path(spec.origin).resolve()
    return [file.parent.parent if file.name == "__init__.py" else file.parent]


def _library(file: Path) -> bool:
    """Return whether a file is in this package, the standard library or an installed package."""
    return any(file.is_relative_to(folder) for folder in LIBRARIES)
