"""What is measured of a VAE, and drawn."""

import torch
from PIL import Image

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.latents import (
    active_units,
    aggregate_posterior_metrics,
    linear_probe_accuracy,
    posterior_moments,
)
from hf_latentgen.evaluation.likelihood import evaluate_likelihood, untrained_metrics
from hf_latentgen.evaluation.pictures import image_grid, likelihood_history
from hf_latentgen.evaluation.samples import (
    NUM_SAMPLES,
    autoencoder_pictures,
    nearest_images,
    prior_samples,
    reconstruction_mse,
    spread_indices,
)
from hf_latentgen.models.modeling_vae import VAEModel


def measure(
    model: VAEModel,
    train: LevelsDataset,
    test: LevelsDataset,
    batch_size: int = 128,
    seed: int = 0,
    num_importance_samples: int = 500,
) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of a model on all test images, and further numbers that tell whether to trust them.

    The linear probe is left out where the images have no labels.
    """
    metrics = evaluate_likelihood(model, test.levels, batch_size, seed, num_importance_samples).metrics()
    means, stds = posterior_moments(model, test.levels, batch_size)
    metrics["active_units"] = active_units(means)
    if train.labels is not None and test.labels is not None:
        train_means, _ = posterior_moments(model, train.levels, batch_size)
        labels = train.labels.numpy(), test.labels.numpy()
        metrics["linear_probe_accuracy"] = linear_probe_accuracy(train_means, labels[0], means, labels[1])
    metrics["reconstruction_mse"] = reconstruction_mse(model, test.levels, batch_size)
    diagnostics = untrained_metrics(model, test.levels, batch_size, seed)
    diagnostics |= aggregate_posterior_metrics(means, stds)
    # Samples much nearer to the training images than unseen images are would be memorised ones.
    unseen = test.levels[spread_indices(len(test), NUM_SAMPLES)]
    samples = prior_samples(model, NUM_SAMPLES, seed)["sample"]
    for name, levels in (("samples", samples), ("test_images", unseen)):
        distances = nearest_images(levels, train.levels)[1] / (model.config.num_levels - 1)
        diagnostics[f"nearest_training_image_rmse_of_{name}"] = float(distances.mean())
    return metrics, diagnostics


@torch.no_grad()
def draw(
    model: VAEModel, train: LevelsDataset, test: LevelsDataset, results: dict, seed: int
) -> dict[str, Image.Image]:
    """The pictures of a row by name."""
    num_levels = model.config.num_levels
    pictures = autoencoder_pictures(model, train, test, seed)
    samples = prior_samples(model, NUM_SAMPLES, seed)
    pictures |= {f"samples_{output}": image_grid(samples[output], num_levels) for output in ("mode", "mean")}
    if results["history"]:
        pictures["history"] = likelihood_history(results)
    return pictures
