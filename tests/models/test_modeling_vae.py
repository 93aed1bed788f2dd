import itertools
import math
import shutil

import pytest
import torch

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.distributions import DiagonalGaussian
from modeling_common import CommonModelTests, assert_compiles, perturb, tensors

TINY = {"image_size": 8, "num_levels": 4, "latent_dim": 3}
ARCHITECTURES = {
    "course": {"architecture": "course", "hidden_channels": (8, 8, 8)},
    "resnet": {"architecture": "resnet", "hidden_channels": (6, 8), "ladder_channels": (2, 1)},
    "mlp": {"architecture": "mlp", "hidden_channels": (16, 12)},
}


@pytest.fixture(params=ARCHITECTURES)
def config(request):
    return VAEConfig(**TINY, **ARCHITECTURES[request.param])


@pytest.fixture
def model(config):
    model = VAEModel(config)
    perturb(model)
    return model.eval()


@pytest.fixture
def mlp():
    """One model for what does not depend on the architecture."""
    model = VAEModel(VAEConfig(**TINY, **ARCHITECTURES["mlp"]))
    perturb(model)
    return model.eval()


@pytest.fixture
def plane():
    """A model with a latent plane, and colour images."""
    model = VAEModel(VAEConfig(**ARCHITECTURES["mlp"], image_size=4, num_channels=3, num_levels=4, latent_dim=2))
    perturb(model)
    return model.eval()


@pytest.fixture
def levels():
    return torch.randint(0, 4, (5, 1, 8, 8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestCommonBehaviours(CommonModelTests):
    model_class = VAEModel
    compiled, others = "course", ("resnet", "mlp")
    compiles_soon = True

    @pytest.fixture(params=ARCHITECTURES)
    def config(self, request):
        return VAEConfig(**TINY, **ARCHITECTURES[request.param])

    def make_inputs(self, config, batch_size):
        size = config.image_size
        return {"pixel_values": torch.randint(0, config.num_levels, (batch_size, config.num_channels, size, size))}


@pytest.mark.timeout(300)
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler for torch's inductor")
@pytest.mark.slow
def test_inductor_compiles_the_model():
    # The compiler takes seconds for each layer.
    config = VAEConfig(architecture="mlp", image_size=4, num_levels=4, latent_dim=2, hidden_channels=(8,))
    levels = torch.randint(0, 4, (3, 1, 4, 4))
    assert_compiles(VAEModel(config).eval(), {"pixel_values": levels}, backend="inductor")


@torch.no_grad()
def test_untrained_course_network_needs_four_bits():
    model = VAEModel(VAEConfig()).eval()
    levels = torch.randint(0, 16, (16, 1, 28, 28))
    # As in a digit, most pixels are black.
    mostly_black = levels * (torch.rand(levels.shape) < 0.2)
    for images in (levels, mostly_black):
        assert model.bits_per_dim(images, seeded()).mean().item() == pytest.approx(4, abs=0.05)


@torch.no_grad()
def test_zero_weights_need_exactly_the_bits_of_uniform_levels(config, levels):
    config.num_levels = 16
    model = VAEModel(config)
    for parameter in model.parameters():
        parameter.zero_()
    output = model(levels * 4)
    assert output.loss.item() == pytest.approx(4, abs=1e-6)
    torch.testing.assert_close(output.distortion, torch.full((5,), 64 * math.log(16)))
    assert torch.equal(output.rate, torch.zeros(5))
    torch.testing.assert_close(model.bits_per_dim(levels * 4), torch.full((5,), 4.0), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("beta", [0, 0.25, torch.tensor(0.25), 1, 4.0])
def test_loss_is_distortion_and_weighted_rate_in_bits_per_dim(model, levels, beta):
    output = model(levels, beta=beta)
    assert output.loss.shape == ()
    assert output.rate.min() > 0
    expected = (output.distortion + float(beta) * output.rate).mean() / (64 * math.log(2))
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_beta_of_the_config_is_the_default(mlp, levels):
    mlp.config.beta = 0.5
    assert torch.equal(mlp(levels).loss, mlp(levels, beta=0.5).loss)
    assert not torch.equal(mlp(levels).loss, mlp(levels, beta=1.0).loss)


def test_gradient_of_the_rate_grows_with_beta(mlp, levels):
    beta = torch.tensor(0.5, requires_grad=True)
    output = mlp(levels, beta=beta)
    output.loss.backward()
    torch.testing.assert_close(beta.grad, nats_to_bits_per_dim(output.rate.mean(), 64))


@torch.no_grad()
def test_distortion_and_rate_are_those_of_encoder_and_decoder(model, levels):
    output = model(levels)
    posterior = model.encode(levels)
    torch.testing.assert_close(output.latents, posterior.mean)
    torch.testing.assert_close(output.rate, posterior.kl_to_standard_normal().sum(1))
    pixels = model.decode(output.latents)
    torch.testing.assert_close(output.logits, pixels.logits)
    torch.testing.assert_close(output.distortion, -pixels.log_prob(levels))
    assert output.logits.shape == (5, 4, 1, 8, 8)
    assert output.latents.shape == (5, sum(math.prod(shape) for shape in model.config.latent_shapes))


@torch.no_grad()
def test_free_bits_count_each_latent_of_each_image_at_least_so_much(model, levels):
    rates = model.encode(levels).kl_to_standard_normal()
    free_bits = rates.median().item()
    assert (rates < free_bits).any()
    model.config.free_bits = free_bits
    output = model(levels, beta=2.0)
    objective = output.distortion + 2 * rates.clamp(min=free_bits).sum(1)
    torch.testing.assert_close(output.loss, nats_to_bits_per_dim(objective.mean(), 64))
    torch.testing.assert_close(output.rate, rates.sum(1))


def test_free_rate_has_no_gradient(mlp, levels):
    mlp.config.free_bits = 1e6
    posterior = mlp.encoder.to_posterior
    weighted, unweighted = (
        torch.autograd.grad(mlp(levels, beta=beta).loss, posterior.weight)[0] for beta in (1.0, 0.0)
    )
    torch.testing.assert_close(weighted, unweighted)


def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(model, levels):
    model.config.free_bits = 0.3
    parameters = list(model.parameters())
    whole = model(levels).loss
    parts = [model(part).loss * len(part) / 5 for part in levels.split([1, 2, 2])]
    torch.testing.assert_close(sum(parts), whole)
    expected = torch.autograd.grad(whole, parameters)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), parameters), expected, atol=1e-5, rtol=1e-4)


def test_loss_can_be_left_out(mlp, levels):
    output = mlp(levels, return_loss=False)
    assert output.loss is None
    assert torch.equal(output.distortion, mlp(levels).distortion)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_integer_types_of_levels_are_equal(mlp, levels, dtype):
    torch.testing.assert_close(tensors(mlp(levels.to(dtype))), tensors(mlp(levels)))


@torch.no_grad()
def test_encoder_sees_levels_from_minus_one_to_one(mlp, monkeypatch):
    seen = []
    monkeypatch.setattr(mlp.encoder, "forward", lambda images: seen.append(images) or [torch.zeros(4, 12)])
    mlp(torch.arange(4).view(4, 1, 1, 1).expand(4, 1, 8, 8))
    torch.testing.assert_close(seen[0][:, 0, 0, 0], torch.tensor([-1, -1 / 3, 1 / 3, 1]))


@torch.no_grad()
def test_posterior_is_sampled_in_training_or_on_demand(model, levels):
    mean = model(levels)
    sampled = model(levels, sample_posterior=True, generator=seeded())
    assert not torch.equal(sampled.latents, mean.latents)
    torch.testing.assert_close(
        tensors(model(levels, sample_posterior=True, generator=seeded())), tensors(sampled), atol=0, rtol=0
    )
    assert not torch.equal(model(levels, sample_posterior=True, generator=seeded(1)).latents, sampled.latents)
    model.train()
    assert torch.equal(model(levels, generator=seeded()).latents, sampled.latents)
    assert torch.equal(model(levels, sample_posterior=False).latents, mean.latents)


@torch.no_grad()
def test_sampled_latents_follow_the_posterior(mlp, levels):
    count = 4000
    posterior = mlp.encode(levels[:1])
    many = levels[:1].expand(count, -1, -1, -1)
    latents = mlp(many, sample_posterior=True, generator=seeded(), return_loss=False).latents
    std = posterior.log_std[0].exp()
    assert ((latents.mean(0) - posterior.mean[0]).abs() < 4 * std / math.sqrt(count)).all()
    torch.testing.assert_close(latents.std(0), std, atol=0, rtol=0.06)


def test_gradients_pass_through_the_sample(model, levels):
    # With beta 0 the encoder learns from the distortion alone, through the reparameterised sample.
    model(levels, beta=0.0, sample_posterior=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name
    to_posterior = model.encoder.to_posterior
    first = to_posterior if model.config.architecture != "resnet" else to_posterior[0]
    mean, log_std = first.weight.grad.chunk(2)
    assert mean.any()
    assert log_std.any()


@torch.no_grad()
def test_finer_posterior_of_a_ladder_depends_on_the_coarser_sample(levels):
    model = VAEModel(VAEConfig(**TINY, **ARCHITECTURES["resnet"])).eval()
    perturb(model)
    first, second, again = (model.encode(levels, sample_posterior=True, generator=seeded(seed)) for seed in (0, 1, 0))
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.mean[:, :3], second.mean[:, :3])
    assert not torch.equal(first.mean[:, 3:], second.mean[:, 3:])


@torch.no_grad()
def test_bits_per_dim_is_the_negative_elbo_at_a_posterior_sample(model, levels):
    bits = model.bits_per_dim(levels, generator=seeded())
    assert bits.shape == (5,)
    output = model(levels, sample_posterior=True, generator=seeded())
    torch.testing.assert_close(bits, (output.distortion + output.rate) / (64 * math.log(2)))
    assert not torch.equal(model.bits_per_dim(levels, generator=seeded(1)), bits)


def test_methods_that_only_infer_keep_no_graph(mlp, plane, levels):
    results = [
        mlp.sample(1, output="mean"),
        mlp.reconstruct(levels),
        mlp.interpolate(levels, levels),
        plane.manifold(2),
        mlp.bits_per_dim(levels),
        mlp.log_likelihood(levels, 2),
    ]
    assert not any(result.requires_grad for result in results)
    assert mlp.encode(levels).mean.requires_grad
    assert mlp.decode(torch.zeros(1, 3)).logits.requires_grad


@pytest.mark.parametrize("output", ["sample", "mode", "mean"])
def test_samples_are_levels_and_the_generator_decides(model, output):
    first, again, other = (model.sample(6, seeded(seed), output) for seed in (0, 0, 1))
    assert first.shape == (6, 1, 8, 8)
    assert first.dtype == (torch.float32 if output == "mean" else torch.int64)
    assert first.min() >= 0
    assert first.max() <= 3
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sampling_leaves_the_global_generator_alone(mlp, levels):
    state = torch.get_rng_state()
    mlp.sample(2, seeded())
    mlp.reconstruct(levels, "sample", seeded())
    mlp.bits_per_dim(levels, seeded())
    for estimator in ("importance", "prior"):
        mlp.log_likelihood(levels, 3, estimator, seeded())
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_samples_decode_the_prior(mlp):
    latents = torch.randn(6, 3, generator=seeded())
    for temperature in (1.0, 0.5, 0):
        expected = mlp.decode(temperature * latents).mean
        torch.testing.assert_close(mlp.sample(6, seeded(), "mean", temperature), expected)
    assert torch.equal(mlp.sample(1, output="mean", temperature=0), mlp.decode(torch.zeros(1, 3)).mean)


@torch.no_grad()
def test_reconstruction_decodes_the_posterior_mean(model, levels):
    pixels = model.decode(model.encode(levels).mean)
    model.train()
    assert torch.equal(model.reconstruct(levels), pixels.mean)
    assert torch.equal(model.reconstruct(levels, "mode"), pixels.mode)
    assert torch.equal(model.reconstruct(levels, "sample", seeded()), pixels.sample(seeded()))


@torch.no_grad()
def test_interpolation_starts_and_ends_at_the_reconstructions(model, levels):
    images = model.interpolate(levels[:2], levels[2:4], num_steps=5)
    assert images.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(images[:, 0], model.reconstruct(levels[:2]))
    torch.testing.assert_close(images[:, -1], model.reconstruct(levels[2:4]))
    first, second = (model.encode(part, sample_posterior=False).mean for part in (levels[:2], levels[2:4]))
    torch.testing.assert_close(images[:, 1], model.decode(0.75 * first + 0.25 * second).mean)
    assert model.interpolate(levels[:1], levels[1:2], 2, "mode").dtype == torch.int64


@torch.no_grad()
def test_manifold_visits_the_normal_quantiles(plane):
    images = plane.manifold(4)
    assert images.shape == (16, 3, 4, 4)
    assert images.min() >= 0
    assert images.max() <= 3
    normal = torch.distributions.Normal(0.0, 1.0)
    low, *_, high = (normal.icdf(torch.tensor((i + 0.5) / 4)) for i in range(4))
    corners = plane.decode(torch.stack([torch.stack([x, y]) for y, x in itertools.product((high, low), (low, high))]))
    torch.testing.assert_close(images[[0, 3, 12, 15]], corners.mean)
    assert len(plane.manifold()) == 400


@torch.no_grad()
@pytest.mark.parametrize("num_levels", [2, 256])
def test_other_numbers_of_levels(num_levels):
    model = VAEModel(VAEConfig(architecture="mlp", image_size=4, num_levels=num_levels, latent_dim=2)).eval()
    levels = torch.full((2, 1, 4, 4), num_levels - 1, dtype=torch.uint8)
    assert model(levels).loss.item() == pytest.approx(math.log2(num_levels), abs=0.5)
    assert model.sample(64, seeded()).unique().numel() > min(num_levels - 1, 100)


def test_bf16_model_offers_everything(plane):
    plane.to(torch.bfloat16)
    levels = plane.sample(2, seeded())
    assert plane.manifold(3).dtype == torch.float32
    assert plane.sample(2, seeded(), "mean").dtype == torch.float32
    for result in (
        plane.reconstruct(levels),
        plane.interpolate(levels, levels, 3),
        plane.bits_per_dim(levels),
        plane.log_likelihood(levels, 4),
        plane.log_likelihood(levels, 4, "prior"),
    ):
        assert result.dtype == torch.float32
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("method", ["forward", "encode", "reconstruct", "bits_per_dim", "log_likelihood"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda levels: levels + 1, r"levels in 0 \.\.\. 3, got values from 1 to 4"),
        (lambda levels: levels - 1, r"levels in 0 \.\.\. 3, got values from -1 to 2"),
        (lambda levels: levels.float(), "integer levels, got torch.float32"),
        (lambda levels: levels > 1, "integer levels, got torch.bool"),
        (lambda levels: levels.expand(5, 3, 8, 8), r"shape \[B, 1, 8, 8\] with B at least 1, got \[5, 3, 8, 8\]"),
        (lambda levels: levels[..., :7], r"shape \[B, 1, 8, 8\] with B at least 1, got \[5, 1, 8, 7\]"),
        (lambda levels: levels[0], r"shape \[B, 1, 8, 8\] with B at least 1, got \[1, 8, 8\]"),
        (lambda levels: levels[:0], r"shape \[B, 1, 8, 8\] with B at least 1, got \[0, 1, 8, 8\]"),
    ],
    ids=["above", "below", "float", "bool", "channels", "size", "no batch", "empty batch"],
)
def test_bad_levels_are_refused(mlp, method, bad, message):
    levels = torch.arange(64).remainder(4).view(1, 1, 8, 8).repeat(5, 1, 1, 1)
    call = {
        "forward": mlp,
        "encode": mlp.encode,
        "reconstruct": mlp.reconstruct,
        "bits_per_dim": mlp.bits_per_dim,
        "log_likelihood": lambda images: mlp.log_likelihood(images, 2),
    }[method]
    with pytest.raises(ValueError, match="pixel_values must (be|have) " + message):
        call(bad(levels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, _: m.sample(0), "num_images must be a whole number of at least 1, got 0"),
        (lambda m, _: m.sample(-2), "num_images must be a whole number of at least 1, got -2"),
        (lambda m, _: m.sample(1, temperature=-0.1), "temperature must be at least 0 and finite, got -0.1"),
        (lambda m, _: m.sample(1, output="median"), "output must be one of .*'mode'.*, got 'median'"),
        (lambda m, x: m.reconstruct(x, "median"), "output must be one of .*'mode'.*, got 'median'"),
        (lambda m, x: m.interpolate(x, x, 1), "num_steps must be a whole number of at least 2, got 1"),
        (lambda m, x: m.interpolate(x, x[:1]), r"one shape, got \[5, 1, 8, 8\] and \[1, 1, 8, 8\]"),
        (lambda m, x: m.interpolate(x, x, output="median"), "output must be one of .*'mode'.*, got 'median'"),
        (lambda m, _: m.manifold(), "manifold needs a latent plane, got 3 latent dimensions"),
        (lambda m, _: m.decode(torch.zeros(2, 4)), r"latents must have shape \[B, 3\], got \[2, 4\]"),
        (lambda m, _: m.decode(torch.zeros(3)), r"latents must have shape \[B, 3\], got \[3\]"),
        (lambda m, x: m.log_likelihood(x, 0), "num_samples must be a whole number of at least 1, got 0"),
        (
            lambda m, x: m.log_likelihood(x, 1, "exact"),
            "estimator must be one of .*'prior'.*, got 'exact'",
        ),
    ],
)
def test_bad_arguments_are_refused(mlp, levels, call, message):
    with pytest.raises(ValueError, match=message):
        call(mlp, levels)


def test_manifold_needs_a_plane_and_a_grid(plane):
    with pytest.raises(ValueError, match="grid_size must be a whole number of at least 1, got 0"):
        plane.manifold(0)
    ladder = VAEConfig(architecture="resnet", image_size=8, latent_dim=2, ladder_channels=(1,))
    with pytest.raises(ValueError, match="manifold needs a latent plane, got 3 latent dimensions"):
        VAEModel(ladder).manifold()


def test_encode_returns_a_gaussian_of_all_latents(model, levels):
    posterior = model.encode(levels)
    assert isinstance(posterior, DiagonalGaussian)
    num_latents = sum(math.prod(shape) for shape in model.config.latent_shapes)
    assert posterior.mean.shape == posterior.log_std.shape == (5, num_latents)
