"""The command line: `sramsim run llama2-70b-lpu-vs-h100`.

Read `app` first.
"""

from sim.cli.app import main

__all__ = ["main"]
