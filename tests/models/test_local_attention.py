import functools
import itertools
from collections import Counter

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    ModernBertConfig,
    Qwen2Config,
)

from hf_latentgen.models import local_attention as module
from hf_latentgen.models import local_attention_cpu
from hf_latentgen.models import local_attention_interface as interface
from hf_latentgen.models.local_attention import local_attention, local_attention_reference
from modeling_common import TINY

LENGTHS = (1, 2, 63, 64, 65, 130, 200)
WINDOWS = (1, 2, 63, 64, 65, 100, 1000)


def sloped(heads, window, dtype):
    """A bias that differs by head and distance and hides the farthest keys of a head."""
    distance = torch.arange(window, dtype=dtype)
    bias = -distance * torch.linspace(0.01, 0.3, heads, dtype=dtype).unsqueeze(1)
    return bias.masked_fill(distance > torch.linspace(3, 2 * window, heads).unsqueeze(1), -torch.inf)


def states(length, keys=None, batch=2, heads=4, groups=2, dim=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    shapes = ((heads, length), (groups, keys or length), (groups, keys or length))
    return [torch.randn(batch, h, n, dim, generator=generator).to(dtype).requires_grad_() for h, n in shapes]


def outputs_and_gradients(function, tensors, *arguments, **options):
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*tensors, *arguments, **options)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), tensors)]


def assert_equals_reference(tensors, window, **options):
    """Outputs agree with the dense float64 reference to 1e-6 of their size, gradients, sums of more terms, to 3e-6."""
    found = outputs_and_gradients(local_attention, tensors, window, **options)
    doubles = [tensor.double() for tensor in tensors]
    expected = outputs_and_gradients(local_attention_reference, doubles, window, **options)
    for one, other, tolerance in zip(found, expected, (1e-6, 3e-6, 3e-6, 3e-6), strict=True):
        assert (one.double() - other).abs().max() <= tolerance * max(1.0, other.abs().max().item())


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of each path: a test must not pass because everything took another one."""
    counter = Counter()

    def count(name, *users):
        original = getattr(module, name)
        for user in users:
            monkeypatch.setattr(user, name, lambda *arguments: counter.update([name]) or original(*arguments))

    count("banded_attention", module, interface)
    count("fused_attention", module)
    return counter


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_dense_reference(length, is_causal, calls):
    seen = torch.ones(2, length, dtype=torch.bool)
    for window in WINDOWS:
        assert_equals_reference(states(length), window, is_causal=is_causal)
        assert_equals_reference(states(length), window, is_causal=is_causal, attention_mask=seen)
    assert calls == {"fused_attention": len(WINDOWS), "banded_attention": len(WINDOWS)}


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rows_at_once", [700, 200, 1])
def test_long_heads_are_taken_in_turns_and_in_pieces(rows_at_once, is_causal, monkeypatch):
    monkeypatch.setattr(local_attention_cpu, "ROWS_AT_ONCE", rows_at_once)
    assert_equals_reference(states(700), 70, is_causal=is_causal)


def test_pieces_cover_each_row_once():
    parts = local_attention_cpu.split_rows(100_000, 256, 64, is_causal=False)
    assert [part.first for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].first, parts[-1].stop) == (0, 100_000)
    assert len(parts) > 3
    assert max(part.stop - part.first for part in parts) <= local_attention_cpu.ROWS_AT_ONCE


def test_gradients_are_those_of_finite_differences(calls):
    for is_causal in (True, False):
        tensors = states(140, batch=1, heads=2, groups=1, dim=3, dtype=torch.float64)
        attend = functools.partial(local_attention, window=33, is_causal=is_causal)
        assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)
    assert set(calls) == {"fused_attention"}


def test_states_of_any_strides(calls):
    for is_causal, window in itertools.product((True, False), (33, 200)):
        tensors = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in states(130)]
        assert_equals_reference(tensors, window, is_causal=is_causal)
        output = local_attention(*tensors, window, is_causal=is_causal)
        backwards = [tensor.mT.contiguous().mT for tensor in tensors]
        torch.testing.assert_close(local_attention(*backwards, window, is_causal=is_causal), output)
        # The gradient of a sum has no strides at all.
        expected = local_attention_reference(*tensors, window, is_causal=is_causal)
        found, expected = (torch.autograd.grad(states.sum(), tensors) for states in (output, expected))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert calls["fused_attention"] == 2 * calls["banded_attention"] == 8


def test_second_derivatives_need_the_kernel_that_has_them(calls):
    tensors = states(70, batch=1)
    with pytest.raises(RuntimeError, match=r"differentiated once, got create_graph=True; inside .*sdpa_kernel"):
        torch.autograd.grad(local_attention(*tensors, 9).square().sum(), tensors, create_graph=True)
    assert calls == {"fused_attention": 1}
    results = []
    for attend in (local_attention, local_attention_reference):
        with sdpa_kernel(SDPBackend.MATH):
            query_gradient, *_ = torch.autograd.grad(attend(*tensors, 9).square().sum(), tensors, create_graph=True)
            results.append(torch.autograd.grad(query_gradient.square().sum(), tensors))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_the_kernels_cannot_do_takes_the_other_path(calls):
    query, key, value = (tensor.detach() for tensor in states(70))
    local_attention(query, key, value, 9, dropout=0.1)
    local_attention(query, key, torch.cat([value, value], -1), 9)
    local_attention(query[:, :, 1:], key, value, 9)
    local_attention(query, key, value, 9, document_ids=torch.zeros(2, 70))
    torch.func.vmap(lambda one: local_attention(one[None], key[:1], value[:1], 9))(query)
    with torch.autocast("cpu", torch.bfloat16):
        assert local_attention(query, key, value, 9).dtype == torch.bfloat16
    assert calls == {"banded_attention": 6}
    with torch.autocast("cpu", torch.bfloat16):
        local_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), 9)
    assert calls["fused_attention"] == 1


def test_reference_is_the_definition():
    query, key, value = states(9, batch=1, heads=1, groups=1, dtype=torch.float64)
    output = local_attention_reference(query, key, value, 3)
    for i in range(9):
        seen = [j for j in range(9) if i - 3 < j <= i]
        scores = torch.stack([query[0, 0, i] @ key[0, 0, j] for j in seen]) / 8**0.5
        expected = sum(weight * value[0, 0, j] for weight, j in zip(scores.softmax(0), seen, strict=True))
        torch.testing.assert_close(output[0, 0, i], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side):
    mask = torch.ones(2, 150, dtype=torch.int64)
    mask[0, slice(0, 70) if side == "left" else slice(-70, None)] = 0
    for window, is_causal in itertools.product((5, 64, 90), (True, False)):
        assert_equals_reference(states(150), window, attention_mask=mask, is_causal=is_causal)


def test_packed_documents_do_not_see_each_other():
    document_ids = torch.tensor([[0] * 40 + [1] * 3 + [2] * 107, [5] * 150])
    for is_causal in (True, False):
        assert_equals_reference(states(150), 20, document_ids=document_ids, is_causal=is_causal)
    query, key, value = states(150)
    apart = local_attention(query[:1, :, 43:], key[:1, :, 43:], value[:1, :, 43:], 20)
    together = local_attention(query, key, value, 20, document_ids=document_ids)
    torch.testing.assert_close(together[:1, :, 43:], apart, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("length", "keys"), [(1, 7), (1, 100), (5, 70), (70, 75), (100, 300)])
def test_queries_are_the_last_keys_of_a_cache(length, keys):
    for window in (2, 16, 64, 400):
        assert_equals_reference(states(length, keys), window)
        mask = torch.ones(2, keys, dtype=torch.bool)
        mask[1, :3] = False
        assert_equals_reference(states(length, keys), window, attention_mask=mask)


@pytest.mark.parametrize(("length", "keys"), [(1, 1), (9, 9), (65, 65), (200, 200), (1, 70), (70, 75), (100, 300)])
@pytest.mark.parametrize("hidden", [None, "padding", "documents"])
def test_bias_by_distance(length, keys, hidden):
    options = {}
    if hidden == "padding":
        mask = torch.ones(2, keys, dtype=torch.bool)
        mask[0, : keys // 3], mask[1, keys - keys // 4 :] = False, False
        options = {"attention_mask": mask}
    elif hidden == "documents":
        options = {"document_ids": (torch.arange(keys) // 30).expand(2, -1)}
    for window in (2, 16, 65, 100, 400):
        results = []
        for function, dtype in ((local_attention, torch.float32), (local_attention_reference, torch.float64)):
            bias = sloped(4, window, dtype).requires_grad_()
            tensors = [tensor.to(dtype) for tensor in states(length, keys)]
            query, key, value = tensors
            results.append(
                outputs_and_gradients(
                    lambda b, q, k, v, f=function, w=window: f(q, k, v, w, bias=b, **options), [bias, query, key, value]
                )
            )
        for found, expected in zip(*results, strict=True):
            found, expected = found.nan_to_num(neginf=0), expected.nan_to_num(neginf=0)
            assert (found.double() - expected).abs().max() <= 2e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tensors = states(200, dtype=dtype)
    output = local_attention(*tensors, 33)
    assert output.dtype == dtype
    expected = local_attention_reference(*(tensor.double() for tensor in tensors), 33)
    assert (output.double() - expected).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_padded", [False, True])
def test_gradients_in_half_precision(dtype, is_padded):
    options = {}
    if is_padded:
        options["attention_mask"] = torch.ones(2, 200, dtype=torch.bool)
        options["attention_mask"][1, :70] = False
    tensors = states(200, dtype=dtype)
    found = outputs_and_gradients(local_attention, tensors, 33, **options)
    doubles = [tensor.double() for tensor in tensors]
    expected = outputs_and_gradients(local_attention_reference, doubles, 33, **options)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() < 0.03 * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("hidden", ["padding", "packed", "earlier keys"])
def test_a_mask_that_all_examples_share_takes_the_fused_kernel(hidden):
    query, key, value = states(150, keys=190 if hidden == "earlier keys" else 150, batch=1)
    options = {}
    if hidden == "padding":
        options["attention_mask"] = (torch.arange(150) >= 40)[None]
    elif hidden == "packed":
        options["document_ids"] = (torch.arange(150) // 60)[None]
    # Other kernels are forbidden, and so torch says it when this one refuses.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = outputs_and_gradients(local_attention, (query, key, value), 33, **options)
    expected = outputs_and_gradients(local_attention_reference, (query, key, value), 33, **options)
    # Rows of padding see nothing; nobody looks at them.
    shown = slice(40 if hidden == "padding" else 0, None)
    torch.testing.assert_close(found[0][:, :, shown], expected[0][:, :, shown], atol=1e-5, rtol=0)


def test_rows_that_see_nothing_are_zero_and_have_finite_gradients():
    mask = torch.zeros(2, 90, dtype=torch.bool)
    mask[1] = True
    output, *gradients = outputs_and_gradients(local_attention, states(90), 7, attention_mask=mask)
    assert not output[0].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_dropout_drops_single_weights_and_scales_the_others():
    torch.manual_seed(0)
    query, key, _ = states(70, batch=1, groups=4)
    # Each output is the row of weights itself.
    value = torch.eye(70).expand(1, 4, 70, 70)
    weights = local_attention(query, key, value, 9)
    dropped = torch.stack([local_attention(query, key, value, 9, dropout=0.3) for _ in range(50)])
    is_kept = dropped != 0
    torch.testing.assert_close(dropped, is_kept * weights / 0.7, atol=1e-6, rtol=1e-5)
    is_seen = weights > 1e-6
    assert is_kept[:, is_seen].float().mean() == pytest.approx(0.7, abs=0.01)


def test_scale():
    tensors = states(70)
    assert_equals_reference(tensors, 9, scale=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"window": 2.5}, "window must be an integer of at least 1, got 2.5"),
        ({"window": True}, "window must be an integer of at least 1, got True"),
        ({"query": torch.zeros(2, 10, 8)}, r"query must have shape \[B, heads, 1 or more, D\], got \[2, 10, 8\]"),
        ({"query": torch.zeros(2, 4, 0, 8)}, r"query must have shape .* got \[2, 4, 0, 8\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"key": torch.zeros(2, 3, 10, 8)}, r"key must have shape \[2, a divisor of 4, 10 or more, 8\], got"),
        ({"key": torch.zeros(2, 2, 9, 8)}, r"key must have shape .* got \[2, 2, 9, 8\]"),
        ({"value": torch.zeros(2, 2, 11, 8)}, r"value must have the first three sizes of key, \[2, 2, 10\], got"),
        ({"attention_mask": torch.ones(2, 9)}, r"attention_mask must have shape \[2, 10\], got \[2, 9\]"),
        ({"document_ids": torch.ones(1, 10)}, r"document_ids must have shape \[2, 10\], got \[1, 10\]"),
        ({"bias": torch.zeros(4, 5)}, r"bias must have shape \[4, 4\] and is_causal true, got \[4, 5\] and True"),
        ({"bias": torch.zeros(4, 4), "is_causal": False}, r"is_causal true, got \[4, 4\] and False"),
    ],
)
def test_bad_arguments_are_named(change, message):
    query, key, value = states(10)
    with pytest.raises(ValueError, match=message):
        local_attention(**({"query": query, "key": key, "value": value, "window": 4} | change))


def test_compiles_to_one_graph():
    tensors = states(150)
    torch.compiler.reset()
    compiled = torch.compile(local_attention, fullgraph=True, backend="aot_eager")
    found = outputs_and_gradients(compiled, tensors, 33)
    torch.testing.assert_close(found, outputs_and_gradients(local_attention, tensors, 33), atol=1e-6, rtol=1e-5)
    torch.compiler.reset()


CAUSAL = {
    "mistral": lambda: MistralConfig(**TINY, num_key_value_heads=2, sliding_window=16),
    "qwen2": lambda: Qwen2Config(
        **TINY, num_key_value_heads=2, sliding_window=16, use_sliding_window=True, max_window_layers=1
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **TINY,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


def build(name, implementation):
    torch.manual_seed(0)
    config = CAUSAL[name]()
    config._attn_implementation = implementation
    model = Gemma3ForCausalLM(config) if name == "gemma3" else AutoModelForCausalLM.from_config(config)
    return model.eval()


def tokens(length, batch=2):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(length))


def logits_and_gradients(model, ids, mask, positions=None):
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    kept = output.logits if mask is None else output.logits[mask.bool()]
    gradients = torch.autograd.grad(kept.square().mean(), [p for p in model.parameters() if p.requires_grad])
    return [kept, *gradients]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_sliding_window_models_give_the_logits_and_gradients_of_eager(name, padding, calls):
    ours, eager = build(name, "local_attention"), build(name, "eager")
    for length in (3, 17, 100):
        mask = None
        if padding and length > 3:
            mask = torch.ones(2, length, dtype=torch.int64)
            mask[1, slice(0, length // 3) if padding == "left" else slice(-(length // 3), None)] = 0
        found, expected = (logits_and_gradients(model, tokens(length), mask) for model in (ours, eager))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert set(calls) == {"banded_attention" if padding else "fused_attention"}


def test_packed_positions_give_the_logits_of_eager(calls):
    ours, eager = build("mistral", "local_attention"), build("mistral", "eager")
    positions = torch.cat([torch.arange(30), torch.arange(50)]).unsqueeze(0)
    found, expected = (logits_and_gradients(model, tokens(80, 1), None, positions) for model in (ours, eager))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert set(calls) == {"banded_attention"}


@pytest.mark.parametrize("hidden", [None, "padding", "packed", "packed in one example"])
def test_mask_is_plain_only_where_nothing_but_the_window_hides(hidden, calls):
    positions = torch.arange(80).repeat(2, 1)
    if hidden == "packed":
        positions[:, 79] = 0
    if hidden == "packed in one example":
        positions[1, 1:] -= 1
    mask = torch.ones(2, 80, dtype=torch.int64)
    mask[1, 79] = hidden != "padding"
    mask = None if hidden and "packed" in hidden else mask
    ours, eager = build("mistral", "local_attention"), build("mistral", "eager")
    found, expected = (logits_and_gradients(model, tokens(80), mask, positions) for model in (ours, eager))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert calls == {"banded_attention" if hidden else "fused_attention": 2}


def test_dropout_of_a_plain_batch_takes_the_other_path(calls):
    model = build("mistral", "local_attention").train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    assert model(input_ids=tokens(80)).logits.isfinite().all()
    assert calls == {"banded_attention": 2}


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 20}, {"num_beams": 2}]
)
def test_generation_gives_the_tokens_of_eager(name, options):
    ids = tokens(40)
    mask = torch.ones_like(ids)
    ids[0, :9], mask[0, :9] = 0, 0
    if options.get("cache_implementation") == "static" or "prefill_chunk_size" in options:
        ids, mask = ids[1:], mask[1:]
    results = [
        build(name, implementation).generate(
            ids, attention_mask=mask, max_new_tokens=25, do_sample=False, disable_compile=True, **options
        )
        for implementation in ("local_attention", "eager")
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_modernbert_gives_the_logits_and_gradients_of_eager(padding, calls):
    models = []
    for implementation in ("local_attention", "eager"):
        torch.manual_seed(0)
        config = ModernBertConfig(**TINY, local_attention=16, global_attn_every_n_layers=2)
        config._attn_implementation = implementation
        models.append(AutoModelForMaskedLM.from_config(config).eval())
    for length in (5, 40, 150):
        mask = torch.ones(2, length, dtype=torch.int64)
        if padding:
            mask[1, slice(0, length // 3) if padding == "left" else slice(-(length // 3), None)] = 0
        results = []
        for model in models:
            kept = model(input_ids=tokens(length), attention_mask=mask).logits[mask.bool()]
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            results.append([kept, *torch.autograd.grad(kept.square().mean(), trained, allow_unused=True)])
        torch.testing.assert_close(*results, atol=1e-5, rtol=0)
    assert set(calls) == {"banded_attention" if padding else "fused_attention"}
