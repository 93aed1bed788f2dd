import itertools
import math

import numpy as np
import pytest
import torch

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.evaluation.likelihood import LikelihoodScores, evaluate_elbo, evaluate_likelihood, untrained_metrics


@pytest.fixture
def model():
    """Images of 2x2 pixels with 3 levels and one latent: the evidence is a one-dimensional integral."""
    config = VAEConfig(architecture="mlp", image_size=2, num_levels=3, latent_dim=1, hidden_channels=[8])
    model = VAEModel(config)
    # A posterior near the prior covers everything, so that the importance weights stay moderate.
    for part, std in ((model.encoder, 0.2), (model.decoder, 1.0)):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return model


@pytest.fixture
def every_image():
    return torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)


def exact_nll(model, levels):
    """-log p(x) in nats by the trapezoid rule over the latent. [N]."""
    latents = torch.linspace(-8, 8, 2001).view(-1, 1)
    with torch.no_grad():
        log_probabilities = model.decode(latents).logits.log_softmax(1)
    log_prior = -0.5 * latents.square().squeeze(1) - 0.5 * math.log(2 * math.pi) + math.log(16 / 2000)
    one_hot = torch.nn.functional.one_hot(levels, 3).movedim(-1, 1).flatten(1).float()
    return -(one_hot @ log_probabilities.flatten(1).T + log_prior).logsumexp(1).numpy()


def test_evidence_lies_below_the_elbo_and_at_the_importance_estimate(model, every_image):
    exact = exact_nll(model, every_image)
    assert np.exp(-exact).sum() == pytest.approx(1, abs=1e-4)
    scores = evaluate_likelihood(model, every_image, batch_size=32, num_importance_samples=3000)
    assert scores.negative_elbo.shape == (81,)
    assert scores.negative_elbo.mean() > exact.mean()
    # Single images vary by a tenth of a nat; their mean does not.
    np.testing.assert_allclose(scores.importance_nll, exact, atol=0.4)
    assert scores.importance_nll.mean() == pytest.approx(exact.mean(), abs=0.02)
    assert scores.importance_nll.mean() == pytest.approx(exact.mean(), abs=0.01)


def test_every_image_counts_once_whatever_the_batches(model, every_image):
    distortion, rate = evaluate_elbo(model, every_image, batch_size=80)
    assert len(distortion) == 81
    whole = model.encode(every_image).kl_to_standard_normal().sum(1).detach().numpy()
    np.testing.assert_allclose(rate, whole, rtol=1e-5)


def test_scores_are_those_of_the_model_with_posterior_samples(model, every_image):
    distortion, rate = evaluate_elbo(model, every_image, batch_size=100, seed=3)
    model.eval()
    expected = model.bits_per_dim(every_image, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose((distortion + rate) / (4 * math.log(2)), expected.numpy(), rtol=1e-5)


def test_seed_decides_and_the_global_generator_is_left_alone(model, every_image):
    state = torch.get_rng_state()
    first, again, other = (evaluate_likelihood(model, every_image, 32, seed, 5) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.metrics() == again.metrics()
    assert first.metrics()["bits_per_dim"] != other.metrics()["bits_per_dim"]


def test_elbo_does_not_depend_on_the_number_of_importance_samples(model, every_image):
    few, many = (evaluate_likelihood(model, every_image, 32, 0, number) for number in (1, 9))
    np.testing.assert_array_equal(few.negative_elbo, many.negative_elbo)
    assert many.importance_nll.mean() < few.importance_nll.mean()


def test_metrics_are_means_with_their_units():
    scores = LikelihoodScores(
        distortion=np.array([8.0, 12.0]),
        rate=np.array([1.0, 3.0]),
        importance_nll=np.array([8.5, 14.5]),
        num_importance_samples=7,
        num_dims=4,
    )
    bits = 1 / (4 * math.log(2))
    expected = {
        "bits_per_dim": 12 * bits,
        "bits_per_dim_standard_error": 3 * bits,
        "bits_per_dim_iw7": 11.5 * bits,
        "bits_per_dim_iw7_standard_error": 3 * bits,
        "negative_elbo_nats": 12,
        "negative_elbo_nats_standard_error": 3,
        "nll_nats_iw7": 11.5,
        "nll_nats_iw7_standard_error": 3,
        "distortion_nats": 10,
        "distortion_nats_standard_error": 2,
        "rate_nats": 2,
        "rate_nats_standard_error": 1,
    }
    assert scores.metrics() == pytest.approx(expected)
    assert next(iter(scores.metrics())) == "bits_per_dim"


def test_autocast_gives_nearly_the_same_score(model, every_image):
    full = evaluate_likelihood(model, every_image, 32, 0, 20).metrics()["bits_per_dim"]
    with torch.autocast("cpu", torch.bfloat16):
        half = evaluate_likelihood(model, every_image, 32, 0, 20).metrics()["bits_per_dim"]
    assert half == pytest.approx(full, abs=0.02)


def test_training_starts_at_uniform_levels(model, every_image):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    scores = untrained_metrics(model, every_image, batch_size=32)
    assert scores["zero_weights_bits_per_dim"] == pytest.approx(math.log2(3), abs=1e-6)
    assert scores["zero_weights_rate_nats"] == 0
    assert scores["untrained_bits_per_dim"] == pytest.approx(math.log2(3), abs=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_untrained_course_network_needs_four_bits():
    levels = torch.randint(0, 16, (64, 1, 28, 28))
    scores = untrained_metrics(VAEModel(VAEConfig()), levels)
    assert scores["untrained_bits_per_dim"] == pytest.approx(4, abs=0.05)
    assert scores["zero_weights_bits_per_dim"] == pytest.approx(4, abs=1e-5)


def test_one_image_is_refused(model, every_image):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        evaluate_likelihood(model, every_image[:1])


def test_bad_levels_are_refused(model, every_image):
    with pytest.raises(ValueError, match="levels in 0 ... 2"):
        evaluate_likelihood(model, every_image + 1)


def test_damaged_weights_are_refused(model, every_image):
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="81 of 81 images are not finite, the first one of image 0"):
        evaluate_likelihood(model, every_image, num_importance_samples=2)
