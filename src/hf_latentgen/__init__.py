"""Latent generative models as ordinary Hugging Face models. Importing the package registers its Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from hf_latentgen.data import LevelsDataset, collate_levels, load_images
from hf_latentgen.models.configuration_vae import VAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_vae import VAEModel, VAEOutput
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.trainer import ELBOTrainer

AutoConfig.register("latentgen_vae", VAEConfig, exist_ok=True)
AutoModel.register(VAEConfig, VAEModel, exist_ok=True)
AutoImageProcessor.register(VAEConfig, image_processor_classes={"pil": LevelsImageProcessor}, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "ELBOTrainer",
    "LatentTrainingArguments",
    "LevelsDataset",
    "LevelsImageProcessor",
    "VAEConfig",
    "VAEModel",
    "VAEOutput",
    "collate_levels",
    "load_images",
]
