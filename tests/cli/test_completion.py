"""The shell completes names of the catalogue and files, without reading any."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("sramsim run llama2", ["llama2-70b-lpu-vs-h100"]),
        ("sramsim show chip groq-lpu", ["groq-lpu-v1"]),
        ("sramsim show engine groq", ["groq-compiler"]),
        ("sramsim plan claims/sp", ["claims/speculation", "claims/speed-10x"]),
        ("sramsim check below/m", ["below/mine.yaml"]),
        ("sramsim check ./below/m", ["./below/mine.yaml"]),
        ("sramsim report o", ["out"]),
    ],
)
def test_the_shell_completes_names_and_files(sramsim, tmp_path, monkeypatch, words, names):
    """The shell asks by three variables what it may offer for the last word of a command line."""
    monkeypatch.chdir(tmp_path)
    for file in ("below/mine.yaml", "out/result.json"):
        Path(file).parent.mkdir()
        Path(file).write_text("")
    # Otherwise the name of the program would be that of the tests' own, if they began by `-m pytest`.
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
    monkeypatch.setenv("_SRAMSIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    status, out, _ = sramsim()
    assert (status, out.split()) == (0, names)


def test_help_and_completion_import_nothing_slow():
    code = (
        "import sys, contextlib, io\n"
        "from sim.cli import completion, main\n"
        "completion.complete_scenarios('ll')\n"
        "sys.argv[1:] = ['-h']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"pydantic", "yaml", "numpy", "pint"} & set(run.stdout.split()) == set()
