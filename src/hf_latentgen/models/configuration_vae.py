# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the variational autoencoder."""

from huggingface_hub.dataclasses import strict

from .configuration_image_autoencoder import ImageAutoencoderConfig
from .configuration_latentgen import require


@strict
class VAEConfig(ImageAutoencoderConfig):
    """Configuration of a [`VAEModel`]; its defaults are the course network on 4-bit MNIST, with 270,616 parameters.

    Args, besides those of [`ImageAutoencoderConfig`]:
        ladder_channels (`tuple`, defaults to `()`):
            latent channels added at each stage of the decoder, coarse to fine, at most one entry a stage (`"resnet"`
            only). Their posterior sees the coarser latents; their prior is standard normal, as everywhere.
        beta (`float`, defaults to 1.0): weight of the rate in the optimised loss.
        free_bits (`float`, defaults to 0.0):
            nats per latent dimension below which the rate of an example is not reduced further.
    """

    model_type = "latentgen_vae"
    keys_to_ignore_at_inference = ["logits", "latents"]

    ladder_channels: list[int] | tuple[int, ...] = ()
    beta: float | int = 1.0
    free_bits: float | int = 0.0

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each group of latents, coarse to fine. Their concatenation is the `latents` of the model."""
        coarse_to_fine = self.stage_sizes[:0:-1]
        return [(self.latent_dim,), *((c, s, s) for c, s in zip(self.ladder_channels, coarse_to_fine, strict=False))]

    def validate_ladder(self):
        """Raises `ValueError` if the ladder does not fit the network."""
        ladder, num_stages = self.ladder_channels, len(self.hidden_channels)
        if self.architecture == "resnet":
            allowed = f"at most {num_stages} entries (one a stage) of at least 1"
            require(len(ladder) <= num_stages and min(ladder, default=1) >= 1, "ladder_channels", ladder, allowed)
        else:
            require(len(ladder) == 0, "ladder_channels", ladder, f"empty for architecture={self.architecture!r}")

    def validate_objective(self):
        """Raises `ValueError` if a weight of the objective is negative or not finite."""
        require(0 <= self.beta < float("inf"), "beta", self.beta, "at least 0 and finite")
        require(0 <= self.free_bits < float("inf"), "free_bits", self.free_bits, "at least 0 and finite")
