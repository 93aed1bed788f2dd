import math

import numpy as np
import pytest
import torch

from hf_latentgen.models.bits import bits_per_dim_to_nats, nats_to_bits_per_byte, nats_to_bits_per_dim

QUANTITIES = [282.0, np.array([1.5, 282.0]), torch.tensor([[1.5], [282.0]], dtype=torch.float64)]


@pytest.mark.parametrize("nats", QUANTITIES, ids=["float", "array", "tensor"])
def test_round_trip_keeps_value_and_type(nats):
    back = bits_per_dim_to_nats(nats_to_bits_per_dim(nats, 784), 784)
    assert type(back) is type(nats)
    np.testing.assert_allclose(np.asarray(back), np.asarray(nats), rtol=1e-15)


@pytest.mark.parametrize("num_levels", [2, 16, 256])
@pytest.mark.parametrize("num_dims", [1, 784, 3072])
def test_uniform_levels_cost_log2_of_their_number(num_levels, num_dims):
    assert nats_to_bits_per_dim(num_dims * math.log(num_levels), num_dims) == pytest.approx(math.log2(num_levels))
    assert bits_per_dim_to_nats(math.log2(num_levels), num_dims) == pytest.approx(num_dims * math.log(num_levels))


def test_published_score():
    # 0.519 bits per dimension is 282.0 nats on 28x28 grey images, where one bit per dimension is 543.43 nats.
    assert bits_per_dim_to_nats(1.0, 784) == pytest.approx(543.43, abs=0.005)
    assert nats_to_bits_per_dim(282.0, 784) == pytest.approx(0.519, abs=5e-4)


def test_uniform_bytes_cost_eight_bits():
    assert nats_to_bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)


def test_more_dimensions_mean_fewer_bits_for_each():
    assert nats_to_bits_per_dim(100.0, 784) == pytest.approx(nats_to_bits_per_dim(100.0, 1024) * 1024 / 784)


def test_tensors_keep_dtype_and_gradient():
    nats = torch.tensor([3.0, 5.0], requires_grad=True)
    bits = nats_to_bits_per_dim(nats, 4)
    assert bits.dtype == torch.float32
    bits.sum().backward()
    torch.testing.assert_close(nats.grad, torch.full((2,), 1 / (4 * math.log(2))))
