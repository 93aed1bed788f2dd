# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The variational lossy autoencoder: latents for what is global, a local autoregressive decoder for what is not."""

from collections.abc import Iterator
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_vlae import VLAEConfig
from .distributions import Pixels, Values, check_generator, check_output
from .modeling_latentgen import check_completion
from .modeling_vae import VAEModel
from .pixel_decoders import LinearPrediction, NeighborhoodAttention, PixelDecoder, PixelsSoFar, RasterAttention

# Images are drawn this many times to make the rows that are not given fit those that are.
COMPLETION_STEPS = 8


class VLAEModel(VAEModel):
    """A VAE whose decoder also sees the pixels just before each one, about `decoder_radius` rows and columns of them.

    Latents carry what so small a neighbourhood cannot know. Encoder, latents, prior and objective are those of
    [`VAEModel`]; `logits` of its output are given the pixels before, and those of a decoded latent are a distribution
    that is drawn pixel by pixel.

    Source: Chen et al. (2017), Variational Lossy Autoencoder; Gulrajani et al. (2017), PixelVAE.
    """

    config: VLAEConfig
    base_model_prefix = "vlae"
    kind = "variational lossy autoencoder"
    can_complete = True

    def __init__(self, config: VLAEConfig):
        super().__init__(config)
        self.pixel_decoder = PixelDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, NeighborhoodAttention | RasterAttention):
            init.zeros_(module.places)
        elif isinstance(module, LinearPrediction):
            init.zeros_(module.weight)
            for place in module.nearest:
                init.constant_(module.weight.diagonal()[place], 0.5)
            # From a level or two of 256 to a quarter of the range.
            init.copy_(module.log_scales, torch.linspace(-4.5, -1.5, module.num_parts))

    def reconstruct(
        self, pixel_values: Tensor, output: str = "sample", generator: torch.Generator | None = None
    ) -> Tensor:
        """Images drawn from the latent means of images, as levels. [B, C, H, W]. Arguments as in `sample`.

        The mode, each pixel's after the most probable ones before it, hides the code.
        """
        return super().reconstruct(pixel_values, output, generator)

    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        num_steps: int = 8,
        output: str = "sample",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images drawn on the straight line between the latent means of two batches. [B, num_steps, C, H, W] levels.

        Arguments and errors as for other autoencoders.
        """
        return super().interpolate(first, second, num_steps, output, generator)

    @torch.no_grad()
    def complete_by_row(
        self,
        pixel_values: Tensor,
        rows: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Images whose first rows are given, after each row of the last turn, and first as they are. [B, C, H, W].

        Latents and missing rows are drawn from each other by turns, so that the result follows, after many turns, the
        model's distribution given the first rows.

        Args:
            pixel_values: levels, of which only the first `rows` rows are read.
            rows: 0 to `image_size`.
            generator: source of the latents and of the pixel noise.
            output: of the last turn, draw each value ("sample"), or take the "mode" or the "mean" of its distribution.
            temperature: standard deviation of the latents' noise.
            labels: None, as the model knows no classes.

        Raises:
            ValueError: an argument is out of range.

        Source: Rezende et al. (2014), Stochastic Backpropagation, section 6.5 and appendix F.
        """
        self._check_levels(pixel_values)
        check_completion(self.config.image_size, rows, output, temperature)
        check_generator(generator)
        if labels is not None:
            raise ValueError(f"labels must be None for a {self.kind}, got {labels!r}")
        levels = pixel_values.long().clone()
        latents = temperature * self._prior_sample(len(levels), generator)
        for _ in range(COMPLETION_STEPS if rows else 0):
            *_, levels = cast(LocalPixels, self.decode(latents)).by_row(levels, rows, "sample", generator)
            posterior, latents, _ = self._infer(levels, True, generator)
            latents = posterior.mean + temperature * (latents - posterior.mean)
        yield from cast(LocalPixels, self.decode(latents)).by_row(levels, rows, output, generator)

    def _decoded_pixels(self, decoded: Tensor) -> "LocalPixels":
        return LocalPixels(self, decoded.flatten(1, 2).to(self.dtype))

    def _outputs(self, decoded: Tensor, pixel_values: Tensor) -> Tensor:
        return self.pixel_decoder(pixel_values, decoded.flatten(1, 2)).float()


class LocalPixels(Pixels):
    """The distribution of pixels that are drawn in raster order, each from features and from the pixels around it."""

    def __init__(self, model: VLAEModel, features: Tensor):
        self.model = model
        self.features = features  # [B, decoder_channels, H, W]
        self.num_levels = model.config.num_levels
        size = model.config.image_size
        self.shape = (len(features), model.config.num_channels, size, size)

    def log_probs(self, levels: Tensor) -> Tensor:
        """Log probability of each value given those before it, in nats. Shape: [B, C, H, W] twice."""
        return self.model._pixels(self.model.pixel_decoder(levels, self.features)).log_probs(levels)

    def parts(self, levels: Tensor, first_row: int = 0) -> Iterator[tuple[tuple, Values]]:
        """Each pixel from a row on, and its channels in turn, see [`Pixels`]."""
        known = levels.clone()
        known[:, :, first_row:] = 0
        so_far = PixelsSoFar(self.model.pixel_decoder, known, self.features)
        for row, column in product(range(first_row, self.shape[2]), range(self.shape[3])):
            here = (slice(row, row + 1), slice(column, column + 1))
            pixel = levels[(slice(None), slice(None), *here)]
            for place, values in self.model._pixels(so_far.outputs(row, column)).parts(pixel):
                yield (*place, *(slice(None),) * (2 - len(place)), *here), values
            so_far.add(pixel, row, column)

    @property
    def mean(self) -> Tensor:
        """The expected level of each value given those before it, which are drawn. [B, C, H, W]."""
        return self.draw("mean")

    def draw(self, output: str, generator: torch.Generator | None = None) -> Tensor:
        """Images as a sample, the mode or the mean given what comes before. [B, C, H, W] levels. See [`Pixels`]."""
        check_output(output)
        check_generator(generator)
        *_, images = self.by_row(self._blank(torch.int64), 0, output, generator)
        return images

    def by_row(self, levels: Tensor, rows: int, output: str, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Images as given, and after each row that is drawn below the first `rows`. [B, C, H, W].

        Arguments as in `draw`; the mean is that of each value, what comes before being drawn.
        """
        levels = levels.clone()
        shown = levels.float() if output == "mean" else levels
        yield shown.clone()
        drawn = rows
        for place, values in self.parts(levels, rows):
            if place[-2].start > drawn:
                drawn = place[-2].start
                yield shown.clone()
            levels[place] = values.mode if output == "mode" else values.sample(generator)
            if output == "mean":
                shown[place] = values.mean
        if rows < levels.shape[2]:
            yield shown

    def _blank(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.shape, dtype=dtype, device=self.features.device)
