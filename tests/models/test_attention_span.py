import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.cache_utils import DynamicCache

from hf_latentgen import (
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    local_attention,
    local_attention_reference,
)
from hf_latentgen.models.attention_span import AttentionSpan, log_soft_mask, trimmed_window
from modeling_common import perturb

TINY = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "window": 200}
TINY |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attention_span": "adaptive", "span_ramp": 4}
MIXED = {"layer_types": ["full_attention", "sliding_attention"], "num_key_value_heads": 2}
# Some heads that need the same number of blocks, some that need more, and one whose span ends within the ramp.
SHARES = torch.tensor([[0.0123, 0.1, 0.55, 0.31], [0.99, 0.0, 0.333, 0.06]])
GENERATION = [
    {},
    {"num_beams": 3},
    {"cache_implementation": "static", "disable_compile": True},
    {"prefill_chunk_size": 7},
    {"use_cache": False},
]


def ids(batch_size, length, seed=0):
    return torch.randint(3, 40, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def shares(model):
    spans = [module for module in model.modules() if isinstance(module, AttentionSpan)]
    return [span.share for span in spans if span.share is not None]


def with_shares(model, values=SHARES):
    """The model, perturbed, with these spans."""
    perturb(model)
    for share, value in zip(shares(model), values, strict=False):
        share.data.copy_(value)
    return model.eval()


def build(**fields):
    torch.manual_seed(0)
    return with_shares(LocalTransformerForCausalLM(LocalTransformerConfig(**(TINY | fields))))


def build_image():
    torch.manual_seed(0)
    fields = {"image_size": 14, "num_levels": 3, "window_rows": 6, "attention_span": "adaptive", "span_ramp": 3}
    config = LocalTransformerImageConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, **fields)
    images = torch.randint(0, 3, (2, 1, 14, 14), generator=torch.Generator().manual_seed(1))
    return with_shares(LocalTransformerForImageGeneration(config), SHARES / 3), images


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad for name, p in model.named_parameters() if not name.endswith("share"))]


def test_soft_mask_is_the_formula():
    found = log_soft_mask(torch.tensor([0.0, 2.5, 9.0]), 4, 8).exp()
    for span, row in zip((0.0, 2.5, 9.0), found, strict=True):
        expected = [min(max((span + 4 - x) / 4, 0.0), 1.0) for x in range(8)]
        torch.testing.assert_close(row, torch.tensor(expected))


@pytest.mark.parametrize("hidden", [None, "padding"])
@pytest.mark.parametrize("length", [1, 63, 130, 200])
def test_outputs_and_gradients_of_spans_equal_the_reference(length, hidden):
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 4, length, 8, generator=generator) for _ in range(3)]
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, : length // 3] = False
    options = {} if hidden is None else {"attention_mask": mask}
    for window in (5, 64, 150):
        spans = torch.tensor([0.3, 7.7, 0.6 * window + 0.1, window - 0.9])
        results = []
        for function, dtype in ((local_attention, torch.float32), (local_attention_reference, torch.float64)):
            leaves = [tensor.to(dtype).requires_grad_() for tensor in (*states, spans)]
            output = function(*leaves[:3], window, bias=log_soft_mask(leaves[3], 5, window), **options)
            weights = torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)
            results.append([output, *torch.autograd.grad((output * weights).sum(), leaves)])
        for found, expected in zip(*results, strict=True):
            assert (found.double() - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


@torch.no_grad()
def test_a_new_adaptive_model_is_the_fixed_one():
    torch.manual_seed(0)
    adaptive = LocalTransformerForCausalLM(LocalTransformerConfig(**TINY))
    fixed = LocalTransformerForCausalLM(LocalTransformerConfig(**(TINY | {"attention_span": "fixed"})))
    missing = fixed.load_state_dict(adaptive.state_dict(), strict=False)
    assert all(name.endswith("share") for name in missing.unexpected_keys)
    assert not missing.missing_keys
    tokens = ids(2, 300)
    torch.testing.assert_close(adaptive(input_ids=tokens).logits, fixed(input_ids=tokens).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_token_sees_as_far_as_the_longest_span_and_its_ramp():
    model = build(num_hidden_layers=1)
    model = with_shares(model, [torch.tensor([0.01, 0.05, 0.02, 0.0])])
    for own in (model, model.trim_spans()):
        tokens = ids(1, 260)
        changed = tokens.clone()
        changed[0, 20] = (tokens[0, 20] - 3 + 1) % 37 + 3
        moved = (own(input_ids=tokens).logits != own(input_ids=changed).logits).any(-1)[0].nonzero().flatten()
        # The longest span of 10 tokens and a ramp of 4: the key at distance 14 has no weight.
        assert moved.min() == 20
        assert moved.max() == 20 + 13


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, MIXED, {"layer_windows": [40, [3, 70, 70, 130]], "attention_span": "fixed"}])
@pytest.mark.parametrize("length", [3, 60, 130, 330])
def test_padding_and_packing_hide_what_is_not_there(fields, length):
    model = build(**fields)
    for own in (model, model.trim_spans()) if model.config.attention_span == "adaptive" else (model,):
        tokens = ids(1, length)
        alone = own(input_ids=tokens, use_cache=False).logits
        for side in ("left", "right"):
            padding = torch.zeros(1, 45, dtype=torch.int64)
            padded = torch.cat([padding, tokens] if side == "left" else [tokens, padding], 1)
            found = own(input_ids=padded, attention_mask=(padded != 0).long(), use_cache=False).logits[padded != 0]
            torch.testing.assert_close(found, alone[0], atol=1e-5, rtol=1e-4)
        packed = torch.cat([tokens, ids(1, 50, seed=1)], 1)
        positions = torch.cat([torch.arange(length), torch.arange(50)]).unsqueeze(0)
        found = own(input_ids=packed, position_ids=positions, use_cache=False).logits
        second = own(input_ids=packed[:, length:], use_cache=False).logits
        torch.testing.assert_close(found, torch.cat([alone, second], 1), atol=1e-5, rtol=1e-4)
        whole = {"attention_mask": torch.ones_like(tokens), "position_ids": torch.arange(length).unsqueeze(0)}
        torch.testing.assert_close(own(input_ids=tokens, **whole, use_cache=False).logits, alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length", [15, 64, 129, 199, 200, 280])
def test_cached_equals_uncached(length):
    model = build(**MIXED)
    for own in (model, model.trim_spans()):
        tokens = ids(2, length + 4)
        expected = own(input_ids=tokens, use_cache=False).logits
        cache = DynamicCache(config=own.config)
        pieces = [tokens[:, : length - 9], tokens[:, length - 9 : length], *tokens[:, length:].split(1, 1)]
        found = [own(input_ids=piece, past_key_values=cache, use_cache=True).logits for piece in pieces]
        torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-4)
        assert cache.layers[1].keys.shape[2] < own.config.window


@pytest.mark.parametrize("options", GENERATION)
def test_adaptive_and_trimmed_models_generate_the_same(options):
    model = build(window=12, span_ramp=2)
    plain = {"use_cache": False, "num_beams": options.get("num_beams", 1)}
    expected = model.generate(ids(2, 20), max_new_tokens=8, do_sample=False, **plain)
    for own in (model, model.trim_spans()):
        assert torch.equal(own.generate(ids(2, 20), max_new_tokens=8, do_sample=False, **options), expected)


@pytest.mark.parametrize("fields", [{}, MIXED, {"window": 20}])
@pytest.mark.parametrize("length", [50, 150, 400])
def test_trimming_changes_neither_the_loss_nor_its_gradients(fields, length):
    model = build(**fields)
    trimmed = model.trim_spans()
    tokens = ids(2, length)
    for found, expected in zip(
        loss_and_gradients(trimmed, input_ids=tokens, labels=tokens),
        loss_and_gradients(model, input_ids=tokens, labels=tokens),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trimmed.spans(), model.spans())


def test_trimmed_model_holds_its_windows_and_trains_no_span(tmp_path):
    model = build(**MIXED)
    model.generation_config.max_new_tokens = 3
    trimmed = model.trim_spans()
    assert model.config.attention_span == "adaptive"
    assert not any(name.endswith("share") for name, _ in trimmed.named_parameters())
    assert trimmed.generation_config.max_new_tokens == 3
    trimmed.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["attention_span"] == "trimmed"
    # Spans of 2.5, 20, 110 and 62 tokens with a ramp of 4, in blocks of 64 keys beside the query's own.
    assert fields["layer_windows"] == [None, [65, 65, 129, 129]]
    assert fields["window"] == 129
    loaded = LocalTransformerForCausalLM.from_pretrained(tmp_path)
    tokens = ids(2, 300)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, trimmed(tokens).logits, atol=0, rtol=0)
    torch.testing.assert_close(loaded.spans(), model.spans())


@pytest.mark.parametrize(
    ("span", "ramp", "window", "expected"),
    [(0.0, 32, 1024, 65), (30.9, 32, 1024, 65), (33.0, 32, 1024, 129), (1000.0, 32, 1024, 1024), (3.0, 4, 16, 16)],
)
def test_window_of_a_span_holds_all_its_keys(span, ramp, window, expected):
    assert trimmed_window(span, ramp, window) == expected
    weights = log_soft_mask(torch.tensor([span]), ramp, window)[0]
    assert (weights[expected:] == -torch.inf).all()


def test_the_penalty_is_in_the_training_loss_only():
    model = build(span_weight=0.5)
    tokens = ids(2, 30)
    score = model(tokens, labels=tokens).loss
    expected = 0.5 * SHARES.mean()
    torch.testing.assert_close(model.train()(tokens, labels=tokens).loss - score, expected)
    image_model, images = build_image()
    likelihood = image_model(images)
    output = image_model.train()(images)
    torch.testing.assert_close(output.loss - likelihood.loss, 0.02 * SHARES.mean() / 3)
    torch.testing.assert_close(output.negative_log_likelihood, likelihood.negative_log_likelihood)
    assert torch.equal(image_model(images, return_loss=False).negative_log_likelihood, output.negative_log_likelihood)


def test_the_penalty_leads_shares_back_into_their_range():
    model = build(span_weight=0.5).train()
    for share in shares(model):
        share.data.copy_(torch.tensor([-0.1, 1.2, -3.0, 0.5]))
    model(ids(2, 30), labels=ids(2, 30)).loss.backward()
    assert model.spans().min() == 0
    assert model.spans().max() == 200
    for share in shares(model):
        assert torch.equal(share.grad.sign()[:3], torch.tensor([-1.0, 1.0, -1.0]))


@torch.no_grad()
def test_trimmed_images_have_the_same_likelihood_and_samples(tmp_path):
    model, images = build_image()
    trimmed = model.trim_spans()
    assert trimmed.config.window == 65 < model.config.window == 84
    torch.testing.assert_close(trimmed.bits_per_dim(images), model.bits_per_dim(images), atol=1e-6, rtol=0)
    drawn = [own.complete(images, 11, generator=torch.Generator().manual_seed(2)) for own in (model, trimmed)]
    assert torch.equal(*drawn)
    trimmed.save_pretrained(tmp_path)
    loaded = LocalTransformerForImageGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.bits_per_dim(images), trimmed.bits_per_dim(images), atol=0, rtol=0)


def train(model, parameters, batches):
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for tokens in batches:
        optimizer.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()


@pytest.mark.slow
def test_spans_shrink_under_the_penalty_and_grow_where_the_task_needs_distance():
    torch.manual_seed(0)
    fields = TINY | {"vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LocalTransformerConfig(**(fields | {"window": 32, "span_ramp": 8, "span_weight": 0.03}))
    model = LocalTransformerForCausalLM(config).train()
    generator = torch.Generator().manual_seed(0)

    def noise(number):
        return (torch.randint(3, 8, (16, 48), generator=generator) for _ in range(number))

    def copies(number, period=12):
        """The next token is the one at distance 11 from the last."""
        return (torch.randint(3, 8, (16, period), generator=generator).repeat(1, 4) for _ in range(number))

    (share,) = shares(model)
    others = [parameter for parameter in model.parameters() if parameter is not share]
    train(model, others, copies(150))
    train(model, [share], copies(110))
    # The price takes what the task does not need, and what it needs stays: the key at distance 11 keeps its weight.
    assert model.spans().max() < 20
    assert model.spans().max() + 8 > 11
    share.data.fill_(4 / 32)
    train(model, [share], copies(60))
    assert model.spans().max() > 6
    train(model, model.parameters(), noise(150))
    assert model.spans().max() < 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_span": "learned"}, "attention_span must be one of .*, got 'learned'"),
        ({"layer_types": ["full_attention"] * 2}, "attention_span must be 'fixed' without a sliding layer, got 'adap"),
        ({"span_ramp": 0}, "span_ramp must be at least 1 and finite, got 0"),
        ({"span_weight": 0.0}, "span_weight must be above 0 and finite, got 0.0"),
        ({"layer_windows": [8, 8]}, r"layer_windows must be None where attention_span is 'adaptive', got \[8, 8\]"),
        ({"attention_span": "trimmed"}, "layer_windows must be given where attention_span is 'trimmed', got None"),
        *(
            (
                {"attention_span": "fixed", "layer_windows": windows} | more,
                "layer_windows must be at least 1, one or 4 of",
            )
            for windows, more in (
                ([8], {}),
                ([8, 8, 8], {}),
                ([8, [8, 8, 8]], {}),
                ([8, [8, 8, 8, 0]], {}),
                ([8, 0], {}),
                ([8, None], {}),
                ([8, 8], {"layer_types": ["full_attention", "sliding_attention"]}),
            )
        ),
        (
            {"attention_span": "fixed", "layer_windows": [1, 1]},
            r"layer_windows must be at least 2 somewhere, got \[1, 1\]",
        ),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        LocalTransformerConfig(**(TINY | fields))


def test_bad_calls_are_named():
    model = build()
    model.set_attn_implementation("sdpa")
    with pytest.raises(
        ValueError, match="attn_implementation must be 'local_attention' where heads have spans or wind"
    ):
        model(ids(1, 5))
    fixed = build(attention_span="fixed")
    with pytest.raises(ValueError, match="attention_span must be 'adaptive' or 'trimmed' for spans, got 'fixed'"):
        fixed.spans()
    with pytest.raises(ValueError, match="attention_span must be 'adaptive' to be trimmed, got 'fixed'"):
        fixed.trim_spans()
