"""What travels between prefill and decode pools, and how long the links are busy with it."""

from dataclasses import replace
from itertools import pairwise

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.plan import Plan
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names, find_entry
from sim.model.transformer import Model
from sim.planning.deployment import DeploymentParts, deploy
from sim.serving.policy import Policies, least_loaded
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.service import Service
from sim.serving.transfer import EarlyParts, KVLinks, PoolConfig, Transfer, chunk_times, early_parts
from sim.workload.requests import RequestBatch


@pytest.fixture(scope="module")
def config(make_deployment, lossy):
    deployment = make_deployment(1, engine=lossy)
    return ReplicaConfig(deployment.costs, deployment.limits, Policies(prefix_caching=True))


@pytest.fixture
def links(config):
    """Of three replicas, at 1 B/s."""
    return KVLinks(Transfer(bandwidth=1.0), [config] * 3)


def test_a_transfer_that_is_broken_off_was_busy_until_then(links):
    sent = links.send(0.0, (0, 1), 10.0)
    links.break_off(4.0, (0, 1), sent)
    assert links.busy == [4.0, 4.0, 0.0]
    assert links.send(5.0, (0, 1), 1.0) == [(5.0, 6.0)]


def test_a_transfer_that_is_broken_off_before_its_start_was_never_busy(links):
    links.send(0.0, (0, 1), 10.0)
    sent = links.send(0.0, (0, 2), 5.0)
    links.break_off(4.0, (0, 2), sent)
    assert links.busy == [10.0, 10.0, 0.0]
    assert links.send(4.0, (0, 2), 5.0) == [(10.0, 15.0)]


def test_a_transfer_that_is_broken_off_keeps_its_place_before_booked_ones(links):
    sent = links.send(0.0, (0, 1), 10.0)
    links.send(0.0, (0, 2), 5.0)
    links.break_off(4.0, (0, 1), sent)
    assert links.send(4.0, (1, 2), 1.0) == [(15.0, 16.0)]  # behind the booked one, on replica 2
    assert links.busy == [9.0, 5.0, 6.0]


@hypothesis.given(
    st.lists(
        st.tuples(
            st.floats(0, 50),
            st.sampled_from([(0, 1), (0, 2), (1, 2)]),
            st.floats(0.01, 20),
            st.integers(1, 5),
            st.floats(0, 30),
        ),
        max_size=12,
    )
)
def test_no_more_bytes_pass_a_link_than_its_bandwidth_allows(config, transfers):
    """Early parts count, too. All bytes are sent, and the last part after its prompt is computed."""
    links = KVLinks(Transfer(bandwidth=1.0), [config] * 3, longest_prefill=30.0)
    used = [[], [], []]
    for now, ends, nbytes, count, window in sorted(transfers):
        sent = links.send(now, ends, nbytes, EarlyParts(count, window if count > 1 else 0.0))
        assert sum(end - start for start, end in sent) == pytest.approx(nbytes, abs=1e-9)
        assert sent[0][0] >= now - window - 1e-9 if sent else not nbytes
        assert not sent or sent[-1][1] >= now + nbytes / count - 1e-9
        for end in ends:
            used[end] += sent
    for number, link in enumerate(used):
        assert all(one[1] <= other[0] + 1e-9 for one, other in pairwise(sorted(link)))
        assert links.busy[number] == pytest.approx(sum(end - start for start, end in link))


def test_two_prompts_that_end_together_share_the_link(links):
    """Each has 10 parts of 1 s, computed over 9 s. They need 20 s of the link, 9 s of them early."""
    links.longest_prefill = 9.0
    parts = EarlyParts(10, 9.0)
    assert links.send(20.0, (0, 1), 10.0, parts)[-1][1] == 21.0
    assert links.send(20.0, (0, 2), 10.0, parts)[-1][1] == 31.0
    slow = EarlyParts(10, 18.0)  # computed over 18 s, so the link has time for both
    assert links.send(80.0, (0, 1), 10.0, slow)[-1][1] == 81.0
    assert links.send(80.0, (0, 2), 10.0, slow)[-1][1] == 82.0


def served(asked, prefill_config, decode_config, prefill=1, bandwidth=1e9, overlap="none"):
    """The rows of some prefill replicas and one decode replica."""
    pools = PoolConfig(prefill, Transfer(bandwidth=bandwidth, overlap=overlap))
    configs = [*[prefill_config] * prefill, decode_config]
    numbered = [replace(config, number=number) for number, config in enumerate(configs)]
    return Service(asked, numbered, least_loaded, pools=pools).run()


def test_what_the_decode_replica_has_does_not_travel(config):
    """The second prompt begins with 40 tokens of the first: two blocks of 16 are there already."""
    asked = RequestBatch(
        np.array([0.0, 10.0]), np.array([60, 60]), np.array([5, 5]), shared_prefix=40
    )
    layout = config.costs.layout
    moved = served(asked, config, config).transfers.nbytes
    assert moved == prompt_kv_bytes(layout, 60) + prompt_kv_bytes(layout, 60 - 32)


def test_a_prompt_whose_beginning_will_not_come_travels_whole(config):
    """Request 1 counts on blocks of request 0, whose deadline passes while it is prefilled."""
    costs, limits = config.costs, replace(config.limits, context=10**6, kv_tokens=10**6)
    long = chunk_times(costs, limits, 5000)[-1]
    deadline = 0.6 * long
    asked = RequestBatch(
        np.array([0.0, 0.9 * deadline]), np.array([5000, 2000]), np.array([5, 5]), shared_prefix=40
    )
    nbytes = {}
    for given in (deadline, 10 * long):
        policies = replace(config.policies, deadline=given)
        early = replace(config, limits=limits)
        late = replace(early, policies=policies)
        rows = served(asked, early, late, prefill=2, overlap="layers")
        assert rows.finished.tolist() == [given > deadline, True]
        nbytes[given] = rows.transfers.nbytes
    layout = costs.layout
    assert nbytes[deadline] == prompt_kv_bytes(layout, 2000)
    both = prompt_kv_bytes(layout, 5000) + prompt_kv_bytes(layout, 2000 - 32)
    assert nbytes[10 * long] == pytest.approx(both)


def test_only_what_is_computed_hides_layers_that_leave_early(config):
    """With 32 of 60 tokens cached where the prompt is computed, all layers leave, but later."""
    asked = RequestBatch(
        np.array([0.0, 10.0]), np.array([60, 60]), np.array([5, 5]), shared_prefix=40
    )
    decode = replace(config, policies=Policies())
    rows = served(asked, config, decode, bandwidth=1e7, overlap="layers")
    layers, layout = config.costs.layout.model.num_hidden_layers, config.costs.layout
    whole = prompt_kv_bytes(layout, 60) / 1e7
    hidden = (layers - 1) / layers * chunk_times(config.costs, config.limits, 60 - 32)[-1]
    took = rows.transfers.end - rows.transfers.start
    assert took[1] == pytest.approx(whole - hidden)
    assert took[1] > took[0]


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("prompt", [30, 64, 200, 640])
def test_chunks_leave_when_a_prefill_replica_has_computed_them(
    make_deployment, lossy, serve_on, stages, ranks, prompt
):
    """In a pipeline, several stages compute chunks of one prompt. A rank computes it alone."""
    plan = Plan(pipeline=stages, attention_data=ranks)
    deployment = make_deployment(stages * ranks, plan=plan, engine=lossy, token_budget=64)
    times = chunk_times(deployment.costs, deployment.limits, prompt)
    assert len(times) == -(-prompt // 64)
    first = serve_on(deployment, [(0.0, prompt, 2)]).first_token[0]
    assert times[-1] == pytest.approx(first, rel=0.05)  # without the head
    early = {
        overlap: early_parts(Transfer(bandwidth=1.0, overlap=overlap), *config, prompt, 10.0)
        for overlap in ("chunks", "layers")
        for config in [(deployment.costs, deployment.limits)]
    }
    assert early["chunks"] == (len(times), times[-1] - times[0])
    assert early["layers"] == (4, 3 / 4 * times[-1])


def test_early_parts_leave_the_luck_of_drawn_experts_alone(
    make_deployment, make_model, make_chip, lossy
):
    """The links need the time of a prompt, for which expected loads of the experts stand."""
    moe = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    deployment = make_deployment(
        1, model=make_model(**moe), chip=make_chip(capacity=1e7), engine=lossy
    )
    asked = RequestBatch(np.zeros(6), np.full(6, 60), np.full(6, 5))
    first = []
    for overlap in ("none", "layers", "chunks"):
        pools = [
            ReplicaConfig(
                deployment.costs.on(replace(deployment.layout, expert_seed=(seed,))),
                deployment.limits,
                Policies(),
            )
            for seed in (7, 8)
        ]
        first.append(served(asked, *pools, overlap=overlap).first_token)
    assert (first[0] == first[1]).all()
    assert (first[0] == first[2]).all()


def test_requests_that_no_prefill_replica_serves_wait_for_the_prefill_pools_deadline(config):
    asked = RequestBatch(np.array([0.0]), np.array([60]), np.array([5]))
    prefill = replace(
        config, policies=Policies(deadline=2.0), outages=(Outage(at=0.0, lasts=50.0),)
    )
    rows = served(asked, prefill, replace(config, policies=Policies()))
    assert (rows.finished.tolist(), rows.ended.tolist()) == ([False], [2.0])


def test_states_travel_whole_and_copies_of_kv_heads_travel_each():
    model = read_value(catalogue_names("models")["nemotron-nano-9b-v2"], Model)
    layout = on_h100s(model, tensor=1)
    (stage,) = layout.stages
    assert prompt_kv_bytes(layout, 0) == stage.state > 0
    assert prompt_kv_bytes(layout, 7) == stage.state + 7 * stage.kv_per_token
    # Four KV heads on eight chips: two chips hold each.
    model = model.model_copy(update={"num_key_value_heads": 4})
    copied, alone = (
        prompt_kv_bytes(layout, 7) - prompt_kv_bytes(layout, 0)
        for layout in (on_h100s(model, tensor=8), on_h100s(model, tensor=4))
    )
    assert copied == 2 * alone


def on_h100s(model, tensor):
    chip = read_value(find_entry("h100-sxm", "chips"), Chip)
    engine = read_value(find_entry("ideal", "engines"), Engine)
    parts = DeploymentParts(model, chip, tensor, engine, Plan(tensor=tensor), None, None)
    return deploy(parts, 2048).layout
