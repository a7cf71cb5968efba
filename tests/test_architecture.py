"""Importing the package stays light, and an installation is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import plots
import sim
from sim.inputs.names import catalogue_folder

ROOT = Path(__file__).parent.parent


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_the_package_imports_no_heavy_library():
    heavy = {"matplotlib", "scipy", "polars", "typer", "rich", "pint"}
    assert modules_after("import sim") & heavy == set()


def test_simulating_draws_nothing():
    assert "matplotlib" not in modules_after("import sim; sim.run")


def test_the_suite_tests_what_it_is_meant_to():
    installed = "site-packages" in str(sim.__file__)
    assert installed == bool(os.environ.get("SRAMSIM_INSTALLED"))


@pytest.mark.parametrize(
    ("name", "installed"),
    [
        ("sim", Path(sim.__file__).parent),
        ("plots", Path(plots.__file__).parent),
        ("scenarios", catalogue_folder()),
    ],
)
def test_an_installation_has_every_file_of_the_checkout(name, installed):
    """Tables, templates, the stub of the public names: a wheel could lack any of them."""
    files = {
        path.relative_to(ROOT / name)
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files
    assert {path.as_posix() for path in files if not (installed / path).is_file()} == set()


def test_the_top_of_the_checkout_holds_the_usual_files():
    """A command that is tried in the checkout may leave a page or a folder, which is not ours."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout of git")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    folders = {".ci", "docs", "plots", "scenarios", "sim", "tests"}
    files = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"}
    files |= {".gitignore", "SECURITY.md", "pyproject.toml"}
    assert top - folders - files == set()
