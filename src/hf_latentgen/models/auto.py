# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Which Auto classes and which files belong to the checkpoint of a model of this package."""

from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from .configuration_aae import AAEConfig
from .configuration_local_transformer import LocalTransformerConfig
from .configuration_local_transformer_image import LocalTransformerImageConfig
from .configuration_vae import VAEConfig
from .modeling_aae_classification import AAEForImageClassification

WEIGHTS = "model.safetensors"
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_CONFIGS = ("tokenizer_config.json",)
MODEL_TYPES = tuple(
    config.model_type for config in (VAEConfig, AAEConfig, LocalTransformerConfig, LocalTransformerImageConfig)
)


def reads_text(model_type: str | None) -> bool:
    """Whether a model of this type reads texts, with a tokenizer; the others read images, with an image processor."""
    return model_type == LocalTransformerConfig.model_type


def auto_class(config: PreTrainedConfig) -> type:
    """The Auto class that makes the model of a configuration: a field `architectures` names a classifier."""
    if reads_text(config.model_type):
        return AutoModelForCausalLM
    is_classifier = AAEForImageClassification.__name__ in (config.architectures or [])
    return AutoModelForImageClassification if is_classifier else AutoModel


def auto_processor(config: PreTrainedConfig) -> type:
    """The Auto class of what prepares the inputs of a model: images, or texts."""
    return AutoTokenizer if reads_text(config.model_type) else AutoImageProcessor
