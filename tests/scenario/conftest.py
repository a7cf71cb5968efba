"""Scenarios of a module's own text, `SPEC`: read, and as they run."""

import pytest

import sim
from sim.studies.run import run


@pytest.fixture(scope="module")
def read(tmp_path_factory, request):
    """Reads a text as the file mine.yaml; by default the module's `SPEC`."""
    path = tmp_path_factory.mktemp("spec") / "mine.yaml"

    def read_text(text=None):
        path.write_text(request.module.SPEC if text is None else text)
        return sim.read(path)

    return read_text


@pytest.fixture(scope="module")
def scenario(read):
    return read()


@pytest.fixture(scope="module")
def result(scenario):
    return run(scenario)
