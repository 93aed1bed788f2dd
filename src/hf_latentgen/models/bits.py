# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Nats, bits per dimension and bits per byte: each conversion once, with its denominator."""

import math
from typing import TypeVar

import numpy as np
import torch

Quantity = TypeVar("Quantity", float, np.ndarray, torch.Tensor)


def nats_to_bits_per_dim(nats: Quantity, num_dims: int) -> Quantity:
    """Bits per dimension of quantities in nats per image.

    `num_dims` is `C * H * W` of the real image, never of a padded one.
    """
    return nats / (num_dims * math.log(2))


def bits_per_dim_to_nats(bits_per_dim: Quantity, num_dims: int) -> Quantity:
    """Nats per image of quantities in bits per dimension."""
    return bits_per_dim * (num_dims * math.log(2))


def nats_to_bits_per_byte(nats: Quantity, num_bytes: int) -> Quantity:
    """Bits per byte of a sum of nats over `num_bytes` scored bytes."""
    return nats / (num_bytes * math.log(2))
