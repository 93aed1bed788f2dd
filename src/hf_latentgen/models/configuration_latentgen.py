# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""What the configurations of all models share: how a model is loaded, how it is described, what its inputs are."""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LatentGenConfig(PreTrainedConfig):
    """Base of all configurations. A subclass says which Auto classes make its model and read its inputs."""

    @property
    def auto_model(self) -> str:
        """Name of the Auto class of transformers that makes the model."""
        return "AutoModel"

    @property
    def reads_text(self) -> bool:
        """Whether the model reads texts, with a tokenizer; the others read images, with an image processor."""
        return False

    @property
    def auto_processor(self) -> str:
        """Name of the Auto class of transformers that prepares the inputs."""
        return "AutoTokenizer" if self.reads_text else "AutoImageProcessor"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """The configuration of a dictionary of fields, some of them replaced, which transformers would not check.

        Raises:
            ValueError: the fields together are out of range, the replaced ones among them.
        """
        changes = {own.name: kwargs.pop(own.name) for own in fields(cls) if own.name in kwargs}
        return super().from_dict(cls.replaced(config_dict, changes), **kwargs)

    @classmethod
    def replaced(cls, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        """The fields `values` with some of them changed."""
        return values | changes

    def described(self) -> dict[str, Any]:
        """The model type, the class, and the fields that a family adds to those of every configuration."""
        common = {field.name for field in fields(PreTrainedConfig)}
        values = self.to_dict()
        own = {field.name: values[field.name] for field in fields(self) if field.name not in common}
        return {"model_type": self.model_type, "architectures": self.architectures, **own}

    def validate_model_type(self):
        """Raises `ValueError` if the fields were read from the configuration of another model."""
        expected = type(self).model_type
        require(self.model_type == expected, "model_type", self.model_type, repr(expected))


PIXEL_LIKELIHOODS = ("categorical", "logistic_mixture")


def check_pixel_likelihood(likelihood: str, num_mixtures: int, num_levels: int) -> None:
    """Raises `ValueError` unless the likelihood of pixels is known and fits their levels."""
    require(likelihood in PIXEL_LIKELIHOODS, "pixel_likelihood", likelihood, f"one of {PIXEL_LIKELIHOODS}")
    require(num_mixtures >= 1, "num_mixtures", num_mixtures, "at least 1")
    # Two probabilities are one number, for which a mixture has many.
    is_one_number = likelihood == "logistic_mixture" and num_levels == 2
    require(not is_one_number, "num_levels", num_levels, "at least 3 for pixel_likelihood='logistic_mixture'")


def require(holds: bool, field: str, given: object, allowed: str) -> None:
    """Raises `ValueError` naming the field, what was given and what is allowed, unless the condition holds."""
    if not holds:
        raise ValueError(f"{field} must be {allowed}, got {given!r}")


def check_processor(config: PreTrainedConfig, processor: Any) -> None:
    """Raises `ValueError` unless an image processor gives what the model of a configuration reads."""
    size = config.image_size
    given = {
        "num_levels": (processor.num_levels, config.num_levels),
        "num_channels": (processor.num_channels, config.num_channels),
        "size": ((processor.size.height, processor.size.width), (size, size)),
    }
    for field, (found, expected) in given.items():
        advice = (
            f"{expected}, as in the configuration of the model (LevelsImageProcessor.for_config makes one that fits)"
        )
        require(found == expected, f"{field} of the image processor", found, advice)
