"""Colour patches of photographs: shapes, classes, and that no pixel is in two splits."""

import numpy as np
import pytest

from hf_latentgen import load_images
from hf_latentgen.data.photos import COLUMNS, PATCH_SIZE, cut, photo_patches


@pytest.mark.parametrize(("split", "number"), [("train", 4500), ("validation", 52), ("test", 78)])
def test_a_split_has_colour_patches_of_both_photographs(split, number):
    photos = load_images("photos", split)
    assert len(photos) == number
    assert photos.features["label"].names == ["china", "flower"]
    assert np.bincount(photos["label"]).tolist() == [number // 2] * 2
    assert photos[0]["image"].size == (32, 32)
    assert photos[0]["image"].mode == "RGB"


def test_splits_share_no_pixel(monkeypatch):
    # Photographs whose pixels tell where they are.
    height, width = 427, 640
    places = np.arange(2 * height * width).reshape(2, height, width, 1)

    class Numbered:
        images = list(places)

    monkeypatch.setattr("hf_latentgen.data.photos.load_sample_images", Numbered)
    pixels = {split: set(photo_patches(split)[0].ravel().tolist()) for split in ("train", "validation", "test")}
    assert not pixels["train"] & pixels["test"]
    assert not pixels["train"] & pixels["validation"]
    assert not pixels["validation"] & pixels["test"]
    held_out = sum(len(columns) for columns in COLUMNS.values()) * PATCH_SIZE
    assert len(pixels["validation"] | pixels["test"]) == 2 * held_out * (height - height % PATCH_SIZE)


def test_patches_are_cut_row_by_row():
    image = np.arange(6 * 8 * 3).reshape(6, 8, 3)
    patches = cut(image, 4, 2)
    assert patches.shape == (6, 4, 4, 3)
    assert np.array_equal(patches[4], image[2:6, 2:6])


@pytest.mark.parametrize("region", [(31, 64, 3), (64, 31, 3)])
def test_a_region_smaller_than_a_patch_is_refused(region):
    with pytest.raises(ValueError, match=r"region must be at least 32x32, got \d+x\d+"):
        cut(np.zeros(region), 32, 8)


@pytest.mark.parametrize("sizes", [(0, 8), (32, 0)])
def test_a_size_below_one_is_refused(sizes):
    with pytest.raises(ValueError, match="size and stride"):
        cut(np.zeros((64, 64, 3)), *sizes)
