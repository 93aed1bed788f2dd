"""A folder of images is trained on by its name alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latentgen import VAEConfig, VAEModel, VLAEConfig, VLAEModel
from hf_latentgen.hub.loading import load
from hf_latentgen.rows.own_images import folder_recipe, is_folder
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from rows_common import save_checkpoint

NARROW = ["model.hidden_channels=[4,4,4]", "model.ladder_channels=[]", "training.max_steps=4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of coloured images of 20x12 pixels; tests run beside it."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 12, 20, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = tmp_path / "photos" / ("train" if index < 50 else "val" if index < 54 else "test") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


def make_grey(folder):
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)


def test_the_images_say_what_the_model_is(folder):
    recipe, (data, model, time) = folder_recipe("photos", ["model.latent_dim=7", *NARROW])
    assert (recipe.dataset["name"], recipe.model["image_size"], recipe.model["num_channels"]) == ("./photos", 12, 3)
    assert (recipe.model["latent_dim"], recipe.model["num_levels"]) == (7, 256)
    assert data == "photos: 50 coloured images of 20x12 for training, 4 for validation, 6 for test"
    assert model.startswith("own_images: 3 channels, 12x12 pixels, 256 levels, 7 latents, ")
    assert time.startswith("4 steps of 8 images, each image 0.64 times: about ")
    make_grey(folder)
    recipe, (data, *_) = folder_recipe("photos", NARROW)
    assert recipe.model["num_channels"] == 1
    assert "50 grey images" in data


def test_what_is_overridden_and_the_largest_size_stand(folder):
    (folder / "train").rename(folder.parent / "large")
    for path in (folder.parent / "large").iterdir():
        with Image.open(path) as image:
            image.resize((200, 100)).save(path)
    recipe, (data, *_) = folder_recipe("large", NARROW)
    assert recipe.model["image_size"] == 32
    assert "none for test: evaluate with --split validation" in data
    recipe, _ = folder_recipe("large", [*NARROW, "model.image_size=16", "model.num_channels=1"])
    assert (recipe.model["image_size"], recipe.model["num_channels"]) == (16, 1)


def test_a_training_of_a_folder_runs_scores_and_says_what_it_was(folder):
    recipe, _ = folder_recipe("photos", NARROW)
    run = json.loads((train_recipe(recipe, "runs/photos") / "run.json").read_text())
    assert run["row"] == "photos"
    assert run["train_command"].startswith(
        "hf-latentgen train configs/own_images.yaml dataset.name=./photos model.image_size=12 model.num_channels=3 "
    )
    # Lengths are shares of the run.
    assert [entry["step"] for entry in run["history"]] == [1, 2, 3, 4]
    scores = run["verdict"]["scores"]
    assert scores["the uniform code"] == 8
    assert load("runs/photos").model.config.num_channels == 3


def test_a_folder_with_a_model_to_start_from_keeps_its_fields(folder):
    make_grey(folder)
    torch.manual_seed(0)
    model = VLAEModel(VLAEConfig(image_size=8, latent_dim=2, hidden_channels=[4], decoder_channels=8))
    start = load(save_checkpoint(model, folder.parent / "start"))
    recipe, (_, model, _) = folder_recipe("photos", ["training.max_steps=2"], start)
    assert "1 channels, 8x8 pixels, 16 levels, 2 latents, " in model
    assert load(train_recipe(recipe, "runs/on", checkpoint=start)).model.config.image_size == 8


def test_a_row_is_a_row_even_beside_a_folder_of_its_name(folder):
    (folder.parent / "vae_digits").mkdir()
    assert is_folder("photos")
    assert not is_folder("vae_digits")
    assert not is_folder("nothing")


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_each_size_makes_a_model(folder, size, monkeypatch):
    monkeypatch.setattr("hf_latentgen.rows.own_images.step_seconds", lambda *_: 0.1)
    recipe, _ = folder_recipe("photos", [f"size={size}"])
    assert recipe.training["max_steps"] >= 1000


def test_folders_without_images_are_refused(folder):
    for path in (folder / "train").iterdir():
        path.write_text("no image")
    with pytest.raises(ValueError, match="photos must hold images for training, got none that can be read"):
        folder_recipe("photos")


@pytest.mark.parametrize("name", ["Photos #2", "a: b", "x${y}", "5", "[z]", 'say "no"', "it's", "${"])
def test_a_folder_may_have_any_name(folder, name):
    other = folder.rename(folder.with_name(name))
    recipe, (data, *_) = folder_recipe(name, NARROW)
    assert recipe.dataset["name"] == f"./{other.name}"
    assert data.startswith(f"{name}: 50 coloured images of 20x12")
    # As it is written into the command of the training.
    again = load_recipe(recipe.path, recipe.overrides)
    assert again.dataset == recipe.dataset


def test_the_folder_that_one_is_in_has_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert folder_recipe(".", NARROW)[0].dataset["name"] == str(folder)
    monkeypatch.chdir(folder / "train")
    assert folder_recipe("..", NARROW)[0].dataset["name"] == str(folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps=abc", "max_steps must be int, got 'abc'"),
        ("training.max_steps=0", "max_steps must be above 0, got 0"),
        ("training.eval_steps=0", "eval_steps must be above 0, got 0"),
        ("training.per_device_train_batch_size=0", "per_device_train_batch_size must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_timed(folder, override, message):
    with pytest.raises(ValueError, match=message):
        folder_recipe("photos", [*NARROW[:2], override])


def test_a_start_of_another_family_is_refused(folder, tmp_path):
    config = VAEConfig(image_size=8, hidden_channels=[4, 4, 4])
    start = load(save_checkpoint(VAEModel(config), tmp_path / "vae"))
    with pytest.raises(ValueError, match="the model type of .* must be 'latentgen_vlae'"):
        folder_recipe("photos", [], start)


def test_an_unknown_size_is_refused(folder):
    with pytest.raises(ValueError, match="size must be one of small, base, large, got 'huge'"):
        folder_recipe("photos", ["size=huge"])


def test_a_checkpoint_is_no_folder_of_images(folder, tmp_path):
    run = save_checkpoint(VAEModel(VAEConfig(image_size=8, latent_dim=2, hidden_channels=[4, 4, 4])), tmp_path / "run")
    (run / "images").mkdir()
    Image.new("L", (8, 8)).save(run / "images" / "samples.png")
    with pytest.raises(ValueError, match="is a checkpoint and no folder of images: train its recipe --from"):
        folder_recipe(str(run))


def test_a_folder_in_another_one_is_no_data_set_of_the_hub(folder):
    (folder.parent / "data").mkdir()
    folder.rename(folder.parent / "data" / "dogs")
    assert folder_recipe("data/dogs", NARROW)[0].dataset["name"] == "./data/dogs"


def test_the_time_counts_each_evaluation(folder, monkeypatch):
    monkeypatch.setattr("hf_latentgen.rows.own_images.step_seconds", lambda *_: 1.0)
    words = [word for word in NARROW if "max_steps" not in word] + ["training.max_steps=1000"]
    _, shares = folder_recipe("photos", [*words, "training.eval_steps=0.01"])
    _, steps = folder_recipe("photos", [*words, "training.eval_steps=10", "training.save_steps=10"])
    assert shares[-1] == steps[-1]


def test_images_that_are_left_out_are_named_by_their_place_in_the_folder(folder):
    for name in ("a", "b"):
        (folder / "train" / name).mkdir()
        (folder / "train" / name / "bad.png").write_bytes(b"no image")
    recipe, _ = folder_recipe("photos", [*NARROW, "dataset.skip_broken=true"])
    run = json.loads((train_recipe(recipe, "runs/photos") / "run.json").read_text())
    assert sorted(run["skipped"]) == ["train/a/bad.png", "train/b/bad.png"]
