import json
import math
import runpy
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BertConfig

from hf_latentgen import LevelsImageProcessor, VAEConfig, VAEModel, load_images
from hf_latentgen.cards.model_card import check_results
from hf_latentgen.evaluation.checkpoints import load_checkpoint
from hf_latentgen.evaluation.results import evaluate_checkpoint

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint as a training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "vae_small"
    torch.manual_seed(0)
    config = VAEConfig(architecture="mlp", image_size=8, latent_dim=2, hidden_channels=[16])
    model = VAEModel(config)
    model.save_pretrained(folder)
    LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    reference = [{"name": "somebody", "metric": "bits_per_dim", "value": 2.5, "source": "a paper"}]
    run = {
        "row": "vae_small",
        "config": "configs/vae_small.yaml",
        "overrides": [],
        "train_command": "python scripts/train.py configs/vae_small.yaml",
        "train_seconds": 1.5,
        "seed": 42,
        "hardware": "a computer",
        "versions": {"torch": "2.6"},
        "git_commit": "0" * 40,
        "dataset": {"name": "digits"},
        "training": {"num_train_epochs": 2},
        "num_parameters": model.num_parameters(),
        "reference": reference,
        "history": [{"epoch": 1.0, "eval_bits_per_dim": 3.0}, {"epoch": 2.0, "eval_bits_per_dim": 2.0}],
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture
def checkpoint(trained, tmp_path, monkeypatch):
    """A copy of the checkpoint to damage, in the folder from which commands run."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "runs" / "vae_small")


def run_script(repository, name, *arguments):
    runpy.run_path(str(repository / "scripts" / name))["main"](list(map(str, arguments)))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_script_writes_everything_a_card_needs(repository, checkpoint, tmp_path, capsys):
    run_script(repository, "evaluate.py", checkpoint, "--num-importance-samples", 3, "--seed", 1)
    folder = tmp_path / "model_cards" / "vae_small"
    expected = ["config.json", "images", *(f"images/{name}" for name in IMAGES), "model.safetensors"]
    assert names(folder) == [*expected, "preprocessor_config.json", "results.json"]
    assert "model_cards/vae_small" in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    check_results(results)
    metrics = results["metrics"]
    assert results["num_images"] == 300
    assert results["dataset"] == "digits"
    assert results["split"] == "test"
    assert metrics["bits_per_dim"] == pytest.approx(metrics["negative_elbo_nats"] / (64 * math.log(2)))
    assert metrics["negative_elbo_nats"] == pytest.approx(metrics["distortion_nats"] + metrics["rate_nats"])
    assert metrics["nll_nats_iw3"] < metrics["negative_elbo_nats"]
    assert {"active_units", "linear_probe_accuracy", "reconstruction_mse"} <= set(metrics)
    assert results["diagnostics"]["zero_weights_bits_per_dim"] == pytest.approx(4, abs=1e-5)
    assert results["reference"][0]["value"] == 2.5
    assert AutoConfig.for_model(**results["model"]).to_dict().items() >= results["model"].items()
    assert results["model"]["num_levels"] == 16
    assert results["evaluate_command"] == (
        "python scripts/evaluate.py runs/vae_small --num-importance-samples 3 --seed 1"
    )
    assert results["hardware"] == "a computer"
    assert results["evaluation"]["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in (folder / "results.json").read_text()
    assert AutoModel.from_pretrained(folder).num_parameters() == results["num_parameters"]
    assert AutoImageProcessor.from_pretrained(folder).num_levels == 16


def test_same_seed_gives_the_same_numbers_and_pictures(checkpoint, tmp_path):
    first, second = (
        evaluate_checkpoint(checkpoint, tmp_path / name, num_importance_samples=2) for name in ("first", "second")
    )
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    assert {**one, "evaluation": None} == {**two, "evaluation": None}
    for name in IMAGES:
        assert (first / "images" / name).read_bytes() == (second / "images" / name).read_bytes()


def test_published_values_come_from_the_recipe_where_there_is_one(checkpoint, tmp_path):
    recipe = tmp_path / "configs" / "vae_small.yaml"
    recipe.parent.mkdir()
    recipe.write_text("reference:\n- {name: newer, metric: bits_per_dim, value: 2.25, source: another paper}\n")
    folder = evaluate_checkpoint(checkpoint, num_importance_samples=1)
    assert json.loads((folder / "results.json").read_text())["reference"][0]["value"] == 2.25


def test_a_new_evaluation_replaces_the_old_one_and_keeps_other_files(checkpoint, tmp_path):
    folder = tmp_path / "row"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "old.png").touch()
    (folder / "README.md").write_text("card")
    (folder / "results.json").write_text("old")
    evaluate_checkpoint(checkpoint, folder, num_importance_samples=1)
    assert (folder / "README.md").read_text() == "card"
    assert sorted(path.name for path in (folder / "images").iterdir()) == IMAGES
    assert json.loads((folder / "results.json").read_text())["row"] == "vae_small"


def test_the_checkpoint_may_be_its_own_output(checkpoint):
    before = names(checkpoint)
    evaluate_checkpoint(checkpoint, checkpoint, num_importance_samples=1)
    assert set(names(checkpoint)) == {*before, "results.json", "images", *(f"images/{name}" for name in IMAGES)}
    load_checkpoint(checkpoint)


def test_large_weights_stay_out_of_the_row(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_latentgen.evaluation.results.MAX_WEIGHT_BYTES", 1000)
    folder = evaluate_checkpoint(checkpoint, tmp_path / "row", num_importance_samples=1)
    assert not (folder / "model.safetensors").exists()
    assert (folder / "config.json").exists()


def test_images_without_labels_have_no_linear_probe(checkpoint, tmp_path, monkeypatch):
    def load_without_labels(name, split, data_dir):
        return load_images(name, split, data_dir=data_dir).remove_columns("label")

    monkeypatch.setattr("hf_latentgen.evaluation.results.load_images", load_without_labels)
    folder = evaluate_checkpoint(checkpoint, tmp_path / "row", num_importance_samples=1)
    assert "linear_probe_accuracy" not in json.loads((folder / "results.json").read_text())["metrics"]
    assert not (folder / "images" / "latents.png").exists()


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
    model = VAEModel.from_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if "encoder" in name}
    model.save_pretrained(folder, state_dict=state)


def nan_weights(folder):
    model = VAEModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("run.json"), r"run.json does not exist; training writes it"),
        (lambda folder: (folder / "run.json").write_text("{"), r"run.json is not valid JSON"),
        (remove("config.json"), r"config.json does not exist"),
        (remove("model.safetensors"), r"model.safetensors does not exist"),
        (remove("preprocessor_config.json"), "holds no image processor"),
        (truncate, r"model.safetensors is truncated or corrupt"),
        (other_family, r"config.json: model_type must be one of .*'latentgen_vae'.*, got 'bert'"),
        (other_shape, r"model.safetensors does not fit config.json"),
        (no_weights_of_the_decoder, r"model.safetensors does not fit config.json, missing_keys"),
        (nan_weights, "300 of 300 images are not finite"),
    ],
)
def test_damaged_checkpoints_are_refused_and_nothing_is_written(repository, checkpoint, tmp_path, damage, message):
    damage(checkpoint)
    before = names(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run_script(repository, "evaluate.py", checkpoint)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", 0], "batch_size must be at least 1, got 0"),
        (["--num-importance-samples", 0], "num_importance_samples must be at least 1, got 0"),
        (["--split", "dev"], "split must be one of train, validation, test, got 'dev'"),
        (["--output-dir", "a_file/below"], "the output folder a_file/below is not writable"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(repository, checkpoint, tmp_path, arguments, message):
    (tmp_path / "a_file").touch()
    before = names(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run_script(repository, "evaluate.py", checkpoint, *arguments)
    assert names(tmp_path) == before


def test_sample_script_writes_a_grid(repository, checkpoint, tmp_path):
    for name in ("first.png", "second.png"):
        arguments = ("--num-images", 10, "--columns", 5, "--output", "mean", "--seed", 3, "--file", tmp_path / name)
        run_script(repository, "sample.py", checkpoint, *arguments)
    with Image.open(tmp_path / "first.png") as picture:
        assert picture.size == (2 + 5 * 58, 2 + 2 * 58)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-images", 0], "num_images must be a whole number of at least 1, got 0"),
        (["--temperature", -1], "temperature must be at least 0, got -1.0"),
        (["--file", "nowhere/samples.png"], "nowhere/samples.png"),
    ],
)
def test_sample_script_refuses_bad_arguments(repository, checkpoint, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_script(repository, "sample.py", checkpoint, *arguments)
