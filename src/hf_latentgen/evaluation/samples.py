"""Images that a VAE makes: reconstructions, prior samples, and how far samples are from the training images."""

import numpy as np
import torch
from torch import Tensor

from hf_latentgen.models.distributions import OUTPUTS
from hf_latentgen.models.modeling_vae import VAEModel


@torch.no_grad()
def reconstruction_mse(model: VAEModel, levels: Tensor, batch_size: int = 128) -> float:
    """Mean squared error of the decoder mean at the posterior mean, over all pixels, levels scaled to [0, 1].

    Shape: `levels` [N, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    total = 0.0
    for batch in levels.split(batch_size):
        errors = model.reconstruct(batch.to(model.device), output="mean").cpu() - batch
        total += float(errors.double().square().sum())
    return total / levels.numel() / (model.config.num_levels - 1) ** 2


def prior_samples(model: VAEModel, num_images: int, seed: int = 0) -> dict[str, Tensor]:
    """Levels of images from the prior by output, "sample", "mode" and "mean", all of the same latents.

    Shape: each [num_images, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    return {
        output: model.sample(num_images, generator=torch.Generator().manual_seed(seed), output=output).cpu()
        for output in OUTPUTS
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
