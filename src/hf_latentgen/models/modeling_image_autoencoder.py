# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""What the image autoencoders share: initialisation, checks, and what is made of an encoder and a decoder."""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_image_autoencoder import ImageAutoencoderConfig
from .distributions import CategoricalPixels, DeterministicPixels, DiagonalGaussian, PointMass, scaled
from .modeling_latentgen import LatentGenModel, check_at_least, check_levels
from .networks import ZeroConv2d


class ImageAutoencoderModel(LatentGenModel):
    """Base of the models that encode an image as a latent vector and decode it again.

    A subclass defines `posterior`, `decode` and `latent_sizes`, the size of each group of latents.
    """

    config: ImageAutoencoderConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = [
        "ConvBlock",
        "UpsamplingBlock",
        "ResidualBlock",
        "LadderPosterior",
        "DenseBlock",
        "Discriminator",
        "PixelLayer",
    ]
    latent_sizes: list[int]
    draws_images = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # transformers passes over a module without parameters of its own, so that a block cannot zero its last layer.
        if isinstance(module, ZeroConv2d):
            for parameter in module.parameters():
                init.zeros_(parameter)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # PyTorch's own initialisation, with which the course network was trained.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight.shape[1] * module.weight[0, 0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @property
    def has_gaussian_prior(self) -> bool:
        """Whether all latents together are standard normal under the prior."""
        return True

    @property
    def num_latents(self) -> int:
        """Size of the latent vector."""
        return sum(self.latent_sizes)

    def posterior(self, pixel_values: Tensor) -> DiagonalGaussian | PointMass:
        """The posterior of all latents of each image, found without drawing. Mean and standard deviation [B, L]."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> CategoricalPixels | DeterministicPixels:
        """The distribution of the pixels given latents [B, L]."""
        raise NotImplementedError

    def sample(self, num_images: int, generator: torch.Generator | None = None, output: str = "sample") -> Tensor:
        """Images from the prior, as levels. [num_images, C, H, W]."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: Tensor, output: str = "mean", generator: torch.Generator | None = None
    ) -> Tensor:
        """Images decoded from the latent means of images, as levels. [B, C, H, W]. Arguments as in `sample`."""
        return self.decode(self.posterior(pixel_values).mean).draw(output, generator)

    @torch.no_grad()
    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        num_steps: int = 8,
        output: str = "mean",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images on the straight line between the latent means of two batches. [B, num_steps, C, H, W] levels.

        Output and generator as in `sample`.

        Raises:
            ValueError: the batches differ in shape, or `num_steps` is below 2.
        """
        check_at_least("num_steps", num_steps, 2)
        if first.shape != second.shape:
            raise ValueError(f"first and second must have one shape, got {list(first.shape)} and {list(second.shape)}")
        start, end = (self.posterior(images).mean for images in (first, second))
        weights = torch.linspace(0, 1, num_steps, device=start.device).view(1, -1, 1)
        path = torch.lerp(start.unsqueeze(1), end.unsqueeze(1), weights)
        return self.decode(path.flatten(0, 1)).draw(output, generator).unflatten(0, (-1, num_steps))

    @torch.no_grad()
    def manifold(self, grid_size: int = 20, generator: torch.Generator | None = None) -> Tensor:
        """Decoder means over the latent plane, as real levels. [grid_size * grid_size, C, H, W], row by row.

        Each axis visits the normal quantiles `(i + 0.5) / grid_size`; the first latent grows to the right, the second
        upwards. Source: Kingma & Welling (2014), figure 4.

        Args:
            grid_size: means along each axis.
            generator: source of the pixels before each, where a decoder draws them.

        Raises:
            ValueError: the model has not exactly two latent dimensions, or `grid_size` is below 1.
        """
        check_at_least("grid_size", grid_size, 1)
        if self.num_latents != 2:
            raise ValueError(f"manifold needs a latent plane, got {self.num_latents} latent dimensions")
        axis = manifold_axis(grid_size).to(self.device)
        second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
        return self.decode(torch.stack([first, second], -1).flatten(0, 1)).draw("mean", generator)

    def _scaled(self, pixel_values: Tensor) -> Tensor:
        """Levels scaled to [-1, 1], in the dtype of the weights. [B, C, H, W]."""
        return scaled(pixel_values, self.config.num_levels).to(self.dtype)

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 2 or latents.shape[1] != self.num_latents:
            raise ValueError(f"latents must have shape [B, {self.num_latents}], got {list(latents.shape)}")

    def _check_levels(self, pixel_values: Tensor) -> None:
        check_levels(pixel_values, self.config.num_channels, self.config.image_size, self.config.num_levels)


def manifold_axis(grid_size: int) -> Tensor:
    """The normal quantiles `(i + 0.5) / grid_size`, which `manifold` visits along an axis. [grid_size]."""
    return torch.special.ndtri((torch.arange(grid_size) + 0.5) / grid_size)
