"""What the README shows is what the repository holds."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:yaml|python)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(
    "file",
    [
        "scenarios/llama2-70b-lpu-vs-h100.yaml",
        "tests/data/my-chip/my-chip.yaml",
        "tests/data/my-chip/my_chips.py",
        "tests/data/my-chip/mine.yaml",
    ],
)
def test_examples_are_files_that_tests_run(file):
    assert (ROOT / file).read_text(encoding="utf-8").rstrip() in [
        block.rstrip() for block in BLOCKS
    ]


def test_the_screen_it_shows_is_that_of_its_command(sramsim, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = sramsim("run", "llama2-70b-lpu-vs-h100")
    screen = "\n".join(line.rstrip() for line in out.splitlines())
    assert status == 0
    assert f"```\n{screen}\n```" in README


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "scenarios/README.md"])
def test_files_it_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"[` ]((?:sim|plots|tests|scenarios)/[\w./-]+)", text)
    named = [name.rstrip(".") for name in named]
    named += [
        str((ROOT / page).parent.relative_to(ROOT) / link.partition("#")[0])
        for link in re.findall(r"\]\(((?!http|#)[^)]+)\)", text)
    ]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_calls_the_test_command_of_the_readme():
    assert "make test" in README
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_map_is_made_from_the_packages():
    """Each package's row is the first line of its docstring; packages stand in the layers' order."""
    packages = [path.parent for path in (ROOT / "sim").glob("*/__init__.py")]
    firsts = {
        f"sim/{path.name}": (
            ast.get_docstring(ast.parse((path / "__init__.py").read_text())) or ""
        ).splitlines()[0]
        for path in packages
    }
    table = README.partition("## Map of the code")[2]
    assert dict(re.findall(r"^\| `(sim/[a-z]+)` \| (.*) \|$", table, re.MULTILINE)) == firsts


EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "sim").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_docstrings_are_true(module):
    assert not doctest.testmod(importlib.import_module(module)).failed
