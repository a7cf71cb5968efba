"""The command line: `sramsim run llama2-70b-lpu-vs-h100`.

Results go to stdout; progress, notes and errors go to stderr.
Read `app` first (the command and its errors), then `running` (the commands that simulate).
"""

# Importing a module registers its commands. Their order is that of `sramsim --help`.
# isort: off
from sim.cli import running, sizing, explaining, showing, exploring, measuring, writing
from sim.cli.app import main

# isort: on

__all__ = [
    "explaining",
    "exploring",
    "main",
    "measuring",
    "running",
    "showing",
    "sizing",
    "writing",
]
