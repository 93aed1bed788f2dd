"""The batch path: levels of all images, gathered at once or streamed."""

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from data_common import pixels, write_parquet
from hf_latentgen.data import (
    LevelsDataset,
    collate_levels,
    dataset_from_arrays,
    load_images,
    stream_levels,
)
from hf_latentgen.data.levels import replace_pixels
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor


def test_levels_dataset_holds_the_levels_of_every_image(random_images):
    dataset = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    levels = LevelsDataset(dataset, LevelsImageProcessor(size=(6, 5), num_levels=16), with_labels=True)
    assert len(levels) == 60
    assert levels.levels.dtype == torch.uint8
    assert (levels.levels.numpy() == random_images[:, None] >> 4).all()
    assert levels.labels.tolist() == [i % 3 for i in range(60)]
    assert levels.labels.dtype == torch.int64


def test_a_batch_gathered_at_once_equals_its_examples(random_images, processor):
    dataset = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    levels = LevelsDataset(dataset, processor, with_labels=True)
    rows = [7, 3, 3, 59]
    batch = collate_levels(levels.__getitems__(rows))
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (4, 1, 6, 5)
    one_by_one = collate_levels([levels[row] for row in rows])
    assert torch.equal(batch["pixel_values"], one_by_one["pixel_values"])
    assert torch.equal(batch["labels"], one_by_one["labels"])


def test_data_loader_takes_the_fast_path(random_images, processor, monkeypatch):
    levels = LevelsDataset(dataset_from_arrays(random_images, split="train"), processor)
    monkeypatch.setattr(LevelsDataset, "__getitem__", None)
    loader = DataLoader(levels, batch_size=16, shuffle=True, collate_fn=collate_levels)
    batches = [batch["pixel_values"] for batch in loader]
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
    seen = sorted(image.numpy().tobytes() for image in torch.cat(batches))
    assert seen == sorted(image.tobytes() for image in random_images)


def test_without_labels_none_are_kept(random_images, processor):
    dataset = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    levels = LevelsDataset(dataset, processor)
    assert levels.labels is None
    assert levels[0].keys() == {"pixel_values"}


def test_images_of_other_sizes_and_modes_are_brought_to_one_form(processor):
    pictures = [PILImage.new("RGB", (9, 3), "white"), PILImage.new("L", (5, 6), 0), PILImage.new("RGBA", (50, 60))]
    dataset = Dataset.from_dict({"image": pictures}, features=Features(image=Image()))
    levels = LevelsDataset(dataset, processor).levels
    assert levels.shape == (3, 1, 6, 5)
    assert [int(image.max()) for image in levels] == [255, 0, 255]


def test_colour_arrays_become_rgb_images():
    colour = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 3), dtype=np.uint8)
    dataset = dataset_from_arrays(colour, split="train")
    assert dataset[0]["image"].mode == "RGB"
    levels = LevelsDataset(dataset, LevelsImageProcessor(size=(3, 4), num_channels=3, num_levels=256)).levels
    assert (levels.numpy() == np.moveaxis(colour, -1, 1)).all()


def test_a_stream_gives_the_same_levels_as_the_data_set(tmp_path, random_images, processor):
    full = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    folder = write_parquet(tmp_path / "data", {"train": full, "validation": full})
    stream = load_images(folder, "train", streaming=True)
    examples = list(stream_levels(stream, processor, with_labels=True))
    assert examples[0]["pixel_values"].dtype == torch.uint8
    assert examples[0]["labels"].dtype == torch.int64
    batch = collate_levels(examples)
    levels = LevelsDataset(load_images(folder, "train"), processor, with_labels=True)
    assert torch.equal(batch["pixel_values"], levels.levels)
    assert torch.equal(batch["labels"], levels.labels)
    assert next(iter(stream_levels(stream, processor))).keys() == {"pixel_values"}
    assert torch.equal(LevelsDataset(stream, processor, with_labels=True).labels, levels.labels)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_can_be_shuffled_and_batched(tmp_path, random_images, processor, num_workers, monkeypatch):
    # At the end of a shuffled stream of parquet files datasets sleeps five seconds.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    full = dataset_from_arrays(random_images, split="train")
    folder = write_parquet(tmp_path / "data", {"train": full, "validation": full})
    stream = load_images(folder, "train", streaming=True).shuffle(seed=1, buffer_size=20)
    loader = DataLoader(
        stream_levels(stream, processor), batch_size=16, collate_fn=collate_levels, num_workers=num_workers
    )
    seen = sorted(image.numpy().tobytes() for batch in loader for image in batch["pixel_values"])
    assert seen == sorted(image.tobytes() for image in random_images)


def test_named_sets_can_be_streamed():
    stream = load_images("digits", "validation", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert (pixels(stream) == pixels(load_images("digits", "validation"))).all()


def test_labels_that_are_not_there_are_refused(random_images, processor):
    dataset = dataset_from_arrays(random_images, split="train")
    for make in (LevelsDataset, stream_levels):
        with pytest.raises(ValueError, match="dataset must have a column 'label', got image"):
            make(dataset, processor, with_labels=True)
    with pytest.raises(ValueError, match="dataset must have a column 'image', got text"):
        LevelsDataset(Dataset.from_dict({"text": ["a"]}), processor)


def test_an_empty_data_set_is_refused(random_images, processor):
    dataset = dataset_from_arrays(random_images, split="train").select([])
    with pytest.raises(ValueError, match="at least one image for split 'train', got an empty data set"):
        LevelsDataset(dataset, processor)


def test_saved_and_reloaded_data_sets_keep_their_images(tmp_path, random_images):
    full = DatasetDict(test=dataset_from_arrays(random_images, np.arange(60) % 3, split="test"))
    full.save_to_disk(tmp_path / "saved")
    assert (pixels(DatasetDict.load_from_disk(tmp_path / "saved")["test"]) == random_images).all()


def test_a_share_of_the_pixels_is_replaced_by_levels_drawn_at_random():
    levels = torch.full((1500, 1, 6, 5), 3, dtype=torch.uint8)
    replaced = replace_pixels(levels, 0.3, 16, seed=1)
    assert replaced.dtype == torch.uint8
    assert (levels == 3).all()
    # Of 45,000 values; one of sixteen is replaced by what it was.
    assert (replaced != 3).float().mean().item() == pytest.approx(0.3 * 15 / 16, abs=0.01)
    counts = replaced[replaced != 3].long().bincount(minlength=16)
    expected = (torch.arange(16) != 3) * counts.sum() / 15
    assert counts.tolist() == pytest.approx(expected.tolist(), rel=0.15)
    assert not torch.equal(replaced[:476], replaced[1024:])
    assert torch.equal(replaced, replace_pixels(levels, 0.3, 16, seed=1))
    assert not torch.equal(replaced, replace_pixels(levels, 0.3, 16, seed=2))
    assert replace_pixels(levels, 1, 2, seed=1).max() == 1


@pytest.mark.parametrize("share", [0, -0.1, 1.1, True, "0.2", float("nan"), None])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError) as raised:
        replace_pixels(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), share, 16, seed=0)
    assert str(raised.value) == f"dataset.replaced_pixels must be above 0 and at most 1, got {share!r}."
