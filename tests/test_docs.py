"""The pages are alive: links lead somewhere, commands exist, and the tutorial prints what it shows."""

import importlib.util
import posixpath
import re
import shlex
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import typer

import sim.cli
from sim.inputs.names import catalogue_names

ROOT = Path(__file__).parent.parent
if not (ROOT / "docs").is_dir():
    pytest.skip("no pages beside the tests", allow_module_level=True)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


HOOKS, OUTPUTS = module("hooks"), module("outputs")
WRITTEN = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/pages").rglob("*.md")]
FILES = sorted([*WRITTEN, *HOOKS.SHARED])
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def anchors(file: str) -> frozenset[str]:
    """Return the anchors of a page, as forges and MkDocs make them from its headings."""
    made = HOOKS.MADE.get(file.removeprefix(f"{HOOKS.PAGES}/"))
    page = FENCE.sub("", made() if made else text_of(file))
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return frozenset(heading.strip().replace(" ", "-") for heading in plain)


def dead_links(file: str, text: str) -> list[str]:
    """Return the links of a page that lead to no file of the repository, no made page, or no anchor."""
    dead = []
    for match in HOOKS.LINK.finditer(FENCE.sub("", text)):
        link, anchor = match.group(3), (match.group(4) or "").removeprefix("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link)) if link else file
        made = target.removeprefix(f"{HOOKS.PAGES}/") in HOOKS.MADE
        there = made or (ROOT / target).exists()
        if not there or (anchor and target.endswith(".md") and anchor not in anchors(target)):
            dead.append(match.group(0))
    return dead


@pytest.mark.parametrize("file", FILES)
def test_links_lead_somewhere(file):
    assert dead_links(file, text_of(file)) == []


@pytest.mark.parametrize("file", FILES)
def test_inner_lists_are_inner_lists_on_the_site(file):
    """Forges also take two spaces, which Markdown for Python reads as the outer list."""
    assert re.findall(r"^ {1,3}[*-] .*", FENCE.sub("", text_of(file)), re.MULTILINE) == []


def test_a_dead_link_is_found():
    text = "[a](gone.md) [b](tutorial.md#gone) ![c](figures/gone.png) [d](tutorial.md#2-ask)"
    assert len(dead_links("docs/pages/index.md", text)) == 3


def test_a_notebook_is_a_page_with_its_outputs():
    source = "# %% [markdown]\n# # Sums\n#\n# With `x`.\n\n# %%\nx = 1\n\n# %%\nprint(x + 1)\n"
    title, about, *parts = HOOKS.notebook_page("sums", source).strip().split("\n\n")
    assert (title, "docs/notebooks/sums.py" in about) == ("# Sums", True)
    assert parts == [
        "With `x`.",
        "```python\nx = 1\n```",
        "```python\nprint(x + 1)\n```",
        "```text\n2\n```",
    ]


def test_every_notebook_is_a_page():
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/notebooks").glob("*.py")}
    assert set(HOOKS.NOTEBOOKS) == files
    nav = text_of("docs/mkdocs.yml")
    assert all(f"- {page}\n" in nav for page in HOOKS.NOTEBOOKS.values())


def test_signatures_have_no_modules_and_no_addresses():
    page = HOOKS.python_page()
    assert "<function" not in page
    assert "    scenario: Scenario | Mapping[str, Any] | Path | str,\n    seed: int | None" in page


# Commands.

GROUP = typer.main.get_command(sim.cli.app.app)
PLACEHOLDERS = re.compile(r"my[\w-]*|[A-Z]+(\|[A-Z]+)*|\.\.\.|.*\.(ya?ml|json|csv|ipynb)|out(/.*)?")
TAKES_SCENARIO = {"run", "check", "plan", "capacity", "sweep", "explain", "trace", "sensitivity"}


def commands(text: str) -> list[str]:
    """Return the commands of a page: in its blocks, in its sentences, and in the table of claims."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"&&|\||;|> ", line.partition(" #")[0])]
    inline = re.findall(r"`([^`]+)`", FENCE.sub("", text).replace("\n", " "))
    found = [part.strip() for part in [*parts, *re.split(r" && | \| ", " && ".join(inline))]]
    claims = [
        f"sramsim {each}"
        for row in re.findall(r"\| (`run .*?) \|$", text, re.MULTILINE)
        for each in re.findall(r"`(\w+ [^`]+)`", row)
    ]
    named = [re.sub(r"^(\.venv|venv)/bin/", "", part) for part in found]
    return [part for part in named if re.match(r"sramsim [\w-]", part)] + claims


def stale(command: str) -> str | None:
    """Return why a command cannot be run; None if it parses and names what exists."""
    name, *words = shlex.split(command)[1:]
    if name in ("-h", "--help", "--version", "--install-completion"):
        return None
    if name not in GROUP.commands:
        return f"no command {name}"
    words = [word for word in words if word not in ("...", "…")]
    if not words or words == ["-h"]:  # the name of a command in a sentence
        return None
    try:
        context = GROUP.commands[name].make_context(name, list(words))
    except sim.cli.app.CommandLineError as error:
        message = error.format_message()
        return None if message.startswith("Missing") else message
    if name == "show" and len(words) > 1 and words[0] != "measurement":
        known = words[1] in catalogue_names(f"{words[0].removesuffix('s')}s")
        return None if known or PLACEHOLDERS.fullmatch(words[1]) else f"no entry {words[1]}"
    named = next(filter(None, map(context.params.get, ("file", "files", "source"))), ())
    files = [named] if isinstance(named, str) else list(named)
    gone = [
        str(file)
        for file in files
        if name in TAKES_SCENARIO
        and not PLACEHOLDERS.fullmatch(str(file))
        and str(file) not in catalogue_names("scenarios")
    ]
    return f"no scenario {gone[0]}" if gone else None


@pytest.mark.parametrize("file", [file for file in FILES if file != "CHANGELOG.md"])
def test_commands_can_be_typed(file):
    found = {command: stale(command) for command in commands(text_of(file))}
    assert {command: reason for command, reason in found.items() if reason} == {}


def test_a_stale_command_is_found():
    page = "`sramsim simulate` `sramsim explain fleets` `sramsim show chip tpu-v99`\n\n```sh\nsramsim run fleet --plot\nsramsim run fleet\n```\n"
    assert [stale(command) is None for command in commands(page)] == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_every_figure_is_in_the_gallery():
    gallery = text_of("docs/pages/gallery.md")
    figures = {path.name for path in (ROOT / "docs/pages/figures").glob("*.png")}
    sections = re.split(r"!\[[^\]]*\]\(figures/", gallery)[1:]
    drawn = {section.partition(")")[0] for section in sections if "```sh\nsramsim" in section}
    assert drawn == figures


# The tutorial.

DRAWS = ("sramsim plot", "sramsim report")  # tests/plots draws every figure


def test_the_tutorial_prints_what_it_shows(sramsim, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> str | None:
        command, _, lines = line.partition(" | head -")
        if command.startswith(DRAWS):
            return None
        jobs = ["--jobs", "1"] if command.startswith("sramsim sweep") else []
        status, out, _ = sramsim(*shlex.split(command)[1:], *jobs)
        assert status == 0, line
        shown = out.splitlines()[: int(lines or len(out))]
        return OUTPUTS.stripped("\n".join(shown)) if out else ""

    page = text_of("docs/pages/tutorial.md")
    assert OUTPUTS.filled(page, tmp_path, run) == page
