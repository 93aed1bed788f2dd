"""Variational lossy autoencoders: the measurements and pictures of a VAE, and what the code and the pixels share."""

import time
from pathlib import Path

import torch
from PIL import Image

from hf_latentgen.evaluation.likelihood import shares_of_latents
from hf_latentgen.evaluation.pictures import image_grid
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.samples import (
    COMPLETION_COLUMNS,
    NUM_COMPLETED,
    NUM_COMPLETIONS,
    NUM_INTERPOLATIONS,
    NUM_RECONSTRUCTIONS,
    NUM_SAMPLES,
    NUM_STEPS,
    autoencoder_pictures,
    completions,
    same_code_samples,
)
from hf_latentgen.families import vae
from hf_latentgen.families.family import Data, Family, Measured, Options
from hf_latentgen.families.inputs import image_codes, image_data, image_parts
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.models.modeling_vlae import COMPLETION_STEPS
from hf_latentgen.training.elbo import ELBOTrainer

# Drawings of one code, beside the image.
NUM_DRAWN = 5


def measure(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """The scores of a VAE, the rate of each group of latents, and what the decoder knows without the image's code.

    No error of reconstructions: pixels that are drawn one after the other have no mean image.
    """
    measured = vae.measure_likelihood(checkpoint, data, options)
    measured.diagnostics.update(shares_of_latents(checkpoint.model, data.test.levels, options.batch_size, options.seed))
    return measured


def seconds_of_pictures(checkpoint: Checkpoint) -> float:
    """Seconds that drawing the pictures takes, told by the last row of as many images as there are samples."""
    model = checkpoint.model.eval()
    size, turns = model.config.image_size, COMPLETION_STEPS + 1
    images = model.blank(NUM_SAMPLES)
    started = time.perf_counter()
    # Each turn of a completion draws the row anew.
    model.complete(images, size - 1)
    seconds_a_row = (time.perf_counter() - started) / turns
    # Samples are drawn twice: to be measured, and to be shown.
    drawn = 2 * NUM_SAMPLES + NUM_RECONSTRUCTIONS + NUM_INTERPOLATIONS * NUM_STEPS
    drawn += NUM_COMPLETED * NUM_DRAWN * len(model.latent_sizes) + NUM_COMPLETED * NUM_COMPLETIONS * turns // 2
    return seconds_a_row * size * drawn / NUM_SAMPLES


def draw(checkpoint: Checkpoint, data: Data, results: Results, seed: int) -> dict[str, Image.Image]:
    """Samples, reconstructions, interpolations, completions, and images beside drawings of their code or a part."""
    model = checkpoint.model
    pictures = autoencoder_pictures(model, data.train, data.test, seed)
    num_levels, generator = model.config.num_levels, torch.Generator().manual_seed(seed)
    for groups in range(1, 1 + len(model.latent_sizes)):
        drawn = same_code_samples(model, data.test, NUM_DRAWN, groups, generator)
        name = "same_code" if groups == len(model.latent_sizes) else f"same_code_groups_{groups}"
        labels = ["test image", *(f"drawn {number + 1}" for number in range(NUM_DRAWN))]
        pictures[name] = image_grid(drawn, num_levels, columns=1 + NUM_DRAWN, column_labels=labels)
    ways = completions(model, data.test, seed)
    pictures["completions"] = image_grid(ways, num_levels, len(COMPLETION_COLUMNS), column_labels=COMPLETION_COLUMNS)
    return pictures


VLAE = Family(
    model_type="latentgen_vlae",
    title="Variational lossy autoencoders",
    classes={"VLAEModel": IMAGE_TASK},
    trainer=ELBOTrainer,
    make_parts=image_parts,
    load_data=image_data,
    measure=measure,
    seconds_per_sample=vae.seconds_per_sample,
    seconds_of_pictures=seconds_of_pictures,
    baselines=image_codes,
    verify=vae.verify_likelihood,
    draw=draw,
    columns=vae.columns,
    template=Path(__file__).with_name("vlae.md.jinja"),
    options=("num_importance_samples", "budget", "compile", "bf16"),
    tags=("variational-autoencoder", "variational-lossy-autoencoder", "autoregressive", "image-generation"),
    captions={
        "same_code.png": "Test images, and five drawings of the code of each: what differs is not in the code",
        "same_code_groups_1.png": "Test images, and drawings of the first group of their latents, the others drawn",
        "same_code_groups_2.png": "Test images, and drawings of two groups of their latents, the others drawn",
        "completions.png": "Test images, and seven ways to go on from the upper half of each",
    },
    best_by=("mnist", "bits_per_dim"),
)
