"""Errors of values that are changed in Python: they name the argument."""

import pytest

import sim


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"workload__rate": 2}, "argument workload__rate: got 2 without a unit; try '2 request/s'"),
        ({"workload__rat": "2 request/s"}, "argument workload__rat: poisson has no 'rat'"),
        ({"systems__nope__chips": 3}, "argument systems__nope__chips: got system 'nope'"),
        ({"systems__lpu": {"chips": "x"}}, "argument systems__lpu: systems.lpu.chips: got 'x'"),
    ],
)
def test_an_error_names_the_argument_of_python(changes, error):
    with pytest.raises(sim.ScenarioError) as caught:
        sim.run("llama2-70b-lpu-vs-h100", **changes)
    assert str(caught.value).startswith(error)
    option = error.replace("argument", "--set", 1).replace("__", ".")
    lines = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    with pytest.raises(sim.ScenarioError) as caught:
        sim.read("llama2-70b-lpu-vs-h100", [line.replace("'", '"') for line in lines])
    assert str(caught.value).startswith(option)
