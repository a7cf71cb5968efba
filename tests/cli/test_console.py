"""What goes to stderr: progress on a terminal, and loads with their unit."""

import io
import sys

import pytest

from sim.cli.console import status_line
from sim.cli.options import print_trial
from sim.studies.load_trial import LoadTrial


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_slow_task_is_shown_on_a_terminal_only(monkeypatch, stream, shown):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with status_line("drawing figures"):
        pass
    assert ("drawing figures" in stream.getvalue()) == shown
    assert bool(stream.getvalue()) == shown


@pytest.mark.parametrize(("closed", "load"), [(False, "12.5 request/s"), (True, "12.5 users")])
def test_a_trial_names_the_unit_of_its_load(capsys, closed, load):
    print_trial("lpu", LoadTrial(12.5, 0.93, "STABLE", 1.0, 1.0, {}, (0.0, 1.0), closed))
    assert capsys.readouterr().err == f"lpu: at {load}, 93.0 % meet the SLO, STABLE\n"
