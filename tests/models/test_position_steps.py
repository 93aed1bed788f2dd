"""Decoding one position after the other gives what the full pass gives."""

import pytest
import torch

from hf_latentgen import (
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
)
from modeling_common import perturb

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
VARIANTS = {
    "sliding": {},
    "full": MIXED,
    "shared heads": {"num_key_value_heads": 2},
    "own windows": {"layer_windows": [[4, 10, 4, 5], 7]},
    "adaptive": {"attention_span": "adaptive", "span_ramp": 2},
    "trimmed": {"attention_span": "trimmed", "span_ramp": 2, "layer_windows": [[4, 10, 4, 5], 7]},
    "trimmed and full": {"attention_span": "trimmed", "span_ramp": 2, "layer_windows": [3, None], **MIXED},
}


def build(model_class, config):
    torch.manual_seed(0)
    model = model_class(config)
    perturb(model)
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("known", [0, 1, 13])
def test_steps_of_pixels_equal_the_full_pass(variant, known):
    config = LocalTransformerImageConfig(**TINY, image_size=6, num_levels=3, **VARIANTS[variant])
    model = build(LocalTransformerForImageGeneration, config)
    images = torch.randint(0, 3, (4, 1, 6, 6))
    expected = model(images).logits.flatten(2).double()
    steps = model.steps(images.flatten(1))
    for position in range(known, config.num_dims):
        torch.testing.assert_close(steps.logits(position), expected[:, :, position], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_step_reads_nothing_that_comes_later():
    config = LocalTransformerImageConfig(**TINY, image_size=6, num_levels=3)
    model = build(LocalTransformerForImageGeneration, config)
    values = torch.randint(0, 3, (4, 36))
    filled = torch.zeros_like(values)
    steps, blind = model.steps(values), model.steps(filled)
    for position in range(36):
        assert torch.equal(steps.logits(position), blind.logits(position))
        filled[:, position] = values[:, position]


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [[1] * 30, [9, 1, 1, 19], [3, 20, 1, 6], [1, 1, 6, 6, 1, 15]])
def test_steps_of_bytes_equal_the_full_pass(variant, lengths):
    config = LocalTransformerConfig(**(TINY | {"window": 8} | VARIANTS[variant]))
    model = build(LocalTransformerForCausalLM, config)
    ids = torch.randint(0, 256, (3, 30))
    expected = model(ids).logits
    steps, start = model.model.steps(30), 0
    for length in lengths:
        state = steps(model.model.embed_tokens(ids[:, start : start + length]))
        start += length
        torch.testing.assert_close(model.lm_head(state), expected[:, start - 1], rtol=1e-5, atol=1e-5)
