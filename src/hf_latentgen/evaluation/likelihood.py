"""The likelihood of a whole split: bound and importance-weighted estimate of a VAE, or an exact one."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_latentgen.data import LevelsDataset
from hf_latentgen.hub.loading import new_model
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.modeling_latentgen import LatentGenModel, check_at_least

# Bars in a terminal only, gone when they are full: a whole split takes minutes.
BAR: dict = {"leave": False, "disable": None}
# Importance samples of an image: the default, which scores are published at, and what a short time allows.
MOST_SAMPLES = 500
SAMPLE_COUNTS = (MOST_SAMPLES, 200, 100, 50, 20, 10, 5, 2, 1)
# The passes over the images that an evaluation makes besides those of the importance samples.
OTHER_PASSES = 6


@dataclass(frozen=True)
class LikelihoodScores:
    """Scores of each image, in nats.

    Args:
        distortion: `-log p(x|z)` at one posterior sample. [N].
        rate: `KL(q(z|x) || p(z))`. [N].
        importance_nll: importance-weighted estimate of `-log p(x)`, [N], or None for K = 0.
        num_importance_samples: the K of that estimate.
        num_dims: dimensions of one image.
    """

    distortion: np.ndarray
    rate: np.ndarray
    importance_nll: np.ndarray | None
    num_importance_samples: int
    num_dims: int

    @property
    def negative_elbo(self) -> np.ndarray:
        """Upper bound on `-log p(x)` of each image, in nats. [N]. Source: Kingma & Welling (2014), eq. 10."""
        return self.distortion + self.rate

    def metrics(self) -> dict[str, float]:
        """Means over the images, each named with its unit. `_standard_error` is that of the mean over the images."""
        estimate = f"iw{self.num_importance_samples}"
        arrays = {
            "bits_per_dim": nats_to_bits_per_dim(self.negative_elbo, self.num_dims),
            "negative_elbo_nats": self.negative_elbo,
            "distortion_nats": self.distortion,
            "rate_nats": self.rate,
        }
        if self.importance_nll is not None:
            arrays[f"bits_per_dim_{estimate}"] = nats_to_bits_per_dim(self.importance_nll, self.num_dims)
            arrays[f"nll_nats_{estimate}"] = self.importance_nll
        return with_standard_errors(arrays)


def with_standard_errors(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each array [N] by its name, and the standard error of that mean, whose name ends in it."""
    scores = {}
    for name, values in arrays.items():
        scores[name] = float(values.mean())
        scores[f"{name}_standard_error"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return scores


def fresh_model(model: LatentGenModel, seed: int) -> LatentGenModel:
    """A model of the same configuration with fresh weights, where a training would start. Torch's generator stays."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return new_model(model.config).to(device=model.device)


def exact_metrics(model: LatentGenModel, dataset: LevelsDataset, batch_size: int = 128) -> dict[str, float]:
    """Mean over all images of the exact `-log p(x)`, in bits per dimension and in nats, with standard errors.

    Errors as in `image_nats`.
    """
    nats = image_nats(model, dataset, batch_size)
    bits = nats_to_bits_per_dim(nats, model.config.num_dims)
    return with_standard_errors({"exact_bits_per_dim": bits, "nll_nats": nats})


@torch.no_grad()
def image_nats(model: LatentGenModel, dataset: LevelsDataset, batch_size: int = 128) -> np.ndarray:
    """`-log p(x)` of every image, exact, in nats. [N]. The model is put into `eval()` mode.

    Raises:
        ValueError: fewer than two images (there would be no standard error), bad levels, a number of samples that is
            negative or not whole, or a score that is not finite.
    """
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(dataset)}")
    model.eval()
    labels = dataset.labels if model.num_sample_classes > 0 else None
    nats = []
    for start in tqdm(range(0, len(dataset), batch_size), "likelihood", **BAR):
        part = slice(start, start + batch_size)
        classes = {} if labels is None else {"labels": labels[part].to(model.device)}
        output = model(dataset.levels[part].to(model.device), return_loss=False, **classes)
        nats.append(output.negative_log_likelihood.double().cpu())
    scores = torch.cat(nats).numpy()
    if not np.isfinite(scores).all():
        told = f"the scores of {(~np.isfinite(scores)).sum()} of {len(scores)} images are not finite"
        raise ValueError(f"{told}: the weights are damaged or the training diverged")
    return scores


@torch.no_grad()
def evaluate_elbo(
    model: LatentGenModel, levels: Tensor, batch_size: int = 128, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Distortion and rate of every image with one posterior sample, in nats. Two arrays [N].

    Their sum is the negative ELBO. A score at the posterior mean would be no bound: it is too low.

    Shape: `levels` [N, C, H, W]. The model is put into `eval()` mode.

    Args:
        model: scores the images.
        levels: integer levels of the whole split; the last, shorter batch counts like the others.
        batch_size: images at once. The posterior noise depends on it, the expectation of a score does not.
        seed: of the posterior noise.

    Source: Kingma & Welling (2014), eq. 10.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    distortion, rate = [], []
    for batch in tqdm(levels.split(batch_size), "ELBO", **BAR):
        output = model(batch.to(model.device), sample_posterior=True, generator=generator, return_loss=False)
        distortion.append(output.distortion.double().cpu())
        rate.append(output.rate.double().cpu())
    return torch.cat(distortion).numpy(), torch.cat(rate).numpy()


@torch.no_grad()
def evaluate_likelihood(
    model: LatentGenModel,
    levels: Tensor,
    batch_size: int = 128,
    seed: int = 0,
    num_importance_samples: int = MOST_SAMPLES,
) -> LikelihoodScores:
    """ELBO and importance-weighted estimate of every image, in nats.

    Both start from a generator with the same seed, so that the ELBO does not depend on the number of samples.

    Shape and arguments as in `evaluate_elbo`; `num_importance_samples` is the K of the estimate, of which there is none
    for 0.

    Raises:
        ValueError: fewer than two images (there would be no standard error), bad levels, or a score that is not finite.

    Source: Burda et al. (2016), eq. 8.
    """
    if len(levels) < 2:
        raise ValueError(f"levels must hold at least 2 images, got {len(levels)}")
    check_at_least("num_importance_samples", num_importance_samples, 0)
    distortion, rate = evaluate_elbo(model, levels, batch_size, seed)
    importance_nll, generator = None, torch.Generator().manual_seed(seed)
    if num_importance_samples > 0:
        log_likelihood = [
            model.log_likelihood(batch.to(model.device), num_importance_samples, generator=generator).double().cpu()
            for batch in tqdm(levels.split(batch_size), f"importance samples, K = {num_importance_samples}", **BAR)
        ]
        importance_nll = -torch.cat(log_likelihood).numpy()
    wrong = ~np.isfinite(distortion + rate + (0 if importance_nll is None else importance_nll))
    if wrong.any():
        told = f"the scores of {wrong.sum()} of {len(levels)} images are not finite, the first one of image"
        raise ValueError(f"{told} {wrong.argmax()}: the weights are damaged or the training diverged")
    return LikelihoodScores(distortion, rate, importance_nll, num_importance_samples, model.config.num_dims)


@torch.no_grad()
def shares_of_latents(model: LatentGenModel, levels: Tensor, batch_size: int = 128, seed: int = 0) -> dict[str, float]:
    """Mean rate of each group of latents, coarse to fine, and the distortion with another image's code, in nats.

    A decoder that does without the code has the same distortion with any. Within a batch each image has the code of the
    one before it, so that a batch holds at least two.

    Shape and arguments as in `evaluate_elbo`.

    Raises: ValueError when there are fewer than two images.
    """
    if len(levels) < 2:
        raise ValueError(f"levels must hold at least 2 images, got {len(levels)}")
    batches = list(levels.split(max(batch_size, 2)))
    if len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    rates, other = [], 0.0
    for batch in tqdm(batches, "rates", **BAR):
        images = batch.to(model.device)
        output = model(images, sample_posterior=True, generator=generator, return_loss=False)
        rates.append(output.group_rates.double().cpu())
        other -= float(model.decode(output.latents.roll(1, 0)).log_prob(images).double().sum())
    means = torch.cat(rates).mean(0).tolist()
    shares = {f"rate_of_group_{number}_nats": rate for number, rate in enumerate(means, 1)}
    return shares | {"distortion_of_other_code_nats": other / len(levels)}


@torch.no_grad()
def sample_seconds(model: LatentGenModel, levels: Tensor, batch_size: int = 128) -> float:
    """Seconds that one importance sample of every image takes, told by its first images. The first pass warms up."""
    model.eval()
    batch, seconds = levels[:batch_size].to(model.device), 0.0
    for _ in range(2):
        started = time.perf_counter()
        # To the processor, which waits for an accelerator.
        model.log_likelihood(batch, 1, generator=torch.Generator().manual_seed(0)).cpu()
        seconds = time.perf_counter() - started
    return seconds * len(levels) / len(batch)


def affordable_samples(seconds_each: float, budget: float) -> int:
    """The largest of `SAMPLE_COUNTS` for which an evaluation takes at most `budget` seconds; 0 where none does."""
    fitting = (count for count in SAMPLE_COUNTS if (count + OTHER_PASSES) * seconds_each <= budget)
    return next(fitting, 0)


def untrained_metrics(model: LatentGenModel, levels: Tensor, batch_size: int = 128, seed: int = 0) -> dict[str, float]:
    """Where training starts, for the configuration of a model: bits per dimension with fresh and with all-zero weights.

    All-zero weights make the posterior the prior, hence a rate of 0 nats, and of a categorical likelihood every level
    equally likely: exactly log2(num_levels).

    Shape and arguments as in `evaluate_elbo`; `seed` also sets the fresh weights.
    """
    fresh = fresh_model(model, seed)
    distortion, rate = evaluate_elbo(fresh, levels, batch_size, seed)
    for parameter in fresh.parameters():
        torch.nn.init.zeros_(parameter)
    zero_distortion, zero_rate = evaluate_elbo(fresh, levels, batch_size, seed)
    num_dims = model.config.num_dims
    return {
        "untrained_bits_per_dim": float(nats_to_bits_per_dim((distortion + rate).mean(), num_dims)),
        "zero_weights_bits_per_dim": float(nats_to_bits_per_dim((zero_distortion + zero_rate).mean(), num_dims)),
        "zero_weights_rate_nats": float(zero_rate.mean()),
    }
