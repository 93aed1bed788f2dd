# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration fields that the image autoencoders share."""

from huggingface_hub.dataclasses import strict

from .configuration_latentgen import LatentGenConfig, require

ARCHITECTURES = ("course", "resnet", "mlp")
ACTIVATIONS = ("gelu", "relu")


@strict
class ImageAutoencoderConfig(LatentGenConfig):
    """Configuration of the images and networks of [`VAEModel`], [`AAEModel`] and [`AAEForImageClassification`].

    Args:
        architecture (`str`, defaults to `"course"`):
            `"course"`: three stride-2 stages of 3x3 convolutions. `"resnet"`: residual blocks. `"mlp"`: dense layers.
        image_size (`int`, defaults to 28): height and width of the square image.
        num_channels (`int`, defaults to 1): channels of the image.
        num_levels (`int`, defaults to 16): integer levels of a pixel, 2 to 256.
        latent_dim (`int`, defaults to 20): dimensions of the latent vector.
        hidden_channels (`tuple`, defaults to `(32, 64, 64)`):
            width of each stage, fine to coarse. Convolutional stages halve the resolution, an `"mlp"` stage is a layer.
        hidden_act (`str`, defaults to `"gelu"`): activation of encoder and decoder, `"gelu"` or `"relu"`.
        blocks_per_stage (`int`, defaults to 1): residual blocks of a stage in encoder and decoder (`"resnet"` only).
    """

    architecture: str = "course"
    image_size: int = 28
    num_channels: int = 1
    num_levels: int = 16
    latent_dim: int = 20
    hidden_channels: list[int] | tuple[int, ...] = (32, 64, 64)
    hidden_act: str = "gelu"
    blocks_per_stage: int = 1

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
        return [(self.latent_dim,)]

    def validate_image(self):
        """Raises `ValueError` if the image fields are out of range."""
        require(self.image_size >= 1, "image_size", self.image_size, "at least 1")
        require(self.num_channels >= 1, "num_channels", self.num_channels, "at least 1")
        require(2 <= self.num_levels <= 256, "num_levels", self.num_levels, "2 to 256")

    def validate_network(self):
        """Raises `ValueError` if the network fields are out of range or contradict each other."""
        require(self.architecture in ARCHITECTURES, "architecture", self.architecture, f"one of {ARCHITECTURES}")
        require(self.hidden_act in ACTIVATIONS, "hidden_act", self.hidden_act, f"one of {ACTIVATIONS}")
        require(self.latent_dim >= 1, "latent_dim", self.latent_dim, "at least 1")
        widths = self.hidden_channels
        require(len(widths) > 0 and min(widths) >= 1, "hidden_channels", widths, "one or more widths of at least 1")
        require(self.blocks_per_stage >= 1, "blocks_per_stage", self.blocks_per_stage, "at least 1")
        if self.architecture == "course":
            require(len(widths) == 3, "hidden_channels", widths, "three widths for architecture='course'")
