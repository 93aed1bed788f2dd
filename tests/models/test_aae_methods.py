"""What is made of a trained adversarial autoencoder: codes, reconstructions, samples, planes."""

import itertools
import math

import pytest
import torch

from hf_latentgen import AAEConfig, AAEForImageClassification, AAEModel
from hf_latentgen.models.distributions import CategoricalPixels, DeterministicPixels
from modeling_common import perturb

TINY = {"architecture": "mlp", "hidden_channels": (16,), "image_size": 8, "num_levels": 4, "num_labels": 4}
PLANE = {"latent_dim": 2, "num_channels": 2, "image_size": 4}
FLOWER = {"latent_dim": 2, "prior": "flower", "labelled_prior": True}
CLASSES = {"plain": AAEModel, "classifier": AAEForImageClassification}


def make_model(model_class=AAEModel, **fields):
    model = model_class(AAEConfig(**(TINY | {"latent_dim": 3, "discriminator_channels": (8,)} | fields)))
    perturb(model)
    return model.eval()


@pytest.fixture(params=itertools.product(CLASSES, ("mse", "categorical")), ids="-".join)
def model(request):
    name, reconstruction = request.param
    return make_model(CLASSES[name], reconstruction=reconstruction, posterior="gaussian")


@pytest.fixture
def levels():
    return torch.randint(0, 4, (5, 1, 8, 8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_mse_model_decodes_to_values_and_categorical_to_distributions(levels):
    values = make_model().decode(torch.randn(5, 3))
    assert isinstance(values, DeterministicPixels)
    assert values.values.shape == (5, 1, 8, 8)
    assert values.values.abs().max() < 1
    torch.testing.assert_close(values.mean, (values.values + 1) * 1.5)
    assert torch.equal(values.mode, values.mean.round().long())
    assert torch.equal(values.sample(seeded()), values.mode)
    logits = make_model(reconstruction="categorical").decode(torch.randn(5, 3))
    assert isinstance(logits, CategoricalPixels)
    assert logits.logits.shape == (5, 4, 1, 8, 8)


@torch.no_grad()
def test_encoder_sees_levels_from_minus_one_to_one(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model.encoder, "forward", lambda images: seen.append(images) or [torch.zeros(4, 16)])
    model(torch.arange(4).view(4, 1, 1, 1).expand(4, 1, 8, 8))
    torch.testing.assert_close(seen[0][:, 0, 0, 0], torch.tensor([-1, -1 / 3, 1 / 3, 1]))


@torch.no_grad()
def test_features_are_what_the_last_layer_of_the_encoder_reads(model, levels):
    features = model.features(levels)
    assert features.shape == (5, 16)
    posterior = model.encode(levels)
    parameters = model.encoder.to_posterior(features)[:, -6:]
    torch.testing.assert_close(torch.cat([posterior.mean, posterior.log_std], 1), parameters)


@torch.no_grad()
def test_posterior_is_of_all_latents(model, levels):
    is_classifier = isinstance(model, AAEForImageClassification)
    posterior = model.posterior(levels)
    assert posterior.mean.shape == posterior.std.shape == (5, 7 if is_classifier else 3)
    torch.testing.assert_close(posterior.mean[:, -3:], model.encode(levels).mean)
    torch.testing.assert_close(posterior.mean, model(levels).latents)
    assert model.num_latents == posterior.mean.shape[1]
    assert sum(model.latent_sizes) == model.num_latents


@torch.no_grad()
def test_reconstruction_decodes_the_posterior_mean(model, levels):
    pixels = model.decode(model.posterior(levels).mean)
    assert torch.equal(model.reconstruct(levels), pixels.mean)
    assert torch.equal(model.reconstruct(levels, "mode"), pixels.mode)
    assert torch.equal(model.reconstruct(levels, "sample", seeded()), pixels.sample(seeded()))


@torch.no_grad()
def test_interpolation_starts_and_ends_at_the_reconstructions(model, levels):
    images = model.interpolate(levels[:2], levels[2:4], num_steps=5)
    assert images.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(images[:, 0], model.reconstruct(levels[:2]))
    torch.testing.assert_close(images[:, -1], model.reconstruct(levels[2:4]))
    first, second = (model.posterior(part).mean for part in (levels[:2], levels[2:4]))
    torch.testing.assert_close(images[:, 1], model.decode(0.75 * first + 0.25 * second).mean)


@pytest.mark.parametrize("output", ["sample", "mode", "mean"])
def test_samples_are_levels_and_the_generator_decides(model, output):
    state = torch.get_rng_state()
    first, again, other = (model.sample(6, seeded(seed), output) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (6, 1, 8, 8)
    assert first.dtype == (torch.float32 if output == "mean" else torch.int64)
    assert first.min() >= 0
    assert first.max() <= 3
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"latent_dim": 2, "prior": "swiss_roll"}, FLOWER])
def test_samples_decode_the_prior(fields):
    model = make_model(**fields)
    codes = model.prior.sample(6, torch.empty(0), seeded())
    torch.testing.assert_close(model.sample(6, seeded(), "mean"), model.decode(codes).mean)


@torch.no_grad()
def test_label_chooses_the_part_of_the_prior():
    model = make_model(**FLOWER)
    labels = torch.tensor([3, 0, 1, 2, -100])
    codes = model.prior.sample(5, torch.empty(0), seeded(), labels)
    torch.testing.assert_close(model.sample(5, seeded(), "mean", labels), model.decode(codes).mean)
    assert not torch.allclose(model.sample(5, seeded(), "mean"), model.decode(codes).mean)


@torch.no_grad()
@pytest.mark.parametrize("num_clusters", [None, 6])
def test_classifier_samples_the_chosen_class(num_clusters):
    model = make_model(AAEForImageClassification, num_clusters=num_clusters)
    chosen = torch.tensor([3, 0, 1, 3, 2])
    seen = []
    decode = model.decode
    model.decode = lambda latents: seen.append(latents) or decode(latents)
    images = model.sample(5, seeded(), "mean", chosen)
    num_codes = num_clusters or 4
    classes, styles = seen[0].split([num_codes, 3], 1)
    assert torch.equal(classes, torch.eye(num_codes)[chosen])
    assert styles.unique(dim=0).shape == (5, 3)
    torch.testing.assert_close(images, decode(seen[0]).mean)
    model.sample(300, seeded(), "mean")
    assert set(seen[-1][:, :num_codes].argmax(1).tolist()) == set(range(num_codes))


@torch.no_grad()
@pytest.mark.parametrize("num_clusters", [None, 6])
def test_style_grid_has_one_style_a_row_and_one_class_a_column(num_clusters):
    model = make_model(AAEForImageClassification, num_clusters=num_clusters)
    num_codes = num_clusters or 4
    state = torch.get_rng_state()
    grid = model.style_grid(3, seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert grid.shape == (3 * num_codes, 1, 8, 8)
    styles = model.prior.sample(3, torch.empty(0), seeded())
    for row, column in itertools.product(range(3), range(num_codes)):
        latents = torch.cat([torch.eye(num_codes)[column], styles[row]]).unsqueeze(0)
        torch.testing.assert_close(grid[row * num_codes + column], model.decode(latents).mean[0])
    assert model.style_grid(1, seeded(), "mode").dtype == torch.int64


@torch.no_grad()
def test_manifold_visits_the_normal_quantiles():
    plane = make_model(**PLANE)
    images = plane.manifold(4)
    assert images.shape == (16, 2, 4, 4)
    normal = torch.distributions.Normal(0.0, 1.0)
    low, *_, high = (normal.icdf(torch.tensor((i + 0.5) / 4)) for i in range(4))
    corners = plane.decode(torch.stack([torch.stack([x, y]) for y, x in itertools.product((high, low), (low, high))]))
    torch.testing.assert_close(images[[0, 3, 12, 15]], corners.mean)


def test_manifold_needs_a_gaussian_plane():
    with pytest.raises(ValueError, match="manifold needs a latent plane, got 3 latent dimensions"):
        make_model().manifold()
    with pytest.raises(ValueError, match="grid_size must be a whole number of at least 1, got 0"):
        make_model(**PLANE).manifold(0)
    for model in (make_model(**FLOWER), make_model(AAEForImageClassification, **PLANE)):
        with pytest.raises(ValueError, match="manifold visits the quantiles of a Gaussian prior"):
            model.manifold()


@torch.no_grad()
@pytest.mark.parametrize("reconstruction", ["mse", "categorical"])
def test_bf16_model_offers_everything(reconstruction, levels):
    classifier = make_model(AAEForImageClassification, reconstruction=reconstruction).to(torch.bfloat16)
    plane = make_model(latent_dim=2, reconstruction=reconstruction).to(torch.bfloat16)
    for result in (
        classifier.style_grid(2, seeded()),
        classifier.sample(2, seeded(), "mean"),
        classifier.reconstruct(levels),
        classifier.interpolate(levels, levels, 3),
        classifier.features(levels),
        classifier.code_probabilities(levels),
        plane.manifold(3),
    ):
        assert result.dtype == torch.float32
        assert torch.isfinite(result).all()


def test_methods_that_only_infer_keep_no_graph(model, levels):
    results = [model.sample(1, output="mean"), model.reconstruct(levels), model.interpolate(levels, levels)]
    assert not any(result.requires_grad for result in results)
    assert model.encode(levels).mean.requires_grad
    assert model.decode(torch.zeros(1, model.num_latents)).mean.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, _: m.sample(0), "num_images must be a whole number of at least 1, got 0"),
        (lambda m, _: m.sample(1, output="median"), "output must be one of .*'mode'.*, got 'median'"),
        (lambda m, x: m.reconstruct(x, "median"), "output must be one of .*'mode'.*, got 'median'"),
        (lambda m, x: m.interpolate(x, x, 1), "num_steps must be a whole number of at least 2, got 1"),
        (lambda m, x: m.interpolate(x, x[:1]), r"one shape, got \[5, 1, 8, 8\] and \[1, 1, 8, 8\]"),
        (lambda m, _: m.decode(torch.zeros(2, 9)), r"latents must have shape \[B, \d\], got \[2, 9\]"),
        (lambda m, _: m.decode(torch.zeros(3)), r"latents must have shape \[B, \d\], got \[3\]"),
    ],
)
def test_bad_arguments_are_refused(model, levels, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, levels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4], r"labels must be in 0 \.\.\. 3, or -100 where unknown, got values from 0 to 4"),
        ([0, -1], r"labels must be in 0 \.\.\. 3, or -100 where unknown, got values from -1 to 0"),
        ([0], r"labels must have shape \[2\], got \[1\]"),
        ([0.5, 1.0], "labels must be a tensor of whole numbers, got torch.float32"),
        ([True, False], "labels must be a tensor of whole numbers, got torch.bool"),
    ],
)
def test_bad_parts_of_the_prior_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        make_model(**FLOWER).sample(2, labels=torch.tensor(labels))


def test_labels_are_refused_where_codes_know_no_class():
    with pytest.raises(ValueError, match="labels must be None for a model without labelled_prior"):
        make_model().sample(1, labels=torch.tensor([0]))


@pytest.mark.parametrize("labels", [[0, 4], [0, -100], [0], [[0, 1]]])
def test_bad_class_codes_are_refused(labels):
    model = make_model(AAEForImageClassification)
    with pytest.raises(ValueError, match=r"labels must be 2 class codes in 0 \.\.\. 3, got \["):
        model.sample(2, labels=torch.tensor(labels))


def test_style_grid_needs_a_style():
    model = make_model(AAEForImageClassification)
    with pytest.raises(ValueError, match="num_styles must be a whole number of at least 1, got 0"):
        model.style_grid(0)
    with pytest.raises(ValueError, match="output must be one of .*'mode'.*, got 'median'"):
        model.style_grid(1, output="median")


@pytest.mark.parametrize("method", ["forward", "encode", "posterior", "features", "reconstruct"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda levels: levels + 1, r"levels in 0 \.\.\. 3, got values from 1 to 4"),
        (lambda levels: levels.float(), "integer levels, got torch.float32"),
        (lambda levels: levels[..., :7], r"shape \[B, 1, 8, 8\] with B at least 1, got \[5, 1, 8, 7\]"),
        (lambda levels: levels[:0], r"shape \[B, 1, 8, 8\] with B at least 1, got \[0, 1, 8, 8\]"),
    ],
    ids=["above", "float", "size", "empty batch"],
)
@pytest.mark.parametrize("name", CLASSES)
def test_bad_levels_are_refused(name, method, bad, message):
    levels = torch.arange(64).remainder(4).view(1, 1, 8, 8).repeat(5, 1, 1, 1)
    with pytest.raises(ValueError, match="pixel_values must (be|have) " + message):
        getattr(make_model(CLASSES[name]), method)(bad(levels))


@torch.no_grad()
@pytest.mark.parametrize("num_levels", [2, 256])
def test_other_numbers_of_levels(num_levels):
    model = make_model(reconstruction="categorical", num_levels=num_levels)
    levels = torch.full((2, 1, 8, 8), num_levels - 1, dtype=torch.uint8)
    assert model(levels).loss.isfinite()
    for parameter in model.parameters():
        parameter.zero_()
    torch.testing.assert_close(model(levels).reconstruction_loss, torch.full((2,), math.log2(num_levels)))
    assert model.sample(64, seeded()).unique().numel() > min(num_levels - 1, 100)
