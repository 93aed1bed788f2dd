"""What the latents of an autoencoder hold: active units, a linear probe, the fit of all posteriors to the prior."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hf_latentgen.models.modeling_latentgen import LatentGenModel

ACTIVITY_THRESHOLD = 0.01


@torch.no_grad()
def posterior_moments(model: LatentGenModel, levels: Tensor, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the posterior of each image. Two arrays [N, L].

    Shape: `levels` [N, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    posteriors = [model.posterior(batch.to(model.device)) for batch in levels.split(batch_size)]
    means = torch.cat([posterior.mean.cpu() for posterior in posteriors])
    stds = torch.cat([posterior.std.cpu() for posterior in posteriors])
    return means.numpy(), stds.numpy()


def active_units(means: np.ndarray) -> int:
    """Number of latent dimensions whose posterior mean varies over the data, by a variance above 0.01.

    Shape: `means` [N, L]. Source: Burda et al. (2016), section 5.2.
    """
    return int((means.var(axis=0) > ACTIVITY_THRESHOLD).sum())


def linear_probe_accuracy(
    train_means: np.ndarray, train_labels: np.ndarray, test_means: np.ndarray, test_labels: np.ndarray
) -> float:
    """Fraction of test images whose class a logistic regression on the standardised posterior means finds.

    Shape: means [N, L]; labels [N], integers.

    Raises:
        ValueError: fewer than two classes among the training labels, or not one label for each mean.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(train_means, train_labels).score(test_means, test_labels))


def aggregate_posterior_metrics(means: np.ndarray, stds: np.ndarray) -> dict[str, float]:
    """How far the posterior averaged over the data is from the standard normal prior, by its first two moments.

    `aggregate_posterior_kl_nats` is the KL of the normal distribution with these moments to the prior, in nats; the
    others are the largest absolute mean and the least and largest standard deviation of a latent dimension.

    Shape: `means` and `stds` [N, L].
    """
    mean = means.mean(axis=0, dtype=np.float64)
    # The variance of a mixture: that of the means plus the mean of the variances.
    covariance = np.atleast_2d(np.cov(means.astype(np.float64), rowvar=False, ddof=0))
    covariance = covariance + np.diag(np.square(stds, dtype=np.float64).mean(axis=0))
    log_determinant = np.linalg.slogdet(covariance)[1]
    kl = 0.5 * (np.trace(covariance) + mean @ mean - len(mean) - log_determinant)
    std = np.sqrt(np.diag(covariance))
    return {
        "aggregate_posterior_kl_nats": float(kl),
        "aggregate_posterior_max_abs_mean": float(np.abs(mean).max()),
        "aggregate_posterior_min_std": float(std.min()),
        "aggregate_posterior_max_std": float(std.max()),
    }
