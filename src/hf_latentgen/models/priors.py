# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Priors that codes of an adversarial autoencoder are drawn from."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributions import check_generator, standard_normal


class Prior:
    """A distribution of codes, made of `num_parts` equally likely parts.

    A subclass defines `points`. Parts are what a label can choose: a Gaussian of the mixture, a stretch of the roll.
    """

    def __init__(self, dim: int, num_parts: int = 1):
        self.dim = dim
        self.num_parts = num_parts

    def sample(
        self, num_samples: int, like: Tensor, generator: torch.Generator | None = None, parts: Tensor | None = None
    ) -> Tensor:
        """Codes drawn from the prior, with the dtype and on the device of `like`. [num_samples, dim].

        Args:
            num_samples: how many.
            like: a tensor.
            generator: source of the noise.
            parts: which part to draw each code from, integers [num_samples]; where negative or None, any.
        """
        check_generator(generator)
        device = like.device if generator is None else generator.device
        if self.num_parts == 1:
            drawn = torch.zeros(num_samples, dtype=torch.long, device=like.device)
        else:
            drawn = torch.randint(self.num_parts, (num_samples,), generator=generator, device=device).to(like.device)
        return self.points(drawn if parts is None else torch.where(parts < 0, drawn, parts), like, generator)

    def points(self, parts: Tensor, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """A code from each of the given parts. Shape: `parts` [B] -> [B, dim]."""
        raise NotImplementedError


class StandardGaussian(Prior):
    """The standard normal distribution: one part."""

    def points(self, parts: Tensor, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B] -> [B, dim]."""
        return standard_normal((parts.shape[0], self.dim), like, generator)


class Flower(Prior):
    """A mixture of Gaussians in the plane, long along the ray from the origin and narrow across it: petals.

    Centres at distance 1.4, standard deviations 0.5 and 0.1. Source: Makhzani et al. (2015), figure 4, read off.
    """

    def points(self, parts: Tensor, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B] -> [B, 2]."""
        along, across = (standard_normal((parts.shape[0], 2), like, generator) * like.new_tensor([0.5, 0.1])).unbind(1)
        angle = (parts * (2 * math.pi / self.num_parts)).to(like.dtype)
        along = along + 1.4
        return torch.stack(
            [along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], dim=1
        )


class SwissRoll(Prior):
    """A spiral of two turns in the plane with radius up to 3, its parts consecutive stretches.

    Source: Makhzani et al. (2015), figure 4, read off.
    """

    def points(self, parts: Tensor, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B] -> [B, 2]."""
        device = like.device if generator is None else generator.device
        share = torch.rand(parts.shape[0], generator=generator, device=device).to(like.device)
        # The square root makes equal stretches of the parameter about equally long.
        turned = ((parts + share) / self.num_parts).sqrt().to(like.dtype)
        radius, angle = 3 * turned, 4 * math.pi * turned
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


class OneHot(Prior):
    """The corners of a simplex, one for each class, all equally likely."""

    def points(self, parts: Tensor, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B] -> [B, num_parts]."""
        return F.one_hot(parts, self.num_parts).to(like.dtype)
