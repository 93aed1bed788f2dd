# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the local-attention transformer over pixels."""

from huggingface_hub.dataclasses import strict

from .configuration_latentgen import check_pixel_likelihood, require
from .configuration_local_transformer import LocalTransformerConfig


@strict
class LocalTransformerImageConfig(LocalTransformerConfig):
    """Configuration of a [`LocalTransformerForImageGeneration`].

    Args, besides those of [`LocalTransformerConfig`], of which `vocab_size`, `window` and the special ids follow from
    the others:
        image_size (`int`, defaults to 28): height and width of the square image.
        num_channels (`int`, defaults to 1): channels of the image.
        num_levels (`int`, defaults to 16): integer levels of a pixel, 2 to 256.
        window_rows (`int`, defaults to 2): rows of the image that a pixel sees.
        context_radius (`int`, defaults to 1): rows above the pixel to predict, and columns to its left and right,
            whose values are part of the input.
        pixel_likelihood (`str`, defaults to `"categorical"`):
            `"categorical"`: a logit for each level. `"logistic_mixture"`: a mixture of logistic distributions, which
            learns 256 levels faster.
        num_mixtures (`int`, defaults to 5): parts of the mixture.
        is_class_conditional (`bool`, defaults to `False`): the model is told the class, one of `num_labels`.
    """

    model_type = "latentgen_local_transformer_image"
    keys_to_ignore_at_inference = ["logits"]

    image_size: int = 28
    num_channels: int = 1
    num_levels: int = 16
    window_rows: int = 2
    context_radius: int = 1
    pixel_likelihood: str = "categorical"
    num_mixtures: int = 5
    is_class_conditional: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        for field, value in self._derived.items():
            if getattr(self, field) == getattr(type(self), field):
                setattr(self, field, value)
        self.pad_token_id = self.bos_token_id = self.eos_token_id = None
        super().__post_init__(**kwargs)

    @property
    def auto_model(self) -> str:
        """Name of the Auto class of transformers that makes the model."""
        return "AutoModel"

    @property
    def reads_text(self) -> bool:
        """Whether the model reads texts; this one reads images."""
        return False

    @property
    def _derived(self) -> dict[str, int]:
        """Fields of the transformer that follow from those of the image."""
        # Each context has its own embedding of each level, and of what lies outside of the image.
        vocab_size = (1 + len(self.neighbors)) * (self.num_levels + 1)
        return {"window": max(self.window_rows * self.row_length, 2), "vocab_size": vocab_size}

    @property
    def neighbors(self) -> list[tuple[int, int]]:
        """Rows up and columns to the right of a pixel's already seen neighbours, without the value just before it."""
        radius = self.context_radius
        above = [(up, right) for up in range(1, radius + 1) for right in sorted(range(-radius, radius + 1), key=abs)]
        # With several channels the value just before is another channel's, of the pixel itself but for the first.
        nearest = 2 if self.num_channels == 1 else 1
        return above + [(0, -left) for left in range(nearest, radius + 1)]

    @property
    def row_length(self) -> int:
        """Tokens of a row of the image."""
        return self.image_size * self.num_channels

    @property
    def num_dims(self) -> int:
        """Dimensions of one image, `C * H * W`: the denominator of every bits-per-dimension score."""
        return self.row_length * self.image_size

    @property
    def outputs_per_dim(self) -> int:
        """Outputs of the model for each value."""
        return self.num_levels if self.pixel_likelihood == "categorical" else 3 * self.num_mixtures

    def validate_image(self):
        """Raises `ValueError` if the image fields are out of range."""
        require(self.image_size >= 1, "image_size", self.image_size, "at least 1")
        require(self.num_channels >= 1, "num_channels", self.num_channels, "at least 1")
        require(2 <= self.num_levels <= 256, "num_levels", self.num_levels, "2 to 256")
        check_pixel_likelihood(self.pixel_likelihood, self.num_mixtures, self.num_levels)
        require(self.window_rows >= 1, "window_rows", self.window_rows, "at least 1")
        radius, most = self.context_radius, self.image_size
        require(1 <= radius <= most, "context_radius", radius, f"1 to image_size={most}")
        self.validate_model_type()
        for field, value in self._derived.items():
            # A trimmed model has the widest window of its layers.
            follows = getattr(self, field) == value or (field == "window" and self.layer_windows is not None)
            require(follows, field, getattr(self, field), f"{value}, which follows from the fields of the image")
