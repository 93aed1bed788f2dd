"""Mixtures of discretised logistic distributions: sums over all levels, colour channels, models that have them."""

import itertools

import pytest
import torch

from hf_latentgen import LocalTransformerForImageGeneration, LocalTransformerImageConfig, VAEConfig, VAEModel
from hf_latentgen.models.distributions import (
    LogisticMixturePixels,
    logistic_mixture_log_probs,
    logistic_mixture_logits,
)


def random_levels(config, number):
    """Images of random levels. [number, C, H, W]."""
    return torch.randint(config.num_levels, (number, config.num_channels, config.image_size, config.image_size))


def log_probs_reference(levels, parameters, num_levels):
    """The same from the distribution function of each part, in float64 and without logarithms of small differences."""
    weights, means, log_scales = parameters.double().unbind(-2)
    half = 1 / (num_levels - 1)
    values = levels.double().unsqueeze(-1) * 2 * half - 1
    upper = torch.sigmoid((values + half - means) / log_scales.exp())
    lower = torch.sigmoid((values - half - means) / log_scales.exp())
    upper = torch.where(levels.unsqueeze(-1) == num_levels - 1, 1.0, upper)
    lower = torch.where(levels.unsqueeze(-1) == 0, 0.0, lower)
    return ((upper - lower) * weights.softmax(-1)).sum(-1).log()


@pytest.mark.parametrize("num_levels", [3, 16, 256])
def test_probabilities_of_all_levels_sum_to_one(num_levels):
    logits = logistic_mixture_logits(2 * torch.randn(50, 3, 4), num_levels)
    assert logits.shape == (50, num_levels)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(50))


@pytest.mark.parametrize("num_levels", [3, 256])
def test_log_probabilities_and_gradients_match_the_reference(num_levels):
    levels = torch.randint(num_levels, (200,))
    parameters = torch.randn(200, 3, 4).requires_grad_()
    found = logistic_mixture_log_probs(levels, parameters, num_levels)
    expected = log_probs_reference(levels, parameters, num_levels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(value.sum(), parameters)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_a_narrow_part_far_from_the_level_has_a_finite_gradient():
    parameters = torch.tensor([[[0.0], [1.0], [-20.0]]]).requires_grad_()
    found = logistic_mixture_log_probs(torch.tensor([0]), parameters, 256)
    (gradient,) = torch.autograd.grad(found.sum(), parameters)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    assert found < -100


def test_likelihoods_of_all_colours_sum_to_one():
    num_levels = 4
    every_colour = torch.tensor(list(itertools.product(range(num_levels), repeat=3))).view(-1, 3, 1, 1)
    parameters = 2 * torch.randn(1, 8, 3, 1, 1)
    pixels = LogisticMixturePixels(parameters.expand(len(every_colour), -1, -1, -1, -1), num_levels)
    assert pixels.log_prob(every_colour).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_green_depends_on_red_and_blue_on_both_and_never_the_other_way():
    pixels = LogisticMixturePixels(torch.randn(1, 20, 3, 2, 2), 16)
    levels = torch.randint(1, 15, (1, 3, 2, 2))
    before = pixels.log_probs(levels)
    for channel in range(3):
        changed = levels.clone()
        changed[:, channel] += 1
        is_same = (pixels.log_probs(changed) == before).flatten(2).all(2)[0].tolist()
        assert is_same == [other < channel for other in range(3)]


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_follow_the_probabilities(channels):
    parameters = torch.randn(1, 2 * (3 if channels == 1 else 4), channels, 1, 1)
    count, num_levels = 20_000, 5
    pixels = LogisticMixturePixels(parameters.expand(count, -1, -1, -1, -1), num_levels)
    drawn = pixels.sample(torch.Generator().manual_seed(0))
    colours, counts = drawn.flatten(1).unique(dim=0, return_counts=True)
    known = LogisticMixturePixels(parameters.expand(len(colours), -1, -1, -1, -1), num_levels)
    expected = known.log_prob(colours.view(-1, channels, 1, 1)).exp()
    assert expected.sum() > 0.99
    torch.testing.assert_close(counts / count, expected, atol=4 * 0.5 / count**0.5, rtol=0)


def test_parts_give_the_probabilities_of_the_whole():
    pixels = LogisticMixturePixels(torch.randn(2, 20, 3, 4, 4), 16)
    levels = torch.randint(16, (2, 3, 4, 4))
    found = []
    for place, values in pixels.parts(levels):
        found.append(values.logits.log_softmax(1).gather(1, levels[place].unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(torch.stack(found, 1), pixels.log_probs(levels))


def test_mode_and_mean_of_a_narrow_mixture_are_its_mean():
    parameters = torch.zeros(1, 4, 3, 1, 1)
    parameters[:, 1], parameters[:, 2] = torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1), -6.0
    pixels = LogisticMixturePixels(parameters, 256)
    # Level 127.5 lies between two.
    assert pixels.mode.flatten().tolist() in ([64, 127, 191], [64, 128, 191])
    assert pixels.mean.flatten().tolist() == pytest.approx([63.75, 127.5, 191.25], abs=0.5)


def vae(**fields):
    shape = {"architecture": "resnet", "image_size": 8, "num_channels": 3, "num_levels": 256, "hidden_channels": (8, 8)}
    return VAEModel(VAEConfig(**{**shape, "latent_dim": 4, "pixel_likelihood": "logistic_mixture", **fields}))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_vae_scores_draws_and_reconstructs(channels):
    model = vae(num_channels=channels).eval()
    images = random_levels(model.config, 4)
    output = model(images)
    assert output.logits.shape == (4, model.config.outputs_per_dim, channels, 8, 8)
    output.loss.backward()
    for kind in ("sample", "mode", "mean"):
        drawn = model.sample(3, torch.Generator().manual_seed(0), kind)
        assert drawn.shape == (3, channels, 8, 8)
        assert drawn.min() >= 0
        assert drawn.max() <= 255
    assert model.reconstruct(images).isfinite().all()
    assert model.bits_per_dim(images).shape == (4,)


def test_both_estimators_of_the_likelihood_agree():
    model = vae(num_levels=4, latent_dim=1).eval()
    images = random_levels(model.config, 3)
    found = [model.log_likelihood(images, 2000, estimator) for estimator in ("importance", "prior")]
    torch.testing.assert_close(*found, rtol=0, atol=1.0)


def test_a_pixel_transformer_has_code_lengths_that_sum_to_its_score():
    config = LocalTransformerImageConfig(
        image_size=4, num_channels=3, num_levels=256, hidden_size=16, num_attention_heads=2, intermediate_size=32,
        num_hidden_layers=1, pixel_likelihood="logistic_mixture",
    )  # fmt: skip
    model = LocalTransformerForImageGeneration(config).eval()
    images = random_levels(config, 3)
    lengths = model.code_lengths(images)
    assert lengths.shape == images.shape
    torch.testing.assert_close(lengths.flatten(1).mean(1), model.bits_per_dim(images))
    # A step at a time says what the pass over the whole image says.
    values = model._sequence(images)
    steps = model.steps(values, None)
    with torch.no_grad():
        nats = [-steps.logits(place).log_softmax(1).gather(1, values[:, place, None]) for place in range(48)]
    torch.testing.assert_close(torch.cat(nats, 1).sum(1), model(images).negative_log_likelihood, rtol=1e-4, atol=1e-3)
    assert model.sample(2, torch.Generator().manual_seed(0)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("config_class", [VAEConfig, LocalTransformerImageConfig])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pixel_likelihood": "gaussian"}, "pixel_likelihood"),
        ({"num_levels": 2}, "num_levels"),
        ({"num_mixtures": 0}, "num_mixtures"),
    ],
)
def test_a_likelihood_that_does_not_fit_is_refused(config_class, fields, field):
    with pytest.raises(Exception, match=field):
        config_class(**{"pixel_likelihood": "logistic_mixture", **fields})


def test_channels_that_cannot_follow_from_each_other_are_refused():
    with pytest.raises(Exception, match="num_channels must be 1 or 3"):
        VAEConfig(num_channels=2, pixel_likelihood="logistic_mixture")


@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_are_drawn_on_the_device_of_the_mixture(num_channels):
    # Of a device without numbers the shapes alone are computed: what lies elsewhere does not fit.
    pixels = LogisticMixturePixels(
        torch.zeros(2, 8, num_channels, 4, 4, device="meta")[:, : 6 + 2 * (num_channels > 1)], 256
    )
    for images in (pixels.mode, pixels.mean):
        assert (images.device.type, images.shape) == ("meta", (2, num_channels, 4, 4))
