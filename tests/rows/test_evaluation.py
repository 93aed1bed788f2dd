"""From a checkpoint to its results: what is scored, what is known of a training, and what is written where."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BertConfig

from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    LatentGenPipeline,
    LevelsImageProcessor,
    VAEModel,
    load,
    load_images,
)
from hf_latentgen.evaluation.likelihood import sample_seconds
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import inputs, vae
from hf_latentgen.families.family import Options
from hf_latentgen.models.networks import matrix_layers
from hf_latentgen.rows import evaluation as rows_evaluation
from hf_latentgen.rows.cards import card_text
from hf_latentgen.rows.evaluation import check_row, evaluate, redraw, write_evaluation
from hf_latentgen.rows.recipes import evaluations
from rows_common import REFERENCE, load_few, names, save_checkpoint, write_run

IMAGES = [
    "history.png",
    "interpolations.png",
    "latents.png",
    "manifold.png",
    "reconstructions.png",
    "samples.png",
    "samples_above_nearest_training_images.png",
    "samples_mean.png",
    "samples_mode.png",
]
FEW = Options(num_importance_samples=1)


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(inputs, "load_images", load_few)


def test_everything_a_card_needs_is_written(evaluation, trained, tmp_path):
    folder = write_evaluation(evaluation, trained, tmp_path / "row")
    expected = [
        "calibration.json",
        "config.json",
        "images",
        *(f"images/{name}" for name in IMAGES),
        "model.safetensors",
    ]
    assert names(folder) == [*expected, "preprocessor_config.json", "results.json"]
    assert Results.read(folder) == evaluation.results
    assert str(trained) not in (folder / "results.json").read_text()
    assert AutoModel.from_pretrained(folder).num_parameters() == evaluation.results.num_parameters
    assert AutoImageProcessor.from_pretrained(folder).num_levels == 16
    assert "2.5" in card_text(folder, "org/name")


def test_scores_and_where_they_come_from(evaluation):
    results, metrics = evaluation.results, evaluation.results.metrics
    assert (results.row, results.num_images, results.dataset, results.split) == ("vae_small", 300, "digits", "test")
    assert metrics["bits_per_dim"] == pytest.approx(metrics["negative_elbo_nats"] / (64 * math.log(2)))
    assert metrics["negative_elbo_nats"] == pytest.approx(metrics["distortion_nats"] + metrics["rate_nats"])
    assert metrics["nll_nats_iw3"] < metrics["negative_elbo_nats"]
    assert {"active_units", "linear_probe_accuracy", "reconstruction_mse"} <= set(metrics)
    assert results.diagnostics["zero_weights_bits_per_dim"] == pytest.approx(4, abs=1e-5)
    assert results.reference == REFERENCE
    assert AutoConfig.for_model(**results.model).to_dict().items() >= results.model.items()
    assert results.model["num_levels"] == 16
    assert results.evaluate_command == "evaluate it"
    assert results.hardware == "a computer"
    assert results.evaluation["seed"] == 1
    assert results.evaluation["versions"]["torch"] == torch.__version__
    assert results.has_provenance


def test_a_row_is_drawn_again_and_its_results_stay(evaluation, checkpoint, tmp_path):
    row = write_evaluation(evaluation, checkpoint, tmp_path / "row")
    before = {path: path.read_bytes() for path in sorted(row.rglob("*")) if path.is_file()}
    shutil.copy(row / "images" / "samples.png", row / "images" / "samples_epoch_003.png")
    for path in (row / "images").glob("[!s]*.png"):
        path.write_bytes(b"of another time")
    redraw(row)
    assert {path: path.read_bytes() for path in before} == before
    assert (row / "images" / "samples_epoch_003.png").is_file()


def test_of_a_row_without_weights_only_the_curve_is_drawn_again(evaluation, checkpoint, tmp_path):
    row = write_evaluation(evaluation, checkpoint, tmp_path / "row")
    curve = (row / "images" / "history.png").read_bytes()
    (row / "model.safetensors").unlink()
    for path in (row / "images").iterdir():
        path.write_bytes(b"of another time")
    redraw(row)
    assert (row / "images" / "history.png").read_bytes() == curve
    assert (row / "images" / "samples.png").read_bytes() == b"of another time"


def test_an_evaluation_knows_what_training_images_scored_since_the_last_one():
    logs = [{"loss": 1, "bits": 4.0}, {"loss": 1, "bits": 3.0}, {"eval_loss": 1, "step": 2}, {"loss": 1, "bits": 2.0}]
    logs += [{"eval_loss": 1, "step": 3}, {"eval_loss": 1, "step": 4}, {"train_runtime": 1}]
    assert evaluations(logs, "bits") == [
        {"eval_loss": 1, "step": 2, "train_bits": 3.5},
        {"eval_loss": 1, "step": 3, "train_bits": 2.0},
        {"eval_loss": 1, "step": 4},
    ]


def test_same_seed_gives_the_same_numbers_and_pictures(trained, few_images):
    first, second = (evaluate(load(trained), options=FEW) for _ in range(2))
    one, two = (vars(found.results) | {"evaluation": None} for found in (first, second))
    assert one == two
    assert first.pictures.keys() == second.pictures.keys()
    assert all(first.pictures[name].tobytes() == second.pictures[name].tobytes() for name in first.pictures)


def test_a_new_evaluation_replaces_the_old_one_and_keeps_other_files(evaluation, trained, tmp_path):
    folder = tmp_path / "row"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "old.png").touch()
    (folder / "README.md").write_text("card")
    (folder / "results.json").write_text("old")
    write_evaluation(evaluation, trained, folder)
    assert (folder / "README.md").read_text() == "card"
    assert sorted(path.name for path in (folder / "images").iterdir()) == IMAGES
    assert Results.read(folder).row == "vae_small"


def test_the_checkpoint_may_be_its_own_output(evaluation, checkpoint):
    before = names(checkpoint)
    write_evaluation(evaluation, checkpoint, checkpoint)
    written = {"calibration.json", "results.json", "images", *(f"images/{name}" for name in IMAGES)}
    assert set(names(checkpoint)) == {*before, *written}
    load(checkpoint)


def test_pictures_of_the_training_are_kept(evaluation, checkpoint, tmp_path):
    (checkpoint / "samples").mkdir()
    evaluation.pictures["samples"].save(checkpoint / "samples" / "samples_epoch_000.png")
    row = write_evaluation(evaluation, checkpoint, tmp_path / "row")
    assert (row / "images" / "samples_epoch_000.png").is_file()
    # A row that is scored again holds them beside the other pictures.
    again = write_evaluation(evaluation, row, tmp_path / "again")
    assert (again / "images" / "samples_epoch_000.png").is_file()


def test_large_weights_stay_out_of_the_row(evaluation, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_evaluation, "MAX_WEIGHT_BYTES", 1000)
    folder = write_evaluation(evaluation, trained, tmp_path / "row")
    assert not (folder / "model.safetensors").exists()
    assert (folder / "config.json").exists()


def test_weights_that_fit_in_half_precision_are_kept(evaluation, trained, tmp_path, monkeypatch):
    size = (trained / "model.safetensors").stat().st_size
    names_in_half = tuple(f"{layer}.weight" for layer in matrix_layers(load(trained).model))
    monkeypatch.setattr(rows_evaluation, "MAX_WEIGHT_BYTES", size - 1)
    folder = write_evaluation(replace(evaluation, half=names_in_half), trained, tmp_path / "row")
    assert (folder / "model.safetensors").stat().st_size < size


def test_a_folder_that_cannot_be_written_is_refused(evaluation, trained, tmp_path):
    (tmp_path / "a_file").touch()
    with pytest.raises(PermissionError, match="the output folder .*a_file/below is not writable"):
        write_evaluation(evaluation, trained, tmp_path / "a_file" / "below")
    assert names(tmp_path) == ["a_file"]


def test_images_without_labels_have_no_linear_probe(trained, monkeypatch):
    def load_without_labels(name, split, **where):
        return load_images(name, split, **where).remove_columns("label").select(range(80))

    monkeypatch.setattr(inputs, "load_images", load_without_labels)
    found = evaluate(load(trained), options=FEW)
    assert "linear_probe_accuracy" not in found.results.metrics
    assert "latents" not in found.pictures


def test_images_of_one_class_have_no_linear_probe(trained, monkeypatch):
    def load_zeros(name, split, **where):
        return load_images(name, split, **where).filter(lambda label: label == 0, input_columns="label")

    monkeypatch.setattr(inputs, "load_images", load_zeros)
    assert "linear_probe_accuracy" not in evaluate(load(trained), options=FEW).results.metrics


@pytest.fixture
def bare(checkpoint):
    """A checkpoint that nothing tells of: what somebody downloads."""
    (checkpoint / "run.json").unlink()
    return checkpoint


def test_a_checkpoint_without_a_record_is_scored(bare, tmp_path, few_images):
    found = evaluate(load(bare), "digits", options=FEW)
    assert not found.results.has_provenance
    assert (found.results.row, found.results.dataset) == ("vae_small", "digits")
    assert "history" not in found.pictures
    folder = write_evaluation(found, bare, tmp_path / "out")
    assert "How it was trained was not recorded" in card_text(folder, "org/name")


def test_a_data_set_must_be_named_where_none_is_recorded(bare):
    with pytest.raises(ValueError, match=r"dataset must be named .*neither run\.json nor results\.json"):
        evaluate(load(bare), options=FEW)


def test_a_row_is_scored_with_what_its_results_tell(evaluation, trained, tmp_path, few_images):
    row = write_evaluation(evaluation, trained, tmp_path / "vae_small")
    again = evaluate(load(row), options=FEW).results
    assert again.train_command == evaluation.results.train_command
    assert again.history == evaluation.results.history
    assert again.reference == REFERENCE


def test_published_values_are_of_their_own_data(trained, tmp_path, few_images):
    for split in ("train", "validation", "test"):
        for index, row in enumerate(load_images("digits", split).select(range(80))):
            target = tmp_path / "images" / split / f"{row['label']}"
            target.mkdir(parents=True, exist_ok=True)
            row["image"].save(target / f"{index}.png")
    results = evaluate(load(trained), str(tmp_path / "images"), options=FEW).results
    assert results.reference == []
    assert results.dataset == str(tmp_path / "images")
    assert results.has_provenance


def test_what_may_become_a_row(checkpoint, tmp_path):
    assert check_row(checkpoint) == "vae_small"
    write_run(checkpoint, overrides=["model.latent_dim=2"])
    with pytest.raises(ValueError, match=r"cannot become the row vae_small: it overrides \['model.latent_dim=2'\]"):
        check_row(checkpoint)
    write_run(checkpoint, train_command="hf-latentgen train configs/vae_small.yaml --from ./runs/other")
    with pytest.raises(ValueError, match=r"cannot become a row: it was trained from \./runs/other"):
        check_row(checkpoint)
    (checkpoint / "run.json").unlink()
    with pytest.raises(ValueError, match=r"cannot become a row: it lacks its weights, or run\.json"):
        check_row(checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_importance_samples": -1}, "num_importance_samples must be at least 0, got -1"),
        ({"budget": -1.0}, "budget must be at least 0, got -1"),
        ({"budget": 60.0, "num_importance_samples": 5}, "budget must be None where num_importance_samples is given"),
        ({"classifier": "itself"}, "classifier is of no use for variational autoencoders"),
    ],
)
def test_options_are_checked_before_anything_is_measured(trained, monkeypatch, options, message):
    def fail(*args, **kwargs):
        raise AssertionError("data was loaded")

    monkeypatch.setattr(inputs, "load_images", fail)
    loaded = load(trained)
    if "classifier" in options:
        options = {"classifier": loaded}
    with pytest.raises(ValueError, match=message):
        evaluate(loaded, options=Options(**options))


@pytest.mark.parametrize(
    ("seconds", "count", "said"),
    [
        (2.0, 20, "K = 20 importance samples an image: about 52 s; K = 500 would take 16 min 40 s"),
        (0.1, 500, "K = 500 importance samples an image: about 51 s"),
        (1000.0, 0, "K = 0 importance samples an image: about 1 h 40 min; K = 500 would take 138 h 53 min"),
    ],
)
def test_a_budget_of_time_says_how_many_samples_are_drawn(
    trained, few_images, monkeypatch, capsys, seconds, count, said
):
    monkeypatch.setattr(vae, "sample_seconds", lambda *_: seconds)
    options = Options(budget=60.0)
    results = evaluate(load(trained), options=options, command="hf-latentgen evaluate x", say=print).results
    assert capsys.readouterr().out.splitlines()[0] == said
    # Another machine draws as many in another time.
    assert results.evaluate_command == f"hf-latentgen evaluate x --num-importance-samples {count}"
    assert {key for key in results.metrics if key.startswith("nll_nats_iw") and "error" not in key} == (
        {f"nll_nats_iw{count}"} if count else set()
    )


def test_the_seconds_of_a_sample_are_those_of_all_images(trained):
    model, levels = load(trained).model, torch.zeros(600, 1, 8, 8, dtype=torch.uint8)
    assert 0 < sample_seconds(model, levels, batch_size=50) < 60


@pytest.mark.parametrize("name", ["num_importance_samples", "budget", "compile", "bf16"])
def test_an_adversarial_autoencoder_has_no_options_of_a_vae(tmp_path, name):
    torch.manual_seed(0)
    fields = {"architecture": "mlp", "image_size": 8, "latent_dim": 2, "hidden_channels": [8], "num_labels": 10}
    model = AAEForImageClassification(AAEConfig(**fields, num_levels=16, discriminator_channels=[8]))
    loaded = load(save_checkpoint(model, tmp_path / "aae"))
    with pytest.raises(ValueError, match=f"{name} is of no use for .*; options of their own: classifier"):
        evaluate(loaded, "digits", options=Options(**{name: 1}))


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def other_family(folder):
    BertConfig().save_pretrained(folder)


def other_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"latent_dim": 3}))


def no_weights_of_the_decoder(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "encoder" in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def a_weight_too_many(folder):
    weights = load_file(folder / "model.safetensors") | {"of_nothing": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_processor(**fields):
    options = {"size": {"height": 8, "width": 8}} | fields
    return lambda folder: LevelsImageProcessor(**options).save_pretrained(folder)


# How a checkpoint may be damaged, and what is said then by whoever loads it.
DAMAGES = [
    (lambda folder: (folder / "config.json").write_text("{"), r"config.json is not valid JSON"),
    (remove("config.json"), r"config.json does not exist"),
    (remove("model.safetensors"), r"must hold model.safetensors"),
    (remove("preprocessor_config.json"), "must hold preprocessor_config.json or processor_config.json"),
    (truncate, "damaged or do not fit its config.json: .*file not fully covered"),
    (other_family, r"config.json: model_type must be one of .*'latentgen_vae'.*, got 'bert'"),
    (other_shape, r"do not fit its config.json: .* must have shape"),
    (no_weights_of_the_decoder, r"do not fit its config.json, missing_keys: \['decoder"),
    (a_weight_too_many, r"do not fit its config.json, unexpected_keys: \['of_nothing'\]"),
    (other_processor(num_levels=256), "num_levels of the image processor must be 16, .*, got 256"),
    (other_processor(num_channels=3), "num_channels of the image processor must be 1, .*, got 3"),
    (other_processor(size={"height": 9, "width": 9}), r"size of the image processor must be \(8, 8\), .*got \(9, 9\)"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_checkpoints_are_refused(checkpoint, damage, message):
    damage(checkpoint)
    for loader in (load, LatentGenPipeline.from_pretrained):
        with pytest.raises((ValueError, OSError), match=message):
            loader(checkpoint)


def test_a_pipeline_refuses_the_processor_of_another_model(trained):
    model = load(trained).model
    other = LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=256)
    with pytest.raises(ValueError, match="num_levels of the image processor must be 16, .*, got 256"):
        LatentGenPipeline(model, other)
    LatentGenPipeline(model, LevelsImageProcessor.for_config(model.config))


def test_a_damaged_record_is_named(checkpoint):
    (checkpoint / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not valid JSON"):
        evaluate(load(checkpoint), options=FEW)


def test_scores_that_are_not_finite_are_refused(checkpoint):
    model = VAEModel.from_pretrained(checkpoint)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="300 of 300 images are not finite"):
        evaluate(load(checkpoint), options=FEW)
