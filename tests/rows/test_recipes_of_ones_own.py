"""Recipes that train on a folder of images, on shards and on texts of one's own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from hf_latentgen import LevelsDataset, load_images, load_text
from hf_latentgen.data import dataset_from_arrays
from hf_latentgen.families import inputs
from hf_latentgen.hub.loading import load
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.training.elbo import ELBOTrainer
from hf_latentgen.training.likelihood import LikelihoodTrainer
from rows_common import write_text_recipe

pytestmark = pytest.mark.usefixtures("nothing_outside")


def score(folder, split="validation", **where):
    """Bits per dimension of a saved model on the first images of a split, with seeded posterior samples."""
    checkpoint = load(folder)
    model, processor = checkpoint.model, checkpoint.processor
    name = json.loads((folder / "run.json").read_text())["dataset"]["name"]
    levels = LevelsDataset(load_images(name, split, **where), processor).levels[:4]
    return model.bits_per_dim(levels, generator=torch.Generator().manual_seed(0)).mean().item()


def test_a_saved_model_goes_on_with_the_images_of_a_folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    for split, images in (("train", pixels[:16]), ("validation", pixels[16:20]), ("test", pixels[20:])):
        for index, image in enumerate(images):
            folder = tmp_path / "images" / split / f"class_{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    config = tmp_path / "colour.yaml"
    config.write_text(
        f"dataset: {{name: {tmp_path / 'images'}}}\n"
        "model: {architecture: course, image_size: 32, num_channels: 3, num_levels: 256, latent_dim: 4, "
        "hidden_channels: [4, 4, 4]}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 8, save_strategy: 'no', disable_tqdm: true}\n"
    )
    first = train_recipe(load_recipe(config), tmp_path / "first")
    assert score(first) == pytest.approx(8, abs=0.2)
    before = load_file(first / "model.safetensors")

    small_steps = load_recipe(config, ["training.learning_rate=0.0"])
    second = train_recipe(small_steps, tmp_path / "second", checkpoint=load(first))
    after = load_file(second / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert score(second) == score(first)
    run = json.loads((second / "run.json").read_text())
    assert run["train_command"].endswith(f"training.learning_rate=0.0 --from {first.name}")
    processor = AutoImageProcessor.from_pretrained(second)
    assert (processor.num_channels, processor.num_levels) == (3, 256)

    overridden = load_recipe(config, ["model.latent_dim=8"])
    (tmp_path / "other.yaml").write_text("model: {model_type: latentgen_aae}\n")
    other = load_recipe(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="the model type of .* must be 'latentgen_aae', as in .*, got 'latentgen_vae'"):
        train_recipe(other, tmp_path / "third", checkpoint=load(first))
    with pytest.raises(ValueError, match=r"its fields cannot be overridden, got \['model.latent_dim=8'\]"):
        train_recipe(overridden, tmp_path / "third", checkpoint=load(first))
    assert not (tmp_path / "third").exists()


def test_a_stream_of_parquet_shards(tiny, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (96, 8, 8), dtype=np.uint8)
    (tmp_path / "shards").mkdir()
    for split in ("train", "validation"):
        dataset = dataset_from_arrays(images, np.arange(96) % 10, split=split)
        for index in range(2):
            shard = dataset.shard(2, index, contiguous=True)
            shard.to_parquet(tmp_path / "shards" / f"{split}-{index:05d}-of-00002.parquet")
    words = [f"dataset.name={tmp_path / 'shards'}", "dataset.streaming=true", "training.eval_strategy=steps"]
    folder = train_recipe(
        load_recipe(tiny, [*words, "training.max_steps=4", "training.eval_steps=4"]), tmp_path / "run"
    )
    run = json.loads((folder / "run.json").read_text())
    assert run["dataset"]["streaming"] is True
    assert [entry["step"] for entry in run["history"]] == [4]
    assert score(folder) == pytest.approx(4, abs=0.3)


def test_streamed_texts_are_streamed_in_both_splits(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        inputs, "load_text", lambda *words, **options: calls.append((*words, options)) or load_text(*words, **options)
    )
    folder = train_recipe(load_recipe(write_text_recipe(tmp_path, "streaming: true")), tmp_path / "run")
    assert [(split, options["streaming"]) for _, split, options in calls] == [("train", True), ("validation", True)]
    assert (folder / "model.safetensors").is_file()


def test_copies_of_plays_are_trained_on_and_validated_without(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr(
        LikelihoodTrainer,
        "train",
        lambda self, **_: made.update(train=self.train_dataset, eval=self.eval_dataset),
    )
    train_recipe(load_recipe(write_text_recipe(tmp_path, "renamed_copies: 5")), tmp_path / "run")
    sizes = [len(made[name].input_ids) for name in ("train", "eval")]
    assert sizes[0] == pytest.approx(5 * sizes[1], rel=0.1)
    held_out = bytes(byte for byte in made["eval"].input_ids[:, 1:].flatten().tolist() if byte < 256)
    assert held_out == (tmp_path / "validation.txt").read_bytes()


def test_copies_of_a_stream_are_refused(tmp_path):
    path = write_text_recipe(tmp_path, "streaming: true, renamed_copies: 5")
    with pytest.raises(ValueError, match="renamed_copies needs a data set in memory, got a stream"):
        train_recipe(load_recipe(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_background_model_sees_replaced_pixels_and_no_class_that_is_left_out(tiny, tmp_path, monkeypatch):
    seen = {}

    def remember(self, *arguments, **options):
        seen.update(train=options["train_dataset"].levels, validation=options["eval_dataset"].levels)
        return init(self, *arguments, **options)

    init = ELBOTrainer.__init__
    monkeypatch.setattr(ELBOTrainer, "__init__", remember)
    words = ["training.max_steps=1", "dataset.leave_out_classes=[4,9]"]
    train_recipe(load_recipe(tiny, words), tmp_path / "clean")
    clean = dict(seen)
    folder = train_recipe(load_recipe(tiny, [*words, "dataset.replaced_pixels=0.25"]), tmp_path / "background")
    for split, levels in clean.items():
        images = LevelsDataset(load_images("digits", split), load(folder).processor, with_labels=True)
        kept = images.levels[~torch.isin(images.labels, torch.tensor([4, 9]))]
        assert torch.equal(levels, kept)
        assert (seen[split] != levels).float().mean().item() == pytest.approx(0.25, abs=0.04)
    run = json.loads((folder / "run.json").read_text())
    assert run["dataset"] == {"name": "digits", "leave_out_classes": [4, 9], "replaced_pixels": 0.25}


@pytest.mark.parametrize("word", ["dataset.replaced_pixels=0.2", "dataset.leave_out_classes=[4]"])
def test_a_stream_can_have_neither(tiny, tmp_path, word):
    with pytest.raises(ValueError, match=f"{word.split('=')[0]} needs a data set in memory"):
        train_recipe(load_recipe(tiny, [word, "dataset.streaming=true"]), tmp_path / "run")
