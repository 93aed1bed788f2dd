# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the variational autoencoder."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

ARCHITECTURES = ("course", "resnet", "mlp")


@strict
class VAEConfig(PreTrainedConfig):
    """Configuration of a [`VAEModel`]; its defaults are the course network on 4-bit MNIST, with 270,616 parameters.

    Args:
        architecture (`str`, defaults to `"course"`):
            `"course"`: three stride-2 stages of 3x3 convolutions with GELU. `"resnet"`: residual blocks and a ladder of
            spatial latents. `"mlp"`: fully connected.
        image_size (`int`, defaults to 28): height and width of the square image.
        num_channels (`int`, defaults to 1): channels of the image.
        num_levels (`int`, defaults to 16): integer levels of a pixel, 2 to 256.
        latent_dim (`int`, defaults to 20): dimensions of the coarsest (and for most networks only) latent vector.
        hidden_channels (`tuple`, defaults to `(32, 64, 64)`):
            width of each stage, fine to coarse. Convolutional stages halve the resolution, an `"mlp"` stage is a layer.
        blocks_per_stage (`int`, defaults to 1): residual blocks of a stage in encoder and decoder (`"resnet"` only).
        ladder_channels (`tuple`, defaults to `()`):
            latent channels added at each stage of the decoder, coarse to fine, at most one entry a stage (`"resnet"`
            only). Their posterior sees the coarser latents; their prior is standard normal, as everywhere.
        beta (`float`, defaults to 1.0): weight of the rate in the optimised loss.
        free_bits (`float`, defaults to 0.0):
            nats per latent dimension below which the rate of an example is not reduced further.
    """

    model_type = "latentgen_vae"
    keys_to_ignore_at_inference = ["logits", "latents"]

    architecture: str = "course"
    image_size: int = 28
    num_channels: int = 1
    num_levels: int = 16
    latent_dim: int = 20
    hidden_channels: list[int] | tuple[int, ...] = (32, 64, 64)
    blocks_per_stage: int = 1
    ladder_channels: list[int] | tuple[int, ...] = ()
    beta: float | int = 1.0
    free_bits: float | int = 0.0

    @property
    def num_dims(self) -> int:
        """Dimensions of one image, `C * H * W`: the denominator of every bits-per-dimension score."""
        return self.num_channels * self.image_size**2

    @property
    def stage_sizes(self) -> list[int]:
        """Resolution of the image and of the output of each convolutional stage, fine to coarse."""
        sizes = [self.image_size]
        for _ in self.hidden_channels:
            sizes.append((sizes[-1] + 1) // 2)
        return sizes

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each group of latents, coarse to fine. Their concatenation is the `latents` of the model."""
        coarse_to_fine = self.stage_sizes[:0:-1]
        return [(self.latent_dim,), *((c, s, s) for c, s in zip(self.ladder_channels, coarse_to_fine, strict=False))]

    def validate_model_type(self):
        """Raises `ValueError` if the fields were read from the configuration of another model."""
        expected = type(self).model_type
        _require(self.model_type == expected, "model_type", self.model_type, repr(expected))

    def validate_image(self):
        """Raises `ValueError` if the image fields are out of range."""
        _require(self.image_size >= 1, "image_size", self.image_size, "at least 1")
        _require(self.num_channels >= 1, "num_channels", self.num_channels, "at least 1")
        _require(2 <= self.num_levels <= 256, "num_levels", self.num_levels, "2 to 256")

    def validate_network(self):
        """Raises `ValueError` if the network fields are out of range or contradict each other."""
        _require(self.architecture in ARCHITECTURES, "architecture", self.architecture, f"one of {ARCHITECTURES}")
        _require(self.latent_dim >= 1, "latent_dim", self.latent_dim, "at least 1")
        widths = self.hidden_channels
        _require(len(widths) > 0 and min(widths) >= 1, "hidden_channels", widths, "one or more widths of at least 1")
        _require(self.blocks_per_stage >= 1, "blocks_per_stage", self.blocks_per_stage, "at least 1")
        if self.architecture == "course":
            _require(len(widths) == 3, "hidden_channels", widths, "three widths for architecture='course'")
        ladder = self.ladder_channels
        if self.architecture == "resnet":
            allowed = f"at most {len(widths)} entries (one a stage) of at least 1"
            _require(len(ladder) <= len(widths) and min(ladder, default=1) >= 1, "ladder_channels", ladder, allowed)
        else:
            _require(len(ladder) == 0, "ladder_channels", ladder, f"empty for architecture={self.architecture!r}")

    def validate_objective(self):
        """Raises `ValueError` if a weight of the objective is negative."""
        _require(self.beta >= 0, "beta", self.beta, "at least 0")
        _require(self.free_bits >= 0, "free_bits", self.free_bits, "at least 0")


def _require(holds: bool, field: str, given: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{field} must be {allowed}, got {given!r}")
