import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app_common import make_checkpoint
from hf_latentgen import AAEConfig, AAEForImageClassification, LevelsImageProcessor
from hf_latentgen.app import inference
from hf_latentgen.app.checkpoints import FIRST_ROWS, MNIST, NEEDS, default_checkpoints, load_checkpoints
from hf_latentgen.hub import loading
from hub_common import make_results

DATA = os.environ.get("HF_LATENTGEN_DATA")


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("HF_LATENTGEN_DATA", raising=False)


def names(checkpoints, need):
    return {checkpoint.name for checkpoint in checkpoints.fitting(need)}


def test_each_need_is_met_by_the_families_that_fit(checkpoints):
    planes = {"vae_plane", "vae_other_size", "vae_colour", "aae_colour", "aae_flower"}
    autoencoders = planes | {"vae", "vae_mnist", "aae", "aae_classes"}
    transformers = {"pixels", "pixels_classes"}
    assert names(checkpoints, "map") == planes
    assert names(checkpoints, "autoencoder") == autoencoders
    assert names(checkpoints, "complete") == transformers
    assert names(checkpoints, "sample") == autoencoders | transformers
    assert names(checkpoints, "text") == {"bytes"}


@pytest.mark.parametrize("need", NEEDS)
def test_what_does_not_fit_is_refused_with_what_would(checkpoints, need):
    fitting = names(checkpoints, need)
    for name in checkpoints:
        if name in fitting:
            assert checkpoints.pick(name, need) is checkpoints[name]
        else:
            with pytest.raises(ValueError, match=f"got '{name}' .*Fitting: ") as refused:
                checkpoints.pick(name, need)
            assert all(found in str(refused.value) for found in fitting)
    for name in ("elsewhere", None, ""):
        with pytest.raises(ValueError, match="not loaded"):
            checkpoints.pick(name, need)


def test_a_need_without_any_model_says_so(folders):
    with pytest.raises(ValueError, match=r"transformer of text, got 'vae' \(variational autoencoder\).*none is loaded"):
        load_checkpoints([str(folders["vae"])]).pick("vae", "text")


def test_only_models_that_know_classes_have_some(checkpoints):
    knowing = {name: checkpoint.num_classes for name, checkpoint in checkpoints.items() if checkpoint.num_classes}
    assert knowing == {"aae_flower": 10, "aae_classes": 10, "pixels_classes": 10}


def test_a_latent_prior_draws_what_its_pipeline_draws(repository):
    row = repository / "model_cards" / "prior_vae_mnist"
    checkpoint = load_checkpoints([str(row)])["prior_vae_mnist"]
    assert (checkpoint.family, checkpoint.num_classes) == ("latent diffusion prior", 0)
    (picture,) = inference.sample(checkpoint, 4, 1, inference.ANY_CLASS, "mean", 3)
    drawn = checkpoint.prior(4, torch.Generator().manual_seed(3), output="mean", output_type="pt").images
    assert np.array_equal(np.asarray(picture), np.asarray(inference.grid(checkpoint, drawn, 2, inference.GRID_WIDTH)))
    with pytest.raises(ValueError, match="Temperature must be 1 for a latent diffusion prior"):
        next(inference.sample(checkpoint, 4, 0.5, inference.ANY_CLASS, "mean", 3))
    # Nothing else is done with it: its autoencoder is a row of its own.
    assert names(load_checkpoints([str(row)]), "autoencoder") == set()


def test_the_rows_that_a_tab_opens_on_stand_first():
    rows = [Path(folder).name for folder in default_checkpoints()]
    assert tuple(rows[: len(FIRST_ROWS)]) == FIRST_ROWS
    assert len(set(rows)) == len(rows)


def test_a_model_is_introduced_by_its_card(repository, checkpoints):
    row = load_checkpoints([str(repository / "model_cards" / "vae_digits")])["vae_digits"]
    assert row.about.startswith("A variational autoencoder of 8x8 images of scikit-learn digits: **")
    assert "## Limitations" in row.card
    # Pictures are not served, and metadata are for the Hub.
    assert not any(word in row.card for word in ("![", "(images/", "library_name", "Gallery", "history.png"))
    assert checkpoints["vae"].card == ""
    assert checkpoints["vae"].about == "A variational autoencoder."
    assert checkpoints["aae"].about == "An adversarial autoencoder."
    on_the_hub = dataclasses.replace(row, name="ada/digits")
    assert on_the_hub.about == f"{row.about} [Its card](https://huggingface.co/ada/digits)"


def test_visitors_are_not_told_where_data_lies(folders, tmp_path):
    folder = Path(shutil.copytree(folders["vae_other_size"], tmp_path / "row"))
    for split in ("train", "test"):
        for number in range(2):
            target = tmp_path / "my_photos" / split
            target.mkdir(parents=True, exist_ok=True)
            Image.new("L", (12, 12), 90 * number).save(target / f"{number}.png")
    (folder / "run.json").write_text(json.dumps({"row": "row", "dataset": {"name": str(tmp_path / "my_photos")}}))
    assert load_checkpoints([str(folder)])["row"].digits.source == "2 test images of my_photos"


def test_models_of_eight_pixels_are_shown_the_test_digits(checkpoints):
    digits = checkpoints["vae"].digits
    assert digits.levels.shape == (300, 1, 8, 8)
    assert len(np.unique(digits.labels)) == 10
    assert "300 test images of scikit-learn digits" in digits.source


def test_test_digits_of_mnist_travel_with_the_demo(checkpoints, data_root):
    digits = checkpoints["vae_mnist"].digits
    assert digits.levels.shape == (500, 1, 28, 28)
    assert digits.source == "500 test images of MNIST"
    assert np.bincount(digits.labels).min() > 30
    # Strokes in the middle of an empty field.
    assert digits.levels[..., :2].float().mean() < 0.01 * digits.levels[..., 10:18].float().mean()
    assert sum(path.stat().st_size for path in MNIST.glob("*.gz")) < 100_000
    assert "Attribution-ShareAlike" in (MNIST / "README.md").read_text()


@pytest.mark.skipif("HF_LATENTGEN_DATA" not in os.environ, reason="HF_LATENTGEN_DATA does not name the folder of MNIST")
def test_the_digits_that_travel_are_those_of_the_whole_test_split(folders):
    folder = str(folders["vae_mnist"])
    whole = load_checkpoints([folder], DATA)["vae_mnist"].digits
    here = load_checkpoints([folder])["vae_mnist"].digits
    assert torch.equal(whole.levels, here.levels)
    assert np.array_equal(whole.labels, here.labels)


@pytest.mark.parametrize("name", ["vae_other_size", "vae_colour"])
def test_without_test_images_a_model_is_shown_its_own(checkpoints, name):
    # The digits in colour are the embedded ones, so only their size decides.
    digits = checkpoints[name].digits
    if name == "vae_colour":
        assert digits.levels.shape == (300, 3, 8, 8)
        return
    size = checkpoints[name].model.config.image_size
    assert digits.levels.shape == (500, 1, size, size)
    assert digits.labels is None
    assert "samples of the model itself" in digits.source


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_models_of_mnist_are_shown_its_test_split(folders, data_root, monkeypatch, given):
    if given == "environment":
        monkeypatch.setenv("HF_LATENTGEN_DATA", str(data_root))
    data_dir = str(data_root) if given == "argument" else None
    digits = load_checkpoints([str(folders["vae_mnist"])], data_dir)["vae_mnist"].digits
    assert digits.levels.shape == (500, 1, 28, 28)
    assert np.unique(digits.labels).tolist() == list(range(10))


@pytest.mark.parametrize("record", ["results.json", "run.json"])
def test_the_records_of_a_row_name_its_data(checkpoints, folders, tmp_path, record):
    folder = Path(shutil.copytree(folders["vae_other_size"], tmp_path / "row"))
    if record == "results.json":
        make_results(checkpoints["vae_other_size"].model, dataset="digits").write(folder)
    else:
        (folder / record).write_text(json.dumps({"row": "row", "dataset": {"name": "digits"}}))
    digits = load_checkpoints([str(folder)])["row"].digits
    assert digits.levels.shape == (300, 1, 12, 12)


def test_scores_of_a_likelihood_are_its_bits_and_those_of_an_error_are_squares(checkpoints):
    vae, aae = checkpoints["vae"], checkpoints["aae"]
    levels = vae.digits.levels
    expected = vae.model.bits_per_dim(levels[:100], torch.Generator().manual_seed(0))
    assert np.allclose(vae.scores[:100], expected)
    values = aae.model.reconstruct(levels) / 7.5 - 1
    expected = (values - (levels / 7.5 - 1)).square().mean((1, 2, 3))
    assert np.allclose(aae.scores, expected, atol=1e-6)
    assert vae.scores.shape == aae.scores.shape == (300,)


def test_two_checkpoints_of_one_name_are_refused(folders, tmp_path):
    copy = shutil.copytree(folders["vae"], tmp_path / "vae")
    with pytest.raises(ValueError, match="'vae' twice"):
        load_checkpoints([str(folders["vae"]), str(copy)])


def test_the_default_is_what_holds_weights(checkpoints, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "ROWS", tmp_path)
    for name in ("vae", "bytes"):
        folder = Path(shutil.copytree(folders[name], tmp_path / name))
        make_results(checkpoints[name].model).write(folder)
    (tmp_path / "only_a_card").mkdir()
    for name in ("config.json", "results.json"):
        shutil.copy(tmp_path / "vae" / name, tmp_path / "only_a_card")
    assert default_checkpoints() == [str(tmp_path / "vae"), str(tmp_path / "bytes")]
    monkeypatch.setattr(loading, "ROWS", tmp_path / "missing")
    with pytest.raises(ValueError, match="CHECKPOINT must be given"):
        default_checkpoints()


def test_a_processor_that_does_not_fit_the_model_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["aae_colour"], tmp_path / "aae_colour")
    # As whoever saves a processor without naming the channels of the model.
    LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    with pytest.raises(ValueError, match="aae_colour: num_channels of the image processor must be 3.*, got 1"):
        load_checkpoints([str(folder)])


def test_classes_have_the_names_of_the_data():
    checkpoints = load_checkpoints(["aae_mnist_all_labels", "vae_digits"])
    assert checkpoints["aae_mnist_all_labels"].class_names == [str(digit) for digit in range(10)]
    assert checkpoints["vae_digits"].class_names == []
    named = checkpoints["aae_mnist_all_labels"]
    named.model.config.id2label = dict(enumerate(["LABEL_0"] * 10))
    assert named.class_names[3] == "3"


def test_clusters_have_numbers_even_where_there_are_as_many_as_classes(tmp_path):
    fields = {"image_size": 8, "num_levels": 16, "hidden_channels": (16,), "architecture": "mlp", "latent_dim": 2}
    names = {0: "cat", 1: "dog", 2: "owl"}
    config = AAEConfig(num_clusters=3, cluster_labels=[2, 0, 0], id2label=names, **fields)
    folder = make_checkpoint(AAEForImageClassification(config), tmp_path / "clusters")
    assert load_checkpoints([str(folder)])[folder.name].class_names == ["0", "1", "2"]
