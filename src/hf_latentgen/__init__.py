"""Latent generative models as ordinary Hugging Face models. Importing the package registers its Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
)

from hf_latentgen.data import LevelsDataset, TokenBlocksDataset, collate_levels, load_images, load_text
from hf_latentgen.models.configuration_aae import AAEConfig
from hf_latentgen.models.configuration_local_transformer import LocalTransformerConfig
from hf_latentgen.models.configuration_local_transformer_image import LocalTransformerImageConfig
from hf_latentgen.models.configuration_vae import VAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.local_attention import local_attention, local_attention_reference
from hf_latentgen.models.modeling_aae import AAEModel, AAEOutput
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.models.modeling_local_transformer import LocalTransformerForCausalLM, LocalTransformerModel
from hf_latentgen.models.modeling_local_transformer_image import LocalTransformerForImageGeneration
from hf_latentgen.models.modeling_vae import VAEModel, VAEOutput
from hf_latentgen.models.tokenization_bytes import ByteTokenizer
from hf_latentgen.pipelines import LatentGenPipeline
from hf_latentgen.training.adversarial import AdversarialTrainer
from hf_latentgen.training.arguments import AdversarialTrainingArguments, LatentTrainingArguments
from hf_latentgen.training.likelihood import LikelihoodTrainer
from hf_latentgen.training.trainer import ELBOTrainer

AutoConfig.register("latentgen_vae", VAEConfig, exist_ok=True)
AutoConfig.register("latentgen_aae", AAEConfig, exist_ok=True)
AutoConfig.register("latentgen_local_transformer", LocalTransformerConfig, exist_ok=True)
AutoConfig.register("latentgen_local_transformer_image", LocalTransformerImageConfig, exist_ok=True)
AutoModel.register(VAEConfig, VAEModel, exist_ok=True)
AutoModel.register(AAEConfig, AAEModel, exist_ok=True)
AutoModel.register(LocalTransformerConfig, LocalTransformerModel, exist_ok=True)
AutoModel.register(LocalTransformerImageConfig, LocalTransformerForImageGeneration, exist_ok=True)
AutoModelForCausalLM.register(LocalTransformerConfig, LocalTransformerForCausalLM, exist_ok=True)
AutoModelForImageClassification.register(AAEConfig, AAEForImageClassification, exist_ok=True)
for config_class in (VAEConfig, AAEConfig, LocalTransformerImageConfig):
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": LevelsImageProcessor}, exist_ok=True)
AutoTokenizer.register(LocalTransformerConfig, tokenizer_class=ByteTokenizer, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "AAEConfig",
    "AAEForImageClassification",
    "AAEModel",
    "AAEOutput",
    "AdversarialTrainer",
    "AdversarialTrainingArguments",
    "ByteTokenizer",
    "ELBOTrainer",
    "LatentDenoiser",
    "LatentGenPipeline",
    "LatentTrainingArguments",
    "LevelsDataset",
    "LevelsImageProcessor",
    "LikelihoodTrainer",
    "LocalTransformerConfig",
    "LocalTransformerForCausalLM",
    "LocalTransformerForImageGeneration",
    "LocalTransformerImageConfig",
    "LocalTransformerModel",
    "TokenBlocksDataset",
    "VAEConfig",
    "VAEModel",
    "VAEOutput",
    "collate_levels",
    "load_images",
    "load_text",
    "local_attention",
    "local_attention_reference",
]
