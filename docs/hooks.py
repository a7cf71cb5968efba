"""Pages that MkDocs makes from the code and from files of the repository: no copy can grow old.

Links in `pages/` are written as they work in the repository: `../../../CONTRIBUTING.md`. MkDocs
gets them as links of the site. Links to files that the site lacks become plain text.
"""

import ast
import html
import inspect
import io
import posixpath
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = "docs/pages"
LINE_LENGTH = 80
# Files of the repository that are pages of the site, too.
SHARED = {
    "README.md": "index.md",
    "scenarios/REFERENCE.md": "reference/keys.md",
    "scenarios/README.md": "reference/catalogue.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
}
NOTEBOOKS = {
    f"docs/notebooks/{name}.py": f"notebooks/{name}.md"
    for name in ("claims", "my_chip", "my_trace", "many_configurations")
}
PAGE_OF = SHARED | NOTEBOOKS
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")


def commands_page() -> str:
    """Return a page of all commands, with the help that `sramsim COMMAND -h` prints."""
    import typer

    import sim.cli

    group: Any = typer.main.get_command(sim.cli.app.app)
    parts = ["# Commands", "Made from the help of each command: `sramsim run -h` prints the same."]
    panels: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        panels.setdefault(command.rich_help_panel, []).append(name)
    rows = [f"| {panel} | {', '.join(map(_link, names))} |" for panel, names in panels.items()]
    parts.append("\n".join(["| to | commands |", "|---|---|", *rows]))
    for name, command in group.commands.items():
        parts += [f"## {name}", " ".join((command.help or "").split())]
        context = command.make_context(name, [], resilient_parsing=True)
        records = [param.get_help_record(context) for param in command.params]
        rows = [f"| {_code(record[0])} | {_cell(record[1])} |" for record in records if record]
        parts.append("\n".join(["| | meaning |", "|---|---|", *rows]))
        if command.epilog:
            parts.append(f"```sh\n{command.epilog.removeprefix('Example: ')}\n```")
    return "\n\n".join(parts) + "\n"


def _link(name: str) -> str:
    return f"[{name}](#{name})"


def _code(text: str) -> str:
    """Return a text as code in a table: backticks would show the backslash of an escaped bar."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def python_page() -> str:
    """Return a page of the public names of `sim`: their signatures and docstrings."""
    import sim

    parts = ["# Python", "Made from the docstrings of the package.", "## The package"]
    parts.append(f"```text\n{inspect.getdoc(sim)}\n```")
    for name in sim.__all__:
        member = getattr(sim, name)
        error = isinstance(member, type) and issubclass(member, Exception)
        values = isinstance(member, type) and hasattr(member, "model_fields")
        signature = "" if error or values else signature_text(inspect.signature(member))
        call = f"```python\nsim.{name}{signature}\n```" if signature else f"`sim.{name}`"
        parts += [f"## {name}", call]
        parts.append(f"```text\n{inspect.getdoc(member)}\n```")
    return "\n\n".join(parts) + "\n"


def signature_text(signature: inspect.Signature) -> str:
    """Return a signature, with a line for each parameter if one line is too short.

    Left out: modules of classes, and functions that are defaults, whose texts are addresses.
    """
    parameters = [_plain(str(parameter)) for parameter in signature.parameters.values()]
    bare = signature.replace(parameters=[])
    end = _plain(str(bare)).removeprefix("()")
    line = f"({', '.join(parameters)}){end}"
    if len(line) <= LINE_LENGTH:
        return line
    return "(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){end}"


def _plain(text: str) -> str:
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", re.sub(r"<function \S+ at \w+>", "...", text))


def code_page() -> str:
    """Return a map of the packages, by the first lines of their docstrings."""
    head = [
        "# Map of the code",
        "Made from the docstrings. A package imports only the packages below it; `pyproject.toml`"
        " holds the contract, and `make lint` checks it. Each package opens with an example and"
        " names the modules to read first.",
    ]
    layers = re.search(
        r'containers = \["sim"\].*?layers = \[(.*?)\]', (ROOT / "pyproject.toml").read_text(), re.S
    )
    assert layers
    names = re.findall(r"\w+", layers[1])
    rows = [
        f"| `{path.removesuffix('/__init__.py')}` | {_first_line(ROOT / path)} |"
        for name in names
        for path in (f"sim/{name}/__init__.py", f"sim/{name}.py")
        if (ROOT / path).exists()
    ]
    rows += [
        f"| `plots` | {_first_line(ROOT / 'plots' / '__init__.py')} |",
        "| `scenarios` | Questions, and the catalogue: chips, engines, models, measurements. |",
        "| `tests` | Tests of each package; `laws`, `oracles`, `published`, `benchmarks`. |",
        "| `docs` | These pages. |",
    ]
    return (
        "\n\n".join([*head, "\n".join(["| package | what it holds |", "|---|---|", *rows])]) + "\n"
    )


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


CELL = re.compile(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", re.DOTALL | re.MULTILINE)


@cache  # `mkdocs serve` builds the site after each change
def notebook_page(name: str, source: str) -> str:
    """Return a page of a notebook, with what each cell prints below it.

    source: cells of Python, separated by `# %%`; texts follow `# %% [markdown]` as comments.
    """
    parts, names = [], {"__name__": name}
    for cell in CELL.finditer(source):
        text = cell.group(2).strip("\n")
        if cell.group(1):
            parts.append(re.sub(r"^# ?", "", text, flags=re.MULTILINE))
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(text, name, "exec"), names)
        parts.append(f"```python\n{text}\n```")
        if printed.getvalue():
            parts.append(f"```text\n{printed.getvalue().rstrip()}\n```")
    head, *rest = parts
    about = (
        f"*A notebook, run when this page was built: `docs/notebooks/{name}.py`. VS Code, PyCharm"
        " and Jupyter (with Jupytext) open it.*"
    )
    title, _, text = head.partition("\n")
    return "\n\n".join([title, about, text.strip("\n"), *rest]) + "\n"


def notebook_file_page(file: str) -> str:
    """Return the page of a notebook's file."""
    path = ROOT / file
    return notebook_page(path.stem, path.read_text(encoding="utf-8"))


MADE: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
    "reference/code.md": code_page,
}
MADE |= {page: partial((ROOT / file).read_text, encoding="utf-8") for file, page in SHARED.items()}
MADE |= {page: partial(notebook_file_page, file) for file, page in NOTEBOOKS.items()}


def site_link(match: re.Match[str], file: str, page: str) -> str:
    """Return a link of a repository's file as a link of the site's page, or as plain text.

    file: where the link is written, from the repository's root. page: the page, from the site's.
    """
    picture, text, link, anchor = (
        match.group(1),
        match.group(2),
        match.group(3),
        match.group(4) or "",
    )
    if not link:
        return match.group(0)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link))
    if target in PAGE_OF:
        target = PAGE_OF[target]
    elif target.startswith(f"{PAGES}/"):
        target = target.removeprefix(f"{PAGES}/")
    else:
        return text
    return f"{picture}[{text}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor})"


def repository_file(page: str) -> str:
    """Return the file of the repository that a page of the site is made from."""
    return next((file for file, made in PAGE_OF.items() if made == page), f"{PAGES}/{page}")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the repository's links into links of the site."""
    here = page.file.src_uri
    return LINK.sub(lambda match: site_link(match, repository_file(here), here), markdown)
