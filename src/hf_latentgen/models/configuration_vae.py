# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the variational autoencoder."""

from huggingface_hub.dataclasses import strict

from .configuration_image_autoencoder import ImageAutoencoderConfig
from .configuration_latentgen import check_pixel_likelihood, require

FREE_BITS_OF = ("dimension", "group", "total")


@strict
class VAEConfig(ImageAutoencoderConfig):
    """Configuration of a [`VAEModel`]; its defaults are the course network on 4-bit MNIST, with 270,616 parameters.

    Args, besides those of [`ImageAutoencoderConfig`]:
        ladder_channels (`tuple`, defaults to `()`):
            latent channels added at each stage of the decoder, coarse to fine, at most one entry a stage (`"resnet"`
            only). Their posterior sees the coarser latents; their prior is standard normal, as everywhere.
        beta (`float`, defaults to 1.0): weight of the rate in the optimised loss.
        free_bits (`float`, defaults to 0.0):
            nats below which the rate of an example is not reduced further, of each part that `free_bits_of` names.
        free_bits_of (`str`, defaults to `"dimension"`):
            `"dimension"`: of each latent dimension. `"group"`: of each group of latents. `"total"`: of all of them.
        pixel_likelihood (`str`, defaults to `"categorical"`):
            `"categorical"`: a logit for each level. `"logistic_mixture"`: a mixture of logistic distributions, which
            learns 256 levels faster; the channels of a pixel follow from each other. For 1 or 3 channels.
        num_mixtures (`int`, defaults to 5): parts of the mixture.
    """

    model_type = "latentgen_vae"
    keys_to_ignore_at_inference = ["logits", "latents"]

    ladder_channels: list[int] | tuple[int, ...] = ()
    beta: float | int = 1.0
    free_bits: float | int = 0.0
    free_bits_of: str = "dimension"
    pixel_likelihood: str = "categorical"
    num_mixtures: int = 5

    @property
    def outputs_per_dim(self) -> int:
        """Outputs of the decoder for each pixel and channel."""
        if self.pixel_likelihood == "categorical":
            return self.num_levels
        return self.num_mixtures * (3 if self.num_channels == 1 else 4)

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each group of latents, coarse to fine. Their concatenation is the `latents` of the model."""
        coarse_to_fine = self.stage_sizes[:0:-1]
        return [(self.latent_dim,), *((c, s, s) for c, s in zip(self.ladder_channels, coarse_to_fine, strict=False))]

    @property
    def decoder_outputs(self) -> int:
        """What the decoder of the latents gives for each pixel and channel."""
        return self.outputs_per_dim

    def validate_ladder(self):
        """Raises `ValueError` if the ladder does not fit the network."""
        ladder, num_stages = self.ladder_channels, len(self.hidden_channels)
        if self.architecture == "resnet":
            allowed = f"at most {num_stages} entries (one a stage) of at least 1"
            require(len(ladder) <= num_stages and min(ladder, default=1) >= 1, "ladder_channels", ladder, allowed)
        else:
            require(len(ladder) == 0, "ladder_channels", ladder, f"empty for architecture={self.architecture!r}")

    def validate_pixels(self):
        """Raises `ValueError` if the likelihood of pixels is unknown or does not fit levels and channels."""
        check_pixel_likelihood(self.pixel_likelihood, self.num_mixtures, self.num_levels)
        fits = self.pixel_likelihood == "categorical" or self.num_channels in (1, 3)
        require(fits, "num_channels", self.num_channels, f"1 or 3 for pixel_likelihood={self.pixel_likelihood!r}")

    def validate_objective(self):
        """Raises `ValueError` if a weight of the objective is negative or not finite."""
        require(0 <= self.beta < float("inf"), "beta", self.beta, "at least 0 and finite")
        require(0 <= self.free_bits < float("inf"), "free_bits", self.free_bits, "at least 0 and finite")
        require(self.free_bits_of in FREE_BITS_OF, "free_bits_of", self.free_bits_of, f"one of {FREE_BITS_OF}")
