# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Distributions of latents and pixels. `log_prob` is in nats per example, [B], summed over every other axis."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The range VDVAE and diffusers clamp the log-variance to, [-30, 20], halved for the log standard deviation.
LOG_STD_RANGE = (-15.0, 10.0)
# Of a logistic distribution, on a scale where the levels reach from -1 to 1. Source: PixelCNN++ has the lower limit.
LOG_SCALE_RANGE = (-7.0, 5.0)
OUTPUTS = ("sample", "mode", "mean")


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of `shape`, with the dtype and on the device of `like`.

    With a generator the noise is drawn on the generator's device, so that one seed gives one result on every device.

    Raises:
        ValueError: the generator is none, such as a seed.
    """
    check_generator(generator)
    if generator is None:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    return torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def check_generator(generator: torch.Generator | None) -> None:
    """Raise `ValueError` unless it is a `torch.Generator`, or None for torch's own."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None, got {generator!r}")


def standard_normal_log_prob(latents: Tensor) -> Tensor:
    """Log density of the standard normal prior at each latent vector, in nats. [B].

    Shape: `latents` [B, L].
    """
    return -0.5 * (latents.square() + math.log(2 * math.pi)).sum(-1)


def scaled(levels: Tensor, num_levels: int) -> Tensor:
    """Levels on a scale from -1, the first one, to 1, the last one. The shape given."""
    return levels * (2 / (num_levels - 1)) - 1


def unscaled(values: Tensor, num_levels: int) -> Tensor:
    """Values on that scale as real levels. The shape given."""
    return (values + 1) * ((num_levels - 1) / 2)


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

    @property
    def std(self) -> Tensor:
        """The standard deviation. [B, L]."""
        return self.log_std.exp()

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
class PointMass:
    """What a deterministic encoder gives: all probability at `mean`. Shape: `mean` [B, L]."""

    mean: Tensor

    @property
    def mode(self) -> Tensor:
        """The mean. [B, L]."""
        return self.mean

    @property
    def std(self) -> Tensor:
        """Zeros. [B, L]."""
        return torch.zeros_like(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The mean. [B, L]."""
        return self.mean


@dataclass
class Values:
    """Independent distributions over the levels of some values. Shape: `logits` [B, num_levels, ...]."""

    logits: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A level for each value. int64 [B, ...]."""
        return draw_levels(self.logits, generator)

    @property
    def mode(self) -> Tensor:
        """The most probable level of each value. int64 [B, ...]."""
        return self.logits.argmax(1)

    @property
    def mean(self) -> Tensor:
        """The expected level of each value, a real number in [0, num_levels - 1]. [B, ...]."""
        return expected_level(self.logits)


class Pixels:
    """A distribution of images of integer levels, one image per example.

    The parts of an image are drawn, or coded, one after the other, each given those before it. A subclass defines
    `num_levels`, `shape`, `log_probs` and `parts`.
    """

    num_levels: int
    shape: tuple[int, int, int, int]

    def log_probs(self, levels: Tensor) -> Tensor:
        """Log probability of each value given those in the parts before it, in nats. Shape: [B, C, H, W] twice."""
        raise NotImplementedError

    def log_prob(self, levels: Tensor) -> Tensor:
        """Log probability of images of integer levels [B, C, H, W], in nats. [B]."""
        return self.log_probs(levels).flatten(1).sum(1)

    def parts(self, levels: Tensor) -> Iterator[tuple[tuple, "Values"]]:
        """Of each part of the images its place in [B, C, H, W] and the distribution of its values.

        `levels` [B, C, H, W] is read, and holds the values of all parts before.
        """
        raise NotImplementedError

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Levels drawn from the distribution. int64 [B, C, H, W]."""
        check_generator(generator)
        levels = self._blank(torch.int64)
        for place, values in self.parts(levels):
            levels[place] = values.sample(generator)
        return levels

    @property
    def mode(self) -> Tensor:
        """The most probable level of each value, given those before it. int64 [B, C, H, W]."""
        levels = self._blank(torch.int64)
        for place, values in self.parts(levels):
            levels[place] = values.mode
        return levels

    @property
    def mean(self) -> Tensor:
        """The expected level of each value, given those before it, a real number in [0, num_levels - 1]. [B, C, H, W].

        What comes before is taken at its own expectation.
        """
        levels = self._blank(torch.float32)
        for place, values in self.parts(levels):
            levels[place] = values.mean
        return levels

    def draw(self, output: str, generator: torch.Generator | None = None) -> Tensor:
        """Images as a sample, the mode or the mean of the distribution. [B, C, H, W] levels.

        Raises:
            ValueError: `output` is not one of "sample", "mode", "mean".
        """
        return _draw(self, output, generator)

    def _blank(self, dtype: torch.dtype) -> Tensor:
        """Images to fill, on the device of the distribution."""
        raise NotImplementedError


def draw_levels(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Levels drawn from logits, on the generator's device. Shape: [B, num_levels, ...] -> int64 [B, ...]."""
    probabilities = logits.softmax(1).movedim(1, -1)
    device = logits.device if generator is None else generator.device
    drawn = torch.multinomial(probabilities.flatten(0, -2).to(device), 1, generator=generator)
    return drawn.view(probabilities.shape[:-1]).to(logits.device)


def expected_level(logits: Tensor) -> Tensor:
    """The mean of the levels under their probabilities, a real number. Shape: [B, num_levels, ...] -> [B, ...]."""
    last = logits.shape[1] - 1
    levels = torch.arange(last + 1, dtype=logits.dtype, device=logits.device)
    # Not a matrix product, which autocast would round to bf16; rounding may carry the sum past the last level.
    return (logits.softmax(1).movedim(1, -1) * levels).movedim(-1, 1).sum(1).clamp(max=last)


@dataclass
class CategoricalPixels(Pixels):
    """Independent categorical distributions over the levels of each pixel and channel: one part.

    Shape: `logits` [B, num_levels, C, H, W].
    """

    logits: Tensor

    @property
    def num_levels(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of levels a pixel can take."""
        return self.logits.shape[1]

    def log_probs(self, levels: Tensor) -> Tensor:
        """Log probability of each value, in nats. Shape: [B, C, H, W] twice."""
        return -F.cross_entropy(self.logits, levels.long(), reduction="none")

    def parts(self, levels: Tensor) -> Iterator[tuple[tuple, Values]]:
        """All values at once, see [`Pixels`]."""
        yield (), Values(self.logits)

    def _blank(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(self.logits[:, 0], dtype=dtype)


def logistic_mixture_log_probs(levels: Tensor, parameters: Tensor, num_levels: int) -> Tensor:
    """Log probability of each value under a mixture of logistic distributions, in nats. [...].

    A level stands for the interval around it, the first and the last one for all that lies beyond them too, so that the
    levels' probabilities sum to one.

    Args:
        levels: values, 0 to `num_levels - 1`. [...].
        parameters: logit of the weight, mean and log scale of each of K parts, on a scale where the levels reach from
            -1 to 1. [..., 3, K].
        num_levels: how many levels there are.

    Source: Salimans et al. (2017), PixelCNN++, eq. 2.
    """
    weights, means, log_scales = parameters.unbind(-2)
    # An interval has probability s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), here in logarithms, exact however small.
    half = 1 / (num_levels - 1)
    log_scales = log_scales.clamp(*LOG_SCALE_RANGE)
    inverse = torch.exp(-log_scales)
    centred = scaled(levels, num_levels).unsqueeze(-1) - means
    below_upper = F.logsigmoid((centred + half) * inverse)
    above_lower = F.logsigmoid((half - centred) * inverse)
    is_first, is_last = ((levels <= 0).unsqueeze(-1), (levels >= num_levels - 1).unsqueeze(-1))
    both = below_upper + above_lower + torch.log(-torch.expm1(-2 * half * inverse))
    log_probs = torch.where(is_first, below_upper, torch.where(is_last, above_lower, both))
    return torch.logsumexp(log_probs + weights.log_softmax(-1), -1)


def logistic_mixture_logits(parameters: Tensor, num_levels: int) -> Tensor:
    """Log probability of every level. Shape: `parameters` [..., 3, K] -> [..., num_levels]. See above."""
    levels = torch.arange(num_levels, dtype=parameters.dtype, device=parameters.device)
    return logistic_mixture_log_probs(levels, parameters.unsqueeze(-3), num_levels)


class LogisticMixtureValues(Values):
    """Independent mixtures over the levels of some values. Their logits are found only when they are asked for.

    Args:
        parameters: as in `logistic_mixture_log_probs`. [B, ..., 3, K].
        num_levels: how many levels there are.
    """

    def __init__(self, parameters: Tensor, num_levels: int):
        self.parameters, self.num_levels = parameters, num_levels

    @property
    def logits(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Log probability of every level. [B, num_levels, ...]."""
        # A few images at a time: all levels of all parts of a mixture fill the memory.
        logits = [logistic_mixture_logits(images, self.num_levels) for images in self.parameters.split(8)]
        return torch.cat(logits).movedim(-1, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A level for each value: that of a real number drawn from one part of the mixture. int64 [B, ...]."""
        weights, means, log_scales = self.parameters.unbind(-2)
        part = draw_levels(weights.movedim(-1, 1), generator).unsqueeze(-1)
        device = means.device if generator is None else generator.device
        share = torch.rand(part.shape, generator=generator, device=device, dtype=means.dtype).to(means.device)
        scales = log_scales.gather(-1, part).clamp(*LOG_SCALE_RANGE).exp()
        drawn = means.gather(-1, part) + scales * torch.logit(share)
        return unscaled(drawn.squeeze(-1), self.num_levels).round().clamp(0, self.num_levels - 1).long()


@dataclass
class LogisticMixturePixels(Pixels):
    """Mixtures of logistic distributions over the levels of each pixel, the channels of a pixel one after the other.

    The means of green and blue are shifted in proportion to the channels before, and all channels share the weights.

    Args:
        parameters: of each of K parts the logit of its weight, the mean, the log scale and, for three channels, the
            share of a channel before in the mean (red in green, red in blue, green in blue). [B, 3 or 4 * K, C, H, W].
        num_levels: levels of a pixel.

    Source: Salimans et al. (2017), PixelCNN++, eq. 2 and 3.
    """

    parameters: Tensor
    num_levels: int

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Shape of the images, [B, C, H, W]."""
        batch, _, *image = self.parameters.shape
        return batch, *image

    def log_probs(self, levels: Tensor) -> Tensor:
        """Log probability of each value given the channels before it, in nats. Shape: [B, C, H, W] twice."""
        channels = [self._given(levels, channel) for channel in range(levels.shape[1])]
        return logistic_mixture_log_probs(levels, torch.stack(channels, 1), self.num_levels)

    def parts(self, levels: Tensor) -> Iterator[tuple[tuple, Values]]:
        """Each channel in turn, see [`Pixels`]."""
        for channel in range(levels.shape[1]):
            yield (slice(None), channel), LogisticMixtureValues(self._given(levels, channel), self.num_levels)

    def _blank(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.shape, dtype=dtype, device=self.parameters.device)

    def _given(self, levels: Tensor, channel: int) -> Tensor:
        """The mixture of each value of a channel given those before it. [B, H, W, 3, K]."""
        kinds = 3 if levels.shape[1] == 1 else 4
        parameters = self.parameters.movedim(1, -1).unflatten(-1, (kinds, -1))  # [B, C, H, W, kinds, K]
        weights = parameters[..., 0, :].sum(1)
        means, log_scales = parameters[:, channel, ..., 1:3, :].unbind(-2)
        for before in range(channel):
            share = parameters[:, channel + before - 1, ..., 3, :]
            means = means + torch.tanh(share) * scaled(levels[:, before], self.num_levels).unsqueeze(-1)
        return torch.stack([weights, means, log_scales], -2)


@dataclass
class DeterministicPixels:
    """Images from a decoder without a likelihood. Shape: `values` [B, C, H, W], in [-1, 1]."""

    values: Tensor
    num_levels: int

    @property
    def mean(self) -> Tensor:
        """The values as real levels in [0, num_levels - 1]. [B, C, H, W]."""
        return unscaled(self.values, self.num_levels)

    @property
    def mode(self) -> Tensor:
        """The nearest level of each pixel. int64 [B, C, H, W]."""
        return self.mean.round().long()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The mode: there is nothing to draw. int64 [B, C, H, W]."""
        return self.mode

    def draw(self, output: str, generator: torch.Generator | None = None) -> Tensor:
        """Images as a sample, the mode or the mean. [B, C, H, W] levels. Errors as for [`Pixels`]."""
        return _draw(self, output, generator)


def check_output(output: str) -> None:
    """Raise `ValueError` unless images can be drawn as `output`."""
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")


def _draw(pixels: Pixels | DeterministicPixels, output: str, generator: torch.Generator | None) -> Tensor:
    check_output(output)
    check_generator(generator)
    if output == "sample":
        return pixels.sample(generator)
    return pixels.mode if output == "mode" else pixels.mean
