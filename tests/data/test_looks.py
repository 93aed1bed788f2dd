"""What is seen of images before any is read as levels."""

import numpy as np
import pytest
from PIL import Image

from data_common import write_image_folder
from hf_latentgen.data import dataset_from_arrays, load_images
from hf_latentgen.data.looks import Looks, look_at


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (40, 12, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_size_and_colours_of_files(tmp_path, colours, streaming, kind):
    for index, image in enumerate(colours):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "train" / f"{index}.{kind.lower()}", kind)
    images = load_images(tmp_path, "train", streaming=streaming)
    assert look_at(images) == Looks(width=20, height=12, has_colours=True)


def test_one_coloured_image_among_those_looked_at_counts(colours):
    grey = np.repeat(colours[..., :1], 3, axis=-1)
    # A scan is never quite grey.
    assert look_at(dataset_from_arrays(grey ^ np.uint8([0, 1, 2]), split="train")).has_colours is False
    grey[0] = colours[0]
    assert look_at(dataset_from_arrays(grey, split="train")).has_colours is True


def test_grey_images_and_images_without_a_pixel_to_see(tmp_path, colours):
    assert look_at(load_images("digits")) == Looks(8, 8, has_colours=False)
    hidden = np.concatenate([colours[:4], np.zeros((4, 12, 20, 1), np.uint8)], axis=-1)
    folder = write_image_folder(tmp_path / "hidden", hidden)
    assert look_at(load_images(folder)).has_colours is False


def test_broken_images_are_passed_over(tmp_path, colours):
    write_image_folder(tmp_path, colours[:4])
    for path in sorted(tmp_path.rglob("*.png"))[:2]:
        path.write_bytes(b"broken")
    assert look_at(load_images(tmp_path, "train")) == Looks(20, 12, has_colours=True)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"broken")
    assert look_at(load_images(tmp_path, "train")) is None


def test_the_last_images_are_looked_at_too(colours):
    grey = np.repeat(colours[:31, ..., :1], 3, axis=-1)
    grey[16:] = colours[16:31]
    assert look_at(dataset_from_arrays(grey, split="train")).has_colours is True
