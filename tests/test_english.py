"""Names and sentences are plain: the rules of CONTRIBUTING, as far as a program can check them."""

import ast
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

import sim

PACKAGE = Path(sim.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# The next rebuild rewrites this package, prose included.
REBUILT = (PACKAGE / "cost",)
PLAIN = [path for path in MODULES if not any(path.is_relative_to(each) for each in REBUILT)]
OPENINGS = re.compile(
    r"(?:^|[.:;!?]\s+|\n\s*\n\s*)"
    r"(Who|What|Whoever|Somebody|Nobody|That which|Of|So many|The same|By)\s",
)
NAMELESS = {"told", "asked", "found", "each", "given"}


def name_of(path):
    return str(path.relative_to(PACKAGE))


def definitions(tree):
    """Yield the public names that a module defines itself."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def test_public_names_are_unique():
    homes = defaultdict(list)
    for path in MODULES:
        for name in definitions(ast.parse(path.read_text())):
            homes[name].append(name_of(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def prose(path):
    """Yield line numbers and texts of docstrings and comments; a comment's lines are one text."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text
    last, begun, lines = -1, 0, []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            row, text = token.start[0], token.string.lstrip("# ")
            if row != last + 1 and lines:
                yield begun, " ".join(lines)
                lines = []
            if not lines:
                begun = row
            lines.append(text)
            last = row
    if lines:
        yield begun, " ".join(lines)


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_sentences_begin_with_their_subject(path):
    wrong = [
        f"{line}: {match.group(1)} …"
        for line, text in prose(path)
        for match in OPENINGS.finditer(text)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_variables_are_named_for_what_they_hold(path):
    tree = ast.parse(path.read_text())
    keys = {  # a field has the name of its key in files
        field.target
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    }
    names = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in keys
    }
    assert names & NAMELESS == set()


USER_ERRORS = {"UserError", "ScenarioError", "PlanError", "ScheduleError"}


DOCUMENTED = [path for path in PLAIN if path.parent.name != "cli"]  # docstrings there are help


@pytest.mark.parametrize("path", DOCUMENTED, ids=name_of)
def test_public_functions_list_the_user_errors_that_they_raise(path):
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        raised = {
            part.exc.func.id
            for part in ast.walk(node)
            if isinstance(part, ast.Raise)
            and isinstance(part.exc, ast.Call)
            and isinstance(part.exc.func, ast.Name)
        }
        if raised & USER_ERRORS and not re.search("Raises: |Raise ", ast.get_docstring(node) or ""):
            missing.append(f"{node.lineno}: {node.name}")
    assert missing == []


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_modules_are_short(path):
    """Stay under 400 lines, classes under 250."""
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 250, node.name
