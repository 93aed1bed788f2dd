import math

import numpy as np
import pytest
import torch

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.evaluation.latents import (
    active_units,
    aggregate_posterior_metrics,
    linear_probe_accuracy,
    posterior_moments,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_moments_are_those_of_the_posterior_of_every_image():
    model = VAEModel(
        VAEConfig(architecture="mlp", image_size=4, num_levels=4, latent_dim=3, hidden_channels=[8])
    ).train()
    levels = torch.randint(0, 4, (7, 1, 4, 4), dtype=torch.uint8)
    means, stds = posterior_moments(model, levels, batch_size=3)
    posterior = model.encode(levels)
    np.testing.assert_allclose(means, posterior.mean.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stds, posterior.log_std.exp().detach(), rtol=1e-4)
    assert means.shape == stds.shape == (7, 3)


def test_units_that_vary_are_active(rng):
    means = rng.normal(size=(2000, 4)) * [1, 0.2, 0.05, 0] + 5
    assert active_units(means) == 2


def test_probe_finds_separable_classes_and_nothing_in_noise(rng):
    centres = rng.normal(size=(10, 20))
    labels = rng.integers(0, 10, 1500)
    # One direction has a scale of its own, which standardisation removes.
    means = (centres[labels] + 0.1 * rng.normal(size=(1500, 20))) * ([1000] + [1] * 19)
    assert linear_probe_accuracy(means[:1000], labels[:1000], means[1000:], labels[1000:]) == 1
    noise = rng.normal(size=(1500, 20))
    assert linear_probe_accuracy(noise[:1000], labels[:1000], noise[1000:], labels[1000:]) < 0.2


def test_probe_refuses_a_single_class():
    with pytest.raises(ValueError, match="2 classes"):
        linear_probe_accuracy(np.zeros((3, 2)), np.zeros(3, int), np.zeros((3, 2)), np.zeros(3, int))


def test_collapsed_posterior_matches_the_prior():
    metrics = aggregate_posterior_metrics(np.zeros((10, 3)), np.ones((10, 3)))
    assert metrics["aggregate_posterior_kl_nats"] == pytest.approx(0)
    assert metrics["aggregate_posterior_max_abs_mean"] == 0
    assert metrics["aggregate_posterior_min_std"] == metrics["aggregate_posterior_max_std"] == 1


def test_one_latent_matches_the_closed_form():
    means, stds = np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])
    variance = 1 + (1 + 4) / 2
    metrics = aggregate_posterior_metrics(means, stds)
    expected = 0.5 * (variance + 2**2 - 1 - math.log(variance))
    assert metrics["aggregate_posterior_kl_nats"] == pytest.approx(expected)
    assert metrics["aggregate_posterior_max_abs_mean"] == 2
    assert metrics["aggregate_posterior_min_std"] == pytest.approx(math.sqrt(variance))


def test_correlated_latents_match_torch(rng):
    mixing = rng.normal(size=(3, 3))
    means = rng.normal(size=(500, 3)) @ mixing
    stds = rng.uniform(0.5, 1, (500, 3))
    covariance = np.cov(means.T, ddof=0) + np.diag((stds**2).mean(0))
    fitted = torch.distributions.MultivariateNormal(torch.tensor(means.mean(0)), torch.tensor(covariance))
    prior = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    expected = torch.distributions.kl_divergence(fitted, prior).item()
    assert aggregate_posterior_metrics(means, stds)["aggregate_posterior_kl_nats"] == pytest.approx(expected)
