import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from hf_latentgen import AAEConfig, AAEModel
from hf_latentgen.models.distributions import CategoricalPixels, DiagonalGaussian, PointMass
from hf_latentgen.models.priors import Flower
from modeling_common import CommonModelTests, perturb, tensors

ARCHITECTURES = {
    "course": {"architecture": "course", "hidden_channels": (8, 8, 8)},
    "resnet": {"architecture": "resnet", "hidden_channels": (6, 8)},
    "mlp": {"architecture": "mlp", "hidden_channels": (16, 12)},
}
TINY = {"image_size": 8, "num_levels": 4, "latent_dim": 3, "discriminator_channels": (10, 8), "num_labels": 4}
FLOWER = {"prior": "flower", "latent_dim": 2, "labelled_prior": True}
VARIANTS = {
    "course": ARCHITECTURES["course"],
    "resnet-categorical-gaussian": ARCHITECTURES["resnet"] | {"reconstruction": "categorical", "posterior": "gaussian"},
    "mlp-flower": ARCHITECTURES["mlp"] | FLOWER,
}
# The parts of an output that only a model with an adversary has.
ADVERSARIAL = ("generator_loss", "real_loss", "fake_loss", "discriminator_accuracy")


def make_model(architecture="mlp", **fields):
    model = AAEModel(AAEConfig(**(TINY | ARCHITECTURES[architecture] | fields)))
    perturb(model)
    return model.eval()


@pytest.fixture
def mlp():
    """One model for what does not depend on the options."""
    return make_model()


@pytest.fixture
def levels():
    return torch.randint(0, 4, (5, 1, 8, 8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def zero(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def gradients_of(model, loss):
    """Gradient by each parameter, None where there is none."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return dict(zip(names, found, strict=True))


class TestCommonBehaviours(CommonModelTests):
    model_class = AAEModel
    compiled, others = "resnet-categorical-gaussian", ("mlp-flower",)

    @pytest.fixture(params=VARIANTS)
    def config(self, request):
        return AAEConfig(**(TINY | VARIANTS[request.param]))

    def make_inputs(self, config, batch_size):
        inputs = {"pixel_values": torch.randint(0, config.num_levels, (batch_size, 1, 8, 8))}
        # A class each, and one image without.
        labels = torch.tensor([2, 0, -100, 3, 1])[:batch_size]
        return inputs | {"labels": labels} if config.labelled_prior else inputs

    def learned(self, output):
        # The losses of two players pull against each other: only the reconstruction has to fall.
        return output.reconstruction_loss.detach().mean()


def test_course_network_has_the_parameters_of_the_course():
    model = AAEModel(AAEConfig())
    counts = [
        sum(parameter.numel() for parameter in part.parameters())
        for part in (model.encoder, model.decoder, model.discriminator)
    ]
    assert counts == [110_120, 111_073, 267_777]
    assert model.num_parameters() == sum(counts)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0, 0.995])
def test_zero_weights_of_the_course_network(weight):
    # 3 levels, so that one of them is the middle of [-1, 1], which Tanh gives at 0.
    model = AAEModel(AAEConfig(num_levels=3, reconstruction_weight=weight))
    zero(model)
    output = model(torch.ones(2, 1, 28, 28, dtype=torch.uint8), sample_prior=True)
    assert torch.equal(output.reconstruction_loss, torch.zeros(2))
    ln2 = torch.full((2,), math.log(2))
    torch.testing.assert_close(output.generator_loss, ln2)
    # The discriminator's loss is the mean of both, ln 2; their sum would be 2 ln 2.
    torch.testing.assert_close((output.real_loss + output.fake_loss) / 2, ln2)
    assert output.loss.item() == pytest.approx((1 - weight) * math.log(2) + math.log(2))
    assert output.decoded.abs().max() == 0
    # The other levels are -1 and 1.
    for level in (0, 2):
        assert torch.equal(model(torch.full((1, 1, 28, 28), level)).reconstruction_loss, torch.ones(1))


@torch.no_grad()
def test_parts_are_those_of_encoder_decoder_and_discriminator(levels):
    model = make_model(reconstruction_weight=0.7)
    output = model(levels, sample_prior=True, generator=seeded())
    codes = model.encode(levels).mean
    torch.testing.assert_close(output.latents, codes)
    expected = (model.decode(codes).values - (levels * (2 / 3) - 1)).square().mean((1, 2, 3))
    torch.testing.assert_close(output.reconstruction_loss, expected)
    assert output.distortion is None
    samples = model.prior.sample(5, codes, seeded())
    real, fake = model.discriminator(samples), model.discriminator(codes)
    ones, zeros = torch.ones(5), torch.zeros(5)
    for found, logits, target in (
        (output.generator_loss, fake, ones),
        (output.real_loss, real, ones),
        (output.fake_loss, fake, zeros),
    ):
        expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        torch.testing.assert_close(found, expected)
    right = ((real.sigmoid() > 0.5).float() + (fake.sigmoid() < 0.5).float()) / 2
    assert torch.equal(output.discriminator_accuracy, right)
    adversarial = 0.3 * output.generator_loss + (output.real_loss + output.fake_loss) / 2
    torch.testing.assert_close(output.loss, (0.7 * output.reconstruction_loss + adversarial).mean())


@torch.no_grad()
@pytest.mark.parametrize("posterior", ["deterministic", "gaussian"])
def test_categorical_pixels_have_the_distortion_of_a_vae(levels, posterior):
    model = make_model(reconstruction="categorical", posterior=posterior)
    output = model(levels)
    assert output.decoded.shape == (5, 4, 1, 8, 8)
    torch.testing.assert_close(output.distortion, -CategoricalPixels(output.decoded).log_prob(levels))
    torch.testing.assert_close(output.reconstruction_loss, output.distortion / (64 * math.log(2)))
    zero(model)
    torch.testing.assert_close(model(levels).reconstruction_loss, torch.full((5,), 2.0))


@torch.no_grad()
@pytest.mark.parametrize("reconstruction", ["mse", "categorical"])
def test_balance_does_not_depend_on_the_resolution(reconstruction):
    outputs = []
    for size in (8, 16):
        torch.manual_seed(0)
        model = AAEModel(AAEConfig(**(TINY | ARCHITECTURES["course"]), reconstruction=reconstruction))
        model.config.image_size = size
        model = AAEModel(model.config).train()
        # Constant codes and constant images, whatever the image: what differs is the number of pixels alone.
        zero(model.encoder)
        zero(model.decoder)
        model.encoder.to_posterior.bias.copy_(torch.tensor([0.3, -1.0, 2.0]))
        bias = model.decoder.layers[-1].bias
        bias.copy_(torch.linspace(-1, 1, len(bias)) if len(bias) > 1 else torch.tensor([0.4]))
        for index, parameter in enumerate(model.discriminator.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(index)))
        outputs.append(model(torch.full((3, 1, size, size), 2), generator=seeded()))
    small, large = outputs
    for name in ("loss", "reconstruction_loss", *ADVERSARIAL):
        torch.testing.assert_close(small[name], large[name], msg=name)
    if reconstruction == "categorical":
        torch.testing.assert_close(4 * small.distortion, large.distortion)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generator_step_raises_the_discriminators_opinion_of_the_codes(levels, architecture):
    model = make_model(architecture, reconstruction_weight=0)
    before = model.discriminator(model(levels).latents).mean()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=1e-3)
    model(levels).loss.backward()
    optimizer.step()
    output = model(levels)
    assert model.discriminator(output.latents).mean() > before + 1e-5


def test_discriminator_step_separates_samples_and_codes(levels):
    model = make_model()

    def margin():
        samples = model.prior.sample(5, torch.empty(0), seeded())
        return (model.discriminator(samples) - model.discriminator(model.encode(levels).mean)).mean()

    before = margin()
    optimizer = torch.optim.SGD(model.discriminator.parameters(), lr=1e-3)
    first = model(levels, sample_prior=True, generator=seeded())
    first.loss.backward()
    optimizer.step()
    assert margin() > before + 1e-5
    second = model(levels, sample_prior=True, generator=seeded())
    assert (second.real_loss + second.fake_loss).mean() < (first.real_loss + first.fake_loss).mean()


@pytest.mark.parametrize("fields", [{}, FLOWER, {"posterior": "gaussian"}], ids=["plain", "labelled", "gaussian"])
def test_gradients_of_the_players_are_disjoint(levels, fields):
    model = make_model(reconstruction_weight=0.6, **fields).train()
    labels = torch.tensor([2, 0, -100, 3, 1]) if fields is FLOWER else None
    output = model(levels, labels=labels, generator=seeded())
    autoencoder = 0.6 * output.reconstruction_loss.mean() + 0.4 * output.generator_loss.mean()
    discriminator = (output.real_loss + output.fake_loss).mean() / 2
    joint, of_autoencoder, of_discriminator = (
        gradients_of(model, loss) for loss in (output.loss, autoencoder, discriminator)
    )
    for name, gradient in joint.items():
        own, other = of_autoencoder[name], of_discriminator[name]
        if name.startswith("discriminator."):
            own, other = other, own
        assert other is None, name
        assert own.any(), name
        torch.testing.assert_close(gradient, own, msg=name)


def test_generator_gradient_is_that_through_the_discriminator(levels):
    model = make_model(reconstruction_weight=0)
    found = gradients_of(model, model(levels).generator_loss.mean())
    logits = model.discriminator(model.encode(levels).mean)
    expected = gradients_of(model, F.binary_cross_entropy_with_logits(logits, torch.ones(5)))
    for name in found:
        if name.startswith("encoder."):
            torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("weight", [1, 1.0])
def test_without_an_adversary_the_loss_is_the_reconstruction(levels, weight):
    model = make_model(reconstruction_weight=weight).train()
    state = torch.get_rng_state()
    output = model(levels)
    assert torch.equal(torch.get_rng_state(), state)
    assert not set(ADVERSARIAL) & set(output)
    torch.testing.assert_close(output.loss, output.reconstruction_loss.mean())
    for name, gradient in gradients_of(model, output.loss).items():
        assert (gradient is None) == name.startswith("discriminator."), name


def test_adversarial_limit_reports_the_reconstruction_and_does_not_learn_from_it(levels):
    model = make_model(reconstruction_weight=0).train()
    output = model(levels, generator=seeded())
    model.config.reconstruction_weight = 0.5
    other = model(levels, generator=seeded())
    torch.testing.assert_close(output.reconstruction_loss, other.reconstruction_loss)
    expected = (output.generator_loss + (output.real_loss + output.fake_loss) / 2).mean()
    torch.testing.assert_close(output.loss, expected)
    assert not output.reconstruction_loss.requires_grad
    for name, gradient in gradients_of(model, output.loss).items():
        assert (gradient is None) == name.startswith("decoder."), name


@torch.no_grad()
def test_prior_is_sampled_in_training_or_on_demand(mlp, levels):
    evaluated = mlp(levels)
    assert evaluated.generator_loss is not None
    assert evaluated.real_loss is evaluated.fake_loss is evaluated.discriminator_accuracy is None
    expected = (0.995 * evaluated.reconstruction_loss + 0.005 * evaluated.generator_loss).mean()
    torch.testing.assert_close(evaluated.loss, expected)
    wanted = mlp(levels, sample_prior=True, generator=seeded())
    mlp.train()
    torch.testing.assert_close(tensors(mlp(levels, generator=seeded())), tensors(wanted), atol=0, rtol=0)
    assert not torch.equal(mlp(levels, generator=seeded(1)).real_loss, wanted.real_loss)
    assert mlp(levels, sample_prior=False).real_loss is None
    assert mlp(levels, return_loss=False).loss is None


NOISY = {"posterior": "gaussian", "input_noise_std": 0.5, "discriminator_noise_std": 0.5}


@torch.no_grad()
def test_evaluation_draws_nothing(levels):
    model = make_model(**NOISY)
    state = torch.get_rng_state()
    first = tensors(model(levels))
    torch.testing.assert_close(tensors(model(levels)), first, atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
@pytest.mark.parametrize("noise", NOISY)
def test_noise_of_training_comes_from_the_generator(levels, noise):
    model = make_model(**{noise: NOISY[noise]}).train()
    state = torch.get_rng_state()
    first, again, other = (tensors(model(levels, generator=seeded(seed))) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first["generator_loss"], other["generator_loss"])
    assert torch.equal(first["latents"], other["latents"]) == (noise == "discriminator_noise_std")


@torch.no_grad()
def test_views_are_shifted_by_whole_pixels_each_by_its_own_draw(levels):
    model = make_model(input_shift=2)
    assert model._view(levels, seeded()) is levels
    views = model.train()._view(levels, seeded())
    framed = F.pad(levels, (2, 2, 2, 2))
    seen = set()
    for view, image in zip(views, framed, strict=True):
        (found,) = {
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image[:, row : row + 8, column : column + 8], view)
        }
        seen.add(found)
    assert len(seen) > 1
    assert torch.equal(model._view(levels, seeded()), views)
    # The decoder has to give the image, not the view.
    output = model(levels, generator=seeded())
    expected = (output.decoded - model._scaled(levels)).square().flatten(1).mean(1)
    torch.testing.assert_close(output.reconstruction_loss, expected)
    assert not torch.equal(output.latents, model.eval()(levels).latents)


@torch.no_grad()
def test_views_are_mapped_affinely_about_the_middle():
    torch.manual_seed(0)
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(40, 1, 8, 8)
    model = make_model(input_affine_std=0.1).train()
    middle = model._view(ramp, seeded())[:, 0, 2:6, 2:6]
    # An affine map of a plane is a plane, with the value of the middle where it was.
    torch.testing.assert_close(middle.mean((1, 2)), torch.full((40,), 3.5))
    along, across = middle.diff(dim=2), middle.diff(dim=1)
    for slopes, expected in ((along, 1.0), (across, 0.0)):
        torch.testing.assert_close(slopes, slopes.mean((1, 2), keepdim=True).expand_as(slopes))
        slopes = slopes.mean((1, 2))
        assert slopes.mean().item() == pytest.approx(expected, abs=0.06)
        assert slopes.std().item() == pytest.approx(0.1, abs=0.04)
    # What comes in from outside is black.
    far = make_model(input_affine_std=3.0).train()._view(torch.full((40, 1, 8, 8), 3), seeded())
    assert far.min() == 0
    assert far.max() <= 3 + 1e-5


@torch.no_grad()
def test_gaussian_posterior_is_sampled_and_a_point_mass_is_not(levels):
    point, gaussian = make_model(), make_model(posterior="gaussian")
    assert isinstance(point.encode(levels), PointMass)
    assert torch.equal(point(levels, sample_posterior=True).latents, point(levels).latents)
    posterior = gaussian.encode(levels)
    assert isinstance(posterior, DiagonalGaussian)
    latents = gaussian(levels, sample_posterior=True, generator=seeded()).latents
    torch.testing.assert_close(latents, posterior.sample(seeded()))
    assert not torch.equal(latents, gaussian(levels).latents)


@torch.no_grad()
def test_discriminator_is_told_the_class_and_the_part(levels):
    model = make_model(**FLOWER)
    labels = torch.tensor([2, 0, -100, 3, 1])
    output = model(levels, labels=labels, sample_prior=True, generator=seeded())
    # The column after those of the classes stands for images without one.
    told = torch.eye(5)[[2, 0, 4, 3, 1]]
    samples = model.prior.sample(5, torch.empty(0), seeded(), labels)
    real = model.discriminator(torch.cat([samples, told], 1))
    fake = model.discriminator(torch.cat([output.latents, told], 1))
    torch.testing.assert_close(output.real_loss, F.softplus(-real))
    torch.testing.assert_close(output.fake_loss, F.softplus(fake))
    torch.testing.assert_close(output.generator_loss, F.softplus(-fake))
    # Without a label, the sample comes from any petal.
    many = torch.full((400,), -100)
    angles = torch.atan2(*model.prior.sample(400, torch.empty(0), seeded(), many).T.flip(0))
    assert len((angles / (math.pi / 2)).round().remainder(4).unique()) == 4


@torch.no_grad()
def test_labels_are_of_no_use_to_a_prior_without(mlp, levels):
    labels = torch.tensor([2, 0, -100, 3, 1])
    torch.testing.assert_close(tensors(mlp(levels, labels=labels)), tensors(mlp(levels)), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3, 4], r"labels must be in 0 \.\.\. 3, or -100 where unknown, got values from 0 to 4"),
        ([0, 1, 2, 3, -5], r"labels must be in 0 \.\.\. 3, or -100 where unknown, got values from -5 to 3"),
        ([0, 1, 2, 3], r"labels must have shape \[5\], got \[4\]"),
        ([[0, 1, 2, 3, 0]], r"labels must have shape \[5\], got \[1, 5\]"),
    ],
    ids=["above", "below", "too few", "two axes"],
)
def test_bad_labels_are_refused(mlp, levels, labels, message):
    for model in (mlp, make_model(**FLOWER)):
        with pytest.raises(ValueError, match=message):
            model(levels, labels=torch.tensor(labels))


def test_labelled_prior_needs_labels(levels):
    message = r"labels must be given to a model with labelled_prior \(-100 where unknown\), got None"
    with pytest.raises(ValueError, match=message):
        make_model(**FLOWER)(levels)


@torch.no_grad()
def test_checkpoint_with_another_discriminator_is_refused(tmp_path):
    make_model(discriminator_channels=(10, 8)).save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for widths in ((10, 9), (12, 8), (10,), (10, 8, 8)):
        message = (
            r"^discriminator\.layers\.\S+ must have shape \[[\d, ]+\], as the configuration says, got \[[\d, ]+\] in "
        )
        with pytest.raises(RuntimeError, match=message):
            AutoModel.from_pretrained(tmp_path, discriminator_channels=widths)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_prior_has_a_part_for_each_class():
    prior = make_model(**FLOWER).prior
    assert isinstance(prior, Flower)
    assert prior.num_parts == 4
