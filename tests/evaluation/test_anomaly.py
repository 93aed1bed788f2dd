"""How unusual images are: each method against its definition, calibrations, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_latentgen import (
    AAEConfig,
    AAEModel,
    LevelsDataset,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    VAEConfig,
    VAEModel,
    VLAEConfig,
    VLAEModel,
    anomaly_scores,
    load,
    load_images,
)
from hf_latentgen.evaluation import anomaly
from hf_latentgen.evaluation.anomaly import Calibration, calibrate, detection_metrics
from hf_latentgen.evaluation.baselines import jpeg_xl_bytes, png_bytes
from rows_common import TINY_VAE, save_vae

NUM_DIMS = 64
TRANSFORMER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 8, "num_levels": 16}


def make_vae(**fields):
    return VAEModel(VAEConfig(**(TINY_VAE | fields))).eval()


def make_pixels(**fields):
    return LocalTransformerForImageGeneration(LocalTransformerImageConfig(**TRANSFORMER, **(IMAGE | fields))).eval()


MODELS = {
    "vae": make_vae,
    "ladder": lambda: make_vae(architecture="resnet", ladder_channels=[2, 1], hidden_channels=[4, 4]),
    "vlae": lambda: VLAEModel(VLAEConfig(latent_dim=3, hidden_channels=[8, 8], decoder_radius=2, **IMAGE)).eval(),
}


@pytest.fixture
def images(generator):
    return torch.randint(16, (7, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def posterior_of_its_own(monkeypatch):
    """Fewer steps: what is tested does not depend on their number."""
    monkeypatch.setattr(anomaly, "NUM_STEPS", 6)


def regret_reference(model, image, num_steps, num_draws, rate, seed):
    """The regret of one image [1, C, H, W] in bits per dimension: Adam written out, one number after the other."""
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn(1, model.num_latents, generator=generator) for _ in range(num_steps)]
    draws = [torch.randn(1, model.num_latents, generator=generator) for _ in range(num_draws)]

    def bound(mean, log_std, noise):
        kl = (log_std.exp() ** 2 + mean**2 - 1).sum() / 2 - log_std.sum()
        return kl - model.decode(mean + log_std.exp() * noise).log_prob(image)[0]

    with torch.no_grad():
        start = model.posterior(image)
        numbers = [start.mean.clone(), start.log_std.clone()]
        before = sum(float(bound(*numbers, noise)) for noise in draws) / num_draws
    first, second = [torch.zeros_like(part) for part in numbers], [torch.zeros_like(part) for part in numbers]
    for step, noise in enumerate(steps, 1):
        parts = [part.clone().requires_grad_() for part in numbers]
        gradients = torch.autograd.grad(bound(*parts, noise), parts)
        # From the whole rate at the first step to its last part at the last one.
        now = rate * (1 - (step - 1) / num_steps)
        for k, gradient in enumerate(gradients):
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            scaled = (first[k] / (1 - 0.9**step)) / ((second[k] / (1 - 0.999**step)).sqrt() + 1e-8)
            numbers[k] = numbers[k] - now * scaled
    with torch.no_grad():
        after = sum(float(bound(*numbers, noise)) for noise in draws) / num_draws
    return (before - after) / (NUM_DIMS * math.log(2))


@pytest.mark.parametrize("name", MODELS)
def test_the_regret_of_a_batch_is_that_of_each_image_alone(name, images, posterior_of_its_own):
    model = MODELS[name]()
    with torch.no_grad():
        # New weights are so small that latents hardly matter.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scores = anomaly_scores(model, images, "likelihood_regret", batch_size=4, seed=3)
    expected = [regret_reference(model, image[None], 6, anomaly.NUM_DRAWS, anomaly.RATE, 3) for image in images]
    assert scores == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # An untrained encoder leaves much to gain.
    assert (scores > 1e-3).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    order = [3, 0]
    assert anomaly_scores(model, images[order], "likelihood_regret", seed=3) == pytest.approx(scores[order], abs=1e-5)


def test_there_is_nothing_to_regret_where_the_posterior_is_the_best_one(images):
    model = make_vae()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    # All levels are equally likely, and the posterior is the prior.
    assert anomaly_scores(model, images, "likelihood_regret") == pytest.approx(np.zeros(7), abs=1e-4)
    assert anomaly_scores(model, images) == pytest.approx(np.full(7, 4.0))


def test_scores_that_come_from_bits_are_what_their_definitions_say(images):
    model, background = make_pixels(), make_pixels()
    bits = model.bits_per_dim(images).numpy()
    assert anomaly_scores(model, images, batch_size=3) == pytest.approx(bits)
    assert anomaly_scores(model, images, "typicality", usual_bits=4.1) == pytest.approx(abs(bits - 4.1), abs=1e-6)
    ratio = bits - background.bits_per_dim(images).numpy()
    assert anomaly_scores(model, images, "likelihood_ratio", background=background) == pytest.approx(ratio, abs=1e-6)
    sizes = [png_bytes(image[None], 16) for image in images.numpy()]
    assert anomaly_scores(model, images, "complexity_png") == pytest.approx(bits - np.array(sizes) * 8 / NUM_DIMS)
    # Bits that are known are not computed again.
    assert anomaly_scores(model, images, "typicality", usual_bits=1.0, bits=np.ones(7)).tolist() == [0.0] * 7


def test_jpeg_xl_counts_as_its_files(images):
    pytest.importorskip("imagecodecs")
    model = make_pixels()
    sizes = [jpeg_xl_bytes(image[None], 16) for image in images.numpy()]
    expected = model.bits_per_dim(images).numpy() - np.array(sizes) * 8 / NUM_DIMS
    assert anomaly_scores(model, images, "complexity_jpeg_xl") == pytest.approx(expected)


def test_all_classes_of_a_conditional_model_are_asked(images):
    model = make_pixels(is_class_conditional=True, num_labels=3)
    assert anomaly_scores(model, images) == pytest.approx(model.score(images).numpy())


@pytest.mark.parametrize(
    ("make", "method", "allowed"),
    [
        (make_vae, "likelihood", "bits_per_dim, typicality"),
        (make_pixels, "likelihood_regret", "likelihood_ratio \\(transformer of pixels\\)"),
    ],
)
def test_a_method_that_the_model_cannot_give_is_refused(images, make, method, allowed):
    with pytest.raises(ValueError, match=f"^method must be one of .*{allowed}.* got '{method}'"):
        anomaly_scores(make(), images, method)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: AAEModel(AAEConfig(latent_dim=2, architecture="mlp", **IMAGE)), "adversarial autoencoder"),
        (lambda: LocalTransformerForCausalLM(LocalTransformerConfig(**TRANSFORMER)), "transformer of text"),
    ],
)
def test_a_model_without_a_likelihood_of_images_is_refused(images, make, kind):
    with pytest.raises(ValueError, match=f"^model must have a likelihood of images .*, got {kind}"):
        anomaly_scores(make(), images)


def test_jpeg_xl_is_never_replaced_in_silence(images, monkeypatch):
    monkeypatch.setattr(anomaly, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match="^method must be one of .* got 'complexity_jpeg_xl'; .* needs the package imagecodecs"
    ):
        anomaly_scores(make_vae(), images, "complexity_jpeg_xl")


@pytest.mark.parametrize("method", ["bits_per_dim", "complexity_png", "likelihood_regret"])
@pytest.mark.parametrize("shape", [(7, 1, 9, 8), (7, 3, 8, 8), (0, 1, 8, 8), (8, 8)])
def test_images_of_another_shape_are_refused(method, shape):
    with pytest.raises(ValueError, match=r"^pixel_values must have shape \[B, 1, 8, 8\].*got \[" + str(shape[0])):
        anomaly_scores(make_vae(), torch.zeros(shape, dtype=torch.uint8), method)


def test_what_a_method_needs_is_asked_for(images):
    model = make_vae()
    with pytest.raises(ValueError, match="^usual_bits must be .* got None"):
        anomaly_scores(model, images, "typicality")
    with pytest.raises(ValueError, match="^background must be .* got None"):
        anomaly_scores(model, images, "likelihood_ratio")
    aae = AAEModel(AAEConfig(latent_dim=2, architecture="mlp", **IMAGE))
    with pytest.raises(ValueError, match="^background must be .* got a model: adversarial autoencoder"):
        anomaly_scores(model, images, "likelihood_ratio", background=aae)
    with pytest.raises(ValueError, match="^background must have num_levels 16, .* got one with 2"):
        anomaly_scores(model, images, "likelihood_ratio", background=make_vae(num_levels=2))
    with pytest.raises(ValueError, match="^background must have num_channels 1, .* got one with 3"):
        anomaly_scores(model, images, "likelihood_ratio", background=make_vae(num_channels=3))
    with pytest.raises(ValueError, match="^usual_bits must be .* got nan"):
        anomaly_scores(model, images, "typicality", usual_bits=math.nan)
    with pytest.raises(ValueError, match=r"^bits must have shape \[7\], one number for each image, got \[6\]"):
        anomaly_scores(model, images, "complexity_png", bits=np.ones(6))


def test_scores_that_are_not_finite_are_refused(images):
    model = make_pixels()
    model.lm_head.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="7 of 7 images are not finite"):
        anomaly_scores(model, images)


def test_detection_metrics_are_those_of_a_small_example():
    found = detection_metrics(np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.5, 4.0]))
    # Of eight pairs one is in the wrong order; the second hit is the third image reported.
    assert found == pytest.approx({"auroc": 7 / 8, "average_precision": (1 + 2 / 3) / 2, "fpr_at_95_tpr": 1 / 4})
    assert detection_metrics(np.zeros(3), np.ones(3))["fpr_at_95_tpr"] == 0
    assert detection_metrics(np.ones(3), np.zeros(3))["fpr_at_95_tpr"] == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load(save_vae(tmp_path_factory.mktemp("models") / "vae"))


@pytest.fixture(scope="module")
def validation(checkpoint):
    return LevelsDataset(load_images("digits", "validation"), checkpoint.processor, with_labels=True)


@pytest.fixture(scope="module")
def calibration(checkpoint, validation):
    return calibrate(checkpoint, validation, "digits")


def test_a_calibration_tells_the_share_of_validation_images(checkpoint, validation, calibration):
    assert (calibration.dataset, calibration.num_images, calibration.background_sha256) == ("digits", 200, None)
    assert set(calibration.quantiles) >= {"bits_per_dim", "typicality", "complexity_png", "likelihood_regret"}
    assert "likelihood_ratio" not in calibration.quantiles
    scores = anomaly_scores(checkpoint.model, validation.levels)
    assert calibration.mean_bits_per_dim == pytest.approx(scores.mean())
    for rate in (0.01, 0.05, 0.3):
        assert (scores > calibration.threshold("bits_per_dim", rate)).mean() == pytest.approx(rate, abs=0.005)
    assert calibration.share_below("bits_per_dim", float(np.median(scores))) == pytest.approx(0.5, abs=0.01)
    assert calibration.share_below("bits_per_dim", 99.0) == 1
    assert calibration.share_below("bits_per_dim", -99.0) == 0
    typical = calibration.threshold("typicality", 0.1)
    assert (abs(scores - scores.mean()) > typical).mean() == pytest.approx(0.1, abs=0.01)


def test_a_calibration_with_a_background_has_the_ratio(checkpoint, validation, tmp_path):
    other = load(save_vae(tmp_path / "other", latent_dim=3))
    found = calibrate(checkpoint, validation, "digits", other)
    scores = anomaly_scores(checkpoint.model, validation.levels, "likelihood_ratio", background=other.model)
    assert (scores > found.threshold("likelihood_ratio", 0.1)).mean() == pytest.approx(0.1, abs=0.01)
    assert found.background_sha256 != found.weights_sha256
    assert len(found.background_sha256) == 64


def test_classes_that_were_left_out_are_not_usual(checkpoint, validation):
    found = calibrate(checkpoint, validation, "digits", left_out=[0, 7])
    kept = validation.levels[(validation.labels != 0) & (validation.labels != 7)]
    assert found.num_images == len(kept) < 200
    expected = checkpoint.model.score(kept[:64], torch.Generator().manual_seed(0))
    assert anomaly_scores(checkpoint.model, kept)[:64] == pytest.approx(expected.numpy())
    assert found.mean_bits_per_dim == pytest.approx(anomaly_scores(checkpoint.model, kept).mean())


def test_of_many_images_some_are_scored(checkpoint, validation, monkeypatch):
    monkeypatch.setattr(anomaly, "MAX_IMAGES", 60)
    assert calibrate(checkpoint, validation, "digits").num_images == 60


def test_too_few_images_are_refused(checkpoint, tmp_path):
    few = LevelsDataset(load_images("digits", "validation").select(range(49)), checkpoint.processor)
    # Where a folder lies is nobody else's business.
    with pytest.raises(ValueError, match="^dataset must have at least 50 validation images .* got 49 of mine$"):
        calibrate(checkpoint, few, str(tmp_path / "mine"))


@pytest.mark.parametrize("rate", [0, 0.004, 1, -1, 2])
def test_a_rate_that_so_few_images_cannot_tell_is_refused(calibration, rate):
    with pytest.raises(ValueError, match=rf"^false_alarm_rate must be 0.005 .* got {rate:g}"):
        calibration.threshold("bits_per_dim", rate)


def test_a_method_without_scores_is_refused(calibration):
    with pytest.raises(ValueError, match="^method must be one of bits_per_dim.* got 'likelihood_ratio'.*--background"):
        calibration.threshold("likelihood_ratio", 0.1)


def test_a_calibration_is_read_as_it_was_written(checkpoint, calibration):
    with pytest.raises(FileNotFoundError, match="calibration.json does not exist; hf-latentgen calibrate"):
        Calibration.read(checkpoint.folder)
    calibration.write(checkpoint.folder)
    path = checkpoint.folder / "calibration.json"
    try:
        assert Calibration.read(checkpoint.folder) == calibration
        assert path.stat().st_size < 20_000
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"weights_sha256": "0" * 64}))
        with pytest.raises(ValueError, match=f"^weights_sha256 of .* must be {calibration.weights_sha256}.*got 0000"):
            Calibration.read(checkpoint.folder)
        path.write_text(json.dumps(values | {"more": 1}))
        with pytest.raises(ValueError, match="must have the keys .* got .*more"):
            Calibration.read(checkpoint.folder)
        path.write_text(json.dumps(values | {"quantiles": {"bits_per_dim": [1.0]}}))
        with pytest.raises((ValueError, StrictDataclassError)):
            Calibration.read(checkpoint.folder)
    finally:
        path.unlink()
