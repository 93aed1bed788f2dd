"""Rounding of `local_attention` at the sizes that are used, beside that of `scaled_dot_product_attention`."""

import functools

import pytest
import torch
import torch.nn.functional as F

from hf_latentgen.models.local_attention import local_attention, local_attention_reference

LENGTH, HEADS, DIM = 1001, 2, 64
# Of the largest value of the tensor, where that is above 1: the spacing of floats at 4 is half of it already.
TOLERANCE = 1e-6


def left_padding():
    return {"attention_mask": (torch.arange(LENGTH) >= 301).long()[None]}


def right_padding():
    return {"attention_mask": (torch.arange(LENGTH) < 701).long()[None]}


def packed():
    return {"document_ids": torch.bucketize(torch.arange(LENGTH), torch.tensor([100, 103, 650]))[None]}


def outputs_and_gradients(attend, dtype):
    generator = torch.Generator().manual_seed(42)
    *states, gradient = (torch.randn(1, HEADS, LENGTH, DIM, generator=generator) for _ in range(4))
    inputs = [tensor.to(dtype).requires_grad_() for tensor in states]
    output = attend(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient.to(dtype))]


def largest_errors(found, expected):
    """Of outputs and the gradients of queries, keys and values, see `TOLERANCE`."""
    pairs = zip(found, expected, strict=True)
    return [((one.double() - other).abs().max() / other.abs().max().clamp(min=1)).item() for one, other in pairs]


@pytest.mark.parametrize("window", [100, 256])
@pytest.mark.parametrize(
    ("options", "is_causal"),
    [(dict, True), (left_padding, True), (right_padding, True), (packed, True), (dict, False), (packed, False)],
)
def test_errors_are_below_a_millionth_of_the_largest_value(window, options, is_causal):
    options = {"window": window, "is_causal": is_causal, **options()}
    expected = outputs_and_gradients(functools.partial(local_attention_reference, **options), torch.float64)
    errors = largest_errors(
        outputs_and_gradients(functools.partial(local_attention, **options), torch.float32), expected
    )
    assert max(errors) < TOLERANCE, errors


def test_errors_are_no_larger_than_those_of_torch():
    rows = torch.arange(LENGTH)
    distance = rows[:, None] - rows
    visible = (distance >= 0) & (distance < 256)
    expected = outputs_and_gradients(functools.partial(local_attention_reference, window=256), torch.float64)
    errors, others = (
        largest_errors(outputs_and_gradients(attend, torch.float32), expected)
        for attend in (
            functools.partial(local_attention, window=256),
            functools.partial(F.scaled_dot_product_attention, attn_mask=visible),
        )
    )
    assert all(error < 1.5 * other for error, other in zip(errors, others, strict=True)), (errors, others)
