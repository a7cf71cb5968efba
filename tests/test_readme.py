"""What the README shows is what the repository holds."""

import doctest
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join(
    (ROOT / "docs" / "pages" / "how-to" / page).read_text(encoding="utf-8")
    for page in ("chip.md", "scenario.md")
)
BLOCKS = re.findall(r'```(?:yaml|python)(?: title="[^"]+")?\n(.*?)```', PAGES, re.DOTALL)


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


def test_the_readme_is_short():
    """Matter that grows belongs in docs/pages."""
    assert len(README.splitlines()) < 150


def test_the_package_index_gets_no_link_that_is_dead_there():
    """The index shows the README without the repository: a relative link leads nowhere there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    shown = README
    for change in hook["substitutions"]:
        shown = re.sub(change["pattern"], change["replacement"], shown)
    assert "What does one user gain" in shown
    assert "\n*" not in shown  # a caption without its picture
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", shown) == []


EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "sim").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_docstrings_are_true(module):
    assert not doctest.testmod(importlib.import_module(module)).failed


def test_contributing_names_every_package():
    """The map has a row for each package, and names modules that are there."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| package |")[2]
    rows = [line.split("|")[1::2] for line in table.partition("\n\n")[0].splitlines()[2:]]
    named = [re.findall(r"`(\w+)`", packages) for packages, _ in rows]
    ours = {path.parent.name for path in (ROOT / "sim").glob("*/__init__.py")}
    assert {name for names in named for name in names} == ours | {"plots", "units"}
    for names, (_, modules) in zip(named, rows, strict=True):
        for module in re.findall(r"`(\w+\.py)`", modules):
            folders = [ROOT / "sim" / name for name in names] + [ROOT / "sim", ROOT / "plots"]
            assert any((folder / module).exists() for folder in folders), module
