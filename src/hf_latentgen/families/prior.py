"""Latent diffusion priors: a denoiser draws the latents that a trained autoencoder decodes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.distances import class_histogram_kl, coverage_and_recall, frechet_distance
from hf_latentgen.evaluation.features import classifier_features
from hf_latentgen.evaluation.likelihood import BAR
from hf_latentgen.evaluation.metrics import show
from hf_latentgen.evaluation.pictures import image_grid, reconstruction_grid
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.samples import (
    NUM_RECONSTRUCTIONS,
    NUM_SAMPLES,
    SAMPLE_AND_NEAREST,
    memory_check,
    nearest_images,
    spread_indices,
)
from hf_latentgen.families.family import Data, Family, Measured, Options, Setup
from hf_latentgen.families.inputs import image_data, read_levels
from hf_latentgen.hub.loading import PRIOR_TYPE, Checkpoint, load
from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.models.image_processing_levels import levels_from_uint8, uint8_from_levels
from hf_latentgen.training.latent_prior import PriorTrainer, make_denoiser

NUM_DRAWN = 10_000
BATCH_SIZE = 500
# Where latents come from: the diffusion, the prior that the autoencoder was trained with, encoded training images.
SOURCES = ("diffusion", "own_prior", "encoded")


def parts(setup: Setup) -> dict:
    """Arguments of the trainer by name: a new denoiser, the autoencoder, and the latents it gives to images.

    Raises:
        ValueError: no autoencoder is named or at hand, it has no latents or several groups of them, or there is a
            checkpoint to start from.
    """
    if setup.checkpoint is not None:
        raise ValueError(f"a latent diffusion prior starts from a new denoiser, not from {setup.checkpoint.name}")
    if "autoencoder" not in setup.model:
        raise ValueError("model.autoencoder must name the checkpoint of an autoencoder, got none")
    try:
        found = load(setup.model["autoencoder"], device="cpu")
    except OSError as error:
        raise ValueError(f"cannot load model.autoencoder {setup.model['autoencoder']}: {error}") from error
    splits = [
        read_levels(found.processor, setup.dataset["name"], split, setup.data_dir) for split in ("train", "validation")
    ]
    fields = {name: setup.model[name] for name in ("hidden_size", "num_blocks") if name in setup.model}
    return {**make_denoiser(found.model, *splits, **fields), "processing_class": found.processor}


def measure(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """Scores of 10,000 samples against the test images, in the feature space of a classifier of the same images.

    Each score is there for the diffusion and, under a name that ends in `of_own_prior`, for the prior that the
    autoencoder was trained with. All images, real and drawn, have the levels of the autoencoder, shown as 8-bit images.

    The diagnostics say what can be reached: the distances of training images, and of images decoded from posterior
    samples of training images, which is what the diffusion learns.
    """
    pipe, train, test, seed = LatentGenPipeline(*checkpoint.parts), data.train, data.test, options.seed
    num_levels, num_classes = pipe.model.config.num_levels, _classifier(options).config.num_classes

    def features(levels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return _features(levels, num_levels, options)

    real, real_classes = features(test.levels)
    seen, _ = features(train.levels[spread_indices(len(train), min(len(test), len(train)))])
    metrics, diagnostics = {}, {"in_domain_frechet_distance_of_train": frechet_distance(real, seen)}
    for source in SOURCES:
        fake, fake_classes = features(drawn_images(pipe, source, "sample", NUM_DRAWN, train, seed))
        means, _ = features(drawn_images(pipe, source, "mean", NUM_DRAWN, train, seed))
        suffix = "" if source == "diffusion" else f"_of_{source}"
        distances = {
            f"in_domain_frechet_distance{suffix}": frechet_distance(real, fake),
            f"in_domain_frechet_distance_of_means{suffix}": frechet_distance(real, means),
        }
        if source == "encoded":
            diagnostics |= distances
            continue
        metrics |= distances
        metrics[f"class_histogram_kl_nats{suffix}"] = class_histogram_kl(fake_classes, real_classes, num_classes)
        for name, value in coverage_and_recall(real, fake).items():
            metrics[f"in_domain_{name}{suffix}"] = value
    samples = drawn_images(pipe, "diffusion", "sample", NUM_SAMPLES, train, seed)
    diagnostics |= memory_check(samples, train.levels, test.levels, num_levels)
    return Measured(metrics, diagnostics)


def verify(checkpoint: Checkpoint, data: Data, options: Options) -> dict[str, float]:
    """The distance of 10,000 samples of the diffusion."""
    pipe = LatentGenPipeline(*checkpoint.parts)
    drawn = drawn_images(pipe, "diffusion", "sample", NUM_DRAWN, data.train, options.seed)
    real, fake = (_features(levels, pipe.model.config.num_levels, options)[0] for levels in (data.test.levels, drawn))
    return {"in_domain_frechet_distance": frechet_distance(real, fake)}


def draw(checkpoint: Checkpoint, data: Data, results: Results, seed: int) -> dict[str, Image.Image]:
    """Samples of both priors, drawn and as means, samples above the nearest training images."""
    pipe, train = LatentGenPipeline(*checkpoint.parts), data.train
    num_levels, pictures = pipe.model.config.num_levels, {}
    for source, name in (("diffusion", "samples"), ("own_prior", "samples_own_prior")):
        for output, suffix in (("sample", ""), ("mean", "_mean")):
            levels = drawn_images(pipe, source, output, NUM_SAMPLES, train, seed)
            pictures[f"{name}{suffix}"] = image_grid(levels, num_levels)
    samples = drawn_images(pipe, "diffusion", "sample", NUM_RECONSTRUCTIONS, train, seed)
    nearest, _ = nearest_images(samples, train.levels)
    pictures["samples_above_nearest_training_images"] = reconstruction_grid(
        samples, train.levels[nearest], num_levels, labels=SAMPLE_AND_NEAREST
    )
    return pictures


def columns(results: Results) -> dict[str, str]:
    """Cells by the title of their column, beside those of the prior that the autoencoder was trained with."""
    names = {"Frechet": "in_domain_frechet_distance", "Coverage": "in_domain_coverage"}
    scores = {}
    for title, metric in names.items():
        scores[f"{title}, diffusion"] = show(results, metric)
        scores[f"{title}, own prior"] = show(results, f"{metric}_of_own_prior")
    return {"Parameters": f"{results.num_parameters:,}", **scores}


@torch.no_grad()
def drawn_images(
    pipe: LatentGenPipeline, source: str, output: str, num_images: int, train: LevelsDataset, seed: int = 0
) -> Tensor:
    """Images decoded from latents of one of `SOURCES`, as levels: drawn pixels, or their means. [num_images, C, H, W].

    `train` holds the images to encode.
    """
    generator = torch.Generator().manual_seed(seed)
    encoded = train.levels[spread_indices(len(train), num_images)].split(BATCH_SIZE)
    pipe.set_progress_bar_config(disable=True)
    batches = []
    for batch in tqdm(encoded, f"images of {source.replace('_', ' ')}, {output}", **BAR):
        if source == "own_prior":
            images = pipe.model.sample(len(batch), generator, output)
        else:
            if source == "diffusion":
                latents = pipe.prior_latents(len(batch), generator)
            else:
                latents = pipe.model.posterior(batch.to(pipe.model.device)).sample(generator)
            images = pipe.model.decode(latents).draw(output, generator)
        batches.append(images.cpu())
    return torch.cat(batches)


def _classifier(options: Options):
    """The in-domain classifier, without which samples cannot be judged."""
    if options.classifier is None:
        raise ValueError("classifier must be given for a latent diffusion prior, whose samples it judges, got none")
    return options.classifier.model


def _features(levels: Tensor, num_levels: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, F] and classes [N] of images with the levels of the autoencoder, shown as 8-bit images."""
    classifier = _classifier(options)
    read = levels_from_uint8(uint8_from_levels(levels, num_levels), classifier.config.num_levels)
    return classifier_features(classifier, torch.as_tensor(read), options.batch_size)


PRIOR = Family(
    model_type=PRIOR_TYPE,
    title="Latent diffusion priors",
    classes={"LatentGenPipeline": IMAGE_TASK},
    trainer=PriorTrainer,
    model_keys=("model_type", "autoencoder", "hidden_size", "num_blocks"),
    dataset_keys=("name",),
    make_parts=parts,
    load_data=image_data,
    measure=measure,
    verify=verify,
    draw=draw,
    columns=columns,
    template=Path(__file__).with_name("prior.md.jinja"),
    options=("classifier",),
    # Of 10,000 samples, drawn by another processor.
    tolerances={"in_domain_frechet_distance": 1.0},
    history=("velocity_mse", "mean squared error of the velocity"),
    tags=("latent-diffusion", "image-generation"),
    library="diffusers",
    captions={
        "samples_mean.png": "Samples of the diffusion: the mean level of each pixel",
        "samples.png": "The same latents, each pixel drawn from its distribution",
    },
    thumbnail="samples_mean",
    best_by=("mnist", "in_domain_frechet_distance"),
)
