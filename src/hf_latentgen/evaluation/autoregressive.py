"""What is measured of an autoregressive model of images, and drawn."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel
from transformers.utils import logging

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.pictures import image_grid, likelihood_history, reconstruction_grid
from hf_latentgen.evaluation.samples import (
    NUM_RECONSTRUCTIONS,
    NUM_SAMPLES,
    nearest_images,
    prior_samples,
    spread_indices,
)
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.modeling_local_transformer_image import LocalTransformerForImageGeneration

# Test images that are completed, and completions of each.
NUM_COMPLETED = 8
NUM_COMPLETIONS = 7


@torch.no_grad()
def image_nats(model: LocalTransformerForImageGeneration, dataset: LevelsDataset, batch_size: int = 128) -> np.ndarray:
    """`-log p(x)` of every image, exact, in nats. [N]. The model is put into `eval()` mode.

    Raises:
        ValueError: fewer than two images (there would be no standard error), bad levels, or a score that is not finite.
    """
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(dataset)}")
    model.eval()
    is_conditional = model.config.is_class_conditional
    nats = []
    for start in logging.tqdm(range(0, len(dataset), batch_size), desc="likelihood"):
        part = slice(start, start + batch_size)
        labels = dataset.labels[part].to(model.device) if is_conditional and dataset.labels is not None else None
        output = model(dataset.levels[part].to(model.device), labels=labels, return_loss=False)
        nats.append(output.negative_log_likelihood.double().cpu())
    scores = torch.cat(nats).numpy()
    if not np.isfinite(scores).all():
        raise ValueError(
            f"the scores of {(~np.isfinite(scores)).sum()} of {len(scores)} images are not finite: the weights are "
            "damaged or the training diverged"
        )
    return scores


def measure(
    model: LocalTransformerForImageGeneration,
    train: LevelsDataset,
    test: LevelsDataset,
    batch_size: int = 128,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, float]]:
    """The exact likelihood of all test images, and further numbers that tell whether to trust it."""
    nats = image_nats(model, test, batch_size)
    num_dims, metrics = model.config.num_dims, {}
    for name, values in (("exact_bits_per_dim", nats_to_bits_per_dim(nats, num_dims)), ("nll_nats", nats)):
        metrics[name] = float(values.mean())
        metrics[f"{name}_standard_error"] = float(values.std(ddof=1) / len(values) ** 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = AutoModel.from_config(model.config).to(model.device)
    untrained = image_nats(fresh, test, batch_size).mean()
    diagnostics = {"untrained_bits_per_dim": float(nats_to_bits_per_dim(untrained, num_dims))}
    # Samples much nearer to the training images than unseen images are would be memorised ones.
    unseen = test.levels[spread_indices(len(test), NUM_SAMPLES)]
    samples = prior_samples(model, NUM_SAMPLES, seed, ("sample",))["sample"]
    for name, levels in (("samples", samples), ("test_images", unseen)):
        distances = nearest_images(levels, train.levels)[1] / (model.config.num_levels - 1)
        diagnostics[f"nearest_training_image_rmse_of_{name}"] = float(distances.mean())
    return metrics, diagnostics


def completions(model: LocalTransformerForImageGeneration, test: LevelsDataset, seed: int = 0) -> Tensor:
    """Eight test images, one a row: the image, then seven ways to go on from its upper half. [64, C, H, W]."""
    chosen = spread_indices(len(test), NUM_COMPLETED)
    images = test.levels[chosen]
    repeated = images.repeat_interleave(NUM_COMPLETIONS, 0).to(model.device)
    labels = None
    if model.config.is_class_conditional and test.labels is not None:
        labels = test.labels[chosen].repeat_interleave(NUM_COMPLETIONS).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    drawn = model.complete(repeated, images.shape[2] // 2, generator, labels=labels).cpu()
    return torch.cat([images.unsqueeze(1), drawn.unflatten(0, (NUM_COMPLETED, NUM_COMPLETIONS))], 1).flatten(0, 1)


def draw(
    model: LocalTransformerForImageGeneration, train: LevelsDataset, test: LevelsDataset, results: dict, seed: int
) -> dict[str, Image.Image]:
    """The pictures of a row by name."""
    num_levels = model.config.num_levels
    samples = prior_samples(model, NUM_SAMPLES, seed, ("sample",))["sample"]
    nearest, _ = nearest_images(samples[:NUM_RECONSTRUCTIONS], train.levels)
    pictures = {
        "samples": image_grid(samples, num_levels),
        "samples_above_nearest_training_images": reconstruction_grid(
            samples[:NUM_RECONSTRUCTIONS], train.levels[nearest], num_levels
        ),
        "completions": image_grid(completions(model, test, seed), num_levels, columns=1 + NUM_COMPLETIONS),
    }
    if results["history"]:
        pictures["history"] = likelihood_history(results)
    return pictures
