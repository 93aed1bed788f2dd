"""Image data sets with fixed splits."""

import math
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    NamedSplit,
)
from datasets.table import InMemoryTable
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hf_latentgen.data.folders import describe, load_folder
from hf_latentgen.data.labels import encode_strings, is_string
from hf_latentgen.data.levels import rows_at_once
from hf_latentgen.data.photos import CLASSES, photo_patches
from hf_latentgen.data.sources import (
    DATA_DIR_VARIABLE,
    HUB_ID,
    SPLITS,
    data_root,
    file_content,
    load_hub,
    split_name,
    walk_files,
)

SPLIT_SEED = 42
STREAM_SHARDS = 64
HUB_IDS = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}

# The official file names; each may also carry .gz. A star stands for any beginning.
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
AMAT_FILES = {"train": ("*_train.amat",), "validation": ("*_valid.amat",), "test": ("*_test.amat",)}
BINARIZED_MNIST_FILES = {
    "train": ("binarized_mnist_train.amat",),
    "validation": ("binarized_mnist_valid.amat",),
    "test": ("binarized_mnist_test.amat",),
}
NAMED_FILES = {"mnist": IDX_FILES, "fashion_mnist": IDX_FILES, "binarized_mnist": BINARIZED_MNIST_FILES}

# The class names of the data set's card on the Hub.
FASHION_CLASSES = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load_images(
    name_or_path: str | os.PathLike = "digits",
    split: str = "train",
    *,
    data_dir: str | os.PathLike | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """One split of a set of images: columns `image` (PIL images of 8 bits per channel) and `label` (class numbers).

    name_or_path: one of
        `digits`: the 1,797 handwritten digits of scikit-learn, 8x8, values 0 ... 16 stored as min(16 * value, 255);
            1,297 / 200 / 300 images, stratified by class; needs no file.
        `photos`: 32x32 colour patches of the two photographs of scikit-learn, 4,500 / 52 / 78 images from other regions
            each, labelled with their photograph; needs no file.
        `mnist`, `fashion_mnist`: 28x28; 54,000 / 6,000 training images, the official 10,000 for test.
        `binarized_mnist`: Larochelle's fixed binarization from its own three files, 0 and 1 stored as 0 and 255;
            50,000 / 10,000 / 10,000 images, no labels, hence no `label` column.
        the path of a folder: IDX files under their official names, *_train.amat, *_valid.amat and *_test.amat (all of
            them plain or .gz), parquet files, or images, in one folder per class or without classes, below one folder
            per split. `docs/your_images.md` lists what is understood.
        a Hub id `owner/name`.
    split: `train`, `validation` or `test`.
    data_dir: for the three MNIST names, a folder that holds the official files, or one with a subfolder of that name
        that does; the environment variable HF_LATENTGEN_DATA says the same. Local files win over the Hub.
    streaming: return an `IterableDataset`, which reads parquet shards, image folders and Hub ids as it goes.

    Where `validation` is missing, a fixed tenth of `train` takes its place. For IDX and .amat files and the MNIST names
    it is the last 10 % of `torch.randperm(len(train))` with seed 42, on MNIST the split of the course. For other
    folders and Hub ids it is the images whose file has a CRC-32, started at 42, that is a multiple of ten: the same
    ones streamed or not, and nothing is decoded for it.

    Labels that are strings become class numbers, unless they are streamed. Other labels stay as they are:
    [`usable_labels`] says whether they can be used, [`class_names`] what their classes are called.

    Raises: ValueError for an unknown name or split, a split without images, or a truncated or corrupt file, naming it,
    the expected and the found bytes; FileNotFoundError naming the file names looked for and where.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if name_or_path == "digits":
        dataset = _load_digits(split)
    elif name_or_path == "photos":
        patches, labels = photo_patches(split)
        dataset = dataset_from_arrays(patches, labels, split=split, classes=CLASSES)
    elif name_or_path in NAMED_FILES:
        dataset = _load_named(str(name_or_path), split, data_dir)
    # The empty path is the working folder to pathlib.
    elif str(name_or_path) and Path(name_or_path).is_dir():
        dataset = _load_folder(Path(name_or_path), split, streaming)
    elif HUB_ID.fullmatch(str(name_or_path)):
        looked_for = f"{name_or_path} was looked for as a folder"
        dataset = _select_split(load_hub(str(name_or_path), looked_for, streaming), split, str(name_or_path))
    else:
        raise ValueError(
            f"name_or_path must be digits, photos, {', '.join(NAMED_FILES)}, an existing folder or a Hub id "
            f"owner/name, got {str(name_or_path)!r}."
        )
    return dataset.to_iterable_dataset() if streaming and isinstance(dataset, Dataset) else dataset


def dataset_from_arrays(
    images: np.ndarray, labels: np.ndarray | None = None, *, split: str, classes: list[str] | None = None
) -> Dataset:
    """Dataset with columns `image` and, when labels are given, `label`, held in memory.

    Each image is stored as a PGM or PPM file: a short header and the raw values, so that 60,000 images take no time to
    encode. Without `classes`, the classes are called "0", "1", ..., at least ten of them.

    Shape: `images` uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB); `labels` integers [N].
    """
    magic, mode = ("P5", "L") if images.ndim == 3 else ("P6", "RGB")
    header = np.frombuffer(f"{magic} {images.shape[2]} {images.shape[1]} 255\n".encode(), np.uint8)
    files = np.concatenate([np.tile(header, (len(images), 1)), images.reshape(len(images), -1)], axis=1)
    offsets = np.arange(len(files) + 1, dtype=np.int64) * files.shape[1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(files)]
    encoded = pa.Array.from_buffers(pa.large_binary(), len(files), buffers).cast(pa.binary())
    columns = {"image": pa.StructArray.from_arrays([encoded, pa.nulls(len(files), pa.string())], ["bytes", "path"])}
    features = Features({"image": Image(mode=mode)})
    if labels is not None:
        features["label"] = ClassLabel(names=classes or [str(i) for i in range(max(10, int(labels.max()) + 1))])
        columns["label"] = pa.array(labels.astype(np.int64))
    return Dataset(InMemoryTable(pa.table(columns)), info=DatasetInfo(features=features), split=NamedSplit(split))


def split_indices(num_images: int) -> dict[str, np.ndarray]:
    """Row numbers of `train`, the first 90 % of `torch.randperm(num_images)` with seed 42, and `validation`, the rest.

    For 60,000 images these are the 54,000 and 6,000 that `torch.utils.data.random_split` gives with that seed.
    """
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
    num_train = num_images - num_images // 10
    return {"train": order[:num_train], "validation": order[num_train:]}


def read_idx(path: Path, num_dims: int) -> np.ndarray:
    """Array of an IDX file of unsigned bytes, plain or .gz.

    Shape: the `num_dims` sizes that the file's header states.
    Raises: ValueError naming the file, the expected and the found bytes when it is truncated or corrupt.
    """
    content, _ = _read_bytes(path)
    magic, header = bytes([0, 0, 8, num_dims]), 4 + 4 * num_dims
    if len(content) < header or content[:4] != magic:
        expected = f"expected a header of {header} bytes that starts with {magic.hex(' ')!r}"
        found = f"found {len(content)} bytes that start with {content[:4].hex(' ')!r}"
        raise ValueError(f"{path} is no IDX file of unsigned bytes in {num_dims} dimensions: {expected}, {found}.")
    shape = np.frombuffer(content, ">u4", num_dims, offset=4).tolist()
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"{path} is truncated or corrupt: expected {expected} bytes, found {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_amat(path: Path) -> np.ndarray:
    """Square binary images of a text file, one image of 0s and 1s per line, plain or .gz; 1 is stored as 255.

    Shape: uint8 [N, H, W] with H = W.
    Raises: ValueError naming the file, what was expected and what was found when it is truncated or corrupt.
    """
    text, is_complete = _read_bytes(path)
    if not is_complete:
        raise ValueError(f"{path} is truncated: its gzip stream stops after {len(text)} bytes of text.")
    content = np.frombuffer(text, np.uint8)
    is_value = (content == ord("0")) | (content == ord("1"))
    is_space = (content == ord(" ")) | (content == ord("\n")) | (content == ord("\r"))
    if not (is_value | is_space).all() or (is_value[1:] & is_value[:-1]).any():
        raise ValueError(f"{path} must hold the values 0 and 1, separated by spaces and line ends, and nothing else.")
    num_lines = text.count(b"\n") + (not text.endswith(b"\n"))
    row_length = len(text.split(b"\n", 1)[0].split())
    side, found = round(row_length**0.5), int(is_value.sum())
    if found == 0 or side**2 != row_length or found != num_lines * row_length:
        expected = f"{num_lines} lines of {row_length} values, a square number"
        raise ValueError(f"{path} is truncated or corrupt: expected {expected}, found {found} values.")
    return ((content[is_value] == ord("1")) * np.uint8(255)).reshape(num_lines, side, side)


def _read_bytes(path: Path) -> tuple[bytes, bool]:
    """Content of a file, decompressed if it ends in .gz, and whether it is complete; of a cut archive, its start."""
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content, True
    parts, rest, is_complete = [], content, False
    # An archive may be several in a row, and end with zeros.
    while rest.strip(b"\0") or not parts:
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            parts.append(decompressor.decompress(rest))
        except zlib.error as error:
            raise ValueError(f"{path} is corrupt: its {len(content)} bytes are no gzip stream ({error}).") from error
        rest, is_complete = decompressor.unused_data, decompressor.eof
    return b"".join(parts), is_complete


def _load_digits(split: str) -> Dataset:
    values, labels = map(np.asarray, load_digits(return_X_y=True))
    rest, test = train_test_split(np.arange(len(labels)), test_size=300, stratify=labels, random_state=SPLIT_SEED)
    train, validation = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=SPLIT_SEED)
    rows = {"train": train, "validation": validation, "test": test}[split]
    images = np.minimum(values[rows].reshape(-1, 8, 8) * 16, 255).astype(np.uint8)
    return dataset_from_arrays(images, labels[rows], split=split)


def _load_named(name: str, split: str, data_dir: str | os.PathLike | None) -> Dataset | IterableDataset:
    """One split of a named data set, from the first local folder that holds its official files, else from the Hub."""
    root = data_root(data_dir)
    stored, is_part = _stored_split(NAMED_FILES[name], split, name)
    files = NAMED_FILES[name][stored]
    folders = [root / name, root] if root else []
    # MNIST and Fashion-MNIST use the same file names, so the folder of one must not pass for the other.
    if root and root.resolve().name in NAMED_FILES.keys() - {name}:
        folders.pop()
    for folder in folders:
        paths = _find(folder, files)
        if len(paths) == len(files):
            return _load_files(paths, split, is_part, FASHION_CLASSES if name == "fashion_mnist" else None)
    where = " and in ".join(map(str, folders)) or f"no folder, as neither data_dir nor {DATA_DIR_VARIABLE} is set"
    looked_for = f"{name} was looked for as {' and '.join(f'{file}[.gz]' for file in files)} in {where}"
    if name not in HUB_IDS:
        raise FileNotFoundError(f"{looked_for}; it is not on the Hub.")
    return _select_split(load_hub(HUB_IDS[name], looked_for, streaming=False), split, name)


def _load_folder(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    """One split of a folder of IDX files, .amat files, parquet files or images."""
    for files in (IDX_FILES, AMAT_FILES):
        found = {stored: _find(folder, names) for stored, names in files.items()}
        found = {stored: paths for stored, paths in found.items() if paths}
        if found:
            stored, is_part = _stored_split(found, split, str(folder))
            if len(found[stored]) < len(files[stored]):
                raise FileNotFoundError(f"{folder} must hold {' and '.join(f'{name}[.gz]' for name in files[stored])}.")
            return _load_files(found[stored], split, is_part)
    files = walk_files(folder)
    splits = load_folder(folder, files, streaming)
    held = f"{folder} ({describe(files)})"
    if splits is None:
        names = [name for files in (IDX_FILES, AMAT_FILES) for pair in files.values() for name in pair]
        raise FileNotFoundError(
            f"{held} must hold parquet files, images, or some of {', '.join(f'{name}[.gz]' for name in names)}."
        )
    return _select_split(splits, split, held, streaming=streaming)


def _load_files(paths: list[Path], split: str, is_part: bool, classes: list[str] | None = None) -> Dataset:
    """Dataset from an IDX file of images and one of labels, or from a single .amat file."""
    images = read_idx(paths[0], 3) if len(paths) == 2 else read_amat(paths[0])
    labels = read_idx(paths[1], 1) if len(paths) == 2 else None
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{paths[1]} must hold one label per image: expected {len(images)}, found {len(labels)}.")
    if is_part:
        rows = split_indices(len(images))[split]
        images, labels = images[rows], None if labels is None else labels[rows]
    if len(images) == 0:
        raise ValueError(f"{paths[0]} must hold at least one image for split {split!r}, found none.")
    return dataset_from_arrays(images, labels, split=split, classes=classes)


def _select_split(
    splits: DatasetDict | IterableDatasetDict, split: str, source: str, streaming: bool = False
) -> Dataset | IterableDataset:
    """One split of what a folder or the Hub holds, with columns `image` and `label`."""
    named = {split_name(str(name)): dataset for name, dataset in splits.items()}
    if len(named) < len(splits):
        raise ValueError(f"{source} must hold one split of each name, got {', '.join(map(str, splits))}.")
    stored, is_part = _stored_split(named, split, source)
    dataset = named[stored]
    column = _image_column(dataset, source)
    feature = cast(Features, dataset.features)[column]
    images = Image(mode=feature.mode) if isinstance(feature, Image) else Image()
    # Files until their rows and columns are chosen: a stream of other files than tables would decode them to look.
    dataset = dataset.cast_column(column, Image(mode=images.mode, decode=False))
    if isinstance(dataset, Dataset):
        if source in NAMED_FILES and is_part:
            dataset, is_part = dataset.select(split_indices(len(dataset))[split]), False
        if not len(dataset):
            raise ValueError(f"{source} must hold at least one image for split {split!r}, found none.")
        if streaming:
            # In several pieces, so that a shuffle mixes classes and several workers can read.
            dataset = dataset.to_iterable_dataset(num_shards=min(STREAM_SHARDS, len(dataset)))
    if is_part:
        tables: Any = dataset.with_format("arrow")
        where = {"column": column, "is_validation": split == "validation"}
        tables = tables.filter(_are_in, fn_kwargs=where, batched=True, batch_size=rows_at_once(dataset))
        # A stream from the Hub is not read before it is used.
        if (isinstance(dataset, Dataset) or streaming) and next(iter(tables), None) is None:
            raise ValueError(
                f"{source} must hold at least one image for split {split!r}, which is a part of {stored!r}, found none."
            )
        dataset = tables.with_format(None)
    dataset = _rename_columns(dataset, column).cast_column("image", images)
    if isinstance(dataset, Dataset) and is_string(dataset.features.get("label")):
        names = {name for part in named.values() for name in cast(Dataset, part).unique("label")}
        # With missing ones the strings stay, and are no labels.
        return dataset if None in names else encode_strings(dataset, sorted(names))
    return dataset


def _are_in(rows: pa.Table, column: str, is_validation: bool) -> list[bool]:
    """Whether images belong to a part of `train`: a tenth is carved out by their files, not by their places."""
    files = rows[column].to_pylist()
    return [(zlib.crc32(file_content(file), SPLIT_SEED) % 10 == 0) == is_validation for file in files]


def _image_column(dataset: Dataset | IterableDataset, source: str) -> str:
    """Name of the one column of images, decoded ones or files."""
    if dataset.features is None:
        raise ValueError(f"{source} does not state its columns, which streaming needs; load it with streaming=False.")
    features = dataset.features.items()
    images = [name for name, feature in features if isinstance(feature, Image) or _holds_files(feature)]
    if len(images) != 1:
        raise ValueError(
            f"{source} must have exactly one column of images, got {images} among {list(dataset.features)}."
        )
    return images[0]


def _holds_files(feature: object) -> bool:
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _rename_columns(dataset: Dataset | IterableDataset, column: str) -> Dataset | IterableDataset:
    """Only two columns: that of images as `image`, and `label` or the one column of classes as `label`."""
    features = cast(Features, dataset.features)
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if "label" in features:
        labels = ["label"]
    names = {column: "image", **({labels[0]: "label"} if len(labels) == 1 else {})}
    dataset = dataset.select_columns(list(names))
    if all(old == new for old, new in names.items()):
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.rename_columns({old: new for old, new in names.items() if old != new})
    renamed = Features({new: features[old] for old, new in names.items()})
    where: Any = {"fn_kwargs": {"names": names}, "features": renamed, "remove_columns": list(names)}
    return (
        dataset.with_format("arrow")
        .map(_renamed, batched=True, batch_size=rows_at_once(dataset), **where)
        .with_format(None)
    )


def _renamed(rows: pa.Table, names: dict[str, str]) -> pa.Table:
    return rows.rename_columns([names[name] for name in rows.column_names])


def _stored_split(available: Collection[str], split: str, source: str) -> tuple[str, bool]:
    """Name of the stored split that holds `split`, and whether `split` is only a part of it."""
    is_part = split != "test" and "validation" not in available
    stored = "train" if is_part else split
    if stored not in available:
        allowed = [name for name in SPLITS if name in available or (name == "validation" and "train" in available)]
        raise ValueError(f"split must be one of {', '.join(allowed)} for {source}, got {split!r}.")
    return stored, is_part


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of a folder that have these names, plain or .gz; fewer than names if some are missing."""
    paths = []
    for name in names:
        matches = [*folder.glob(name), *folder.glob(f"{name}.gz")]
        if len({path.name.removesuffix(".gz") for path in matches}) > 1:
            raise ValueError(f"{folder} must hold one {name}[.gz], got {', '.join(path.name for path in matches)}.")
        paths += matches[:1]
    return paths
