"""Attention of transformers that is not a plain sliding window: refused, or given to transformers' own code."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Gemma2Config, GptOssConfig, MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.inkling.configuration_inkling import InklingTextConfig

import hf_latentgen  # noqa: F401
from hf_latentgen.models.local_attention_interface import BandedMask, local_attention_mask
from modeling_common import TINY

GROUPED = {**TINY, "num_key_value_heads": 2, "head_dim": 8}
INKLING = InklingTextConfig(
    **GROUPED,
    swa_num_attention_heads=4,
    swa_num_key_value_heads=2,
    swa_head_dim=8,
    sliding_window_size=16,
    d_rel=4,
    rel_extent=32,
    moe_intermediate_size=8,
    n_routed_experts=2,
    num_experts_per_tok=1,
    n_shared_experts=1,
    mlp_layer_types=["dense", "dense"],
    local_layer_ids=[0],
)


@pytest.mark.parametrize(
    ("auto_class", "config", "name"),
    [
        (AutoModelForCausalLM, GptOssConfig(**GROUPED, num_local_experts=2, sliding_window=16), "s_aux"),
        (AutoModelForCausalLM, Gemma2Config(**GROUPED, sliding_window=16), "softcap"),
        (AutoModel, INKLING, "position_bias"),
    ],
)
def test_models_whose_attention_is_another_one_are_refused(auto_class, config, name):
    config._attn_implementation = "local_attention"
    model = auto_class.from_config(config).eval()
    with pytest.raises(ValueError, match=f"{name} of .*Attention must be None .* attn_implementation='eager'"):
        model(input_ids=torch.arange(1, 41).unsqueeze(0))


def test_masks_that_show_more_than_the_window_stay_whole():
    # Tokens 40 to 169 are an image, all of which each of them sees.
    blocks = torch.full((1, 200), -1)
    blocks[0, 40:170] = 0
    masks = {}
    for name in ("sdpa", "local_attention"):
        config = MistralConfig(**GROUPED, sliding_window=16)
        config._attn_implementation = name
        for ids in (None, blocks):
            masks[name, ids is None] = create_sliding_window_causal_mask(
                config=config,
                inputs_embeds=torch.zeros(1, 200, 16),
                attention_mask=None,
                past_key_values=None,
                block_sequence_ids=ids,
            )
    assert torch.equal(masks["local_attention", False], masks["sdpa", False])
    assert masks["local_attention", False][0, 0, 40, 169]
    # Without the image it is the band.
    assert isinstance(masks["local_attention", True], BandedMask)
    assert isinstance(local_attention_mask(1, 200, 200, local_size=16), BandedMask)
