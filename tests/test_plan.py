"""Bytes of a small model by hand, degrees, and what fits."""

from dataclasses import replace

import pytest

from sim.plan import Plan, fit

# The small model: hidden 64, MLP 128, 4 heads and 2 KV heads of 16, 4 layers, vocabulary 256.
ATTENTION = 64 * 64 + 2 * 64 * 32 + 64 * 64
MLP = 3 * 64 * 128
TABLE = 256 * 64
NORM = 64


def held(deployment):
    """Bytes of weights on the fullest chip of each stage."""
    return [stage.weights for stage in deployment.layout.stages]


def test_one_chip_holds_every_parameter_in_its_width(make_deployment):
    blocks = 4 * (ATTENTION + MLP + 2 * NORM)
    assert held(make_deployment()) == [2 * (blocks + 2 * TABLE + NORM)]
    assert held(make_deployment(plan=Plan(weights="int8", head="fp16"))) == [blocks + 2 * (2 * TABLE + NORM)]
    assert held(make_deployment(plan=Plan(weights="int4", head="int8"))) == [blocks / 2 + 2 * TABLE + NORM]


def test_tensor_parallelism_splits_matrices_and_repeats_norms(make_deployment):
    halves = 4 * ((ATTENTION + MLP) // 2 + 2 * NORM) + 2 * TABLE // 2 + NORM
    assert held(make_deployment(2, plan=Plan(tensor=2))) == [2 * halves]


def test_fewer_kv_heads_than_chips_are_held_more_than_once(make_deployment):
    """4 chips: one query head each, and one of the two KV heads, which two chips hold."""
    deployment = make_deployment(4, plan=Plan(tensor=4))
    attention = 64 * 16 + 2 * 64 * 16 + 16 * 64
    assert held(deployment) == [2 * (4 * (attention + MLP // 4 + 2 * NORM) + 2 * TABLE // 4 + NORM)]
    assert deployment.layout.stages[0].kv_per_token == 4 * 2 * 16 * 2  # layers, K and V, one head, 2 bytes
    assert deployment.bytes_per_token == 2 * make_deployment().bytes_per_token


def test_heads_that_do_not_divide_make_the_fullest_chip_decide(make_deployment):
    """3 chips: 2 of 4 query heads, 1 of 2 KV heads, 43 of 128 columns, 86 of 256 tokens on the fullest."""
    deployment = make_deployment(3, plan=Plan(tensor=3))
    attention = 64 * 32 + 2 * 64 * 16 + 32 * 64
    assert held(deployment) == [2 * (4 * (attention + 3 * 64 * 43 + 2 * NORM) + 2 * 86 * 64 + NORM)]
    assert any("attention heads" in line for line in deployment.warnings)


def test_every_stage_holds_its_own_blocks(make_deployment):
    """One block a stage: the table, then attention and MLP in turn, then the head."""
    deployment = make_deployment(10)
    blocks = [TABLE, *[ATTENTION + NORM, MLP + NORM] * 4, TABLE + NORM]
    assert held(deployment) == [2 * block for block in blocks]
    assert [stage.kv_per_token for stage in deployment.layout.stages] == [0, *[2 * 2 * 16 * 2, 0] * 4, 0]


def test_a_shared_table_is_held_once_where_one_stage_has_both_ends(make_deployment, make_model):
    tied = make_model(tie_word_embeddings=True)
    assert held(make_deployment())[0] - held(make_deployment(model=tied))[0] == 2 * TABLE
    assert sum(held(make_deployment(2))) == sum(held(make_deployment(2, model=tied)))


def test_it_fits_to_the_byte(make_deployment, make_chip, make_engine):
    """Weights, a step's activations through the widest matrix, the engine's reserve, and K and V of one request."""
    engine = make_engine(reserve=1000.0, memory_fraction=0.5)
    weights = held(make_deployment())[0]
    needed = weights + 16 * (64 + 256) * 2 + 1000 + 64 * 512
    exact, short = (make_deployment(engine=engine, chip=make_chip(2 * room)).fit for room in (needed, needed - 1))
    assert exact.needed == exact.capacity == needed
    assert exact.fits
    assert exact.kv_tokens == 64
    assert not short.fits
    assert short.kv_tokens == 63


def test_room_is_that_of_the_fullest_stage(make_deployment, make_chip):
    """Of two stages the one with less room for each token decides; all memory together would hold more."""
    layout = replace(make_deployment(2, chip=make_chip(3e5)).layout, bounds=(0, 7))
    rooms = [3e5 - 16 * 320 * 2 - stage.weights for stage in layout.stages]
    assert [stage.layers for stage in layout.stages] == [3, 1]
    fitted = fit(layout, 64)
    assert fitted.kv_tokens == min(rooms[0] // (3 * 128), rooms[1] // 128)
    assert fitted.free == sum(rooms)
    assert fitted.sequences(100, 512) == (fitted.kv_tokens // 100, sum(rooms) // (100 * 512))


@pytest.mark.parametrize(
    ("chips", "plan", "message"),
    [
        (8, Plan(tensor=2, pipeline=3), "is 6 chips, and the system has 8; leave pipeline out for 4"),
        (8, Plan(tensor=3), "tensor 3 x pipeline 2 is 6 chips"),
        (8, Plan(tensor=2, replicas=3), "x replicas 3 is 6 chips"),
        (11, Plan(), "pipeline 11: in-place has only 10 blocks"),
    ],
)
def test_degrees_that_do_not_make_the_chips_are_refused(make_model, chips, plan, message):
    with pytest.raises(ValueError, match=message):
        plan.resolved(chips, make_model())


def test_a_plans_defaults_are_all_the_chips_and_the_configs_precision(make_model):
    plan = Plan(tensor=2, replicas=2, weights="int8").resolved(12, make_model())
    assert (plan.pipeline, plan.slots) == (3, 3)
    assert [plan.given(what) for what in ("weights", "activations", "kv", "head")] == ["int8", "fp16", "fp16", "fp16"]
