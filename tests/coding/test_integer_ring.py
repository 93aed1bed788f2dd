"""Attention to whole numbers: near to that of the weights, and the same in whichever order it is added up."""

import pytest
import torch

from hf_latentgen import LocalTransformerForImageGeneration, LocalTransformerImageConfig
from hf_latentgen.coding import integer_ring
from hf_latentgen.coding.arithmetic import fixed_arithmetic
from hf_latentgen.coding.integer_ring import EXACT, MOST_PLACES, IntegerRing, new_ring
from hf_latentgen.models.position_steps import Ring
from modeling_common import perturb


def filled_ring(ring_class, pairs, bound=5.0):
    """A ring with all of these positions, [window, B, 2, G, D], and two queries for each key and value."""
    ring = ring_class(pairs[0], len(pairs), torch.full((4 * pairs.shape[3],), bound).to(pairs))
    for place, pair in enumerate(pairs):
        ring.write(place, pair)
    return ring


@pytest.mark.parametrize(("window", "filled"), [(1, 1), (7, 5), (300, 300), (MOST_PLACES, 4000)])
def test_near_to_the_ring_that_rounds_nothing(window, filled):
    torch.manual_seed(0)
    pairs = torch.randn(window, 2, 2, 3, 64).double()
    expected, whole = (filled_ring(ring_class, pairs) for ring_class in (Ring, IntegerRing))
    query = torch.randn(2, 3, 2, 64).double() / 2
    bias = torch.zeros(3, 2, filled).double()
    bias[1, 0, 1:] = -torch.inf
    for given in (None, bias):
        found, right = (ring.attend(query, filled, given) for ring in (whole, expected))
        torch.testing.assert_close(found, right, rtol=0, atol=0.02)
        # Above by a unit of a value at most, and what the rounding of the weights leaves.
        assert (found - right).std() < 0.002


@pytest.mark.parametrize("size", [16, 64, 128, 512])
def test_no_sum_passes_what_float32_holds_exactly(size, monkeypatch):
    """Also with the largest numbers of one sign everywhere: then products of float32 equal those of whole numbers."""
    ring = filled_ring(IntegerRing, torch.ones(200, 1, 2, 1, size).double(), bound=1.0)
    multiply, products = torch.bmm, []

    def recorded(left, right):
        products.append((left, right, multiply(left, right)))
        return products[-1][-1]

    monkeypatch.setattr(torch, "bmm", recorded)
    # A query within its bound, and one above it.
    ring.attend(torch.tensor([1.0, 9.0]).double().view(1, 1, 2, 1).expand(1, 1, 2, size), 200, None)
    for left, right, product in products:
        assert left.dtype == right.dtype == product.dtype == torch.float32
        assert torch.equal(left, left.round())
        assert torch.equal(right, right.round())
        assert torch.equal(multiply(left.double(), right.double()), product.double())
        assert EXACT / 2 < multiply(left.double().abs(), right.double().abs()).max() <= EXACT


def test_what_passes_its_bound_is_cut_off():
    ring = filled_ring(IntegerRing, torch.full((1, 1, 2, 1, 4), 9.0).double(), bound=3.0)
    torch.testing.assert_close(
        ring.attend(torch.ones(1, 1, 2, 4).double(), 1, None), torch.full((1, 1, 2, 4), 3.0).double(), rtol=1e-3, atol=0
    )


def test_a_head_whose_weights_are_zero():
    ring = filled_ring(IntegerRing, torch.zeros(3, 1, 2, 1, 4).double(), bound=0.0)
    assert torch.equal(ring.attend(torch.zeros(1, 1, 2, 4).double(), 3, None), torch.zeros(1, 1, 2, 4).double())


def test_only_a_ring_that_is_large_and_not_too_wide_is_of_whole_numbers():
    bounds = torch.ones(4).double()
    images = integer_ring.CACHE_BYTES // (8 * 2 * 4 * 100)
    for number, window, kind in ((images, 100, Ring), (images, 101, IntegerRing), (images, MOST_PLACES + 1, Ring)):
        pair = torch.empty(number, 2, 1, 4, device="meta").double()
        assert type(new_ring(pair, window, bounds.to("meta"))) is kind


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"num_key_value_heads": 2}, {"attention_span": "trimmed", "span_ramp": 2, "layer_windows": [4, 7]}]
)
def test_a_model_gives_nearly_the_same_probabilities(options, monkeypatch):
    monkeypatch.setattr(integer_ring, "CACHE_BYTES", 0)
    config = LocalTransformerImageConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, image_size=6, num_levels=3, **options
    )
    torch.manual_seed(0)
    model = LocalTransformerForImageGeneration(config)
    perturb(model)
    model.double().eval()
    images = torch.randint(0, 3, (4, 1, 6, 6))
    expected = model(images).logits.flatten(2).log_softmax(1)
    # No number of a layer passes its bound, so that nothing is cut off.
    clamp = torch.Tensor.clamp_

    def checked(self, low, high):
        assert torch.equal(clamp(self.clone(), low, high), self)
        return self

    monkeypatch.setattr(torch.Tensor, "clamp_", checked)
    steps = model.steps(images.flatten(1), new_ring=new_ring)
    for position in range(36):
        found = steps.logits(position).log_softmax(1)
        torch.testing.assert_close(found, expected[..., position].double(), rtol=0, atol=0.01)


def test_float32_is_whole_whatever_was_set_before():
    torch.set_float32_matmul_precision("medium")
    try:
        with fixed_arithmetic():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
