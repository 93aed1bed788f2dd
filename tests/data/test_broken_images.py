"""Images that cannot be used are named, by file or row, with the reason; or left out and listed."""

import logging

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image
from torch.utils.data import DataLoader

from data_common import write_image_folder, write_parquet
from hf_latentgen.data import LevelsDataset, collate_levels, load_images, stream_levels

KINDS = {
    "truncated": "truncated",
    "text": "it is no image that Pillow can read",
    "empty": "it is no image that Pillow can read",
    "sixteen_bit": r"8 bits per channel, got a PIL image of mode 'I;16'; save it with 8 bits per channel",
    "float": r"8 bits per channel, got a PIL image of mode 'F'; save it with 8 bits per channel",
    "bomb": "exceeds limit of 100 pixels",
}


def break_image(path, kind):
    """Put one of the kinds at the place of an image."""
    image = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    if kind == "sixteen_bit":
        PIL.Image.fromarray(image.astype(np.uint16) * 256).save(path)
    elif kind == "float":
        PIL.Image.fromarray(image.astype(np.float32)).save(path, format="TIFF")
    elif kind == "bomb":
        PIL.Image.fromarray(image).save(path)
    elif kind == "truncated":
        PIL.Image.fromarray(image).save(path)
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.write_bytes(b"no image" if kind == "text" else b"")


@pytest.fixture
def folder(tmp_path, random_images):
    """40 images of cats and dogs, 6x5."""
    write_image_folder(tmp_path / "pictures", random_images[:4], split="validation")
    return write_image_folder(tmp_path / "pictures", random_images[:40])


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    """Pillow refuses more than twice 50 pixels, but warns above 50."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)


def read(dataset, processor, skipped=None, with_labels=False):
    """Levels and labels of a data set or a stream."""
    if isinstance(dataset, Dataset):
        levels = LevelsDataset(dataset, processor, with_labels, skipped)
        return levels.levels, levels.labels
    batch = collate_levels(list(stream_levels(dataset, processor, with_labels, skipped)))
    return batch["pixel_values"], batch.get("labels")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_named_with_reason_and_remedy(folder, processor, kind, streaming):
    limit = kind != "bomb"
    path = folder / "train" / "dog" / "7.png"
    if limit:
        PIL.Image.MAX_IMAGE_PIXELS = None
    break_image(path, kind)
    message = rf"{path} cannot be used: .*{KINDS[kind]}.* Repair or remove it, or .* dataset.skip_broken=true"
    with pytest.raises(ValueError, match=message):
        read(load_images(folder, streaming=streaming), processor)


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_images_are_left_out_and_listed(folder, processor, random_images, caplog, streaming):
    PIL.Image.MAX_IMAGE_PIXELS = None
    kinds = {"truncated": "dog/7.png", "text": "cat/8.png", "sixteen_bit": "dog/31.png"}
    for kind, name in kinds.items():
        break_image(folder / "train" / name, kind)
    skipped = {}
    dataset = load_images(folder, streaming=streaming)
    with caplog.at_level(logging.WARNING):
        levels, labels = read(dataset, processor, skipped, with_labels=True)
    assert {name.split("train/")[1] for name in skipped} == set(kinds.values())
    assert "truncated" in skipped[str(folder / "train" / "dog" / "7.png")]
    assert caplog.text.count("is left out") == 3
    kept = [number for number in (*range(0, 40, 2), *range(1, 40, 2)) if number not in (7, 8, 31)]
    # Labels stay with their images.
    found = {(image.numpy().tobytes(), int(label)) for image, label in zip(levels, labels, strict=True)}
    assert found == {(random_images[number].tobytes(), number % 2) for number in kept}
    # The next pass lists nothing twice.
    before = dict(skipped)
    read(dataset, processor, skipped)
    assert skipped == before


def test_a_stream_of_several_passes_and_a_loader_lists_each_broken_image_once(folder, processor):
    PIL.Image.MAX_IMAGE_PIXELS = None
    break_image(folder / "train" / "dog" / "7.png", "truncated")
    skipped = {}
    stream = stream_levels(load_images(folder, streaming=True), processor, skipped=skipped).shuffle(1, buffer_size=9)
    loader = DataLoader(stream, batch_size=8, collate_fn=collate_levels)
    for _ in range(2):
        assert sum(len(batch["pixel_values"]) for batch in loader) == 39
    assert list(skipped) == [str(folder / "train" / "dog" / "7.png")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_image_in_parquet_is_named_by_its_row(tmp_path, processor, random_images, streaming):
    images = [*map(PIL.Image.fromarray, random_images[:50]), None, PIL.Image.fromarray(random_images[50])]
    dataset = Dataset.from_dict({"image": images}, features=Features(image=Image()))
    folder = write_parquet(tmp_path / "data", {"train": dataset, "validation": dataset}, num_shards=1)
    stored = load_images(folder, streaming=streaming)
    with pytest.raises(ValueError, match="row 50 of train cannot be used: it holds no image, but None"):
        read(stored, processor)
    skipped = {}
    levels, _ = read(stored, processor, skipped)
    assert skipped == {"row 50 of train": "it holds no image, but None"}
    assert (levels[:, 0].numpy() == random_images[:51]).all()


def test_a_broken_image_in_parquet_is_named_by_row_and_file(tmp_path, processor, random_images):
    rows = [{"bytes": b"no image", "path": "cat.png"}]
    dataset = Dataset.from_dict({"image": rows}, features=Features(image=Image()), split="test")
    with pytest.raises(ValueError, match=r"row 0 of test \(cat\.png\) cannot be used: it is no image that Pillow can"):
        LevelsDataset(dataset, processor)


def test_a_data_set_of_broken_images_is_empty(tmp_path, processor):
    rows = [{"bytes": b"no image", "path": "cat.png"}] * 2
    dataset = Dataset.from_dict({"image": rows}, features=Features(image=Image()), split="test")
    skipped = {}
    with pytest.raises(ValueError, match="must hold at least one image for split 'test'"):
        LevelsDataset(dataset, processor, skipped=skipped)
    assert len(skipped) == 2
