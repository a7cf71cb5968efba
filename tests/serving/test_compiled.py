"""Compiled code works where nothing can be kept of it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import sim
from sim.serving import numba_cache as module
from sim.serving.numba_cache import OptionalCache, compiled


class Broken:
    """A cache whose files are cut off, on a disk that is full."""

    cache_path = "here"

    def load_overload(self, *_):
        raise EOFError("Ran out of input")

    def save_overload(self, *_):
        raise OSError(28, "No space left on device")


def test_a_cache_that_cannot_be_used_is_an_empty_one():
    cache = OptionalCache(Broken())
    assert cache.load_overload("signature", "context") is None
    assert cache.save_overload("signature", "code") is None
    assert cache.cache_path == "here"


def test_a_function_is_compiled_and_called_though_its_cache_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "OptionalCache", lambda _: OptionalCache(Broken()))
    assert compiled(lambda x: x + 1)(41) == 42


def test_a_function_is_compiled_where_no_folder_can_be_written(monkeypatch):
    before = module.njit

    def nowhere(*functions, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return before(*functions)

    monkeypatch.setattr(module, "njit", nowhere)
    assert compiled(lambda x: x + 1)(41) == 42


# A compiled function of the package, called with a slot that has neither steps nor time.
PROGRAM = """\
import numpy as np
from sim.serving import kernel
counts = np.ones((1, 7), np.int64)
kernel.empty(0, np.ones((1, 6)), counts)
print(counts[0, kernel.DUE])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"),
    reason="root, and no setpriv to be another user",
)
def test_an_installation_and_a_home_that_nobody_may_write_compile_all_the_same():
    """As another user where this one is root, whom no mode stops."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        package = Path(sim.__file__).parent
        for name in ("sim", "plots", "scenarios"):
            source = package if name == "sim" else package.parent / name
            shutil.copytree(
                source, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        subprocess.run(["chmod", "-R", "a-w,a+rX", folder], check=True)
        words = [sys.executable, "-B", "-c", PROGRAM]
        if os.geteuid() == 0:
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
        settings = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("NUMBA", "PYTHON", "XDG"))
        }
        ended = subprocess.run(
            words,
            cwd=folder,
            env=settings | {"HOME": "/nonexistent"},
            capture_output=True,
            text=True,
        )
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    if ended.returncode in (126, 127):
        pytest.skip("that user may not start this Python")
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "0\n")
