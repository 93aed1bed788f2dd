# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The variational autoencoder with a discrete likelihood of the pixel levels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .bits import nats_to_bits_per_dim
from .configuration_vae import VAEConfig
from .distributions import (
    CategoricalPixels,
    DiagonalGaussian,
    LogisticMixturePixels,
    Pixels,
    check_generator,
    standard_normal,
    standard_normal_log_prob,
)
from .modeling_image_autoencoder import ImageAutoencoderModel
from .modeling_latentgen import check_at_least
from .networks import DECODERS, ENCODERS

ESTIMATORS = ("importance", "prior")
# Decoded images held at once while estimating a likelihood: bounds the memory, whatever the number of samples, and what
# the caches of a processor hold.
IMAGES_PER_PASS = 128


@dataclass
class VAEOutput(ModelOutput):
    """What [`VAEModel`] returns.

    Args:
        loss: the optimised objective, mean over the batch, in bits per dimension. Scalar.
        distortion: `-E log p(x|z)` of each image, in nats. [B].
        rate: `KL(q(z|x) || p(z))` of each image, in nats. [B].
        group_rates: its share in each group of latents, coarse to fine, in nats. [B, G].
        logits: unnormalised log probabilities of the levels. [B, num_levels, C, H, W]. Of a mixture of logistic
            distributions its parameters, see [`LogisticMixturePixels`].
        latents: the latents that were decoded. [B, L].
    """

    loss: Tensor | None = None
    distortion: Tensor | None = None
    rate: Tensor | None = None
    group_rates: Tensor | None = None
    logits: Tensor | None = None
    latents: Tensor | None = None


class VAEModel(ImageAutoencoderModel):
    """Variational autoencoder with a diagonal-Gaussian posterior, a standard normal prior and discrete pixels.

    Source: Kingma & Welling (2014), Auto-Encoding Variational Bayes.
    """

    config: VAEConfig
    base_model_prefix = "vae"
    kind = "variational autoencoder"
    likelihood = "bound"
    has_temperature = True

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        self.encoder = ENCODERS[config.architecture](config, 2 * config.latent_dim)
        self.decoder = DECODERS[config.architecture](config, config.latent_dim, config.decoder_outputs)
        self.latent_sizes = [math.prod(shape) for shape in config.latent_shapes]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        beta: Tensor | float | None = None,
        sample_posterior: bool | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
    ) -> VAEOutput:
        """The two parts of the negative ELBO of each image, and the objective.

        The loss is the mean over the batch of `distortion + beta * rate`, in bits per dimension, the rate of each
        image being counted as at least `free_bits` in each part that `free_bits_of` names. `rate` itself is never
        clamped.

        Args:
            pixel_values: integer levels, [B, C, H, W].
            beta: weight of the rate in the loss; `config.beta` when None.
            sample_posterior: decode a posterior sample rather than its mean; when None, only while training. A loss at
                the posterior mean is not an ELBO: it is too low.
            generator: source of the posterior noise.
            return_loss: also compute the loss.

        Raises:
            ValueError: levels of a wrong type, shape or range, or an empty batch.

        Source: Kingma & Welling (2014), eq. 10; free bits: Kingma et al. (2016), eq. 15, applied to each image rather
        than to the mean over a batch, so that the loss does not depend on how a batch is split.
        """
        self._check_levels(pixel_values)
        posterior, latents, decoded = self._infer(pixel_values, sample_posterior, generator)
        outputs = self._outputs(decoded, pixel_values)
        distortion = -self._pixels(outputs).log_prob(pixel_values)
        rates = posterior.kl_to_standard_normal()
        total = rates.sum(1)
        group_rates = torch.stack([group.sum(1) for group in rates.split(self.latent_sizes, 1)], 1)
        loss = None
        if return_loss:
            beta = self.config.beta if beta is None else beta
            scopes = {"dimension": rates, "group": group_rates, "total": total.unsqueeze(1)}
            counted = scopes[self.config.free_bits_of].clamp(min=self.config.free_bits)
            objective = distortion + beta * counted.sum(1)
            loss = nats_to_bits_per_dim(objective.mean(), self.config.num_dims)
        return VAEOutput(loss, distortion, total, group_rates, outputs, latents)

    def encode(
        self, pixel_values: Tensor, sample_posterior: bool | None = None, generator: torch.Generator | None = None
    ) -> DiagonalGaussian:
        """The posterior of the latents of each image. Mean and log standard deviation [B, L].

        In a ladder the posterior of the finer latents is conditional on the coarser ones, which are sampled or, in
        `eval()`, taken at their mean. Arguments and errors are those of `forward`.
        """
        self._check_levels(pixel_values)
        return self._infer(pixel_values, sample_posterior, generator)[0]

    def posterior(self, pixel_values: Tensor) -> DiagonalGaussian:
        """The posterior of all latents of each image, finer ones given the means of the coarser ones. [B, L]."""
        return self.encode(pixel_values, sample_posterior=False)

    def decode(self, latents: Tensor) -> Pixels:
        """The distribution of the pixels given latents [B, L].

        Raises:
            ValueError: `latents` has not two axes, or not `L` columns.
        """
        self._check_latents(latents)
        state = None
        for group, code in enumerate(latents.to(self.dtype).split(self.latent_sizes, 1)):
            state = self.decoder.advance(group, code, state)
        return self._decoded_pixels(self.decoder.finish(state).float())

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        temperature: float = 1.0,
    ) -> Tensor:
        """Images from the prior, as levels. [num_images, C, H, W], int64, or real numbers for `output="mean"`.

        Args:
            num_images: how many, at least 1.
            generator: source of the latents and of the pixel noise.
            output: draw each pixel ("sample"), or take the "mode" or the "mean" of its distribution.
            temperature: standard deviation of the latents.

        Raises:
            ValueError: an argument is out of range.
        """
        check_at_least("num_images", num_images, 1)
        check_generator(generator)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        latents = temperature * self._prior_sample(num_images, generator)
        return self.decode(latents).draw(output, generator)

    @torch.no_grad()
    def bits_per_dim(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Negative ELBO of each image with one posterior sample, in bits per dimension: an upper bound. [B]."""
        output = self(pixel_values, sample_posterior=True, generator=generator, return_loss=False)
        return nats_to_bits_per_dim(output.distortion + output.rate, self.config.num_dims)

    def score(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits per dimension of each image, as `bits_per_dim` gives them. [B]."""
        return self.bits_per_dim(pixel_values, generator)

    @torch.no_grad()
    def log_likelihood(
        self,
        pixel_values: Tensor,
        num_samples: int,
        estimator: str = "importance",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate of `log p(x)` of each image, in nats. [B]. Its expectation is a lower bound, tight as samples grow.

        `"importance"` averages `p(x, z) / q(z|x)` over posterior samples. `"prior"` averages `p(x|z)` over prior
        samples, the same ones for the whole batch: simple, and hopeless in many latent dimensions. Both stream, so that
        the memory does not grow with `num_samples`.

        Raises:
            ValueError: unknown estimator, `num_samples` below 1, or bad levels.

        Source: Burda et al. (2016), Importance Weighted Autoencoders, eq. 8.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
        check_at_least("num_samples", num_samples, 1)
        self._check_levels(pixel_values)
        batch_size = len(pixel_values)
        if estimator == "importance":
            per_pass = max(1, IMAGES_PER_PASS // batch_size)
            features = self._encode_features(pixel_values)
        else:
            per_pass = IMAGES_PER_PASS
        total = torch.full((batch_size,), -math.inf, device=pixel_values.device)
        for start in range(0, num_samples, per_pass):
            count = min(per_pass, num_samples - start)
            if estimator == "importance":
                log_weights = self._log_importance_weights(pixel_values, features, count, generator)
            else:
                log_weights = self._log_probs_of_all(pixel_values, self._prior_sample(count, generator))
            total = torch.logaddexp(total, log_weights.logsumexp(1))
        return total - math.log(num_samples)

    def compile_likelihood(self) -> None:
        """Compile the pass that `log_likelihood` repeats: faster, and the same but for rounding.

        On a CPU it needs a C++ compiler.
        """
        self._log_importance_weights = torch.compile(self._log_importance_weights)

    def _log_importance_weights(
        self, pixel_values: Tensor, features: list[Tensor], count: int, generator: torch.Generator | None
    ) -> Tensor:
        """`log p(x, z) - log q(z|x)` of `count` posterior samples of each image. [B, count]."""
        features = [feature.repeat_interleave(count, 0) for feature in features]
        pixel_values = pixel_values.repeat_interleave(count, 0)
        posterior, latents, decoded = self._infer_features(features, True, generator)
        distortion = -self._pixels(self._outputs(decoded, pixel_values)).log_prob(pixel_values)
        log_weights = standard_normal_log_prob(latents) - posterior.log_prob(latents) - distortion
        return log_weights.unflatten(0, (-1, count))

    def _log_probs_of_all(self, pixel_values: Tensor, latents: Tensor) -> Tensor:
        """`log p(x|z)` of each image given each of the latents, in nats. [B, number of latents]."""
        pixels = self.decode(latents)
        if isinstance(pixels, CategoricalPixels):
            one_hot = F.one_hot(pixel_values.long(), self.config.num_levels).movedim(-1, 1).flatten(1).float()
            # bf16 would round sums of hundreds of nats to whole nats.
            with torch.autocast(pixel_values.device.type, enabled=False):
                return one_hot @ pixels.logits.log_softmax(1).flatten(1).T
        return torch.stack([pixels.log_prob(image.expand(len(latents), -1, -1, -1)) for image in pixel_values])

    def _decoded_pixels(self, decoded: Tensor) -> Pixels:
        """The distribution of the pixels from what the decoder gives [B, decoder_outputs, C, H, W]."""
        return self._pixels(decoded)

    def _outputs(self, decoded: Tensor, pixel_values: Tensor) -> Tensor:
        """Outputs for each pixel, from what the decoder gives. [B, outputs_per_dim, C, H, W]."""
        return decoded.float()

    def _pixels(self, outputs: Tensor) -> Pixels:
        """The distribution of the pixels from outputs for each [B, outputs_per_dim, C, H, W]."""
        if self.config.pixel_likelihood == "categorical":
            return CategoricalPixels(outputs)
        return LogisticMixturePixels(outputs, self.config.num_levels)

    def _infer(
        self, pixel_values: Tensor, sample_posterior: bool | None, generator: torch.Generator | None
    ) -> tuple[DiagonalGaussian, Tensor, Tensor]:
        sample_posterior = self.training if sample_posterior is None else sample_posterior
        return self._infer_features(self._encode_features(pixel_values), sample_posterior, generator)

    def _encode_features(self, pixel_values: Tensor) -> list[Tensor]:
        """Features of each latent group, from levels scaled to [-1, 1]."""
        return self.encoder(self._scaled(pixel_values))

    def _infer_features(
        self, features: list[Tensor], sample_posterior: bool, generator: torch.Generator | None
    ) -> tuple[DiagonalGaussian, Tensor, Tensor]:
        """Posterior over all latents, the latents taken from it [B, L], and what the decoder makes of them."""
        state, posteriors, codes = None, [], []
        for group, feature in enumerate(features):
            mean, log_std = self.encoder.posterior(group, feature, state).float().chunk(2, 1)
            posterior = DiagonalGaussian(mean, log_std)
            code = posterior.sample(generator) if sample_posterior else posterior.mean
            state = self.decoder.advance(group, code.to(self.dtype), state)
            posteriors.append(posterior)
            codes.append(code)
        mean = torch.cat([posterior.mean for posterior in posteriors], 1)
        log_std = torch.cat([posterior.log_std for posterior in posteriors], 1)
        return DiagonalGaussian(mean, log_std), torch.cat(codes, 1), self.decoder.finish(state)

    def _prior_sample(self, num_images: int, generator: torch.Generator | None) -> Tensor:
        return standard_normal((num_images, self.num_latents), torch.empty(0, device=self.device), generator)
