import itertools
import math

import pytest
import torch

from hf_latentgen.models.distributions import (
    CategoricalPixels,
    DiagonalGaussian,
    standard_normal,
    standard_normal_log_prob,
)

NUM_LEVELS = 3


@pytest.fixture
def pixels():
    """Distributions of two images with two channels of 1x2 pixels and three levels."""
    return CategoricalPixels(2 * torch.randn(2, NUM_LEVELS, 2, 1, 2))


@pytest.fixture
def gaussian():
    return DiagonalGaussian(torch.randn(5, 3), 0.5 * torch.randn(5, 3))


def every_image():
    """All 81 images of four pixels with three levels. [81, 2, 1, 2]."""
    return torch.tensor(list(itertools.product(range(NUM_LEVELS), repeat=4))).view(-1, 2, 1, 2)


def every_log_prob(pixels, index):
    """Log probability of all images under one of the distributions. [81]."""
    images = every_image()
    return CategoricalPixels(pixels.logits[index : index + 1].expand(len(images), -1, -1, -1, -1)).log_prob(images)


def log_prob_reference(logits, image):
    """Log probability of one image, pixel by pixel, in nats."""
    total = 0.0
    for channel, row, column in itertools.product(*map(range, image.shape)):
        exponentials = [math.exp(logit) for logit in logits[:, channel, row, column].tolist()]
        total += math.log(exponentials[image[channel, row, column]] / sum(exponentials))
    return total


def test_likelihoods_of_all_images_sum_to_one(pixels):
    for index in range(2):
        assert every_log_prob(pixels, index).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_likelihood_matches_brute_force(pixels):
    images = every_image()
    for index in range(2):
        expected = [log_prob_reference(pixels.logits[index], image) for image in images]
        torch.testing.assert_close(every_log_prob(pixels, index), torch.tensor(expected))


def test_likelihood_is_in_nats_per_image():
    uniform = CategoricalPixels(torch.zeros(4, 16, 1, 28, 28))
    log_prob = uniform.log_prob(torch.randint(0, 16, (4, 1, 28, 28)))
    torch.testing.assert_close(log_prob, torch.full((4,), -784 * math.log(16)))


def test_likelihood_takes_uint8_levels(pixels):
    images = torch.randint(0, NUM_LEVELS, (2, 2, 1, 2))
    assert torch.equal(pixels.log_prob(images.to(torch.uint8)), pixels.log_prob(images))


def test_likelihood_gradient_matches_brute_force():
    logits = torch.randn(1, NUM_LEVELS, 2, 1, 2, requires_grad=True)
    image = every_image()[40:41]
    CategoricalPixels(logits).log_prob(image).sum().backward()
    # The gradient of a log-softmax is the one-hot target less the probabilities.
    one_hot = torch.nn.functional.one_hot(image, NUM_LEVELS).movedim(-1, 1)
    torch.testing.assert_close(logits.grad, one_hot - logits.detach().softmax(1))


def test_samples_have_the_frequencies_of_the_distribution(pixels, generator):
    count = 20_000
    repeated = CategoricalPixels(pixels.logits[:1].expand(count, -1, -1, -1, -1))
    levels = repeated.sample(generator)
    assert levels.dtype == torch.int64
    assert levels.shape == (count, 2, 1, 2)
    frequencies = torch.stack([(levels == level).float().mean(0) for level in range(NUM_LEVELS)])
    # Four standard deviations of a frequency of one half.
    torch.testing.assert_close(frequencies, pixels.logits.softmax(1)[0], atol=4 * 0.5 / math.sqrt(count), rtol=0)


def test_mode_is_the_most_probable_image(pixels):
    best = torch.stack([every_image()[every_log_prob(pixels, index).argmax()] for index in range(2)])
    assert pixels.mode.dtype == torch.int64
    assert torch.equal(pixels.mode, best)


def test_mean_is_the_expected_image(pixels):
    for index in range(2):
        weights = every_log_prob(pixels, index).exp().view(-1, 1, 1, 1)
        torch.testing.assert_close(pixels.mean[index], (weights * every_image()).sum(0), atol=1e-5, rtol=1e-5)


def test_mean_stays_within_the_levels():
    certain = CategoricalPixels(torch.nn.functional.one_hot(torch.tensor(255), 256).float().view(1, -1, 1, 1, 1) * 100)
    assert certain.mean.item() == 255
    assert (CategoricalPixels(torch.randn(8, 256, 1, 8, 8) * 50).mean <= 255).all()


def test_mean_is_not_rounded_under_autocast():
    logits = torch.randn(1, 256, 1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mean = CategoricalPixels(logits).mean
    assert torch.equal(mean, CategoricalPixels(logits).mean)


def test_draw_offers_sample_mode_and_mean(pixels):
    drawn = pixels.draw("sample", torch.Generator().manual_seed(7))
    assert torch.equal(drawn, pixels.sample(torch.Generator().manual_seed(7)))
    assert torch.equal(pixels.draw("mode"), pixels.mode)
    assert torch.equal(pixels.draw("mean"), pixels.mean)


def test_unknown_output_is_refused(pixels):
    with pytest.raises(ValueError, match=r"output must be one of \('sample', 'mode', 'mean'\), got 'median'"):
        pixels.draw("median")


def test_gaussian_density_matches_torch(gaussian):
    latents = torch.randn(5, 3)
    expected = torch.distributions.Normal(gaussian.mean, gaussian.log_std.exp()).log_prob(latents).sum(1)
    torch.testing.assert_close(gaussian.log_prob(latents), expected)


def test_prior_density_matches_torch():
    latents = torch.randn(5, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(latents).sum(1)
    torch.testing.assert_close(standard_normal_log_prob(latents), expected)


@pytest.mark.parametrize(
    ("mean", "log_std", "nats"), [(0, 0, 0), (2, 0, 2), (-2, 0, 2), (0, 1, 2.194528), (0, -1, 0.567668)]
)
def test_rate_of_known_posteriors(mean, log_std, nats):
    rates = DiagonalGaussian(torch.full((1, 2), float(mean)), torch.full((1, 2), float(log_std)))
    torch.testing.assert_close(rates.kl_to_standard_normal(), torch.full((1, 2), float(nats)), atol=1e-6, rtol=1e-6)


def test_rate_of_the_prior_is_exactly_zero():
    prior = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    assert torch.equal(prior.kl_to_standard_normal(), torch.zeros(2, 3))


def test_rate_matches_torch(gaussian):
    normal = torch.distributions.Normal(gaussian.mean, gaussian.log_std.exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian.kl_to_standard_normal(), expected)


def test_rate_matches_monte_carlo(gaussian, generator):
    count = 20_000
    many = DiagonalGaussian(gaussian.mean.expand(count, 5, 3), gaussian.log_std.expand(count, 5, 3))
    latents = many.sample(generator)
    log_ratio = many.log_prob(latents) - standard_normal_log_prob(latents)
    error = log_ratio.std(0) / math.sqrt(count)
    assert ((log_ratio.mean(0) - gaussian.kl_to_standard_normal().sum(1)).abs() < 4 * error).all()


def test_samples_have_the_mean_and_standard_deviation(gaussian, generator):
    count = 20_000
    many = DiagonalGaussian(gaussian.mean.expand(count, 5, 3), gaussian.log_std.expand(count, 5, 3))
    samples = many.sample(generator)
    std = gaussian.log_std.exp()
    assert ((samples.mean(0) - gaussian.mean).abs() < 4 * std / math.sqrt(count)).all()
    torch.testing.assert_close(samples.std(0), std, atol=0, rtol=0.03)


def test_gradients_reach_mean_and_log_std():
    mean, log_std = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    noise = standard_normal((4, 3), mean, torch.Generator().manual_seed(1))
    DiagonalGaussian(mean, log_std).sample(torch.Generator().manual_seed(1)).sum().backward()
    assert torch.equal(mean.grad, torch.ones(4, 3))
    torch.testing.assert_close(log_std.grad, noise * log_std.detach().exp())


def test_mode_of_a_gaussian_is_its_mean(gaussian):
    assert gaussian.mode is gaussian.mean


@pytest.mark.parametrize(("given", "kept"), [(-100.0, -15.0), (100.0, 10.0), (3.0, 3.0)])
def test_log_std_is_clamped(given, kept):
    gaussian = DiagonalGaussian(torch.zeros(1, 1), torch.full((1, 1), given))
    assert gaussian.log_std.item() == kept
    assert torch.isfinite(gaussian.kl_to_standard_normal()).all()


def test_generator_decides_the_noise_and_the_global_one_is_left_alone(gaussian, pixels):
    for distribution in (gaussian, pixels):
        state = torch.get_rng_state()
        first, again, other = (distribution.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 5))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)


def test_noise_without_a_generator_comes_from_the_global_one(gaussian, pixels):
    for distribution in (gaussian, pixels):
        torch.manual_seed(3)
        first = distribution.sample()
        torch.manual_seed(3)
        assert torch.equal(distribution.sample(), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_has_the_dtype_of_its_model(dtype):
    like = torch.empty(0, dtype=dtype)
    assert standard_normal((2, 3), like).dtype == dtype
    assert standard_normal((2, 3), like, torch.Generator()).dtype == dtype


@pytest.fixture
def linear_gaussian():
    """Columns [2, 6], noise and one observation of `x = columns.T z + noise * e`, in float64, with log p(x).

    The columns are orthogonal, so that the exact posterior is diagonal.
    """
    columns = torch.zeros(2, 6, dtype=torch.float64)
    columns[0, :3], columns[1, 3:] = torch.tensor([0.7, -0.4, 1.1]), torch.tensor([0.3, 0.9, -0.6])
    noise = 0.5
    observation = torch.randn(1, 6, dtype=torch.float64)
    covariance = columns.T @ columns + noise**2 * torch.eye(6, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
    return columns, noise, observation, evidence.log_prob(observation)


def linear_gaussian_posterior(columns, noise, observation):
    precision = 1 + columns.square().sum(1) / noise**2
    mean = observation @ columns.T / noise**2 / precision
    return DiagonalGaussian(mean, (-0.5 * precision.log()).expand_as(mean))


def log_weights(linear_gaussian, posterior, count, generator):
    """`log p(x, z) - log q(z|x)` of samples of the posterior. [count]."""
    columns, noise, observation, _ = linear_gaussian
    many = DiagonalGaussian(posterior.mean.expand(count, -1), posterior.log_std.expand(count, -1))
    latents = many.sample(generator)
    pixels = DiagonalGaussian(latents @ columns, torch.full((count, 6), math.log(noise), dtype=torch.float64))
    return pixels.log_prob(observation) + standard_normal_log_prob(latents) - many.log_prob(latents)


def test_exact_posterior_makes_every_importance_weight_the_evidence(linear_gaussian, generator):
    *model, evidence = linear_gaussian
    weights = log_weights(linear_gaussian, linear_gaussian_posterior(*model), 100, generator)
    torch.testing.assert_close(weights, evidence.expand(100), atol=1e-10, rtol=0)


def test_elbo_is_the_evidence_less_the_divergence_of_the_posterior(linear_gaussian, generator):
    columns, noise, observation, evidence = linear_gaussian
    exact = linear_gaussian_posterior(columns, noise, observation)
    wrong = DiagonalGaussian(exact.mean + 0.2, exact.log_std + 0.3)
    std = wrong.log_std.exp()
    # E_q of the squared error is that of the mean plus the spread of each latent through its column.
    at_mean = DiagonalGaussian(wrong.mean @ columns, torch.full((1, 6), math.log(noise), dtype=torch.float64))
    spread = 0.5 * (std.square() * columns.square().sum(1)).sum(1) / noise**2
    elbo = at_mean.log_prob(observation) - spread - wrong.kl_to_standard_normal().sum(1)
    gap = torch.distributions.kl_divergence(
        torch.distributions.Normal(wrong.mean, std), torch.distributions.Normal(exact.mean, exact.log_std.exp())
    ).sum(1)
    assert gap > 0.1
    torch.testing.assert_close(elbo, evidence - gap, atol=1e-10, rtol=0)
    weights = log_weights(linear_gaussian, wrong, 20_000, generator)
    assert abs(weights.mean() - elbo) < 4 * weights.std() / math.sqrt(20_000)
    assert weights.logsumexp(0) - math.log(20_000) == pytest.approx(evidence.item(), abs=0.02)
