# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The adversarial autoencoder."""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .bits import nats_to_bits_per_dim
from .configuration_aae import AAEConfig
from .distributions import CategoricalPixels, DeterministicPixels, DiagonalGaussian, PointMass, standard_normal
from .modeling_image_autoencoder import ImageAutoencoderModel
from .modeling_latentgen import check_at_least
from .networks import DECODERS, ENCODERS, Discriminator
from .priors import Flower, Prior, StandardGaussian, SwissRoll

UNLABELLED = -100


@dataclass
class AAEOutput(ModelOutput):
    """What [`AAEModel`] and [`AAEForImageClassification`] return. What was not computed is None.

    Args:
        loss: the optimised objective, mean over the batch. Scalar.
        reconstruction_loss: mean squared error on [-1, 1], or bits per dimension, of each image. [B].
        distortion: `-log p(x|z)` of each image in nats, for categorical pixels. [B].
        generator_loss: `-log D(code)` of each image in nats, summed over the discriminators. [B].
        real_loss: `-log D(sample)` of each sample of the prior in nats, summed over the discriminators. [B].
        fake_loss: `-log(1 - D(code))` of each image in nats, summed over the discriminators. [B].
        discriminator_accuracy: share of the two decisions, over the discriminators, that are right. [B].
        supervised_loss: cross-entropy of each image in nats, 0 where unlabelled. [B].
        consistency_loss: cross-entropy in nats between the class codes of two views of each image. [B].
        balance_loss: minus the cross-entropy in nats of the mean class code against that of each image. [B].
        logits: unnormalised log probabilities of the classes. [B, num_labels], or of clusters without names.
        latents: the codes that were decoded. [B, L].
        decoded: the decoder's output: values in [-1, 1] [B, C, H, W], or logits [B, num_levels, C, H, W].
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    distortion: Tensor | None = None
    generator_loss: Tensor | None = None
    real_loss: Tensor | None = None
    fake_loss: Tensor | None = None
    discriminator_accuracy: Tensor | None = None
    supervised_loss: Tensor | None = None
    consistency_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    logits: Tensor | None = None
    latents: Tensor | None = None
    decoded: Tensor | None = None


class Adversary(NamedTuple):
    """A discriminator with the codes it judges [B, dim], the prior it compares them with, and their parts [B]."""

    codes: Tensor
    discriminator: Discriminator
    prior: Prior
    parts: Tensor | None


def make_prior(config: AAEConfig) -> Prior:
    """The prior of the latent vector; one in the plane has a part for each class."""
    if config.prior == "gaussian":
        return StandardGaussian(config.latent_dim)
    return (Flower if config.prior == "flower" else SwissRoll)(2, config.num_classes)


class AAEModel(ImageAutoencoderModel):
    """Adversarial autoencoder: a discriminator, trained beside it, drives the codes of images to a prior.

    The objective is `lambda * reconstruction + (1 - lambda) * generator + discriminator`. Reconstruction is a mean over
    dimensions (mean squared error, or bits per dimension) and generator the loss of one code, so that neither grows
    with the resolution, and one lambda means the same for all. The weights of the discriminator are constants in the
    generator's loss, and codes are constants in the discriminator's: the gradients of the autoencoder and of the
    discriminator are disjoint, and one backward pass gives both.

    The discriminator's loss is the mean of that on samples and that on codes: ln 2 for one that cannot tell.

    Source: Makhzani et al. (2015), Adversarial Autoencoders; the non-saturating generator loss of Goodfellow et al.
    (2014).
    """

    config: AAEConfig
    base_model_prefix = "aae"
    kind = "adversarial autoencoder"
    score_name = "mean squared error on [-1, 1]"

    def __init__(self, config: AAEConfig):
        super().__init__(config)
        self._make_networks()
        self.post_init()

    def _make_networks(self, num_codes: int = 0) -> None:
        """Encoder and decoder, for `num_codes` classes beside the latent vector, and its discriminator."""
        config = self.config
        parameters = config.latent_dim * (2 if config.posterior == "gaussian" else 1)
        outputs_per_dim = config.num_levels if config.reconstruction == "categorical" else 1
        self.encoder = ENCODERS[config.architecture](config, num_codes + parameters)
        self.decoder = DECODERS[config.architecture](config, num_codes + config.latent_dim, outputs_per_dim)
        self.prior = make_prior(config)
        # One more than the parts: for images whose class is not known.
        told = self.prior.num_parts + 1 if config.labelled_prior else 0
        self.discriminator = Discriminator(config.latent_dim + told, config.discriminator_channels)
        self.latent_sizes = [num_codes, config.latent_dim] if num_codes else [config.latent_dim]

    @property
    def has_gaussian_prior(self) -> bool:
        """Whether all latents together are standard normal under the prior."""
        return self.config.prior == "gaussian" and len(self.latent_sizes) == 1

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        sample_posterior: bool | None = None,
        sample_prior: bool | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
    ) -> AAEOutput:
        """The losses of each image, and the objective.

        Args:
            pixel_values: integer levels, [B, C, H, W].
            labels: classes, -100 where unknown; only a model with a labelled prior uses them. [B].
            sample_posterior: decode a posterior sample rather than its mean; when None, only while training.
            sample_prior: draw a sample of the prior for each image and compute the losses of the discriminator; when
                None, only while training.
            generator: source of all noise and of the prior samples.
            return_loss: also compute the loss.

        Raises:
            ValueError: bad levels, labels that are out of range or missing for a labelled prior.
        """
        self._check_levels(pixel_values)
        # Not len(), which torch.export takes for a constant.
        self._check_labels(labels, pixel_values.shape[0])
        posterior = self._posterior(self._encode(self._view(pixel_values, generator), generator))
        latents = posterior.sample(generator) if self._stochastic(sample_posterior) else posterior.mean
        output = self._decoded_output(pixel_values, latents)
        told = labels.long() if labels is not None and self.config.labelled_prior else None
        adversary = Adversary(latents, self.discriminator, self.prior, told)
        self._judge(output, [adversary], self._stochastic(sample_prior), generator)
        if return_loss:
            output.loss = self._objective(output)
        return output

    def encode(self, pixel_values: Tensor) -> DiagonalGaussian | PointMass:
        """The posterior of the latents of each image. Mean and standard deviation [B, latent_dim].

        Raises:
            ValueError: bad levels.
        """
        self._check_levels(pixel_values)
        return self._posterior(self._encode(pixel_values))

    def posterior(self, pixel_values: Tensor) -> DiagonalGaussian | PointMass:
        """The posterior of all latents of each image: that of `encode`."""
        return self.encode(pixel_values)

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the last layer of the encoder reads of each image. [B, F]."""
        self._check_levels(pixel_values)
        return self.encoder(self._scaled(pixel_values))[0].float()

    def decode(self, latents: Tensor) -> CategoricalPixels | DeterministicPixels:
        """The pixels of latents [B, L]: distributions, or values without one.

        Raises:
            ValueError: `latents` has not two axes, or not `L` columns.
        """
        self._check_latents(latents)
        decoded = self._decode(latents)
        if self.config.reconstruction == "categorical":
            return CategoricalPixels(decoded)
        return DeterministicPixels(decoded, self.config.num_levels)

    @property
    def num_sample_classes(self) -> int:
        """How many parts of a labelled prior `sample` can be asked for, 0 where it knows none."""
        return self.prior.num_parts if self.config.labelled_prior else 0

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images of codes drawn from the prior, as levels. [num_images, C, H, W], int64, or real for `output="mean"`.

        Args:
            num_images: how many, at least 1.
            generator: source of the codes and of the pixel noise.
            output: draw each pixel ("sample"), or take the "mode" or the "mean" of its distribution.
            labels: part of the prior to draw each code from, for a model with a labelled prior. [num_images].

        Raises:
            ValueError: an argument is out of range.
        """
        check_at_least("num_images", num_images, 1)
        if labels is not None and not self.config.labelled_prior:
            raise ValueError("labels must be None for a model without labelled_prior: its codes know no class")
        self._check_labels(labels, num_images, required=False)
        codes = self.prior.sample(num_images, torch.empty(0, device=self.device), generator, labels)
        return self.decode(codes).draw(output, generator)

    @torch.no_grad()
    def score(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error on [-1, 1] of the reconstruction of each image from its latent mean. [B]."""
        errors = (self.reconstruct(pixel_values) - pixel_values) * (2 / (self.config.num_levels - 1))
        return errors.square().flatten(1).mean(1)

    @torch.no_grad()
    def manifold(self, grid_size: int = 20, generator: torch.Generator | None = None) -> Tensor:
        """Decoded means over the latent plane, as real levels: see [`ImageAutoencoderModel.manifold`].

        Raises:
            ValueError: the prior is not Gaussian, there is a class code, or as in the base class.
        """
        if not self.has_gaussian_prior:
            raise ValueError("manifold visits the quantiles of a Gaussian prior and needs a model without a class code")
        return super().manifold(grid_size, generator)

    def _stochastic(self, wanted: bool | None) -> bool:
        return self.training if wanted is None else wanted

    def _encode(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The encoder's outputs for images, which get noise while training. [B, number of outputs]."""
        images = self._scaled(pixel_values)
        if self.training and self.config.input_noise_std > 0:
            images = images + self.config.input_noise_std * standard_normal(images.shape, images, generator)
        (features,) = self.encoder(images)
        return self.encoder.posterior(0, features, None).float()

    def _view(self, pixel_values: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images shifted by whole pixels and mapped affinely, each by its own draw, while training. [B, C, H, W]."""
        most, std = self.config.input_shift, self.config.input_affine_std
        batch_size, device = pixel_values.shape[0], pixel_values.device
        if self.training and most > 0:
            padded = F.pad(pixel_values, (most,) * 4)
            drawn_on = device if generator is None else generator.device
            starts = torch.randint(2 * most + 1, (2, batch_size, 1), generator=generator, device=drawn_on)
            rows, columns = starts.to(device) + torch.arange(self.config.image_size, device=device)
            batch = torch.arange(batch_size, device=device).view(-1, 1, 1)
            pixel_values = padded.movedim(1, -1)[batch, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)
        if self.training and std > 0:
            maps = torch.eye(2, 3, device=device).repeat(batch_size, 1, 1)
            maps[:, :, :2] += std * standard_normal((batch_size, 2, 2), maps, generator)
            grid = F.affine_grid(maps, list(pixel_values.shape), align_corners=False)
            pixel_values = F.grid_sample(pixel_values.to(grid.dtype), grid, align_corners=False)
        return pixel_values

    def _posterior(self, parameters: Tensor) -> DiagonalGaussian | PointMass:
        if self.config.posterior == "gaussian":
            return DiagonalGaussian(*parameters.chunk(2, 1))
        return PointMass(parameters)

    def _decode(self, latents: Tensor) -> Tensor:
        """Logits [B, num_levels, C, H, W], or values in [-1, 1] [B, C, H, W]."""
        outputs = self.decoder.finish(self.decoder.advance(0, latents.to(self.dtype), None)).float()
        return outputs if self.config.reconstruction == "categorical" else outputs.squeeze(1).tanh()

    def _decoded_output(self, pixel_values: Tensor, latents: Tensor) -> AAEOutput:
        """The output with latents, decoded images and the reconstruction losses."""
        # At lambda = 0 the decoder learns nothing, and the encoder nothing from it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.reconstruction_weight > 0):
            decoded = self._decode(latents)
            if self.config.reconstruction == "categorical":
                distortion = -CategoricalPixels(decoded).log_prob(pixel_values)
                reconstruction_loss = nats_to_bits_per_dim(distortion, self.config.num_dims)
            else:
                distortion = None
                reconstruction_loss = (decoded - self._scaled(pixel_values).float()).square().flatten(1).mean(1)
        return AAEOutput(
            reconstruction_loss=reconstruction_loss, distortion=distortion, latents=latents, decoded=decoded
        )

    def _judge(
        self, output: AAEOutput, adversaries: list[Adversary], sample_prior: bool, generator: torch.Generator | None
    ) -> None:
        """Adds the losses of generator and discriminators to the output, unless lambda is 1.

        `softplus(-logit)` is `-log sigmoid(logit)`. Source: Goodfellow et al. (2014), section 3.
        """
        if self.config.reconstruction_weight == 1:
            return
        generator_losses, real_losses, fake_losses, accuracies = [], [], [], []
        for adversary in adversaries:
            codes = adversary.codes
            logits = self._decide(adversary, generator, frozen=True)
            generator_losses.append(F.softplus(-logits))
            if sample_prior:
                samples = adversary.prior.sample(codes.shape[0], codes, generator, adversary.parts)
                # One pass for both is faster than two.
                parts = None if adversary.parts is None else adversary.parts.repeat(2)
                both = adversary._replace(codes=torch.cat([samples, codes.detach()]), parts=parts)
                real, fake = self._decide(both, generator).chunk(2)
                real_losses.append(F.softplus(-real))
                fake_losses.append(F.softplus(fake))
                accuracies.append(((real > 0).float() + (fake < 0).float()) / 2)
        output.generator_loss = torch.stack(generator_losses).sum(0)
        if sample_prior:
            output.real_loss = torch.stack(real_losses).sum(0)
            output.fake_loss = torch.stack(fake_losses).sum(0)
            output.discriminator_accuracy = torch.stack(accuracies).mean(0)

    def _decide(self, adversary: Adversary, generator: torch.Generator | None, frozen: bool = False) -> Tensor:
        """The discriminator's logits of codes, which get noise while training, and of what it is told. [B]."""
        codes = adversary.codes
        if self.training and self.config.discriminator_noise_std > 0:
            codes = codes + self.config.discriminator_noise_std * standard_normal(codes.shape, codes, generator)
        if adversary.parts is not None:
            num_parts = adversary.prior.num_parts
            told = torch.where(adversary.parts < 0, num_parts, adversary.parts)
            codes = torch.cat([codes, F.one_hot(told, num_parts + 1).to(codes.dtype)], 1)
        return adversary.discriminator(codes.to(self.dtype), frozen).float()

    def _objective(self, output: AAEOutput) -> Tensor:
        """`lambda * reconstruction + (1 - lambda) * generator + discriminator`, mean over the batch. Scalar."""
        weight = self.config.reconstruction_weight
        objective = weight * cast(Tensor, output.reconstruction_loss)
        if output.generator_loss is not None:
            objective = objective + (1 - weight) * output.generator_loss
        if output.real_loss is not None and output.fake_loss is not None:
            objective = objective + (output.real_loss + output.fake_loss) / 2
        return objective.mean()

    def _check_labels(self, labels: Tensor | None, batch_size: int, required: bool = True) -> None:
        if labels is None:
            if required and self.config.labelled_prior:
                raise ValueError("labels must be given to a model with labelled_prior (-100 where unknown), got None")
            return
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"labels must be a tensor of whole numbers, got {given}")
        if tuple(labels.shape) != (batch_size,):
            raise ValueError(f"labels must have shape [{batch_size}], got {list(labels.shape)}")
        if not torch.compiler.is_compiling():
            low, high = (value.item() for value in labels.aminmax())
            wrong = (labels < 0) & (labels != UNLABELLED)
            if high >= self.config.num_classes or wrong.any():
                allowed = f"in 0 ... {self.config.num_classes - 1}, or {UNLABELLED} where unknown"
                raise ValueError(f"labels must be {allowed}, got values from {low} to {high}")
