"""The command `sramsim`, and its errors as one line on stderr with exit status 2."""

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from sim import __version__
from sim.cli.console import discard_output, note, prepare_streams
from sim.inputs.errors import ArgumentError, UserError, expectation

# Panels of `sramsim --help`, in this order.
ASK, LOOK, TRUST, EXTEND = "Ask", "Look", "Trust", "Extend"

app = typer.Typer(
    name="sramsim",
    help="Simulate a language model in the SRAM of hundreds of chips, and compare it with GPUs.",
    epilog="Example: sramsim run llama2-70b-lpu-vs-h100 --plots",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# Typer's error for a wrong command line. Newer versions have their own copy of click, and older
# ones import it, so the class is looked up and not imported.
CommandLineError: Any = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)
# Options with another name than the argument of the function that they are passed to.
OPTIONS = {"cluster": "dask"}
INTERRUPTED = 130  # exit status that shells expect after Ctrl-C


@app.callback(invoke_without_command=True)
def root_command(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version, if `--version` is given."""
    if version:
        print(f"sramsim {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line, and exit with status 0, 2 (an error of the user) or 130 (Ctrl-C).

    An error of the user is one line on stderr, also in the user's own Python file. Errors of the
    program keep their traceback.
    """
    prepare_streams()
    warn_of_own_sim()
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        # Flush here: an error at the end of the process could not be printed as one line.
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of the pipe ended, as `head` does
        discard_output(sys.stdout)
        sys.exit(0)
    except (Exception, SystemExit) as error:
        message = user_message(error)
        if message is None:
            raise
        exit_with_error(message)
    if status == INTERRUPTED:
        note("interrupted; nothing was written")
    sys.exit(status if isinstance(status, int) else 0)


def user_message(error: BaseException) -> str | None:
    """Return the line for an error that the user can correct; None for an error of the program."""
    if isinstance(error, ArgumentError):
        return f"--{OPTIONS.get(error.argument, error.argument)}: {error.reason}"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, CommandLineError):
        message: str = error.format_message()
        context = getattr(error, "ctx", None)
        if reason := _option_reason(error):
            return f"{reason}; try sramsim {context.info_name} -h" if context else reason
        if context and message.startswith("Missing"):
            return f"{message.rstrip('.')}; try sramsim {context.info_name} -h"
        return message
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    if isinstance(error, OSError):
        return f"{error.filename or 'stdout'}: {error.strerror or error}"
    from sim.inputs.fields import own_code_error  # slow: it imports pydantic

    return own_code_error(error)


def _option_reason(error: Any) -> str:
    """Return '--jobs: got 0; expected at least 1'; '' for an error that is not of a value.

    Newer versions of Typer check values by pydantic, whose error is the cause.
    """
    option, cause = getattr(error, "param", None), error.__cause__
    if option is None or not hasattr(cause, "errors"):
        return ""
    wrong = cause.errors()[0]
    expected = expectation(wrong["type"], wrong.get("ctx", {}))
    return f"{option.opts[0]}: got {wrong['input']}; expected {expected}" if expected else ""


def warn_of_own_sim() -> None:
    """Print a note if a file in the working folder hides the package from Python started there."""
    if os.path.isfile("sim.py"):
        note(
            "sim.py in this folder hides the package sim from Python that starts here;"
            " try another name for it"
        )


def exit_with_error(reason: str) -> NoReturn:
    """Print a reason as one line on stderr, and exit with status 2."""
    note(" ".join(reason.splitlines()))
    try:
        sys.stdout.flush()
    except OSError:
        discard_output(sys.stdout)
    sys.exit(2)
