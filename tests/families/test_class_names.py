"""The names of the classes of a data set reach the checkpoint, the pipeline and the card."""

import json

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import pipeline

from hf_latentgen import load
from hf_latentgen.families.family import Options
from hf_latentgen.rows.cards import card_text
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from hf_latentgen.rows.recipes import load_recipe, train_recipe

RECIPE = """
dataset: {name: FOLDER}
model: {model_type: latentgen_aae, architectures: [AAEForImageClassification], architecture: mlp, image_size: 8,
        num_levels: 16, latent_dim: 2, hidden_channels: [8], discriminator_channels: [8]MORE}
training: {max_steps: 2, per_device_train_batch_size: 8, save_strategy: 'no', disable_tqdm: true}
"""


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, cat and dog."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for index, image in enumerate(pixels):
        split = "test" if index < 8 else "train"
        path = tmp_path / "images" / split / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def recipe(tmp_path, folder, more=""):
    path = tmp_path / "pets.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(folder)).replace("MORE", more))
    return load_recipe(path)


@pytest.mark.filterwarnings("ignore")
def test_from_the_folder_to_checkpoint_pipeline_and_card(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("hf_latentgen.families.aae.NUM_DRAWN", 40)
    run = train_recipe(recipe(tmp_path, folder), tmp_path / "run")
    assert json.loads((run / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    answer = pipeline("image-classification", model=str(run), device="cpu")(Image.new("L", (8, 8)))
    assert {entry["label"] for entry in answer} == {"cat", "dog"}
    evaluation = evaluate(load(run))
    write_evaluation(evaluation, run, run)
    assert "| Classes | cat, dog |" in card_text(run, "a/b")


def test_another_number_of_classes_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"^model.num_labels must be 2, the classes of .*, got 10"):
        train_recipe(recipe(tmp_path, folder, ", num_labels: 10"), tmp_path / "run")


@pytest.mark.parametrize(
    "labels", [["cat", "dog"], [0.5, 1.5], [None, None], [[1], [2]]], ids=["strings", "floats", "none", "lists"]
)
def test_labels_of_any_kind_do_not_stop_the_evaluation_of_a_vae(tmp_path, labels):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    columns = {"image": images, "label": [labels[index % 2] for index in range(len(images))]}
    (tmp_path / "images").mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_dict(columns).to_parquet(tmp_path / "images" / f"{split}-00000-of-00001.parquet")
    path = tmp_path / "any.yaml"
    path.write_text(
        f"dataset: {{name: {tmp_path / 'images'}}}\n"
        "model: {architecture: mlp, image_size: 8, latent_dim: 2, hidden_channels: [8]}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 8, save_strategy: 'no', disable_tqdm: true}\n"
    )
    run = train_recipe(load_recipe(path), tmp_path / "run")
    results = evaluate(load(run), options=Options(num_importance_samples=1)).results
    assert results.num_images == 20
    # Only strings make classes.
    assert ("linear_probe_accuracy" in results.metrics) == (labels == ["cat", "dog"])
