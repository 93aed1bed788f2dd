"""Images that an autoencoder makes: reconstructions, prior samples, and how far samples are from training images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.latents import posterior_moments
from hf_latentgen.evaluation.pictures import image_grid, latent_scatter, manifold_grid, reconstruction_grid
from hf_latentgen.models.distributions import OUTPUTS, standard_normal
from hf_latentgen.models.modeling_latentgen import LatentGenModel

NUM_SAMPLES = 64
NUM_RECONSTRUCTIONS = 32
NUM_INTERPOLATIONS, NUM_STEPS = 8, 8
SAMPLE_AND_NEAREST = ("sample", "nearest\ntraining image")
# Test images that are completed, and completions of each.
NUM_COMPLETED = 8
NUM_COMPLETIONS = 7
COMPLETION_COLUMNS = ("test image", *(f"way {number + 1}" for number in range(NUM_COMPLETIONS)))


@torch.no_grad()
def reconstruction_mse(model: LatentGenModel, levels: Tensor, batch_size: int = 128) -> float:
    """Mean squared error of the decoder mean at the latent mean, over all pixels, levels scaled to [0, 1].

    Shape: `levels` [N, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    total = 0.0
    for batch in levels.split(batch_size):
        errors = model.reconstruct(batch.to(model.device), output="mean").cpu() - batch
        total += float(errors.double().square().sum())
    return total / levels.numel() / (model.config.num_levels - 1) ** 2


def prior_samples(
    model: LatentGenModel, num_images: int, seed: int = 0, outputs: Sequence[str] = OUTPUTS
) -> dict[str, Tensor]:
    """Levels of drawn images by output, "sample", "mode" and "mean", all of an autoencoder's from the same latents.

    Shape: each [num_images, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    return {
        output: model.sample(num_images, generator=torch.Generator().manual_seed(seed), output=output).cpu()
        for output in outputs
    }


def memory_check(samples: Tensor, train: Tensor, test: Tensor, num_levels: int) -> dict[str, float]:
    """How near samples, and as many test images, are to the nearest training images, levels scaled to [0, 1].

    Samples much nearer to the training images than unseen images are would be memorised ones.

    Shape: all [N, C, H, W].
    """
    unseen = test[spread_indices(len(test), len(samples))]
    return {
        f"nearest_training_image_rmse_of_{name}": float((nearest_images(levels, train)[1] / (num_levels - 1)).mean())
        for name, levels in (("samples", samples), ("test_images", unseen))
    }


def nearest_images(levels: Tensor, candidates: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest candidate of each image, and the distance: root mean squared difference in levels.

    Shape: `levels` [M, C, H, W] and `candidates` [N, C, H, W]; both results [M].
    """
    queries = levels.flatten(1).float()
    best = torch.full((len(queries),), torch.inf)
    index = torch.zeros(len(queries), dtype=torch.int64)
    # Chunks bound the memory of the candidates as real numbers.
    size = 4096
    for number, chunk in enumerate(candidates.split(size)):
        squares = torch.cdist(queries, chunk.flatten(1).float()).square()
        least = squares.min(dim=1)
        index = torch.where(least.values < best, number * size + least.indices, index)
        best = torch.minimum(best, least.values)
    return index.numpy(), (best / queries.shape[1]).sqrt().numpy()


@torch.no_grad()
def autoencoder_pictures(
    model: LatentGenModel, train: LevelsDataset, test: LevelsDataset, seed: int = 0
) -> dict[str, Image.Image]:
    """Pictures by name: samples, alone and above the nearest training images, reconstructions, interpolations.

    With two latent dimensions and labels also the scatter of the latents, and with a Gaussian prior the manifold.
    """
    num_levels = model.config.num_levels
    samples = prior_samples(model, NUM_SAMPLES, seed, ["sample"])["sample"]
    pictures = {"samples": image_grid(samples, num_levels)}
    nearest, _ = nearest_images(samples[:NUM_RECONSTRUCTIONS], train.levels)
    pictures["samples_above_nearest_training_images"] = reconstruction_grid(
        samples[:NUM_RECONSTRUCTIONS], train.levels[nearest], num_levels, labels=SAMPLE_AND_NEAREST
    )
    # A test file may be sorted by class: the images shown are spread over all of it.
    shown = test.levels[spread_indices(len(test), NUM_RECONSTRUCTIONS)]
    generator = torch.Generator().manual_seed(seed)
    reconstructions = model.reconstruct(shown.to(model.device), generator=generator).cpu()
    pictures["reconstructions"] = reconstruction_grid(shown, reconstructions, num_levels)
    first, last = test.levels[spread_indices(len(test), 2 * NUM_INTERPOLATIONS)].unflatten(0, (2, -1))
    steps = model.interpolate(first.to(model.device), last.to(model.device), NUM_STEPS, generator=generator).cpu()
    pictures["interpolations"] = image_grid(
        torch.cat([first.unsqueeze(1), steps, last.unsqueeze(1)], 1).flatten(0, 1),
        num_levels,
        columns=NUM_STEPS + 2,
        column_labels=["test image", *(f"{step / (NUM_STEPS - 1):.0%}" for step in range(NUM_STEPS)), "test image"],
    )
    if model.num_latents == 2:
        if model.has_gaussian_prior:
            pictures["manifold"] = manifold_grid(model.manifold(generator=generator), num_levels)
        if test.labels is not None:
            pictures["latents"] = latent_scatter(posterior_moments(model, test.levels)[0], test.labels.numpy())
    return pictures


def spread_indices(length: int, count: int) -> np.ndarray:
    """Indices of `count` images spread evenly over `length`. [count]."""
    return np.linspace(0, length - 1, count).round().astype(np.int64)


@torch.no_grad()
def code_samples(model: LatentGenModel, levels: Tensor, batch_size: int = 128, seed: int = 0) -> np.ndarray:
    """A code (for a classifier: a style) from the posterior of each image. [N, latent_dim].

    Shape: `levels` [N, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    batches = levels.split(batch_size)
    return torch.cat([model.encode(batch.to(model.device)).sample(generator).cpu() for batch in batches]).numpy()


def drawn_samples(model: LatentGenModel, num_images: int, seed: int = 0, batch_size: int = 500) -> Tensor:
    """Images from the prior, as the decoder gives them: real levels. [num_images, C, H, W]."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, num_images - start) for start in range(0, num_images, batch_size)]
    return torch.cat([model.sample(size, generator, output="mean").cpu() for size in sizes])


@torch.no_grad()
def same_code_samples(
    model: LatentGenModel, test: LevelsDataset, number: int, groups: int, generator: torch.Generator
) -> Tensor:
    """Eight test images, each followed by images drawn from its first groups of latents. [8 * (1 + number), C, H, W].

    The other, finer groups are drawn from the prior, anew for each image.
    """
    images = test.levels[spread_indices(len(test), NUM_COMPLETED)]
    known = sum(model.latent_sizes[:groups])
    means = model.posterior(images.to(model.device)).mean.repeat_interleave(number, 0)
    latents = standard_normal(means.shape, means, generator)
    latents[:, :known] = means[:, :known]
    drawn = model.decode(latents).sample(generator).cpu()
    return torch.cat([images.unsqueeze(1), drawn.unflatten(0, (NUM_COMPLETED, number))], 1).flatten(0, 1)


def completions(model: LatentGenModel, test: LevelsDataset, seed: int = 0) -> Tensor:
    """Eight test images, one a row: the image, then seven ways to go on from its upper half. [64, C, H, W]."""
    chosen = spread_indices(len(test), NUM_COMPLETED)
    images = test.levels[chosen]
    repeated = images.repeat_interleave(NUM_COMPLETIONS, 0).to(model.device)
    labels = None
    if model.num_sample_classes > 0 and test.labels is not None:
        labels = test.labels[chosen].repeat_interleave(NUM_COMPLETIONS).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    drawn = model.complete(repeated, images.shape[2] // 2, generator, labels=labels).cpu()
    return torch.cat([images.unsqueeze(1), drawn.unflatten(0, (NUM_COMPLETED, NUM_COMPLETIONS))], 1).flatten(0, 1)
