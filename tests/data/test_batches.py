"""Batches are gathered at once for those who know them, and are lists of samples for all others."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainingArguments

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.data import LevelsDataset, TokenBlocksDataset, collate_levels, dataset_from_arrays
from hf_latentgen.data.batches import GatheredDataset
from hf_latentgen.training.few_labels import FewLabelsDataset


@pytest.fixture
def levels(random_images, processor):
    return LevelsDataset(dataset_from_arrays(random_images, np.arange(60) % 3, split="train"), processor, True)


@pytest.fixture(params=["levels", "blocks", "few_labels"])
def dataset(request, levels):
    """Each data set whose batches are gathered."""
    if request.param == "blocks":
        return TokenBlocksDataset(Dataset.from_dict({"text": ["some text"] * 20}), 8)
    return levels if request.param == "levels" else FewLabelsDataset(levels, 6, 2, seed=0)


def test_a_batch_is_a_list_of_samples(dataset):
    batch = dataset.__getitems__([3, 1, 2])
    gathered = dataset.gather([3, 1, 2])
    assert len(batch) == len(next(iter(gathered.values()))) >= 3
    assert batch[0].keys() == gathered.keys()
    for name, values in gathered.items():
        assert torch.equal(torch.stack([sample[name] for sample in batch]), values)
        assert torch.equal(torch.stack([batch[index][name] for index in range(len(batch))]), values)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_plain_data_loader_gives_the_same_batches(dataset, num_workers):
    plain = DataLoader(dataset, batch_size=4, num_workers=num_workers)
    fast = DataLoader(dataset, batch_size=4, collate_fn=collate_levels)
    for batch, expected in zip(plain, fast, strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_subset_keeps_the_fast_path(levels, monkeypatch):
    monkeypatch.setattr(GatheredDataset, "__getitem__", None)
    loader = DataLoader(Subset(levels, [5, 9, 2]), batch_size=3, collate_fn=collate_levels)
    assert torch.equal(next(iter(loader))["pixel_values"], levels.levels[[5, 9, 2]])


def test_the_fast_path_cuts_no_batch_apart(levels):
    batch = levels.__getitems__([1, 2])
    assert collate_levels(batch) is batch.columns


def test_a_plain_trainer_trains(random_images, tmp_path):
    from hf_latentgen import LevelsImageProcessor

    processor = LevelsImageProcessor(size=(8, 8))
    images = LevelsDataset(dataset_from_arrays(random_images, split="train"), processor)
    model = VAEModel(VAEConfig(architecture="mlp", image_size=8, latent_dim=2))
    arguments = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=images, eval_dataset=images)
    trainer.train()
    assert trainer.state.global_step == 2
    assert np.isfinite(trainer.evaluate(images)["eval_loss"])
