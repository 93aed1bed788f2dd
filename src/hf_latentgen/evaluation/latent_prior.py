"""What is measured of a latent diffusion prior beside the prior that the autoencoder was trained with, and drawn."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.aae import classifier_features
from hf_latentgen.evaluation.distances import class_histogram_kl, coverage_and_recall, frechet_distance
from hf_latentgen.evaluation.pictures import history_plot, image_grid, reconstruction_grid
from hf_latentgen.evaluation.samples import NUM_RECONSTRUCTIONS, NUM_SAMPLES, nearest_images, spread_indices
from hf_latentgen.models.image_processing_levels import levels_from_uint8, uint8_from_levels
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification
from hf_latentgen.pipelines import LatentGenPipeline

NUM_DRAWN = 10_000
BATCH_SIZE = 500
# Where latents come from: the diffusion, the prior that the autoencoder was trained with, encoded training images.
SOURCES = ("diffusion", "own_prior", "encoded")


def measure(
    pipe: LatentGenPipeline,
    train: LevelsDataset,
    test: LevelsDataset,
    classifier: AAEForImageClassification,
    batch_size: int = 128,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of 10,000 samples against the test images, in the feature space of a classifier of the same images.

    Each score is there for the diffusion and, under a name that ends in `of_own_prior`, for the prior that the
    autoencoder was trained with. All images, real and drawn, have the levels of the autoencoder, shown as 8-bit images.

    The diagnostics say what can be reached: the distances of training images, and of images decoded from posterior
    samples of training images, which is what the diffusion learns.
    """
    num_levels = pipe.model.config.num_levels

    def features(levels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        shown = uint8_from_levels(levels, num_levels)
        read = levels_from_uint8(shown, classifier.config.num_levels)
        return classifier_features(classifier, torch.as_tensor(read), batch_size)

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
        num_classes = classifier.config.num_classes
        metrics |= distances
        metrics[f"class_histogram_kl_nats{suffix}"] = class_histogram_kl(fake_classes, real_classes, num_classes)
        for name, value in coverage_and_recall(real, fake).items():
            metrics[f"in_domain_{name}{suffix}"] = value
    # Samples much nearer to the training images than unseen images are would be memorised ones.
    samples = drawn_images(pipe, "diffusion", "sample", NUM_SAMPLES, train, seed)
    unseen = test.levels[spread_indices(len(test), NUM_SAMPLES)]
    for name, levels in (("samples", samples), ("test_images", unseen)):
        nearest = nearest_images(levels, train.levels)[1] / (num_levels - 1)
        diagnostics[f"nearest_training_image_rmse_of_{name}"] = float(nearest.mean())
    return metrics, diagnostics


def draw(pipe: LatentGenPipeline, train: LevelsDataset, results: dict, seed: int) -> dict[str, Image.Image]:
    """The pictures of a row by name."""
    num_levels, pictures = pipe.model.config.num_levels, {}
    for source, name in (("diffusion", "samples"), ("own_prior", "samples_own_prior")):
        for output, suffix in (("sample", ""), ("mean", "_mean")):
            levels = drawn_images(pipe, source, output, NUM_SAMPLES, train, seed)
            pictures[f"{name}{suffix}"] = image_grid(levels, num_levels)
    samples = drawn_images(pipe, "diffusion", "sample", NUM_RECONSTRUCTIONS, train, seed)
    nearest, _ = nearest_images(samples, train.levels)
    pictures["samples_above_nearest_training_images"] = reconstruction_grid(samples, train.levels[nearest], num_levels)
    if results["history"]:
        label = "mean squared error of the velocity"
        pictures["history"] = history_plot(results["history"], metric="velocity_mse", label=label)
    return pictures


def fields(pipe: LatentGenPipeline) -> dict[str, int]:
    """The sizes of the denoiser."""
    return {name: pipe.denoiser.config[name] for name in ("latent_dim", "hidden_size", "num_blocks")}


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
    for batch in encoded:
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
