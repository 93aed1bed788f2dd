import numpy as np
import pytest
import torch

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.evaluation.samples import nearest_images, prior_samples, reconstruction_mse


@pytest.fixture
def model():
    return VAEModel(VAEConfig(architecture="mlp", image_size=4, num_levels=5, latent_dim=3, hidden_channels=[8]))


def test_reconstruction_error_matches_brute_force(model):
    levels = torch.randint(0, 5, (7, 1, 4, 4), dtype=torch.uint8)
    means = model.decode(model.encode(levels, sample_posterior=False).mean).mean.detach()
    expected = ((means / 4 - levels / 4) ** 2).mean().item()
    assert reconstruction_mse(model, levels, batch_size=3) == pytest.approx(expected, rel=1e-5)


def test_samples_of_all_outputs_show_the_same_latents(model):
    state = torch.get_rng_state()
    samples = prior_samples(model, 6, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    pixels = model.decode(torch.randn(6, 3, generator=torch.Generator().manual_seed(4)))
    assert list(samples) == ["sample", "mode", "mean"]
    assert torch.equal(samples["mode"], pixels.mode)
    assert torch.allclose(samples["mean"], pixels.mean.detach(), atol=1e-5)
    assert samples["sample"].shape == (6, 1, 4, 4)
    again = prior_samples(model, 6, seed=4)
    assert all(torch.equal(samples[output], again[output]) for output in samples)


@pytest.mark.parametrize("number", [1, 50, 4097, 9000])
def test_nearest_image_matches_brute_force(number):
    levels = torch.randint(0, 16, (5, 1, 3, 3))
    candidates = torch.randint(0, 16, (number, 1, 3, 3), dtype=torch.uint8)
    index, distance = nearest_images(levels, candidates)
    squares = (levels[:, None].double() - candidates[None].double()).square().flatten(2).mean(2)
    np.testing.assert_allclose(distance, squares.min(1).values.sqrt(), atol=1e-3)
    np.testing.assert_allclose(squares[torch.arange(5), index], squares.min(1).values, atol=1e-3)


def test_a_copy_is_at_distance_zero_of_its_original():
    candidates = torch.randint(0, 16, (5000, 1, 4, 4), dtype=torch.uint8)
    index, distance = nearest_images(candidates[[3, 4500]], candidates)
    assert index.tolist() == [3, 4500]
    assert distance.tolist() == [0, 0]
