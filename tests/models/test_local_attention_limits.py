"""Attention of transformers that is not a plain sliding window: refused, or given to transformers' own code."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Gemma2Config, GptOssConfig, MistralConfig
from transformers.masking_utils import (
    create_bidirectional_sliding_window_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
    sliding_window_causal_mask_function,
)
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.inkling.configuration_inkling import InklingTextConfig
from transformers.utils import logging

from hf_latentgen.models import local_attention_interface as interface
from hf_latentgen.models.local_attention_interface import (
    NAME,
    BandedMask,
    local_attention_forward,
    local_attention_mask,
)
from modeling_common import TINY, perturb

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
    window = sliding_window_causal_mask_function(16)
    assert isinstance(local_attention_mask(1, 200, 200, mask_function=window, local_size=16), BandedMask)


def masks_of(make, **options):
    """What one of transformers' functions makes for sdpa and for local attention."""
    found = []
    for name in ("sdpa", NAME):
        config = MistralConfig(**GROUPED, sliding_window=16)
        config.attention_chunk_size = 16
        config._attn_implementation = name
        options = {"attention_mask": None, "past_key_values": None} | options
        found.append(make(config=config, inputs_embeds=torch.zeros(2, 70, 16), **options))
    return found


def padding():
    mask = torch.ones(2, 70, dtype=torch.int64)
    mask[1, :23] = 0
    return mask


def packed():
    return torch.cat([torch.arange(30), torch.arange(40)]).expand(2, -1)


def image():
    ids = torch.full((2, 70), -1)
    ids[:, 10:50] = 0
    return ids


def sees_all(batch, head, row, column):
    return column >= 0


# The name of a function of transformers tells the two kinds apart; these are all the ways in which it makes one.
@pytest.mark.parametrize(
    ("make", "options", "is_banded"),
    [
        (create_sliding_window_causal_mask, {}, True),
        (create_sliding_window_causal_mask, {"attention_mask": padding()}, True),
        (create_sliding_window_causal_mask, {"position_ids": packed()}, True),
        (create_bidirectional_sliding_window_mask, {"attention_mask": padding()}, True),
        (create_chunked_causal_mask, {"attention_mask": padding()}, True),
        (create_sliding_window_causal_mask, {"block_sequence_ids": image()}, False),
        (create_sliding_window_causal_mask, {"block_sequence_ids": image(), "attention_mask": padding()}, False),
        (create_sliding_window_causal_mask, {"block_sequence_ids": image(), "position_ids": packed()}, False),
        (create_chunked_causal_mask, {"block_sequence_ids": image(), "attention_mask": padding()}, False),
        (create_sliding_window_causal_mask, {"or_mask_function": sees_all}, False),
        (create_sliding_window_causal_mask, {"or_mask_function": sees_all, "and_mask_function": sees_all}, False),
        (create_bidirectional_sliding_window_mask, {"or_mask_function": sees_all}, False),
    ],
)
def test_masks_are_banded_where_transformers_only_hides(make, options, is_banded):
    expected, found = masks_of(make, **options)
    assert isinstance(found, BandedMask) == is_banded
    assert torch.equal(found.matrix() if is_banded else found, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask[:, :, -1:, :],
        lambda mask: mask[1:, :, 5:20, 3:60],
        lambda mask: mask[:, :, :0, :],
        lambda mask: mask[:, :, ::2, :],
        lambda mask: mask[..., :40],
        lambda mask: mask[1],
        lambda mask: ~mask,
        lambda mask: mask == 0,
        lambda mask: 1 - mask.int(),
        lambda mask: mask & (torch.arange(70) > 9),
        lambda mask: (torch.arange(70) > 9) | mask,
        lambda mask: torch.zeros(70) + mask,
        lambda mask: mask.float().expand(2, 4, 70, 70),
        lambda mask: mask.to(torch.float32),
        lambda mask: torch.where(mask, 0.0, -1.0),
        lambda mask: torch.cat([mask, mask], dim=-1),
        lambda mask: torch.nn.functional.pad(mask, (0, 3)),
        lambda mask: torch.tensor([*mask.shape, mask.dim(), mask.ndim, mask.device.type == "cpu", mask.dtype.itemsize]),
    ],
)
@pytest.mark.parametrize("options", [{"attention_mask": padding()}, {"position_ids": packed()}, {}])
def test_what_a_model_does_to_a_banded_mask_it_does_to_the_mask_of_sdpa(change, options):
    expected, banded = masks_of(create_sliding_window_causal_mask, **options)
    assert isinstance(banded, BandedMask)
    found = change(banded)
    assert torch.equal(found, change(expected))
    assert banded.to("cpu") is banded.to(torch.bool) is banded


@pytest.mark.parametrize("length", [12, 45, 70, 130])
@pytest.mark.parametrize("kept", [0, 1, 3])
@torch.no_grad()
def test_layers_that_share_keys_read_the_last_rows_of_a_mask(length, kept):
    shared = {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    sizes = {"global_head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 50}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma4TextConfig(**(GROUPED | shared | sizes), sliding_window=8)).eval()
    perturb(model, 0.1)
    ids = torch.randint(1, 50, (2, length))
    mask = torch.ones_like(ids)
    mask[1, : length // 3] = 0
    found = {}
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits[:, -3:]
        tokens = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        found[name] = logits, tokens
    torch.testing.assert_close(found[NAME], found["sdpa"], atol=1e-5, rtol=1e-4)
    # Without padding no mask tells which queries are left.
    if kept == 3:
        with pytest.raises(
            ValueError, match=f"attention_mask of Gemma4TextAttention must .* 3 queries and {length} keys"
        ):
            model(input_ids=ids, logits_to_keep=kept)


@pytest.mark.parametrize("name", ["indices", "block_indices", "sinks", "cu_seq_lens_q", "cache", "unheard_of"])
def test_unknown_arguments_are_refused_by_name(name):
    states = [torch.zeros(1, 2, 9, 4)] * 3
    module = torch.nn.Identity()
    with pytest.raises(ValueError, match=f"{name} of Identity must be None"):
        local_attention_forward(module, *states, None, **{name: torch.zeros(1)})
    output, _ = local_attention_forward(
        module, *states, None, **{name: None}, sliding_window=4, output_attentions=False
    )
    assert output.shape == (1, 9, 2, 4)


def test_a_model_without_a_window_is_told_once(monkeypatch):
    told = []
    logger = logging.get_logger(interface.__name__)
    monkeypatch.setattr(logger, "warning", told.append)
    logger.warning_once.cache_clear()
    for window in (16, None):
        config = MistralConfig(**GROUPED, sliding_window=window)
        config._attn_implementation = NAME
        model = AutoModelForCausalLM.from_config(config).eval()
        for length in (5, 40):
            model(input_ids=torch.ones(1, length, dtype=torch.int64))
        assert told == (
            []
            if window
            else ["MistralAttention has no sliding window: local_attention computes full attention, like 'sdpa'"]
        )
