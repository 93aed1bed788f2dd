"""Tiny pipelines around each model of images; shared by the tests of the pipeline and of the loader."""

import torch
from diffusers import DDIMScheduler

from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    AAEModel,
    LatentGenPipeline,
    LevelsImageProcessor,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    VAEConfig,
    VAEModel,
)
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser

MLP = {"architecture": "mlp", "image_size": 8, "latent_dim": 3, "hidden_channels": [16], "num_levels": 16}
LOCAL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = ("vae", "aae", "labelled", "classifier", "pixels", "classes", "prior")


def make_model(family):
    torch.manual_seed(0)
    if family in ("vae", "prior"):
        return VAEModel(VAEConfig(**MLP))
    if family == "aae":
        return AAEModel(AAEConfig(**MLP, discriminator_channels=[8]))
    if family == "labelled":
        fields = MLP | {"latent_dim": 2, "prior": "flower", "labelled_prior": True, "num_labels": 10}
        return AAEModel(AAEConfig(**fields, discriminator_channels=[8]))
    if family == "classifier":
        return AAEForImageClassification(AAEConfig(**MLP, discriminator_channels=[8], num_labels=10))
    fields = {"is_class_conditional": True, "num_labels": 10} if family == "classes" else {}
    return LocalTransformerForImageGeneration(LocalTransformerImageConfig(image_size=8, **LOCAL, **fields))


def make_text_model():
    return LocalTransformerForCausalLM(LocalTransformerConfig(window=8, **LOCAL))


def make_denoiser(latent_dim=3):
    torch.manual_seed(1)
    return LatentDenoiser(latent_dim, [0.5] * latent_dim, [2.0] * latent_dim, hidden_size=8, num_blocks=1)


def make_scheduler():
    return DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")


def make_pipe(family):
    processor = LevelsImageProcessor(size={"height": 8, "width": 8})
    parts = {"denoiser": make_denoiser(), "scheduler": make_scheduler()} if family == "prior" else {}
    pipe = LatentGenPipeline(make_model(family), processor, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def levels(pipe, seed=0, **options):
    return pipe(generator=torch.Generator().manual_seed(seed), output_type="pt", **options).images
