# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Distributions of latents and pixels. `log_prob` is in nats per example, [B], summed over every other axis."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The range VDVAE and diffusers clamp the log-variance to, [-30, 20], halved for the log standard deviation.
LOG_STD_RANGE = (-15.0, 10.0)
OUTPUTS = ("sample", "mode", "mean")


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of `shape`, with the dtype and on the device of `like`.

    With a generator the noise is drawn on the generator's device, so that one seed gives one result on every device.
    """
    if generator is None:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    return torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def standard_normal_log_prob(latents: Tensor) -> Tensor:
    """Log density of the standard normal prior at each latent vector, in nats. [B].

    Shape: `latents` [B, L].
    """
    return -0.5 * (latents.square() + math.log(2 * math.pi)).sum(-1)


@dataclass
class DiagonalGaussian:
    """Normal distributions with a diagonal covariance, one per example.

    Shape: `mean` and `log_std` are [B, L]; the log standard deviation is clamped to [-15, 10].
    """

    mean: Tensor
    log_std: Tensor

    def __post_init__(self):
        self.log_std = self.log_std.clamp(*LOG_STD_RANGE)

    @property
    def mode(self) -> Tensor:
        """The mean. [B, L]."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A reparameterised sample: gradients reach mean and standard deviation. [B, L].

        Source: Kingma & Welling (2014), section 2.4.
        """
        return self.mean + self.log_std.exp() * standard_normal(self.mean.shape, self.mean, generator)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Log density of latents [B, L], in nats. [B]."""
        return standard_normal_log_prob((latents - self.mean) / self.log_std.exp()) - self.log_std.sum(-1)

    def kl_to_standard_normal(self) -> Tensor:
        """KL(self || N(0, I)) of each latent dimension, in nats. [B, L].

        Source: Kingma & Welling (2014), appendix B.
        """
        return 0.5 * (torch.exp(2 * self.log_std) + self.mean.square() - 1) - self.log_std


@dataclass
class CategoricalPixels:
    """Independent categorical distributions over the levels of each pixel and channel.

    Shape: `logits` [B, num_levels, C, H, W].
    """

    logits: Tensor

    @property
    def num_levels(self) -> int:
        """The number of levels a pixel can take."""
        return self.logits.shape[1]

    @property
    def probabilities(self) -> Tensor:
        """Probability of each level. [B, num_levels, C, H, W]."""
        return self.logits.softmax(1)

    def log_prob(self, levels: Tensor) -> Tensor:
        """Log probability of integer levels [B, C, H, W], in nats. [B]."""
        return -F.cross_entropy(self.logits, levels.long(), reduction="none").flatten(1).sum(1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Levels drawn from the distribution. int64 [B, C, H, W]."""
        probabilities = self.probabilities.movedim(1, -1)
        device = probabilities.device if generator is None else generator.device
        drawn = torch.multinomial(probabilities.reshape(-1, self.num_levels).to(device), 1, generator=generator)
        return drawn.view(probabilities.shape[:-1]).to(probabilities.device)

    @property
    def mode(self) -> Tensor:
        """The most probable level of each pixel. int64 [B, C, H, W]."""
        return self.logits.argmax(1)

    @property
    def mean(self) -> Tensor:
        """The expected level of each pixel, a real number in [0, num_levels - 1]. [B, C, H, W]."""
        levels = torch.arange(self.num_levels, dtype=self.logits.dtype, device=self.logits.device)
        # Not a matrix product, which autocast would round to bf16; rounding may carry the sum past the last level.
        return (self.probabilities * levels.view(-1, 1, 1, 1)).sum(1).clamp(max=self.num_levels - 1)

    def draw(self, output: str, generator: torch.Generator | None = None) -> Tensor:
        """Images as a sample, the mode or the mean of the distribution. [B, C, H, W] levels.

        Raises:
            ValueError: `output` is not one of "sample", "mode", "mean".
        """
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
        return self.sample(generator) if output == "sample" else getattr(self, output)
