import gzip
import shutil
import time

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, random_split

from hf_latentgen.data.images import (
    AMAT_FILES,
    IDX_FILES,
    LevelsDataset,
    collate_levels,
    dataset_from_arrays,
    load_images,
    read_amat,
    read_idx,
    split_indices,
    stream_levels,
)
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path, monkeypatch):
    """No data folder of the machine, and a cache of the test's own."""
    monkeypatch.delenv("HF_LATENTGEN_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def random_images():
    return np.random.default_rng(0).integers(0, 256, (60, 6, 5), dtype=np.uint8)


@pytest.fixture
def processor():
    return LevelsImageProcessor(size=(6, 5), num_levels=256)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(folder, train, test, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in (("train", train), ("test", test)):
        for name, array in zip(IDX_FILES[split], (images, np.arange(len(images)) % 10), strict=True):
            content = idx_bytes(array)
            path = folder / (f"{name}.gz" if compress else name)
            path.write_bytes(gzip.compress(content) if compress else content)
    return folder


def write_amat(folder, splits, stem="binarized_mnist", compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        text = "".join(" ".join(map(str, row.reshape(-1))) + " \n" for row in images).encode()
        name = AMAT_FILES[split][0].replace("*", stem)
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(text) if compress else text)
    return folder


def write_parquet(folder, splits, num_shards=2):
    folder.mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        for index in range(num_shards):
            shard = dataset.shard(num_shards, index, contiguous=True)
            shard.to_parquet(folder / f"{split}-{index:05d}-of-{num_shards:05d}.parquet")
    return folder


def write_image_folder(folder, images, labels=("cat", "dog"), split="train"):
    for index, image in enumerate(images):
        path = folder / split / labels[index % len(labels)] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(image).save(path)
    return folder


def pixels(dataset) -> np.ndarray:
    return np.stack([np.asarray(example["image"]) for example in dataset])


def rows_as_set(dataset) -> set[bytes]:
    return {example["image"].tobytes() for example in dataset}


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
    expected = None
    for path in (parquet, folder):
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


def test_other_column_names_are_understood(tmp_path, random_images):
    full = dataset_from_arrays(random_images, np.arange(60) % 3, split="train")
    full = full.rename_columns({"image": "img", "label": "fine_label"}).add_column("extra", list(range(60)))
    write_parquet(tmp_path / "data", {"train": full, "test": full})
    test = load_images(tmp_path / "data", "test")
    assert test.column_names == ["image", "label"]
    assert (pixels(test) == random_images).all()


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
        ValueError, match="name_or_path must be digits, mnist, fashion_mnist, binarized_mnist, an exist"
    ):
        load_images(name)


def test_missing_data_dir_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"data_dir .* must be an existing folder, got .*nowhere"):
        load_images("mnist", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("HF_LATENTGEN_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"HF_LATENTGEN_DATA\) must be an existing folder, got .*elsewhere"):
        load_images("mnist")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("change", "found"), [(lambda content: content[:-7], 609), (lambda content: content + b"\0", 617)]
)
def test_idx_of_wrong_length_says_expected_and_found_bytes(tmp_path, random_images, compress, change, found):
    content = change(idx_bytes(random_images[:20]))
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * compress)
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(ValueError, match=f"{path} is truncated or corrupt: expected 616 bytes, found {found}"):
        read_idx(path, 3)


def test_cut_gzip_file_says_expected_and_found_bytes(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:], compress=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    message = r"t10k-images-idx3-ubyte.gz is truncated or corrupt: expected 616 bytes, found \d+"
    with pytest.raises(ValueError, match=message):
        load_images("mnist", "test", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"no gzip", b"\x1f\x8b\x08\x00broken stream of bytes"])
def test_corrupt_gzip_file_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is corrupt: its {len(content)} bytes are no gzip stream"):
        read_idx(path, 3)


def test_flipped_bit_in_a_gzip_file_is_noticed(tmp_path, random_images):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.compress(idx_bytes(random_images), compresslevel=0))
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is corrupt"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"\x89PNG and so on, long enough", idx_bytes(np.zeros((3, 20)))]
)
def test_what_is_no_idx_file_says_so(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    message = f"expected a header of 16 bytes that starts with '00 00 08 03', found {len(content)} bytes"
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


def test_images_and_labels_must_be_as_many(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19)))
    with pytest.raises(ValueError, match="one label per image: expected 20, found 19"):
        load_images(tmp_path, "test")


def test_files_without_an_image_for_the_split_are_refused(tmp_path, random_images):
    write_idx(tmp_path, random_images[:9], random_images[:0])
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=f"must hold at least one image for split '{split}', found none"):
            load_images(tmp_path, split)


def test_idx_header_with_absurd_sizes_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(ValueError, match=f"expected {16 + (2**32 - 1) ** 3} bytes, found 16"):
        read_idx(path, 3)


def test_labels_must_not_be_missing(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:])
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\[.gz\] and train-labels-idx1-ubyte\[.gz\]"):
        load_images(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "truncated or corrupt"),
        (b"\n\n", "truncated or corrupt"),
        (b"0 1 0\n1 1 1\n", "expected 2 lines of 3 values, a square number, found 6 values"),
        (b"0 1 0 1\n1 1 1\n", "expected 2 lines of 4 values, a square number, found 7 values"),
        (b"0 1 0 1\n1 1", "found 6 values"),
        (b"0 1 2 1\n", "values 0 and 1"),
        (b"0 1 10 1\n", "values 0 and 1"),
        (b"0.0 1.0 1.0 1.0\n", "values 0 and 1"),
    ],
)
def test_bad_amat_files_are_refused(tmp_path, text, message):
    path = tmp_path / "x_train.amat"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_amat(path)


def test_cut_amat_archive_is_refused_even_at_a_line_end(tmp_path):
    path = tmp_path / "x_train.amat.gz"
    path.write_bytes(gzip.compress(b"0 1 0 1\n" * 3)[:-8])
    with pytest.raises(ValueError, match="is truncated: its gzip stream stops after 24 bytes"):
        read_amat(path)


def test_last_line_may_lack_its_line_end(tmp_path):
    path = tmp_path / "x_train.amat"
    path.write_bytes(b"0 1 0 1\r\n1 1 0 0")
    assert read_amat(path).tolist() == [[[0, 255], [0, 255]], [[255, 255], [0, 0]]]


def test_two_matching_files_are_refused(tmp_path):
    for stem in ("a", "b"):
        write_amat(tmp_path, {"train": np.zeros((4, 2, 2), int)}, stem=stem)
    with pytest.raises(ValueError, match=r"must hold one \*_train.amat\[.gz\], got .*_train.amat, .*_train.amat"):
        load_images(tmp_path)


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
    assert [int(image.max()) for image in levels] == [255, 0, 0]


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
    with pytest.raises(ValueError, match="at least one image, got an empty data set"):
        LevelsDataset(dataset, processor)


def test_saved_and_reloaded_data_sets_keep_their_images(tmp_path, random_images):
    full = DatasetDict(test=dataset_from_arrays(random_images, np.arange(60) % 3, split="test"))
    full.save_to_disk(tmp_path / "saved")
    assert (pixels(DatasetDict.load_from_disk(tmp_path / "saved")["test"]) == random_images).all()
