"""Run the commands of pages, and write their outputs into the pages.

    python docs/outputs.py docs/pages/tutorial.md

The lines of a block `sh` are run one by one, in an empty folder that all blocks of a page share. A
block `text` directly after it holds the output, in 80 columns. A block with a `title` is first
written to a file of that name. A block `bash` is not run. A line that fails ends the program.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def filled(page: str, folder: Path, run: Callable[[str], str | None]) -> str:
    """Return a page with the output of its commands under them.

    run: returns what a command prints to stdout; None leaves the page as it is.
    """
    parts, end, printed, last = [], 0, None, 0
    for block in BLOCK.finditer(page):
        kind, title, body = block.groups()
        if title:
            (folder / title).write_text(body, encoding="utf-8")
        follows = not page[last : block.start()].strip()
        if kind == "text" and not title and follows and printed is not None:
            parts += [page[end : block.start(3)], printed]
            end = block.end(3)
        lines = [line for line in body.splitlines() if line and not line.startswith("#")]
        outputs = [run(line) for line in lines] if kind == "sh" else [None]
        printed = "".join(filter(None, outputs)) if None not in outputs else None
        last = block.end()
    return "".join([*parts, page[end:]])


def stripped(text: str) -> str:
    """Return a text without spaces at the ends of its lines, and with one line feed at its end."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"


def in_shell(folder: Path) -> Callable[[str], str]:
    """Return a function that runs a line in a shell, in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"COLUMNS": "80", "PATH": path}

    def run(line: str) -> str:
        print(f"$ {line}", file=sys.stderr)
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"status {done.returncode}: {line}")
        return stripped(done.stdout) if done.stdout.strip() else ""

    return run


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        with tempfile.TemporaryDirectory() as scratch:
            text = filled(path.read_text(encoding="utf-8"), Path(scratch), in_shell(Path(scratch)))
        path.write_text(text, encoding="utf-8")
