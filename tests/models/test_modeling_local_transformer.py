import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, pipeline
from transformers.cache_utils import DynamicCache, StaticCache

from hf_latentgen import ByteTokenizer, LocalTransformerConfig, LocalTransformerForCausalLM, LocalTransformerModel
from modeling_common import CommonModelTests, perturb

TINY = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "window": 8}
TINY |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VARIANTS = {
    "sliding": {},
    "mixed, grouped, untied": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}
# Only the package's own attention computes these.
SPANS = {
    "adaptive": {"attention_span": "adaptive", "span_ramp": 2},
    "adaptive, mixed, grouped": {
        "attention_span": "adaptive",
        "span_ramp": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "num_key_value_heads": 2,
    },
    "trimmed": {"attention_span": "trimmed", "span_ramp": 2, "layer_windows": [[4, 8, 4, 5], 6]},
    "windows": {"layer_windows": [3, [1, 8, 8, 2]]},
}
ALL = VARIANTS | SPANS
IMPLEMENTATIONS = ("local_attention", "eager", "sdpa")


def ids(batch_size, length, seed=0):
    return torch.randint(3, 40, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def build(**fields):
    torch.manual_seed(0)
    model = LocalTransformerForCausalLM(LocalTransformerConfig(**(TINY | fields)))
    perturb(model)
    return model.eval()


class TestCommonBehaviours(CommonModelTests):
    model_class = LocalTransformerForCausalLM
    auto_class = AutoModelForCausalLM
    # Each way of attending once; what the other configurations have stands in one of these.
    compiled, others = "sliding", ("adaptive, mixed, grouped", "trimmed")

    # Without a cache, which is no tensor and cannot be compared.
    @pytest.fixture(params=ALL)
    def config(self, request):
        return LocalTransformerConfig(**TINY, **ALL[request.param], use_cache=False)

    def make_inputs(self, config, batch_size):
        tokens = ids(batch_size, 21)
        return {"input_ids": tokens, "labels": tokens}


def test_defaults_make_a_small_model_in_silence(capfd):
    model = LocalTransformerModel(LocalTransformerConfig())
    assert model.num_parameters() < 1_000_000
    assert model.config.layer_types == ["sliding_attention"] * 4
    assert model.config._attn_implementation == "local_attention"
    assert model.config.sliding_window == model.config.window == 256
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("window", 1, "at least 2"),
        ("window", 0, "at least 2"),
        ("num_attention_heads", 0, "at least 1"),
        ("num_attention_heads", 3, "a divisor of hidden_size=16 into even heads"),
        ("num_attention_heads", 16, "a divisor of hidden_size=16 into even heads"),
        ("num_key_value_heads", 3, "a divisor of num_attention_heads=4"),
        ("layer_types", ["sliding_attention"], "2 of .*, one for each layer"),
        ("layer_types", ["sliding_attention", "linear_attention"], "2 of .*, one for each layer"),
        ("max_position_embeddings", 0, "at least 1, or None"),
        ("attention_dropout", 1.0, r"in \[0, 1\)"),
        ("hidden_dropout", -0.1, r"in \[0, 1\)"),
        ("vocab_size", 0, "at least 1"),
        ("rope_theta", 0, "above 0 and finite"),
        ("rope_theta", math.inf, "above 0 and finite"),
        ("rms_norm_eps", -1.0, "at least 0 and finite"),
        ("span_ramp", math.inf, "at least 1 and finite"),
        ("span_weight", math.nan, "above 0 and finite"),
    ],
)
def test_bad_fields_are_named(field, value, allowed):
    with pytest.raises(StrictDataclassError, match=rf"{field} must be {allowed}, got "):
        LocalTransformerConfig(**(TINY | {field: value}))


def test_a_window_that_is_no_integer_is_refused():
    with pytest.raises(StrictDataclassError, match="window"):
        LocalTransformerConfig(**(TINY | {"window": 8.5}))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.zeros(1, 0).long()}, r"input_ids must hold at least one id, got shape \[1, 0\]"),
        ({"input_ids": torch.tensor([[3, 40]])}, r"input_ids must be ids in 0 \.\.\. 39, got values from 3 to 40"),
        ({"input_ids": torch.tensor([[3, -1]])}, r"input_ids must be ids in 0 \.\.\. 39, got values from -1 to 3"),
        ({}, "give exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ids(1, 31)}, "input_ids must end before max_position_embeddings=30, got 31"),
    ],
)
def test_bad_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        build(max_position_embeddings=30)(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [None, "left", "right", "both"])
def test_attention_implementations_agree(variant, side):
    model = build(**VARIANTS[variant])
    for length in (3, 9, 100):
        mask = torch.ones(2, length, dtype=torch.int64)
        if side in ("left", "both") and length > 3:
            mask[1, : length // 3] = 0
        if side in ("right", "both") and length > 3:
            mask[1, -(length // 3) :] = 0
        logits = []
        for implementation in IMPLEMENTATIONS:
            model.set_attn_implementation(implementation)
            logits.append(model(input_ids=ids(2, length), attention_mask=mask).logits[mask.bool()])
        torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[2], logits[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", ALL)
def test_padding_on_both_sides_hides_nothing_else(variant):
    model, tokens = build(**ALL[variant]), ids(1, 30)
    padded = torch.cat([torch.zeros(1, 11).long(), tokens, torch.zeros(1, 5).long()], 1)
    found = model(input_ids=padded, attention_mask=(padded != 0).long()).logits[:, 11:-5]
    torch.testing.assert_close(found, model(input_ids=tokens).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_shifted_labels_are_the_targets():
    model, tokens = build(), ids(2, 21)
    shifted = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], 1)
    expected = model(input_ids=tokens, labels=tokens).loss
    torch.testing.assert_close(model(input_ids=tokens, shift_labels=shifted).loss, expected)
    # A part of a sequence knows the target of its last id, which its own ids do not hold.
    half = {"input_ids": tokens[:, :10], "labels": tokens[:, :10]}
    found = model(**half, shift_labels=shifted[:, :10].contiguous()).loss
    logits = model(input_ids=tokens).logits[:, :10]
    torch.testing.assert_close(
        found, torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:11].flatten())
    )
    assert (found - model(**half).loss).abs() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("variant", ["mixed, grouped, untied", "trimmed", "windows"])
def test_fewer_layers_of_a_checkpoint_are_its_first(variant, tmp_path):
    model, tokens = build(**ALL[variant]), ids(2, 30)
    model.save_pretrained(tmp_path)
    loaded = LocalTransformerModel.from_pretrained(tmp_path, num_hidden_layers=1)
    assert loaded.config.layer_types == model.config.layer_types[:1]
    states = model(input_ids=tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(loaded(input_ids=tokens).last_hidden_state, loaded.norm(states[1]))


@pytest.mark.parametrize(
    ("field", "value"), [("num_hidden_layers", 3), ("layer_types", ["full_attention"]), ("window", 0)]
)
def test_fields_that_are_replaced_while_loading_are_checked(field, value, tmp_path):
    build().save_pretrained(tmp_path)
    named = "layer_types" if field == "num_hidden_layers" else field
    with pytest.raises(StrictDataclassError, match=rf"{named} must be .*, got "):
        LocalTransformerForCausalLM.from_pretrained(tmp_path, **{field: value})


def test_attention_weights_are_shown_by_eager_and_refused_by_others(tmp_path):
    shows = build(output_attentions=True)
    assert shows.config._attn_implementation == "eager"
    assert [weights.shape for weights in shows(input_ids=ids(2, 9)).attentions] == [(2, 4, 9, 9)] * 2
    build().save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path, output_attentions=True)(input_ids=ids(2, 9)).attentions[1] is not None
    for variant in ("sliding", "windows"):
        with pytest.raises(ValueError, match="output_attentions of LocalTransformerAttention must be None"):
            build(**ALL[variant])(input_ids=ids(2, 9), output_attentions=True)


@torch.no_grad()
def test_a_token_sees_its_window_in_every_layer_and_nothing_else():
    model = build()
    tokens = ids(1, 60)
    changed = tokens.clone()
    changed[0, 20] = (tokens[0, 20] - 3 + 1) % 37 + 3
    moved = (model(input_ids=tokens).logits != model(input_ids=changed).logits).any(-1)[0].nonzero().flatten()
    # Two layers of eight tokens reach 14 tokens back.
    assert moved.min() == 20
    assert moved.max() == 20 + 2 * 7


@torch.no_grad()
def test_hidden_dropout_drops_in_training_only():
    model, tokens = build(hidden_dropout=0.5), ids(2, 12)
    expected = build()(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=0, rtol=0)
    model.train()
    dropped = [model(input_ids=tokens).logits for _ in range(2)]
    assert not torch.equal(*dropped)
    assert torch.equal(build().train()(input_ids=tokens).logits, expected)


@torch.no_grad()
def test_packed_documents_are_independent():
    model = build()
    tokens = ids(1, 50)
    positions = torch.cat([torch.arange(18), torch.arange(32)]).unsqueeze(0)
    packed = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(input_ids=tokens[:, :18]).logits, model(input_ids=tokens[:, 18:]).logits], 1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-4)
    # Where nothing is hidden, a mask says nothing.
    whole = torch.ones_like(tokens)
    masked = model(input_ids=tokens, position_ids=positions, attention_mask=whole, use_cache=False).logits
    torch.testing.assert_close(masked, packed, atol=0, rtol=0)
    with pytest.raises(ValueError, match="use_cache must be False where position_ids start again"):
        model(input_ids=tokens, position_ids=positions)


@torch.no_grad()
def test_packed_documents_stay_apart_beside_padding():
    model = build()
    tokens = ids(2, 12)
    positions = torch.tensor([[*range(5), *range(5), 0, 0], [0, 0, *range(10)]])
    mask = torch.tensor([[1] * 10 + [0] * 2, [0] * 2 + [1] * 10])
    packed = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, part in ((0, slice(0, 5)), (0, slice(5, 10)), (1, slice(2, 12))):
        alone = model(input_ids=tokens[row : row + 1, part], use_cache=False).logits
        torch.testing.assert_close(packed[row : row + 1, part], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="attention_mask"):
        model(input_ids=tokens, attention_mask=mask[:, :7], position_ids=positions, use_cache=False)


@torch.no_grad()
@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("length", [7, 8, 9, 16, 40])
def test_cached_equals_uncached_and_the_cache_stays_small(variant, length):
    model = build(**ALL[variant])
    tokens = ids(2, length + 6)
    expected = model(input_ids=tokens, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    logits = [model(input_ids=tokens[:, :length], past_key_values=cache, use_cache=True).logits]
    for position in range(length, length + 6):
        logits.append(model(input_ids=tokens[:, position : position + 1], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-5, rtol=1e-4)
    for layer, kind in zip(cache.layers, model.config.layer_types, strict=True):
        if kind == "sliding_attention":
            assert layer.keys.shape[2] <= model.config.window


@torch.no_grad()
@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("length", [5, 13])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_mask_of_another_length_is_refused(variant, length, padding):
    model, mask = build(**ALL[variant]), torch.ones(2, length, dtype=torch.long)
    mask[:, :padding] = 0
    with pytest.raises(ValueError, match=f"attention_mask must be as long as the keys, 12 with .*, got {length}"):
        model(input_ids=ids(2, 12), attention_mask=mask)
    cache = model(input_ids=ids(2, 5), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="attention_mask must be as long as the keys, 12 with a cache's, got 7"):
        model(input_ids=ids(2, 7), attention_mask=torch.ones(2, 7), past_key_values=cache)


def test_a_static_cache_of_a_window_is_no_longer_than_it():
    model = build(**VARIANTS["mixed, grouped, untied"])
    cache = StaticCache(config=model.config, max_cache_len=40)
    model.generate(ids(2, 20), past_key_values=cache, max_new_tokens=15, do_sample=False, disable_compile=True)
    assert [layer.keys.shape[2] for layer in cache.layers] == [8, 40]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 7},
        {"use_cache": False},
    ],
)
def test_generation_gives_the_same_tokens_with_every_implementation(variant, options):
    model = build(**VARIANTS[variant])
    expected = None
    for implementation in IMPLEMENTATIONS:
        model.set_attn_implementation(implementation)
        found = model.generate(ids(2, 20), max_new_tokens=15, do_sample=False, **options)
        expected = found if expected is None else expected
        assert torch.equal(found, expected), implementation


@pytest.mark.parametrize("implementation", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
def test_continuous_batching_generates_the_same_tokens(implementation):
    model = build()
    prompts = [ids(1, length, seed=length) for length in (5, 20, 9)]
    expected = [
        model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :].tolist() for prompt in prompts
    ]
    model.set_attn_implementation(implementation)
    options = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
    # By default it takes most of the machine's memory.
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32)
    found = model.generate_batch([prompt[0].tolist() for prompt in prompts], options, small)
    assert [output.generated_tokens for output in found.values()] == expected


# How transformers calls it.
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@torch.no_grad()
def test_flex_attention_gives_the_same_logits():
    model = build().requires_grad_(False)
    expected = model(input_ids=ids(2, 40)).logits
    model.set_attn_implementation("flex_attention")
    # What is compared is the mask; compiling it takes half a minute.
    with torch.compiler.set_stance("force_eager"):
        found = model(input_ids=ids(2, 40)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_left_padding_does_not_change_what_is_generated():
    model = build()
    tokens = ids(1, 20)
    padded = torch.cat([torch.zeros(1, 11, dtype=torch.int64), tokens], 1)
    mask = (padded != 0).long()
    alone = model.generate(tokens, max_new_tokens=12, do_sample=False)
    found = model.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert torch.equal(found[:, 11:], alone)


def test_sampling_is_reproducible():
    model = build()
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(model.generate(ids(1, 5), max_new_tokens=12, do_sample=True, temperature=0.8, top_k=10))
    assert torch.equal(*drawn)


def test_the_pipeline_continues_a_text(tmp_path):
    config = LocalTransformerConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, window=8)
    model = LocalTransformerForCausalLM(config)
    perturb(model)
    model.save_pretrained(tmp_path)
    tokenizer = ByteTokenizer()
    tokenizer.save_pretrained(tmp_path)
    generate = pipeline("text-generation", model=str(tmp_path))
    found = generate("Grüße, ", max_new_tokens=9, do_sample=False)[0]["generated_text"]
    expected = model.generate(**tokenizer("Grüße, ", return_tensors="pt"), max_new_tokens=9, do_sample=False)
    assert found == tokenizer.decode(expected[0], skip_special_tokens=True)
    assert found.startswith("Grüße, ")
    assert len(found) > len("Grüße, ")


@torch.no_grad()
def test_hidden_states_attentions_and_kept_logits():
    model = build()
    tokens = ids(2, 30)
    model.set_attn_implementation("eager")
    output = model(input_ids=tokens, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 30, 16)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 4, 30, 30)] * 2
    beyond = torch.ones(30, 30).tril(-8).bool()
    assert not output.attentions[0][..., beyond].any()
    torch.testing.assert_close(model(input_ids=tokens, logits_to_keep=1).logits, output.logits[:, -1:])


def test_tied_weights_are_one_tensor_and_embeddings_can_be_resized(tmp_path):
    model = build()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.resize_token_embeddings(45)
    model.save_pretrained(tmp_path)
    loaded = LocalTransformerForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight.shape == (45, 16)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    untied = build(tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@torch.no_grad()
def test_the_auto_class_loads_the_model_without_its_head(tmp_path):
    model = build(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is LocalTransformerModel
    states = loaded(input_ids=ids(2, 20)).last_hidden_state
    assert torch.equal(model.lm_head(states), model(input_ids=ids(2, 20)).logits)


# Learned spans, and windows of each head, export for one length.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_export_runs_on_any_length(variant):
    model = build(**VARIANTS[variant], use_cache=False)
    dynamic = {"input_ids": {1: torch.export.Dim("length", min=2, max=4096)}}
    exported = torch.export.export(model, (), {"input_ids": ids(1, 150)}, dynamic_shapes=dynamic).module()
    for length in (5, 64, 65, 128, 300):
        tokens = ids(1, length)
        torch.testing.assert_close(exported(input_ids=tokens).logits, model(input_ids=tokens).logits)


@torch.no_grad()
def test_embeddings_instead_of_ids():
    model = build()
    tokens = ids(2, 12)
    found = model(inputs_embeds=model.get_input_embeddings()(tokens)).logits
    torch.testing.assert_close(found, model(input_ids=tokens).logits)
