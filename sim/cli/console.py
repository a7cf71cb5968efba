"""Output of the commands: JSON and tables on stdout, notes and progress bars on stderr."""

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

WIDEST = 100  # columns of a screen of sentences; longer lines are hard to read
Progress = Callable[[str, int, int], None]  # system (or set, or points), done, total


def print_json(result: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(result, indent=2, allow_nan=False))


def show_table(table: "RenderableType") -> None:
    """Print a table of Rich, at least 120 columns wide where stdout is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width))
    console.print(table, markup=False)


def show_screen(screen: "Callable[[int], RenderableType]") -> None:
    """Print what a function returns for the width of the terminal, at most `WIDEST` columns.

    Where stdout is no terminal the width is `COLUMNS`, or 80.
    """
    from rich.console import Console

    console = Console()
    wide = console.width if console.is_terminal or "COLUMNS" in os.environ else 80
    console = Console(width=min(WIDEST, wide))
    console.print(screen(console.width), markup=False, highlight=False)


def note(line: str) -> None:
    """Print a line on stderr. A stderr that cannot be written is no error."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        discard_output(sys.stderr)


def prepare_streams() -> None:
    """Replace closed streams by the null device, and let stdout print '?' for unknown characters.

    A shell can start the process with stdout or stderr closed; they are None then.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def discard_output(stream: TextIO) -> None:
    """Redirect a stream to the null device, with all that it still buffers.

    Otherwise the flush at the end of the process would fail again.
    """
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def progress_bars() -> AbstractContextManager[Progress]:
    """Return a context with a callback for progress: bars on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(lambda system, done, total: None)
    return ProgressBars()


def status_line(task: str) -> AbstractContextManager[object]:
    """Return a context that shows a task on stderr while it runs, if that is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(task)


class ProgressBars:
    """A context with one progress bar for each system, updated at most a hundred times each."""

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self.progress = RichProgress(console=Console(stderr=True), transient=True)
        self.progress.start()
        self.tasks: dict[str, TaskID] = {}
        return self.update

    def update(self, system: str, done: int, total: int) -> None:
        """Show that `done` of `total` requests (or points) of a system are completed."""
        if system not in self.tasks:
            self.tasks[system] = self.progress.add_task(system, total=total)
        if done == total or done % max(1, total // 100) == 0:
            self.progress.update(self.tasks[system], completed=done)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
