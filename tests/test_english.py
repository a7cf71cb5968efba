"""Names and sentences are plain: the rules of CONTRIBUTING, as far as a program can check them."""

import ast
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import sim

PACKAGE = Path(sim.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FIGURES = sorted((PACKAGE.parent / "plots").glob("*.py"))
OF_EACH_FIGURE = {"draw", "finding"}  # a module is a figure, and has both
OPENINGS = re.compile(
    r"(?:^|[.:;!?]\s+|\n\s*\n\s*)"
    r"(Who|What|Whoever|Somebody|Nobody|That which|Of|So many|The same|By)\s",
)
NAMELESS = {"told", "asked", "found", "each", "given"}


def name_of(path):
    return str(path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent))


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
    for path in (*MODULES, *FIGURES):
        for name in definitions(tree_of(path)):
            if path in MODULES or name not in OF_EACH_FIGURE:
                homes[name].append(path.relative_to(PACKAGE.parent).as_posix())
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


@cache
def tree_of(path):
    return ast.parse(path.read_text())


@cache
def nodes_of(path):
    return tuple(ast.walk(tree_of(path)))


def prose(path):
    """Yield line numbers and texts of docstrings and comments; a comment's lines are one text."""
    for node in nodes_of(path):
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


def test_sentences_begin_with_their_subject():
    wrong = [
        f"{name_of(path)}:{line}: {match.group(1)} …"
        for path in (*MODULES, *FIGURES)
        for line, text in prose(path)
        for match in OPENINGS.finditer(text)
    ]
    assert wrong == []


def variables(path):
    """Return the names that a module gives to variables and arguments."""
    nodes = nodes_of(path)
    keys = {  # a field has the name of its key in files
        field.target
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    }
    names = {
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in keys
    }
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return names


def test_variables_are_named_for_what_they_hold():
    nameless = {name_of(path): variables(path) & NAMELESS for path in (*MODULES, *FIGURES)}
    assert {name: names for name, names in nameless.items() if names} == {}


# The user's errors, and the class that a docstring may name in their place.
USER_ERRORS = {
    "UserError": {"UserError"},
    "ScenarioError": {"ScenarioError", "UserError"},
    "PlanError": {"PlanError", "UserError"},
    "ScheduleError": {"ScheduleError", "UserError"},
    "InexpressibleError": {"InexpressibleError", "UserError"},
}
DOCUMENTED = [path for path in MODULES if path.parent.name != "cli"]  # docstrings there are help


@cache
def error_makers():
    """Return the functions and methods that return a user's error, with its class."""
    return {
        node.name: node.returns.id
        for path in MODULES
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef)
        and isinstance(node.returns, ast.Name)
        and node.returns.id in USER_ERRORS
    }


def raised_errors(function, makers):
    """Yield the classes of a user's errors that a function raises, also `raise helper(...)`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = node.exc.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if (error := makers.get(name, name)) in USER_ERRORS:
                yield error


def undocumented_errors(nodes, makers):
    """Return 'line: function: class' of each error that a public function's docstring lacks."""
    return [
        f"{node.lineno}: {node.name}: {error}"
        for node in nodes
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        for error in sorted(set(raised_errors(node, makers)))
        if not any(
            re.search(rf"\bRaises?:? [^.]*\b{name}\b", ast.get_docstring(node) or "")
            for name in USER_ERRORS[error]
        )
    ]


def test_public_functions_list_the_user_errors_that_they_raise():
    wrong = [
        f"{name_of(path)}:{error}"
        for path in DOCUMENTED
        for error in undocumented_errors(nodes_of(path), error_makers())
    ]
    assert wrong == []


def test_an_error_that_a_helper_makes_is_one_that_the_function_raises():
    source = '''
def check(name):
    """Check a name.  Raises: UserError if it is short."""
    raise unknown_name(name)

def lay_out(self):
    """Lay out.  Raises: PlanError."""
    raise self.plan_error("x")

def load(name):
    """Return a file.  Raises: PlanError."""
    raise unknown_name(name)

def parse(text):
    """Return a value."""
    raise ScenarioError(text)
'''
    makers = {"unknown_name": "UserError", "plan_error": "PlanError"}
    assert undocumented_errors(ast.walk(ast.parse(source)), makers) == [
        "10: load: UserError",
        "14: parse: ScenarioError",
    ]


def test_modules_are_short():
    """Stay under 400 lines, classes under 250."""
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 400, path
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < 250, (path, node.name)
