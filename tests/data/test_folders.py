"""What a user's folder may look like: the split is its first folder, the class the first folder below."""

import logging
import shutil
import zlib

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Features, Image, IterableDataset, load_dataset
from PIL import Image as PILImage

from data_common import pixels, rows_as_set, write_parquet
from hf_latentgen.data import LevelsDataset, class_names, dataset_from_arrays, load_images, stream_levels, usable_labels


def write(folder, *names, size=(5, 6)):
    """A grey image at each of these places, another one at each."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = zlib.crc32(name.encode())
        PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(path)
    return folder


def numbered(folder, count):
    return [f"{folder}/{index}.png" for index in range(count)]


def load(folder, streaming=False):
    """Images of the three splits."""
    return {split: load_images(folder, split, streaming=streaming) for split in ("train", "validation", "test")}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_split_is_the_first_folder_and_nothing_else(tmp_path, streaming):
    for name in ("cat", "test-tube", "eval", "validation"):
        write(tmp_path, *numbered(f"train/{name}", 30), *numbered(f"test/{name}", 5))
    test = load_images(tmp_path, "test", streaming=streaming)
    assert isinstance(test, IterableDataset) == streaming
    assert len(list(test)) == len(rows_as_set(test)) == 20
    assert class_names(test) == ["cat", "eval", "test-tube", "validation"]
    parts = [rows_as_set(load_images(tmp_path, split, streaming=streaming)) for split in ("train", "validation")]
    assert len(parts[0]) + len(parts[1]) == len(parts[0] | parts[1]) == 120
    assert not (parts[0] | parts[1]) & rows_as_set(test)


@pytest.mark.parametrize(
    "names",
    [("Train", "VAL", "Test"), ("TRAIN", "valid", "test"), ("train", "Dev", "TEST"), ("train", "validation", "test")],
)
def test_splits_are_named_in_any_case_and_by_their_aliases(tmp_path, names):
    for name, count in zip(names, (4, 3, 2), strict=True):
        write(tmp_path, *numbered(f"{name}/a", count), *numbered(f"{name}/b", count))
    assert {split: len(dataset) for split, dataset in load(tmp_path).items()} == {
        "train": 8,
        "validation": 6,
        "test": 4,
    }


@pytest.mark.parametrize("other", ["tst", "holdout", "cat", "training", "test-tube"])
def test_a_folder_beside_the_splits_that_is_none_is_refused(tmp_path, other):
    write(tmp_path, "Train/cat/0.png", f"{other}/cat/0.png")
    with pytest.raises(ValueError, match=f"holds Train \\(split 'train'\\), but also {other}\\."):
        load_images(tmp_path)


@pytest.mark.parametrize(("first", "second"), [("VALID", "dev"), ("val", "validation")])
def test_two_folders_of_one_split_are_refused(tmp_path, first, second):
    write(tmp_path, f"{first}/0.png", f"{second}/0.png", "test/0.png")
    with pytest.raises(ValueError, match=f"one folder of each split, got .*{first} .*{second} "):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("suspect", ["training", "Testing", "eval", "tst", "holdout"])
def test_a_folder_that_only_looks_like_a_split_is_refused(tmp_path, suspect):
    write(tmp_path, f"{suspect}/cat/0.png", "other/dog/0.png")
    with pytest.raises(ValueError, match=f"has no split, but holds {suspect},.*named train, validation, test, valid"):
        load_images(tmp_path)


def test_splits_below_another_folder_are_refused(tmp_path):
    write(tmp_path, "photos/train/cat/0.png", "photos/test/cat/0.png")
    with pytest.raises(ValueError, match="has no split, but holds photos/test, photos/train"):
        load_images(tmp_path)
    assert len(load_images(tmp_path / "photos", "test")) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_without_folders_of_classes_there_are_no_labels(tmp_path, streaming):
    write(tmp_path, *numbered("train", 6), *numbered("test", 3))
    test = load_images(tmp_path, "test", streaming=streaming)
    assert (test.column_names, class_names(test), len(list(test))) == (["image"], None, 3)
    assert not usable_labels(test)


def test_a_folder_of_loose_images_is_one_training_set(tmp_path):
    write(tmp_path, *(f"{index}.png" for index in range(60)))
    train, validation = (load_images(tmp_path, split) for split in ("train", "validation"))
    assert train.column_names == ["image"]
    assert len(train) + len(validation) == len(rows_as_set(train) | rows_as_set(validation)) == 60


def test_a_single_folder_is_no_class(tmp_path):
    write(tmp_path, *numbered("train/images", 3), *numbered("test/images", 2))
    assert load_images(tmp_path, "test").column_names == ["image"]


def test_the_class_is_the_first_folder_below_the_split(tmp_path):
    write(tmp_path, "train/cat/0.png", "train/cat/persian/1.png", "train/dog/a/b/2.png", "validation/dog/3.png")
    train = load_images(tmp_path, "train")
    assert train.features == Features(image=Image(), label=ClassLabel(names=["cat", "dog"]))
    assert train["label"][:] == [0, 0, 1]
    # A split that lacks a class counts as the others do.
    assert load_images(tmp_path, "validation")["label"][:] == [1]


def test_folders_without_splits_are_classes(tmp_path):
    write(tmp_path, *numbered("cat", 30), *numbered("dog/big", 30))
    train, validation = (load_images(tmp_path, split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 60
    for dataset in (train, validation):
        assert class_names(dataset) == ["cat", "dog"]


def test_images_beside_the_folders_of_classes_leave_no_labels_and_this_is_said(tmp_path, caplog):
    write(tmp_path, "train/cat/0.png", "train/dog/0.png", "train/loose.png", "validation/cat/0.png")
    with caplog.at_level(logging.WARNING):
        assert load_images(tmp_path).column_names == ["image"]
    assert "has no labels: 1 images lie beside the folders of the classes cat, dog" in caplog.text


def test_links_to_files_and_folders_are_followed_without_circles(tmp_path):
    write(tmp_path / "elsewhere", *numbered("a", 5), *numbered("b", 4), "c.png")
    root = write(tmp_path / "root", "validation/a/0.png", "test/a/0.png")
    (root / "train").symlink_to(write(tmp_path / "train", "a/own.png"))
    (tmp_path / "train" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "train" / "a" / "more").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "train" / "a" / "c.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "train" / "b" / "up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b" / "here").symlink_to(tmp_path / "elsewhere" / "b")
    train = load_images(root, "train")
    assert np.bincount(train["label"]).tolist() == [7, 4]


def test_a_link_to_a_missing_file_is_named(tmp_path, processor):
    root = write(tmp_path, "train/0.png", "validation/0.png")
    (root / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="train/gone.png cannot be used: .*No such file"):
        LevelsDataset(load_images(root), processor)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["images", "parquet"])
@pytest.mark.parametrize("name", ["[1]{x}", "a*b?", "with space, comma", "größe"])
def test_any_path_works(tmp_path, random_images, kind, name, streaming):
    root = tmp_path / name
    if kind == "images":
        write(root, *numbered("train/[a]", 3), *numbered("train/{b}", 3), *numbered("test/[a]", 2))
    else:
        full = dataset_from_arrays(random_images, split="train")
        write_parquet(root, {"train": full, "test": full.select([0, 1])})
    assert len(list(load_images(root, "test", streaming=streaming))) == 2


def test_captions_and_metadata_are_ignored_and_this_is_said_once(tmp_path, caplog):
    root = write(tmp_path, *numbered("train/cat", 3), *numbered("train/dog", 3), *numbered("test/cat", 2), "logo.png")
    for index in range(3):
        (root / "train" / "cat" / f"{index}.txt").write_text("a cat")
        (root / "train" / "cat" / f"{index}.json").write_text("{}")
    (root / "train" / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    (root / "train" / ".DS_Store").write_text("")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(load_images(root, "test")) == 2
    said = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert said == [f"{root} is read for its images; ignored: 1 .csv, 3 .json, 1 .png, 3 .txt in train/."]


def test_metadata_in_parquet_is_no_data_set(tmp_path, random_images):
    root = write(tmp_path, "train/0.png", "train/1.png", "test/0.png")
    dataset_from_arrays(random_images, split="train").to_parquet(root / "metadata.parquet")
    assert len(load_images(root, "test")) == 1


@pytest.mark.parametrize("kept", ["text", "nothing"])
def test_a_split_without_images_says_what_the_folder_holds(tmp_path, kept):
    root = write(tmp_path, *numbered("train/cat", 4), *numbered("train/dog", 4))
    (root / "test").mkdir()
    if kept == "text":
        (root / "test" / "notes.txt").write_text("nothing yet")
    held = {"text": r"8 \.png, 1 \.txt in test/, train/", "nothing": r"8 \.png in train/"}[kept]
    with pytest.raises(ValueError, match=rf"\({held}\) must hold at least one image for split 'test'"):
        load_images(root, "test")


def test_a_missing_split_says_what_the_folder_holds(tmp_path):
    write(tmp_path, *numbered("train/cat", 4))
    with pytest.raises(ValueError, match=r"one of train, validation for .* \(4 \.png in train/\), got 'test'"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_too_few_training_images_to_carve_a_validation_split_are_refused(tmp_path, streaming):
    # The place of a file is decided by what it holds, which is not decoded.
    (write(tmp_path, "train/0.png") / "train" / "0.png").write_bytes(b"not decoded")
    assert len(load_images(tmp_path, "train")) == 1
    with pytest.raises(ValueError, match="for split 'validation', which is a part of 'train', found none"):
        load_images(tmp_path, "validation", streaming=streaming)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match=r"\(1 \.txt in train/\) must hold parquet files, images"):
        load_images(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("Train/0.parquet", "Test/0.parquet"),
        ("train/test-0.parquet", "test/train-0.parquet"),
    ],
)
def test_parquet_files_are_split_by_their_folder_or_the_beginning_of_their_name(
    tmp_path, random_images, train, test, streaming
):
    full = dataset_from_arrays(random_images, split="train")
    for name, rows in ((train, range(50)), (test, range(50, 60))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        full.select(rows).to_parquet(tmp_path / name)
    assert (pixels(load_images(tmp_path, "test", streaming=streaming)) == random_images[50:]).all()


def test_a_parquet_file_is_not_read_ahead(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 100), dtype=np.uint8)
    dataset_from_arrays(noise, split="train").to_parquet(tmp_path / "train.parquet", batch_size=1)
    before = pyarrow.total_allocated_bytes()
    allocated = [pyarrow.total_allocated_bytes() for _ in load_images(tmp_path, "train", streaming=True)]
    assert len(allocated) > 60
    # Of eighty row groups, eight are decoded at once, and then filtered.
    assert max(allocated) - before < noise.nbytes / 3


def test_parquet_files_of_unknown_splits_are_refused(tmp_path, random_images):
    full = dataset_from_arrays(random_images, split="train")
    write_parquet(tmp_path, {"train": full, "holdout": full})
    with pytest.raises(ValueError, match=r"holds train \(split 'train'\), but also files beside them"):
        load_images(tmp_path)


def test_parquet_files_in_several_folders_are_not_mixed(tmp_path, random_images):
    full = dataset_from_arrays(random_images, split="train")
    for name in ("mnist", "letters"):
        write_parquet(tmp_path / name, {"train": full})
    with pytest.raises(ValueError, match="parquet files in several folders: letters, mnist"):
        load_images(tmp_path)


def test_carving_decodes_nothing(tmp_path, monkeypatch):
    folder = write(tmp_path, *numbered("train/cat", 40))
    (folder / "train" / "cat" / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(Image, "decode_example", None)
    train, validation = (load_images(folder, split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 41


@pytest.mark.parametrize("is_archive", [False, True])
@pytest.mark.parametrize("column", ["image", "img"])
def test_a_stream_of_image_files_decodes_only_what_is_used(tmp_path, monkeypatch, processor, is_archive, column):
    folder = write(tmp_path / "photos", *(f"{kind}/{index}.jpg" for kind in ("cat", "dog") for index in range(20)))
    (folder / "cat" / "broken.jpg").write_bytes(b"no image")
    files = {"data_dir": str(folder)}
    if is_archive:
        # As on the Hub, no file of this machine.
        files = {"data_files": shutil.make_archive(str(tmp_path / "photos"), "zip", folder)}
    stored = load_dataset("imagefolder", streaming=True, drop_labels=True, **files)
    if column != "image":
        # To rename a column, datasets decodes it.
        stored = stored.cast_column("image", Image(decode=False)).rename_column("image", column)
        stored = stored.cast_column(column, Image())
    monkeypatch.setattr("hf_latentgen.data.images.load_hub", lambda *_: stored)
    opened = []
    monkeypatch.setattr(PILImage, "open", lambda *args, read=PILImage.open: opened.append(args) or read(*args))
    for split, num_skipped in (("train", 1), ("validation", 0)):
        skipped = {}
        images = load_images("owner/photos", split, streaming=True)
        levels = [example["pixel_values"] for example in stream_levels(images, processor, skipped=skipped)]
        expected = LevelsDataset(load_images(folder, split), processor, skipped={}).levels
        assert len(levels) == len(expected) > 0
        assert {level.numpy().tobytes() for level in levels} == {level.numpy().tobytes() for level in expected}
        assert ["broken.jpg" in name for name in skipped] == [True] * num_skipped
    # Each image twice: as a stream and from its folder.
    assert len(opened) == 2 * 41
