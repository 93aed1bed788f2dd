"""Latent generative models as ordinary Hugging Face models. Importing the package registers its Auto classes.

Public names are imported when they are first used, so that a model needs none of the training's dependencies.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

from hf_latentgen.models.configuration_aae import AAEConfig
from hf_latentgen.models.configuration_local_transformer import LocalTransformerConfig
from hf_latentgen.models.configuration_local_transformer_image import LocalTransformerImageConfig
from hf_latentgen.models.configuration_vae import VAEConfig
from hf_latentgen.models.configuration_vlae import VLAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_aae import AAEModel
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification
from hf_latentgen.models.modeling_local_transformer import LocalTransformerForCausalLM, LocalTransformerModel
from hf_latentgen.models.modeling_local_transformer_image import LocalTransformerForImageGeneration
from hf_latentgen.models.modeling_vae import VAEModel
from hf_latentgen.models.modeling_vlae import VLAEModel
from hf_latentgen.models.tokenization_bytes import ByteTokenizer

if TYPE_CHECKING:
    from hf_latentgen.data import LevelsDataset, TokenBlocksDataset, collate_levels, load_images, load_text
    from hf_latentgen.evaluation.anomaly import anomaly_scores
    from hf_latentgen.hub.loading import load
    from hf_latentgen.hub.pipelines import LatentGenPipeline
    from hf_latentgen.models.local_attention import local_attention, local_attention_reference
    from hf_latentgen.models.modeling_aae import AAEOutput
    from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
    from hf_latentgen.models.modeling_vae import VAEOutput
    from hf_latentgen.training.adversarial import AdversarialTrainer
    from hf_latentgen.training.arguments import AdversarialTrainingArguments, LatentTrainingArguments
    from hf_latentgen.training.elbo import ELBOTrainer
    from hf_latentgen.training.likelihood import LikelihoodTrainer

__version__ = "0.1.0"

for config_class, model_class in (
    (VAEConfig, VAEModel),
    (VLAEConfig, VLAEModel),
    (AAEConfig, AAEModel),
    (LocalTransformerConfig, LocalTransformerModel),
    (LocalTransformerImageConfig, LocalTransformerForImageGeneration),
):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
AutoModelForCausalLM.register(LocalTransformerConfig, LocalTransformerForCausalLM, exist_ok=True)
AutoModelForImageClassification.register(AAEConfig, AAEForImageClassification, exist_ok=True)
for config_class in (VAEConfig, VLAEConfig, AAEConfig, LocalTransformerImageConfig):
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": LevelsImageProcessor}, exist_ok=True)
AutoTokenizer.register(LocalTransformerConfig, tokenizer_class=ByteTokenizer, exist_ok=True)

# Where the names that are imported on first use are defined.
_MODULES = {
    "AAEOutput": "models.modeling_aae",
    "AdversarialTrainer": "training.adversarial",
    "AdversarialTrainingArguments": "training.arguments",
    "ELBOTrainer": "training.elbo",
    "LatentDenoiser": "models.modeling_latent_denoiser",
    "LatentGenPipeline": "hub.pipelines",
    "LatentTrainingArguments": "training.arguments",
    "LevelsDataset": "data",
    "LikelihoodTrainer": "training.likelihood",
    "TokenBlocksDataset": "data",
    "VAEOutput": "models.modeling_vae",
    "anomaly_scores": "evaluation.anomaly",
    "collate_levels": "data",
    "load": "hub.loading",
    "load_images": "data",
    "load_text": "data",
    "local_attention": "models.local_attention",
    "local_attention_reference": "models.local_attention",
}

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
    "VLAEConfig",
    "VLAEModel",
    "anomaly_scores",
    "collate_levels",
    "load",
    "load_images",
    "load_text",
    "local_attention",
    "local_attention_reference",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
