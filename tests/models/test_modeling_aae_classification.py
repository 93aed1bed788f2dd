import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from hf_latentgen import AAEConfig, AAEForImageClassification, AAEModel, LevelsImageProcessor
from hf_latentgen.models.modeling_aae import AAEOutput
from hf_latentgen.models.modeling_aae_classification import symmetric_cross_entropy
from hf_latentgen.models.priors import OneHot
from modeling_common import CommonModelTests, perturb, tensors

ARCHITECTURES = {
    "course": {"architecture": "course", "hidden_channels": (8, 8, 8)},
    "resnet": {"architecture": "resnet", "hidden_channels": (4, 6)},
    "mlp": {"architecture": "mlp", "hidden_channels": (16, 12)},
}
TINY = {"image_size": 8, "num_levels": 4, "latent_dim": 3, "discriminator_channels": (10, 8), "num_labels": 4}
LABELS = torch.tensor([2, -100, 0, 3, 1])
VARIANTS = {
    "course-labels": ARCHITECTURES["course"],
    "resnet-categorical-gaussian-labels": ARCHITECTURES["resnet"]
    | {"reconstruction": "categorical", "posterior": "gaussian"},
    "mlp-batch-norm": ARCHITECTURES["mlp"] | {"class_batch_norm": True},
    "mlp-clusters": ARCHITECTURES["mlp"] | {"num_clusters": 6, "cluster_labels": (0, 3, 1, 1, 2, 0)},
    "course-two-views": ARCHITECTURES["course"]
    | {"num_clusters": 6, "consistency_weight": 0.1, "balance_weight": 0.1}
    | {"input_affine_std": 0.01, "class_batch_norm": True},
}


def make_model(**fields):
    model = AAEForImageClassification(AAEConfig(**(TINY | ARCHITECTURES["mlp"] | fields)))
    perturb(model)
    return model.eval()


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def levels():
    return torch.randint(0, 4, (5, 1, 8, 8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestCommonBehaviours(CommonModelTests):
    model_class = AAEForImageClassification
    auto_class = AutoModelForImageClassification
    # The richest one: clusters, batch norm and two views.
    # The networks of the course are compiled with two views.
    compiled, others = "course-two-views", tuple(name for name in VARIANTS if not name.startswith("course"))

    @pytest.fixture(params=VARIANTS)
    def config(self, request):
        return AAEConfig(**(TINY | VARIANTS[request.param]))

    def make_inputs(self, config, batch_size):
        inputs = {"pixel_values": torch.randint(0, config.num_levels, (batch_size, 1, 8, 8))}
        return inputs | {"labels": LABELS[:batch_size]} if config.num_clusters is None else inputs

    def forward(self, model, inputs):
        return model(**inputs, return_loss=True)

    def learned(self, output):
        # The losses of two players pull against each other: only reconstruction and classification have to fall.
        losses = (output.reconstruction_loss, output.supervised_loss)
        return torch.stack([loss.detach().mean() for loss in losses if loss is not None])


@torch.no_grad()
def test_class_code_and_style_are_judged_by_a_discriminator_each(model, levels):
    output = model(levels, sample_prior=True, generator=seeded())
    classes, styles = output.latents.split([4, 3], 1)
    torch.testing.assert_close(classes, output.logits.softmax(1))
    torch.testing.assert_close(classes, model.code_probabilities(levels))
    torch.testing.assert_close(styles, model.encode(levels).mean)
    assert isinstance(model.class_prior, OneHot)
    generator = seeded()
    style_samples = model.prior.sample(5, styles, generator)
    class_samples = model.class_prior.sample(5, styles, generator)
    fakes = torch.stack([model.discriminator(styles), model.class_discriminator(classes)])
    reals = torch.stack([model.discriminator(style_samples), model.class_discriminator(class_samples)])
    torch.testing.assert_close(output.generator_loss, F.softplus(-fakes).sum(0))
    torch.testing.assert_close(output.real_loss, F.softplus(-reals).sum(0))
    torch.testing.assert_close(output.fake_loss, F.softplus(fakes).sum(0))
    assert torch.equal(output.discriminator_accuracy, ((reals > 0).float() + (fakes < 0).float()).mean(0) / 2)
    torch.testing.assert_close(output.decoded, model.decode(output.latents).values)


def test_gradients_of_the_players_are_disjoint(levels):
    model = make_model(reconstruction_weight=0.6, supervised_weight=2.0).train()
    output = model(levels, labels=LABELS, generator=seeded())
    autoencoder = 0.6 * output.reconstruction_loss + 0.4 * output.generator_loss + 2 * output.supervised_loss
    discriminator = (output.real_loss + output.fake_loss) / 2
    torch.testing.assert_close(output.loss, (autoencoder + discriminator).mean())
    names, parameters = zip(*model.named_parameters(), strict=True)
    joint, of_autoencoder, of_discriminator = (
        torch.autograd.grad(loss.mean(), parameters, allow_unused=True, retain_graph=True)
        for loss in (output.loss, autoencoder, discriminator)
    )
    for name, gradient, own, other in zip(names, joint, of_autoencoder, of_discriminator, strict=True):
        if "discriminator" in name:
            own, other = other, own
        assert other is None, name
        assert own.any(), name
        torch.testing.assert_close(gradient, own, msg=name)


@pytest.mark.parametrize("code", ["style", "class"])
def test_generator_step_raises_the_opinion_of_each_discriminator(levels, code):
    model = make_model(reconstruction_weight=0)
    other = model.discriminator if code == "class" else model.class_discriminator
    with torch.no_grad():
        # One that gives the same answer to all codes, and so no gradient.
        other.layers[-1].weight.zero_()

    def opinion():
        classes, styles = model(levels).latents.split([4, 3], 1)
        logits = model.class_discriminator(classes) if code == "class" else model.discriminator(styles)
        return logits.mean().item()

    before = opinion()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=1e-2)
    model(levels, return_loss=True).loss.backward()
    optimizer.step()
    assert opinion() > before + 1e-6


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"num_clusters": 6}], ids=["classes", "clusters"])
def test_there_is_a_loss_with_labels_while_training_or_when_asked_for(levels, fields):
    model = make_model(**fields)
    assert model(levels).loss is None
    assert model(levels, return_loss=True).loss.isfinite()
    if not fields:
        assert model(levels, labels=LABELS).loss.isfinite()
        assert model(levels, labels=LABELS, return_loss=False).loss is None
    assert model.train()(levels).loss.isfinite()
    assert model(levels, return_loss=False).loss is None


def test_class_codes_are_called_after_their_classes():
    assert make_model().code_names == ["0", "1", "2", "3"]
    named = make_model(id2label=dict(enumerate(["cat", "dog", "bird", "fish"])), num_clusters=5)
    assert named.code_names == ["0", "1", "2", "3", "4"]
    named.config.cluster_labels = [3, 0, 0, 1, 2]
    assert named.code_names == ["fish", "cat", "cat", "dog", "bird"]


@torch.no_grad()
def test_supervised_loss_is_divided_by_the_whole_batch(levels):
    model = make_model(supervised_weight=0.5)
    output = model(levels, labels=LABELS)
    log_probabilities = output.logits.log_softmax(1)
    expected = [0.0 if label < 0 else -log_probabilities[row, label].item() for row, label in enumerate(LABELS)]
    torch.testing.assert_close(output.supervised_loss, torch.tensor(expected))
    unlabelled = model(levels, return_loss=True).loss
    torch.testing.assert_close(output.loss, unlabelled + 0.5 * sum(expected) / 5)
    assert model(levels).supervised_loss is None
    without = model(levels, labels=torch.full((5,), -100))
    assert torch.equal(without.supervised_loss, torch.zeros(5))
    torch.testing.assert_close(without.loss, unlabelled)


def test_unlabelled_images_teach_no_class(levels):
    model = make_model()
    output = model(levels, labels=LABELS)
    (gradient,) = torch.autograd.grad(output.supervised_loss.sum(), output.logits)
    assert not gradient[1].any()
    assert all(gradient[row].any() for row in (0, 2, 3, 4))


@torch.no_grad()
def test_plain_autoencoder_can_be_taught_too(levels):
    output = make_model(reconstruction_weight=1).train()(levels, labels=LABELS)
    assert output.generator_loss is None
    torch.testing.assert_close(output.loss, (output.reconstruction_loss + output.supervised_loss).mean())


@torch.no_grad()
def test_zero_weights_give_ln_2_for_each_discriminator(model, levels):
    for parameter in model.parameters():
        parameter.zero_()
    output = model(levels, labels=LABELS, sample_prior=True)
    expected = torch.full((5,), 2 * math.log(2))
    for name in ("generator_loss", "real_loss", "fake_loss"):
        torch.testing.assert_close(output[name], expected)
    torch.testing.assert_close(output.supervised_loss, torch.where(LABELS < 0, 0.0, math.log(4)))


@torch.no_grad()
def test_logits_of_named_clusters_are_those_of_the_classes(levels):
    names = (0, 3, 1, 1, 3, 0)
    named = make_model(num_clusters=6, cluster_labels=names)
    unnamed = AAEForImageClassification(AAEConfig(**(TINY | ARCHITECTURES["mlp"]), num_clusters=6)).eval()
    unnamed.load_state_dict(named.state_dict())
    clusters = unnamed(levels).logits
    assert clusters.shape == (5, 6)
    logits = named(levels).logits
    assert logits.shape == (5, 4)
    assert logits.isfinite().all()
    for image, code_probabilities in enumerate(clusters.softmax(1).tolist()):
        for label in range(4):
            share = sum(p for p, name in zip(code_probabilities, names, strict=True) if name == label)
            assert logits[image, label].exp().item() == pytest.approx(share, abs=1e-6)
    # Names change what is said about the codes and nothing else.
    torch.testing.assert_close(named(levels, return_loss=True).loss, unnamed(levels, return_loss=True).loss)
    torch.testing.assert_close(named.code_probabilities(levels), clusters.softmax(1))


@torch.no_grad()
def test_batch_norm_lets_every_class_win_some_images(levels):
    model = make_model(class_batch_norm=True)
    # Without it, one class would win all images from the first step on.
    model.encoder.to_posterior.bias[1] += 10
    assert (model.train()(levels).logits.argmax(1) != 1).any()
    logits = model(levels).logits
    torch.testing.assert_close(logits.mean(0), model.code_norm.bias, atol=1e-5, rtol=0)
    # The statistics of training are kept for the evaluation, which takes images one by one.
    for _ in range(100):
        model(levels)
    model.eval()
    alone = torch.cat([model(image.unsqueeze(0)).logits for image in levels])
    torch.testing.assert_close(alone, model(levels).logits)
    assert (alone.argmax(1) != 1).any()


def test_batch_norm_needs_two_images_in_training(levels):
    model = make_model(class_batch_norm=True)
    assert model(levels[:1]).logits.shape == (1, 4)
    message = "pixel_values must hold at least 2 images in training with class_batch_norm, got 1"
    with pytest.raises(ValueError, match=message):
        model.train()(levels[:1])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_labels_may_be_whole_numbers_of_any_size(levels, dtype):
    model = make_model()
    expected = model(levels, labels=LABELS).supervised_loss
    assert torch.equal(model(levels, labels=LABELS.to(dtype)).supervised_loss, expected)


def test_labels_are_refused_with_clusters(levels):
    message = "labels must be None with num_clusters=6, got some"
    with pytest.raises(ValueError, match=message):
        make_model(num_clusters=6)(levels, labels=LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3, 4], r"labels must be in 0 \.\.\. 3, or -100 where unknown, got values from 0 to 4"),
        ([0, 1, 2, 3, -5], r"labels must be in 0 \.\.\. 3, or -100 where unknown, got values from -5 to 3"),
        ([0, 1, 2], r"labels must have shape \[5\], got \[3\]"),
    ],
    ids=["above", "below", "too few"],
)
def test_bad_labels_are_refused(model, levels, labels, message):
    with pytest.raises(ValueError, match=message):
        model(levels, labels=torch.tensor(labels))


@pytest.mark.parametrize("num_labels", [0, 1])
def test_fewer_than_two_classes_are_refused(num_labels):
    config = AAEConfig(**TINY | {"num_labels": num_labels})
    with pytest.raises(ValueError, match=f"num_labels must be at least 2, .*, got {num_labels}"):
        AAEForImageClassification(config)


def test_labelled_prior_is_refused():
    config = AAEConfig(**(TINY | {"latent_dim": 2}), prior="flower", labelled_prior=True)
    with pytest.raises(ValueError, match="labelled_prior must be False for AAEForImageClassification"):
        AAEForImageClassification(config)


KINDS = {
    "plain": (AAEModel, {}),
    "labelled": (AAEModel, {"labelled_prior": True}),
    "classifier": (AAEForImageClassification, {}),
    "clusters": (AAEForImageClassification, {"num_clusters": 3, "cluster_labels": (1, 0, 1), "class_batch_norm": True}),
}
# What the code is driven to, what the encoder gives, and what the decoder is scored by.
PRIORS, POSTERIORS, RECONSTRUCTIONS = (
    ("gaussian", "flower", "swiss_roll"),
    ("deterministic", "gaussian"),
    ("mse", "categorical"),
)
ALL_OPTIONS = list(itertools.product(PRIORS, POSTERIORS, RECONSTRUCTIONS))
# Each of them once, for the networks of convolutions: these know nothing of the other options.
EACH_OPTION = list(zip(PRIORS, itertools.cycle(POSTERIORS), itertools.cycle(RECONSTRUCTIONS), strict=False))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_combination_of_options_is_saved_and_loaded(kind, architecture, levels, tmp_path):
    model_class, fields = KINDS[kind]
    for prior, posterior, reconstruction in ALL_OPTIONS if architecture == "mlp" else EACH_OPTION:
        if kind == "labelled" and prior == "gaussian":
            # The labelled prior needs a prior of several parts.
            continue
        options = {"prior": prior, "posterior": posterior, "reconstruction": reconstruction, **fields}
        options |= {"latent_dim": 2}
        model = model_class(AAEConfig(**(TINY | ARCHITECTURES[architecture] | options))).eval()
        perturb(model)
        inputs = {"pixel_values": levels}
        if kind in ("labelled", "classifier"):
            inputs["labels"] = LABELS
        model.save_pretrained(tmp_path)
        loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), options
        expected, found = (
            tensors(one(**inputs, sample_posterior=True, sample_prior=True, generator=seeded(), return_loss=True))
            for one in (model, loaded)
        )
        assert expected.keys() >= {"loss", "reconstruction_loss", "generator_loss", "real_loss", "fake_loss"}
        torch.testing.assert_close(found, expected, atol=0, rtol=0, msg=str(options))


@torch.no_grad()
def test_checkpoint_with_other_discriminators_is_refused(tmp_path):
    make_model(discriminator_channels=(10, 8)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(tmp_path, discriminator_channels=(10, 9))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_pipeline_of_a_saved_classifier_names_the_most_likely_class(tmp_path, batch_size):
    names = {0: "zero", 1: "one", 2: "two", 3: "three"}
    config = AAEConfig(**(TINY | ARCHITECTURES["mlp"]), id2label=names)
    model = AAEForImageClassification(config).eval()
    perturb(model)
    model.save_pretrained(tmp_path)
    processor = LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=4)
    processor.save_pretrained(tmp_path)
    images = [Image.fromarray(torch.randint(0, 256, (8, 8), dtype=torch.uint8).numpy()) for _ in range(8)]
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    expected = [names[number] for number in logits.argmax(1).tolist()]
    assert len(set(expected)) > 1
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    answers = classify(images, batch_size=batch_size)
    assert [answer[0]["label"] for answer in answers] == expected
    found = [answer[0]["score"] for answer in answers]
    assert found == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-5)


def test_symmetric_cross_entropy_is_that_of_the_probabilities():
    first, second = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    for one, other in ((first.softmax(1), second.softmax(1)), (second.softmax(1), first.softmax(1))):
        expected -= (one * other.log()).sum(1) / 2
    torch.testing.assert_close(symmetric_cross_entropy(first, second), expected)
    sure = torch.tensor([[40.0, 0, 0]])
    assert symmetric_cross_entropy(sure, sure).item() == pytest.approx(0, abs=1e-6)
    assert symmetric_cross_entropy(sure, sure.roll(1, 1)).item() == pytest.approx(40)


def test_codes_of_two_views_are_drawn_to_each_other(levels):
    fields = {"num_clusters": 6, "input_shift": 2, "input_affine_std": 0.2, "input_noise_std": 0.3}
    model = make_model(consistency_weight=0.7, **fields)
    alone = make_model(**fields)
    alone.load_state_dict(model.state_dict())
    assert model(levels).consistency_loss is None
    output = model.train()(levels, generator=seeded())
    generator = seeded()
    views = [model._view(levels, generator) for _ in range(2)]
    logits = model._encode_both(*views, generator=generator)[0].chunk(2)
    torch.testing.assert_close(output.logits, logits[0])
    torch.testing.assert_close(output.consistency_loss, symmetric_cross_entropy(*logits))
    # The first view is what is decoded and judged; the objective has the weighted sum of both.
    rest = model._objective(AAEOutput(**{**output, "consistency_loss": None}))
    torch.testing.assert_close(output.loss, rest + 0.7 * output.consistency_loss.mean())
    assert alone.train()(levels, generator=seeded()).consistency_loss is None
    output.consistency_loss.mean().backward()
    assert next(model.encoder.parameters()).grad.abs().max() > 0


@pytest.mark.parametrize("num_views", [1, 2])
def test_balance_is_minus_the_entropy_of_the_mean_code(levels, num_views):
    fields = {"num_clusters": 6, "consistency_weight": 0.2 * (num_views - 1), "input_affine_std": 0.3}
    model = make_model(balance_weight=0.7, **fields)
    assert model(levels).balance_loss is None
    output = model.train()(levels, generator=seeded())
    generator = seeded()
    views = [model._view(levels, generator) for _ in range(num_views)]
    mean = model._encode_both(*views)[0].softmax(1).mean(0)
    torch.testing.assert_close(output.balance_loss.mean(), (mean * mean.log()).sum())
    rest = model._objective(AAEOutput(**{**output, "balance_loss": None}))
    torch.testing.assert_close(output.loss, rest + 0.7 * output.balance_loss.mean())


def test_balance_is_finite_where_a_code_is_not_used(levels):
    model = make_model(num_clusters=6, balance_weight=0.7).train()
    model._encode_both = lambda *_, **__: (torch.tensor([500.0, 0, 0, 0, 0, 0]).expand(5, 6), torch.randn(5, 3))
    assert model(levels).balance_loss.mean().item() == pytest.approx(0, abs=1e-6)


def test_one_image_has_no_batch_statistics_though_it_has_two_views(levels):
    model = make_model(num_clusters=6, consistency_weight=0.1, class_batch_norm=True).train()
    with pytest.raises(ValueError, match="pixel_values must hold at least 2 images in training with class_batch_norm"):
        model(levels[:1])
