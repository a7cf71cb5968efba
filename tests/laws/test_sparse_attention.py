"""Sparse attention: an indexer scores all positions, and attention reads no more than it chooses."""

import pytest

from sim.cost.work import decodes_at
from sim.model.transformer import Model

TOPK, LATENT, KEY = (
    24,
    16 + 8,
    8,
)  # positions; numbers of a latent with its rotary key, and of an index key


def test_parameters_are_those_of_dense_attention_and_the_indexers():
    dense, sparse = (Model.model_validate({"model_type": f"deepseek_v3{n}"}) for n in ("", "2"))
    indexer = 1536 * 64 * 128 + 7168 * 128 + 7168 * 64 + 2 * 128
    assert sparse.parameters - dense.parameters == 61 * indexer
    assert sparse.kv_per_token() - dense.kv_per_token() == 61 * 128


def test_glm_5_has_its_published_parameters():
    """744 B, of them 40 B that a token meets: https://huggingface.co/zai-org/GLM-5."""
    model = Model.model_validate({"model_type": "glm_moe_dsa"})
    assert model.parameters / 1e9 == pytest.approx(744, rel=0.01)
    assert model.active_parameters / 1e9 == pytest.approx(40, rel=0.06)
    assert model.kv_per_token() == 78 * (512 + 64 + 128)


@pytest.mark.parametrize(
    ("changes", "indexers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, [0, 2]),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, [0, 1, 2]),
        ({"indexer_types": ("full", "shared", "shared", "full")}, [0, 3]),
    ],
)
def test_layers_may_share_an_indexer(make_sparse, changes, indexers):
    model = make_sparse(model_type="glm_moe_dsa", **changes)
    assert [n for n in range(4) if len(model.layer(n)[0].mixers) == 2] == indexers
    assert model.kv_per_token() == 4 * LATENT + len(indexers) * KEY


@pytest.mark.parametrize("tokens", [TOPK, 10 * TOPK])
def test_the_cache_keeps_all_positions(make_deployment, make_sparse, tokens):
    deployment = make_deployment(model=make_sparse(), request_tokens=tokens)
    assert deployment.fit.kv == 4 * (LATENT + KEY) * 2 * tokens
    assert deployment.limits.kv_tokens_needed(tokens) == tokens


def test_attention_is_linear_and_then_flat(make_deployment, make_sparse):
    """At 1 GB/s, for each sequence: at most 24 latents, and all index keys."""
    costs = make_deployment(model=make_sparse()).costs

    def seconds(context):
        work = decodes_at(3, context, TOPK)
        rows = {row.part: row.seconds for row in costs.rows(work)}
        return [rows[kind.part] for kind in costs.kinds]

    for context in (10, TOPK, 1000):
        read = 3 * min(context, TOPK) * LATENT * 2, 3 * context * KEY * 2
        assert seconds(context) == pytest.approx([nbytes / 1e9 for nbytes in read])


def test_prompts_attend_to_latents_as_decodes_do(make_sparse):
    """Chosen positions differ from token to token, so that no latent is unpacked for all."""
    attention, indexer = make_sparse().blocks[1].mixers
    assert attention.flops(decode=False) == attention.flops() == 2 * 4 * (2 * 16 + 8)
    assert indexer.flops(tensor=2) == 2 * 2 * 8  # every chip has the whole indexer
