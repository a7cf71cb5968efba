"""The process in front of an engine: a queue of requests, their prompts, and tokens on their way out."""

import numpy as np
import pytest

from sim.serving.event_order import CallUrgently
from sim.serving.front_end import FrontEnd, FrontEndTimes
from sim.serving.policy import DEFAULT
from sim.serving.replica_config import ReplicaConfig
from sim.serving.service import Service
from sim.workload.requests import RequestBatch


def test_a_request_waits_for_the_work_before_it_and_for_its_own():
    """3 s for a prompt of 10; then 2 s for 4 tokens made in the meantime, less what has passed."""
    made = iter([0.0, 4.0, 4.0])
    front_end = FrontEnd(FrontEndTimes(1.0, prompt_token=0.2, token=0.5), lambda: next(made))
    assert [front_end.delay(now, prompt=10) for now in (0.0, 1.0, 20.0)] == [3.0, 7.0, 3.0]


@pytest.mark.parametrize("chips", [1, 2])
def test_tokens_so_far_are_those_of_the_tallies(make_deployment, chips):
    """On one stage (leaps), and on two of them (the compiled pipeline)."""
    deployment = make_deployment(chips=chips)
    requests, outputs = 12, np.array([9, 40, 17, 3] * 3)
    asked = RequestBatch(np.arange(requests) * 1e-5, np.full(requests, 5), outputs)
    config = ReplicaConfig(deployment.costs, deployment.limits, DEFAULT)
    service = Service(asked, [config], DEFAULT.router)
    fleet, made = service.fleet, []

    def compare(_):
        tallied = sum(tally.logits for tally, _ in fleet.mark().works)
        made.append(fleet.tokens_made())
        assert made[-1] == pytest.approx(tallied)

    for at in np.linspace(1e-6, 2e-3, 40):
        CallUrgently(service.env, at, compare)
    service.run()
    assert 0 < made[10] < made[20] < made[-1] <= outputs.sum()
