"""KV cache of layers with and without a window, on stages that hold unequal numbers of both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.plan import Plan

WINDOW = 24
LAYER = 2 * 2 * 16 * 2  # B of a token in a layer: K and V, two heads of 16, at 2 B
LAYERS = st.lists(st.sampled_from(["sliding_attention", "full_attention"]), min_size=4, max_size=4)


@pytest.fixture(scope="module")
def lay(make_deployment, make_model, make_chip):
    """Four layers of two kinds on two or three stages, which differ in weights, too."""
    found = {}

    def build(layers, stages, capacity):
        key = tuple(layers), stages, capacity
        if key not in found:
            found[key] = make_deployment(
                stages,
                model=make_model(sliding_window=WINDOW, layer_types=tuple(layers)),
                chip=make_chip(capacity=capacity),
                plan=Plan(pipeline=stages),
                token_budget=64,
            )
        return found[key]

    return build


def kept(deployment, tokens):
    """Bytes that a sequence of so many tokens needs on each stage, layer by layer."""
    model, nbytes = deployment.layout.model, []
    for stage in deployment.layout.stages:
        blocks = model.blocks[stage.first : stage.last + 1]
        windows = [mixer.window for block in blocks for mixer in block.mixers]
        nbytes.append(sum(LAYER * min(tokens, window or tokens) for window in windows))
    return np.array(nbytes)


def rooms(deployment):
    """Bytes that each stage has for KV cache, beside its weights and activations."""
    layout = deployment.layout
    return np.array([layout.usable - layout.activations - s.weights for s in layout.stages])


@settings(max_examples=40)
@given(
    LAYERS,
    st.sampled_from([2, 3]),
    st.sampled_from([2.3e5, 3e5]),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=40),
)
def test_no_stage_holds_more_kv_than_it_has_room_for(
    lay, serve_on, layers, stages, capacity, sizes
):
    deployment = lay(layers, stages, capacity)
    rows = serve_on(deployment, [(0.0, prompt, output) for prompt, output in sizes])
    needed = [kept(deployment, prompt + output) for prompt, output in sizes]
    room = rooms(deployment)
    for moment in np.unique(rows.admitted[rows.finished]):
        held = np.flatnonzero((rows.admitted <= moment) & (moment < rows.last_token))
        assert (sum(needed[number] for number in held) <= room).all()


S, F = "sliding_attention", "full_attention"


@pytest.mark.parametrize("layers", [(F, F, F, F), (S, S, S, S), (S, S, F, S)])
def test_as_many_sequences_are_admitted_as_by_hand(lay, serve_on, layers):
    """Equal requests of 60 tokens at once, which keep 24 tokens in a layer with a window.

    On the stage that saves least, it is also the room that binds: so the count is exact.
    """
    deployment = lay(layers, 2, 3e5)
    rows = serve_on(deployment, [(0.0, 20, 40)] * 60)
    running = int((rows.admitted == 0).sum())
    assert 0 < running < 60
    assert running == min(rooms(deployment) // kept(deployment, 60))


def test_the_stage_that_saves_least_counts_for_all(lay, serve_on):
    """Three windows on the first stage, none on the second: sequences count 60 tokens on both."""
    deployment = lay((S, S, S, F), 2, 3e5)
    assert kept(deployment, 60).tolist() == [3 * 24 * LAYER, 60 * LAYER]
    rows = serve_on(deployment, [(0.0, 20, 40)] * 60)
    whole = min(rooms(deployment) // (np.array([3, 1]) * LAYER))  # tokens, were there no window
    assert (rows.admitted == 0).sum() == whole // 60
