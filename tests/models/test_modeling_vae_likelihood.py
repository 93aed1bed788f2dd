"""The likelihood of a VAE so small that its evidence is an integral over a grid."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.models import distributions, modeling_vae
from hf_latentgen.models.distributions import standard_normal_log_prob
from modeling_common import perturb

NUM_LEVELS = 3
# Images of 2x2 pixels and two latents: a plane, or a ladder of a vector and a map that have one entry each.
MODELS = {
    "plane": {"architecture": "mlp", "hidden_channels": (8,), "latent_dim": 2},
    "ladder": {"architecture": "resnet", "hidden_channels": (6,), "latent_dim": 1, "ladder_channels": (1,)},
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(5)
    model = VAEModel(VAEConfig(image_size=2, num_levels=NUM_LEVELS, **MODELS[request.param])).eval()
    # A decoder that listens to its latents.
    perturb(model, 0.5)
    to_posterior = model.encoder.to_posterior
    layers = [to_posterior] if request.param == "plane" else [to_posterior[0], to_posterior[1].last]
    for layer in layers:
        # A wrong posterior that depends on the image, yet as wide as the prior, so that it covers the true one.
        torch.nn.init.normal_(layer.weight, std=0.03)
        torch.nn.init.constant_(layer.bias, 0.2)
    return model


@pytest.fixture
def images():
    """Every image. [81, 1, 2, 2]."""
    return torch.tensor(list(itertools.product(range(NUM_LEVELS), repeat=4))).view(-1, 1, 2, 2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def exact_log_likelihood(model, images):
    """log p(x) of each image, in nats, by the trapezoid rule over both latents, in float64. [B]."""
    axis = torch.linspace(-7, 7, 141)
    latents = torch.cartesian_prod(axis, axis)
    log_probabilities = model.decode(latents).logits.double().log_softmax(1).flatten(1)
    log_weights = standard_normal_log_prob(latents.double()) + 2 * math.log(14 / 140)
    one_hot = torch.nn.functional.one_hot(images, NUM_LEVELS).movedim(-1, 1).flatten(1).double()
    return (one_hot @ log_probabilities.T + log_weights).logsumexp(1)


def within_error(values, expected, errors=4.0):
    """Whether the mean of independent values is the expected one, within so many standard errors."""
    values = values.double()
    return abs(values.mean() - expected) < errors * values.std() / math.sqrt(len(values))


def test_evidence_of_all_images_sums_to_one(model, images):
    evidence = exact_log_likelihood(model, images).exp()
    assert evidence.sum().item() == pytest.approx(1, abs=1e-6)
    # The decoder is far from uniform.
    assert evidence.max() > 3 / 81


def test_elbo_lies_below_the_evidence(model, images):
    exact = exact_log_likelihood(model, images)
    repeats = 400
    bits = model.bits_per_dim(images.repeat_interleave(repeats, 0), seeded()).double().view(81, repeats)
    elbo = -bits * 4 * math.log(2)
    gap = exact - elbo.mean(1)
    assert (gap > -4 * elbo.std(1) / math.sqrt(repeats)).all()
    # The posterior is wrong by more than the error of the average.
    assert gap.mean() > 0.01


def test_one_importance_sample_has_the_elbo_as_its_mean(model, images):
    image = images[40:41].expand(20_000, -1, -1, -1)
    elbo = -model.bits_per_dim(image, seeded()).double() * 4 * math.log(2)
    log_weight = model.log_likelihood(image, 1, generator=seeded(1)).double()
    error = math.sqrt((elbo.var() + log_weight.var()) / 20_000)
    assert abs(elbo.mean() - log_weight.mean()) < 4 * error


@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_many_samples_approach_the_evidence(model, images, estimator):
    images = images[::16]
    exact = exact_log_likelihood(model, images)
    estimate = model.log_likelihood(images, 5000, estimator, seeded())
    assert estimate.shape == (6,)
    torch.testing.assert_close(estimate.double(), exact, atol=0.1, rtol=0)
    # Better than the one sample from which both start.
    rough = model.log_likelihood(images, 1, estimator, seeded())
    assert (estimate - exact).abs().mean() < 0.2 * (rough - exact).abs().mean()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_importance_estimate_is_unbiased_as_a_probability(model, images, num_samples):
    image = images[67:68]
    exact = exact_log_likelihood(model, image)
    # Copies of an image in a batch have noise of their own.
    estimates = model.log_likelihood(image.expand(20_000, -1, -1, -1), num_samples, generator=seeded())
    assert estimates.std() > 0.01
    assert within_error(estimates.double().exp(), exact.exp())
    # Its logarithm is too low.
    assert estimates.double().mean() < exact


def test_prior_estimate_is_unbiased_as_a_probability(model, images):
    image = images[67:68]
    generator = seeded()
    estimates = torch.cat([model.log_likelihood(image, 4, "prior", generator) for _ in range(150)])
    assert within_error(estimates.double().exp(), exact_log_likelihood(model, image).exp())


def test_more_samples_tighten_the_bound(model, images):
    batch = images[67:68].expand(4000, -1, -1, -1)
    one, three, nine = (model.log_likelihood(batch, number, generator=seeded()).mean() for number in (1, 3, 9))
    assert one < three < nine < exact_log_likelihood(model, images[67:68])


class NoiseTape:
    """Stands for `standard_normal`: the noise of a sample depends on its number, not on the pass that it falls in."""

    def __init__(self, num_images, num_groups):
        self.num_images, self.num_groups = num_images, num_groups
        self.noise = torch.randn(num_images, 100, 2)
        self.calls, self.sample, self.latent = 0, 0, 0
        self.passes = []

    def __call__(self, shape, like, generator=None):
        rows, width = shape
        count = rows // self.num_images
        drawn = self.noise[:, self.sample : self.sample + count, self.latent : self.latent + width]
        self.latent += width
        if self.latent == 2:
            self.latent, self.sample = 0, self.sample + count
            self.passes.append(count)
        return drawn.reshape(rows, width)


@pytest.mark.parametrize("images_per_pass", [1, 12, 40, 512])
@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_passes_add_up_to_the_single_pass(model, images, estimator, images_per_pass, monkeypatch):
    images = images[::20]
    num_copies = len(images) if estimator == "importance" else 1
    results, passes = [], []
    for limit in (images_per_pass, 10_000):
        torch.manual_seed(0)
        tape = NoiseTape(num_copies, 2)
        monkeypatch.setattr(modeling_vae, "IMAGES_PER_PASS", limit)
        monkeypatch.setattr(modeling_vae, "standard_normal", tape)
        monkeypatch.setattr(distributions, "standard_normal", tape)
        results.append(model.log_likelihood(images, 30, estimator))
        passes.append(tape.passes)
    assert passes[1] == [30]
    # As many samples as fit, at least one, and the rest in the last pass.
    per_pass = min(30, max(1, images_per_pass // num_copies))
    rest = [30 % per_pass] if 30 % per_pass else []
    assert passes[0] == [per_pass] * (30 // per_pass) + rest
    torch.testing.assert_close(*results)


def test_estimates_of_a_batch_are_those_of_its_images(model, images):
    batch = images[::20]
    whole = model.log_likelihood(batch, 2000, generator=seeded())
    single = torch.cat([model.log_likelihood(image[None], 2000, generator=seeded(1)) for image in batch])
    torch.testing.assert_close(whole, single, atol=0.25, rtol=0)


@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_generator_decides_the_estimate(model, images, estimator):
    first, again, other = (model.log_likelihood(images[:3], 5, estimator, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_estimate_does_not_depend_on_training_mode(model, images, estimator):
    expected = model.log_likelihood(images[:3], 5, estimator, seeded())
    assert torch.equal(model.train().log_likelihood(images[:3], 5, estimator, seeded()), expected)


def test_prior_estimate_keeps_its_precision_under_autocast():
    model = VAEModel(VAEConfig(architecture="mlp", hidden_channels=(4,))).eval()
    levels = torch.randint(0, 16, (4, 1, 28, 28))
    expected = model.log_likelihood(levels, 8, "prior", seeded())
    with torch.autocast("cpu", torch.bfloat16):
        found = model.log_likelihood(levels, 8, "prior", seeded())
    # Of about 2,170 nats bf16 would lose up to four.
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_memory_does_not_grow_with_the_number_of_samples(model, images, estimator, monkeypatch):
    monkeypatch.setattr(modeling_vae, "IMAGES_PER_PASS", 32)
    largest = []
    for num_samples in (32, 1600):
        with LargestTensor() as seen:
            model.log_likelihood(images[:2], num_samples, estimator)
        largest.append(seen.elements)
    assert largest[0] == largest[1]
    # One number for each sample would be more than any tensor of a pass.
    assert largest[0] < 1600
