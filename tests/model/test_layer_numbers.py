"""Layers that a config.json names by number are layers of the model, or the file is refused."""

import pytest
from pydantic import ValidationError

from sim.model.transformer import Model

LLAMA4 = {"model_type": "llama4_text", "num_hidden_layers": 8}
QWEN = {"model_type": "qwen3_moe", "num_hidden_layers": 8}


def kept(*names: str) -> dict[str, object]:
    return {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": list(names)}}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LLAMA4 | {"moe_layers": [1, 8]}, "moe_layers: got 8; expected layers from 0 to 7"),
        (QWEN | {"mlp_only_layers": [-1]}, "mlp_only_layers: got -1; expected layers from 0 to 7"),
        (
            QWEN | kept("lm_head", "model.layers.9.self_attn"),
            "got 'model.layers.9.self_attn'; expected layers from 0 to 7",
        ),
        (
            QWEN | {"quantization_config": {"bits": 4, "model.layers.99.mlp": {"bits": 8}}},
            "got 'model.layers.99.mlp'; expected layers from 0 to 7",
        ),
    ],
)
def test_a_layer_that_the_model_lacks_is_refused(config, reason):
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(config)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA4 | {"moe_layers": (0, 7)},
        QWEN | {"mlp_only_layers": ()},
        QWEN | kept("model.layers.7.self_attn"),
        QWEN | kept("model.layers.8.eh_proj"),  # the layer for multi-token prediction
        QWEN | kept("model.layers.9.eh_proj") | {"num_nextn_predict_layers": 2},
        QWEN | kept("visual.blocks.31.mlp", "vision_tower.encoder.layers.26.mlp", "re:.*99.*"),
    ],
)
def test_layers_of_the_model_its_drafts_and_its_vision_tower_are_no_obstacle(config):
    assert Model.model_validate(config).num_hidden_layers == 8
