"""Adversarial autoencoders on real digits, from a checkpoint to the folder of a row."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    AAEModel,
    LevelsDataset,
    LevelsImageProcessor,
    load,
    load_images,
)
from hf_latentgen.evaluation.clusters import classification_error, name_clusters
from hf_latentgen.evaluation.features import in_domain_scores
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.samples import code_samples, drawn_samples
from hf_latentgen.families.family import Options, Setup
from hf_latentgen.families.inputs import image_parts
from hf_latentgen.rows.cards import card_text
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from rows_common import save_checkpoint, write_run

TINY = {"architecture": "mlp", "image_size": 8, "num_levels": 16, "hidden_channels": (12,), "num_labels": 10}
CODE_SCORES = {"code_max_abs_mean", "code_min_std", "code_max_std", "code_energy_distance", "code_energy_p_value"}
IN_DOMAIN_SCORES = {
    *("in_domain_frechet_distance", "class_histogram_kl_nats", "in_domain_coverage", "in_domain_recall"),
    *("in_domain_precision", "in_domain_density"),
}


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch):
    """Enough for every score to be defined."""
    monkeypatch.setattr("hf_latentgen.families.aae.NUM_DRAWN", 400)


@pytest.fixture(scope="module")
def processor():
    return LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=16)


@pytest.fixture(scope="module")
def digits(processor):
    return {name: LevelsDataset(load_images("digits", name), processor, with_labels=True) for name in ("train", "test")}


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint, as a training leaves it, of a new model."""

    def write(name, model_class, seed=0, dataset=None, **fields):
        torch.manual_seed(seed)
        folder = save_checkpoint(model_class(AAEConfig(**(TINY | fields))), tmp_path / name)
        data = {"name": "digits"} | (dataset or {})
        history = [{"epoch": 1.0, "eval_reconstruction_loss": 0.3}]
        change = f"training.seed={seed}"
        trained = {"seed": seed, "overrides": [change], "train_command": f"hf-latentgen train small {change}"}
        write_run(folder, dataset=data, history=history, config="configs/small.yaml", **trained)
        return folder

    return write


def evaluated(checkpoint, folder, repeats=(), **options):
    """The results that were written of a checkpoint, and their folder."""
    write_evaluation(evaluate(load(checkpoint), options=Options(**options), repeats=repeats), checkpoint, folder)
    return Results.read(folder), folder


def test_autoencoder_is_scored_without_a_classifier(checkpoint, tmp_path):
    results, folder = evaluated(checkpoint("aae", AAEModel, latent_dim=2), tmp_path / "out")
    metrics = results.metrics
    expected = {"reconstruction_mse_minus1_1", "reconstruction_mse", "linear_probe_accuracy", "parzen_nats"}
    assert expected | CODE_SCORES <= set(metrics)
    assert not IN_DOMAIN_SCORES & set(metrics)
    assert metrics["reconstruction_mse_minus1_1"] == pytest.approx(4 * metrics["reconstruction_mse"])
    assert results.num_images == 300
    assert results.baseline == {}
    pictures = {path.name for path in (folder / "images").iterdir()}
    assert {"samples.png", "reconstructions.png", "interpolations.png", "manifold.png", "latents.png"} <= pictures
    assert "An adversarial autoencoder of 8x8 images" in card_text(folder, "org/name")


def test_classifier_is_judged_and_its_repeats_are_averaged(checkpoint, tmp_path, digits):
    few = {"num_labelled": 100}
    paths = [checkpoint(f"semi_{seed}", AAEForImageClassification, seed, few) for seed in range(3)]
    judge = checkpoint("judge", AAEForImageClassification, 7)
    repeats = [evaluated(path, tmp_path / f"out_{path.name}")[0] for path in paths[1:]]
    results, folder = evaluated(paths[0], tmp_path / "out", repeats, classifier=load(judge))
    metrics = results.metrics
    assert set(metrics) >= IN_DOMAIN_SCORES
    errors = [classification_error(AAEForImageClassification.from_pretrained(path), digits["test"]) for path in paths]
    assert metrics["test_error"] == pytest.approx(errors[0])
    assert [repeat["metrics"]["test_error"] for repeat in results.repeats] == pytest.approx(errors[1:])
    assert [repeat["seed"] for repeat in results.repeats] == [1, 2]
    assert results.spread["test_error"] == pytest.approx({"mean": np.mean(errors), "std": np.std(errors, ddof=1)})
    # Only what was measured of all of them.
    assert "in_domain_coverage" not in results.spread
    assert "code_energy_distance" in results.spread
    judged = classification_error(AAEForImageClassification.from_pretrained(judge), digits["test"])
    assert results.diagnostics["in_domain_classifier_test_error"] == pytest.approx(judged)
    assert (folder / "images" / "styles.png").is_file()
    card = card_text(folder, "org/name")
    assert "told the classes of 100 images" in card
    assert "trained 3 times, with other seeds:" in card


def test_named_clusters_survive_the_results(checkpoint, tmp_path):
    path = checkpoint("clusters", AAEForImageClassification, num_clusters=4, cluster_labels=(1, 0, 1, 9))
    results, _ = evaluated(path, tmp_path / "out")
    config = AutoConfig.for_model(**results.model)
    assert list(config.cluster_labels) == [1, 0, 1, 9]
    assert config.num_labels == 10
    assert results.metrics["test_error"] > 0.5


def test_a_model_without_classes_cannot_judge(checkpoint, tmp_path):
    path = checkpoint("aae", AAEModel)
    with pytest.raises(ValueError, match=r"classifier must be an image classifier, got .*aae"):
        evaluate(load(path), options=Options(classifier=load(path)))


def test_a_judge_reads_images_of_the_same_kind(digits):
    judge = AAEForImageClassification(AAEConfig(**(TINY | {"image_size": 9})))
    samples = torch.zeros(10, 1, 8, 8)
    with pytest.raises(ValueError, match=r"classifier must read images of shape \[1, 8, 8\], got one for \[1, 9, 9\]"):
        in_domain_scores(judge, samples, digits["train"], digits["test"], 128, num_levels=16)
    judge = AAEForImageClassification(AAEConfig(**(TINY | {"num_levels": 256})))
    with pytest.raises(ValueError, match="classifier must read images of 16 levels, got one for 256"):
        in_domain_scores(judge, samples, digits["train"], digits["test"], 128, num_levels=16)


def test_real_images_as_samples_score_like_training_images(digits):
    torch.manual_seed(0)
    judge = AAEForImageClassification(AAEConfig(**TINY))
    train, test = digits["train"], digits["test"]
    real, reachable = in_domain_scores(judge, train.levels[:300].float(), train, test, 128, num_levels=16)
    black, _ = in_domain_scores(judge, torch.zeros(300, 1, 8, 8), train, test, 128, num_levels=16)
    assert real["in_domain_frechet_distance"] < 3 * reachable["in_domain_frechet_distance_of_train"] + 1e-3
    assert black["in_domain_frechet_distance"] > 10 * real["in_domain_frechet_distance"]
    assert real["in_domain_coverage"] > 0.8 > black["in_domain_coverage"]


def test_samples_and_codes_are_seeded_and_leave_the_global_generator_alone(digits):
    model = AAEModel(AAEConfig(**TINY, posterior="gaussian"))
    state = torch.get_rng_state()
    assert torch.equal(drawn_samples(model, 7, seed=3, batch_size=4), drawn_samples(model, 7, seed=3, batch_size=4))
    assert drawn_samples(model, 7).shape == (7, 1, 8, 8)
    codes = [code_samples(model, digits["test"].levels[:50], seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_clusters_are_named_by_their_surest_image(digits):
    torch.manual_seed(0)
    model = AAEForImageClassification(AAEConfig(**TINY, num_clusters=5))
    names = name_clusters(model, digits["test"], batch_size=64)
    probabilities = model.eval().code_probabilities(digits["test"].levels)
    for cluster, name in enumerate(names):
        assert name == digits["test"].labels[probabilities[:, cluster].argmax()].item()


def test_labels_of_other_classes_measure_nothing(checkpoint, monkeypatch, caplog):
    path = checkpoint("classifier", AAEForImageClassification, id2label={n: f"class {n}" for n in range(10)})
    found = evaluate(load(path), options=Options())
    assert "test_error" not in found.results.metrics
    assert any("the classes of digits are not those of the model" in message for message in caplog.messages)
    digits = {n: str(n) for n in range(10)}
    path = checkpoint("digits", AAEForImageClassification, id2label=digits, label2id={v: n for n, v in digits.items()})
    assert "test_error" in evaluate(load(path), options=Options()).results.metrics


def test_a_classifier_is_not_trained_on_other_classes(checkpoint):
    path = checkpoint("classifier", AAEForImageClassification, id2label={n: f"class {n}" for n in range(10)})
    with pytest.raises(ValueError, match="dataset must have the classes of .*classifier, got"):
        image_parts(Setup({}, {"name": "digits"}, None, 0, load(path), None), needs_labels=True)
