import shutil
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from datasets.packaged_modules.parquet.parquet import Parquet
from sklearn.datasets import load_digits
from torch.utils.data import random_split

from data_common import pixels, rows_as_set, write_amat, write_idx, write_image_folder, write_parquet
from hf_latentgen.data import LevelsDataset, dataset_from_arrays, load_images, read_idx, split_indices
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor


def test_digits_are_the_default_in_three_stratified_splits():
    splits = {split: load_images(split=split) for split in ("train", "validation", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 1297, "validation": 200, "test": 300}
    for dataset in splits.values():
        counts = np.bincount(dataset["label"][:], minlength=10) / len(dataset)
        assert np.abs(counts - 0.1).max() < 0.02
    stored = np.concatenate([pixels(dataset) for dataset in splits.values()])
    expected = np.minimum(load_digits().images * 16, 255).astype(np.uint8)
    assert sorted(image.tobytes() for image in stored) == sorted(image.tobytes() for image in expected)


def test_digits_are_deterministic_and_typed():
    first, second = load_images("digits"), load_images("digits")
    assert isinstance(first, Dataset)
    assert first.features == Features(image=Image(mode="L"), label=ClassLabel(names=[str(i) for i in range(10)]))
    assert (pixels(first) == pixels(second)).all()
    assert str(first.split) == "train"


def test_split_is_the_random_split_of_the_course():
    train, validation = random_split(range(60000), [54000, 6000], generator=torch.Generator().manual_seed(42))
    assert split_indices(60000)["train"].tolist() == train.indices
    assert split_indices(60000)["validation"].tolist() == validation.indices


def test_mnist_is_the_course_split_of_the_official_files(data_root):
    if not (data_root / "mnist").is_dir():
        pytest.skip(f"{data_root} holds no mnist folder")
    started = time.perf_counter()
    train, validation, test = (
        load_images("mnist", split, data_dir=data_root) for split in ("train", "validation", "test")
    )
    # A generator over 60,000 encoded images would take minutes.
    assert time.perf_counter() - started < 30
    assert (len(train), len(validation), len(test)) == (54000, 6000, 10000)
    (images,) = (data_root / "mnist").glob("train-images-idx3-ubyte*")
    (labels,) = (data_root / "mnist").glob("train-labels-idx1-ubyte*")
    order = torch.randperm(60000, generator=torch.Generator().manual_seed(42))
    assert (pixels(validation.select(range(100))) == read_idx(images, 3)[order[54000:54100]]).all()
    assert validation["label"][:] == read_idx(labels, 1)[order[54000:]].tolist()
    assert train["label"][:] == read_idx(labels, 1)[order[:54000]].tolist()
    assert np.bincount(test["label"][:]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_binarized_mnist_keeps_its_own_test_file(data_root):
    if not (data_root / "binarized_mnist").is_dir():
        pytest.skip(f"{data_root} holds no binarized_mnist folder")
    test = load_images("binarized_mnist", "test", data_dir=data_root)
    assert (len(test), test.column_names) == (10000, ["image"])
    levels = LevelsDataset(test, LevelsImageProcessor(num_levels=2)).levels
    assert levels.unique().tolist() == [0, 1]
    assert levels.float().mean().item() == pytest.approx(0.1325, abs=1e-4)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_named_sets_are_found_in_data_dir_or_its_subfolder(tmp_path, random_images, monkeypatch, compress, nested):
    root = tmp_path / "files"
    write_idx(root / "mnist" if nested else root, random_images[:40], random_images[40:], compress)
    test = load_images("mnist", "test", data_dir=root)
    assert (pixels(test) == random_images[40:]).all()
    assert test["label"][:] == [i % 10 for i in range(20)]
    monkeypatch.setenv("HF_LATENTGEN_DATA", str(root))
    rows = split_indices(40)
    assert (pixels(load_images("mnist", "train")) == random_images[rows["train"]]).all()
    assert (pixels(load_images("mnist", "validation")) == random_images[rows["validation"]]).all()


def test_the_argument_wins_over_the_environment_variable(tmp_path, random_images, monkeypatch):
    write_idx(tmp_path / "named", random_images[:40], random_images[40:41])
    write_idx(tmp_path / "environment", random_images[:40], random_images[41:42])
    monkeypatch.setenv("HF_LATENTGEN_DATA", str(tmp_path / "environment"))
    assert (pixels(load_images("mnist", "test", data_dir=tmp_path / "named")) == random_images[40:41]).all()


def test_fashion_mnist_has_its_class_names_and_never_reads_the_digits(tmp_path, random_images):
    write_idx(tmp_path / "fashion_mnist", random_images[:40], random_images[40:])
    write_idx(tmp_path / "mnist", random_images[:40], random_images[:3])
    fashion = load_images("fashion_mnist", "test", data_dir=tmp_path)
    assert fashion.features["label"].names[9] == "Ankle boot"
    assert len(fashion) == 20
    with pytest.raises(FileNotFoundError, match="fashion_mnist was looked for"):
        load_images("fashion_mnist", "test", data_dir=tmp_path / "mnist")


@pytest.mark.parametrize("compress", [False, True])
def test_binarized_mnist_reads_its_three_files(tmp_path, compress):
    bits = np.random.default_rng(0).integers(0, 2, (9, 3, 3))
    write_amat(tmp_path, {"train": bits[:4], "validation": bits[4:6], "test": bits[6:]}, compress=compress)
    for split, rows in (("train", slice(0, 4)), ("validation", slice(4, 6)), ("test", slice(6, 9))):
        dataset = load_images("binarized_mnist", split, data_dir=tmp_path)
        assert dataset.column_names == ["image"]
        assert (pixels(dataset) == bits[rows] * 255).all()


def test_binarized_mnist_is_not_carved_when_a_file_is_missing(tmp_path):
    write_amat(tmp_path, {"train": np.zeros((20, 2, 2), int)})
    with pytest.raises(FileNotFoundError, match=r"binarized_mnist_valid.amat\[.gz\] in .*; it is not on the Hub"):
        load_images("binarized_mnist", "validation", data_dir=tmp_path)


def test_a_folder_of_idx_files(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:])
    assert (pixels(load_images(tmp_path, "test")) == random_images[40:]).all()
    assert len(load_images(str(tmp_path), "train")) == 36


def test_a_folder_of_amat_files_without_validation_is_carved(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (20, 3, 3))
    write_amat(tmp_path, {"train": bits}, stem="letters")
    rows = split_indices(20)
    for split in ("train", "validation"):
        assert (pixels(load_images(tmp_path, split)) == bits[rows[split]] * 255).all()
    with pytest.raises(ValueError, match="split must be one of train, validation for .*, got 'test'"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_parquet_files_with_all_splits(tmp_path, random_images, streaming):
    full = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    splits = {"train": full.select(range(40)), "valid": full.select(range(40, 50)), "test": full.select(range(50, 60))}
    write_parquet(tmp_path / "data", splits)
    for split, rows in (("train", slice(0, 40)), ("validation", slice(40, 50)), ("test", slice(50, 60))):
        dataset = load_images(tmp_path / "data", split, streaming=streaming)
        assert isinstance(dataset, IterableDataset if streaming else Dataset)
        assert (pixels(dataset) == random_images[rows]).all()
        assert isinstance(dataset.features["label"], ClassLabel)


def test_streaming_and_loading_carve_the_same_validation_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4), dtype=np.uint8)
    parquet = write_parquet(tmp_path / "parquet", {"train": dataset_from_arrays(images, split="train")})
    folder = write_image_folder(tmp_path / "folder", images)
    for path in (parquet, folder):
        expected = None
        for streaming in (False, True):
            train, validation = (load_images(path, split, streaming=streaming) for split in ("train", "validation"))
            parts = rows_as_set(train), rows_as_set(validation)
            assert not parts[0] & parts[1]
            assert len(parts[0] | parts[1]) == 400
            assert 20 < len(parts[1]) < 60
            expected = expected or parts
            assert parts == expected


def test_an_image_folder_names_classes_after_folders(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    folder = write_image_folder(tmp_path / "pictures", colour, split="train")
    write_image_folder(folder, colour[:2], split="test")
    test = load_images(folder, "test")
    assert test.features["label"].names == ["cat", "dog"]
    assert rows_as_set(test) == {image.tobytes() for image in colour[:2]}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_other_column_names_are_understood(tmp_path, random_images, processor, monkeypatch, streaming, split):
    full = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    full = full.rename_columns({"image": "img", "label": "fine_label"}).add_column("extra", list(range(60)))
    write_parquet(tmp_path / "data", {"train": full, "test": full})
    dataset = load_images(tmp_path / "data", split, streaming=streaming)
    assert dataset.column_names == ["image", "label"]
    rows = list(dataset)
    expected = {image.tobytes(): index % 3 for index, image in enumerate(random_images)}
    assert {row["image"].tobytes(): row["label"] for row in rows}.items() <= expected.items()
    assert len(rows) == 60 or split == "validation"
    # Each image is decoded once, when its levels are made.
    decoded, decode = [], Image.decode_example
    monkeypatch.setattr(Image, "decode_example", lambda *args: decoded.append(1) or decode(*args))
    assert len(LevelsDataset(dataset, processor, with_labels=True)) == len(rows) == len(decoded)


def test_encoded_images_without_a_feature_are_decoded(tmp_path, random_images):
    encoded = dataset_from_arrays(random_images, split="train").cast_column("image", Image(decode=False))
    plain = [{"bytes": row["image"]["bytes"], "path": None} for row in encoded]
    features = Features(picture={"bytes": Value("binary"), "path": Value("string")})
    write_parquet(tmp_path / "data", {"test": Dataset.from_dict({"picture": plain}, features=features)})
    test = load_images(tmp_path / "data", "test")
    assert (pixels(test) == random_images).all()


def test_a_folder_without_images_column_is_refused(tmp_path):
    write_parquet(tmp_path / "data", {"test": Dataset.from_dict({"text": ["a", "b"]})})
    with pytest.raises(ValueError, match=r"exactly one column of images, got \[\] among \['text'\]"):
        load_images(tmp_path / "data", "test")


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_without_images_says_what_it_must_hold(tmp_path, name):
    folder = tmp_path / "empty"
    folder.mkdir()
    if name:
        (folder / name).write_text("nothing")
    with pytest.raises(FileNotFoundError, match=r"must hold parquet files, images, or some of train-images-idx3-ubyte"):
        load_images(folder)


def test_without_network_and_files_the_error_says_what_was_looked_for_where(tmp_path, monkeypatch):
    started = time.perf_counter()
    expected = (
        r"mnist was looked for as t10k-images-idx3-ubyte\[.gz\] and t10k-labels-idx1-ubyte\[.gz\] in {}; "
        r"the Hub data set ylecun/mnist is not in the local cache and the Hub cannot be reached \({}\)"
    )
    folders = rf"{tmp_path}/mnist and in {tmp_path}"
    with pytest.raises(FileNotFoundError, match=expected.format(folders, "OfflineModeIsEnabled")):
        load_images("mnist", "test", data_dir=tmp_path)
    # A port that refuses every connection.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    nowhere = "no folder, as neither data_dir nor HF_LATENTGEN_DATA is set"
    with pytest.raises(FileNotFoundError, match=expected.format(nowhere, "ConnectError")):
        load_images("mnist", "test")
    with pytest.raises(FileNotFoundError, match="someone/pictures was looked for as a folder; .* cannot be reached"):
        load_images("someone/pictures")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("streaming", [False, True])
def test_without_network_a_cached_hub_data_set_is_used(tmp_path, random_images, streaming):
    full = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    files = write_parquet(tmp_path / "files", {"train": full}, num_shards=1)
    builder = Parquet(dataset_name="mnist", data_files={"train": str(files / "*.parquet")}, hash="0")
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, tmp_path / "cache" / "ylecun___mnist" / builder.config.name / "0.0.0" / "0")
    train, validation = (load_images("mnist", split, streaming=streaming) for split in ("train", "validation"))
    assert (pixels(train) == random_images[split_indices(60)["train"]]).all()
    assert (pixels(validation) == random_images[split_indices(60)["validation"]]).all()


def test_unknown_split_names_the_allowed_ones():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        load_images("digits", "dev")


@pytest.mark.parametrize("name", ["minst", "./missing", "/missing/folder", "~nobody", "a/b/c", ""])
def test_unknown_name_says_what_is_allowed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="name_or_path must be digits, photos, mnist, fashion_mnist, binarized_mnist, an exist"
    ):
        load_images(name)


def test_missing_data_dir_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"data_dir .* must be an existing folder, got .*nowhere"):
        load_images("mnist", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("HF_LATENTGEN_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"HF_LATENTGEN_DATA\) must be an existing folder, got .*elsewhere"):
        load_images("mnist")
