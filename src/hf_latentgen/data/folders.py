"""A user's folder of images or parquet files: which split and which class each file belongs to.

The split is the name of the first folder, the class that of the first folder below the split, and nothing else.
"""

import glob
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, NamedSplit, load_dataset
from transformers.utils import logging

from hf_latentgen.data.sources import SPLIT_ALIASES, SPLITS, image_suffixes, split_name

# Names that are used for splits elsewhere, and would pass for classes here.
NO_SPLITS = {"eval", "evaluation", "holdout", "testing", "training", "tst"}

logger = logging.get_logger(__name__)


def load_folder(folder: Path, files: list[Path], streaming: bool) -> DatasetDict | IterableDatasetDict | None:
    """The splits of a folder, or None when it has neither images nor parquet files; files that are neither are named.

    files: what the folder holds, relative to it.

    Raises: ValueError when a folder beside the splits is none, or looks like a split where there are no others, or
        parquet files lie in several folders that are no splits.
    """
    images = [path for path in files if path.suffix.lower() in image_suffixes()]
    tables = [path for path in files if path.suffix.lower() == ".parquet" and path.stem != "metadata"]
    used = images if len(images) > len(tables) else tables
    if not used:
        return None
    splits = _by_split(folder, used, is_table=used is tables)
    loaded = {path for paths in splits.values() for path in paths}
    ignored = [path for path in files if path not in loaded]
    if ignored:
        kind = "images" if used is images else "parquet files"
        logger.warning_once(  # pyright: ignore[reportAttributeAccessIssue]
            f"{folder} is read for its {kind}; ignored: {describe(ignored)}."
        )
    if used is images:
        return _datasets_of_images(folder, splits)
    # Brackets in a path stand for themselves.
    named = {split: [glob.escape(str(folder / path)) for path in paths] for split, paths in splits.items() if paths}
    # Without a buffer, each photo is in memory once less.
    options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    read: Any = load_dataset("parquet", data_files=named, streaming=streaming, fragment_scan_options=options)
    # A row group is a shard of its own: Arrow reads a whole shard ahead, however many photos it holds.
    return IterableDatasetDict({split: part.reshard() for split, part in read.items()}) if streaming else read


def describe(files: list[Path]) -> str:
    """How many files of which ending, and in which folders."""
    counts = Counter(path.suffix.lower() or path.name for path in files)
    folders = sorted({f"{path.parts[0]}/" for path in files if len(path.parts) > 1})
    names = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items())) or "nothing"
    shown = ", ".join(folders[:10]) + ", ..." * (len(folders) > 10)
    return f"{names} in {shown}" if folders else names


def _by_split(folder: Path, paths: list[Path], is_table: bool) -> dict[str, list[Path]]:
    """The files of each split; a split whose folder holds none of them has an empty list."""
    parents = sorted({str(path.parent) for path in paths if split_name(path.parts[0]) not in SPLITS})
    if is_table and len(parents) > 1:
        raise ValueError(f"{folder} holds parquet files in several folders: {', '.join(parents)}. Name one of them.")
    tops = {path: _top(path, is_table) for path in paths}
    names = {*tops.values(), *(path.name for path in folder.iterdir() if path.is_dir())}
    understood = {name: split_name(name) for name in sorted(names) if split_name(name) in SPLITS}
    others = sorted({*tops.values()} - understood.keys())
    remedy = f"A split is a first folder named {', '.join([*SPLITS, *SPLIT_ALIASES])}, in any case."
    if not understood:
        second = {f"{path.parts[0]}/{path.parts[1]}" for path in paths if split_name(_second(path)) in SPLITS}
        suspects = [name for name in others if name.lower() in NO_SPLITS] + sorted(second)
        if suspects:
            listed = ", ".join(suspects)
            raise ValueError(f"{folder} has no split, but holds {listed}, which would be training images. {remedy}")
        return {"train": paths}
    # A loose picture beside the splits may illustrate a page; a loose table is part of the data.
    others = [name for name in others if name or is_table]
    if others:
        unclear = ", ".join(name or "files beside them" for name in others)
        raise ValueError(f"{folder} holds {_listed(understood)}, but also {unclear}. {remedy}")
    used = {name: split for name, split in understood.items() if name in tops.values()}
    if len({*used.values()}) < len(used):
        raise ValueError(f"{folder} must hold one folder of each split, got {_listed(used)}.")
    splits: dict[str, list[Path]] = {split: [] for split in understood.values()}
    for path, top in tops.items():
        if top:
            splits[understood[top]].append(path)
    return splits


def _listed(understood: dict[str, str]) -> str:
    """Names, each with the split that it was understood as."""
    return ", ".join(f"{name} (split {split!r})" for name, split in understood.items())


def _top(path: Path, is_table: bool) -> str:
    """The first folder of a file, or an empty name; of a parquet file the split that its name begins with."""
    first = path.parts[0] if len(path.parts) > 1 else ""
    if is_table and split_name(first) not in SPLITS:
        word = re.split(r"[^A-Za-z]", path.name)[0]
        return word if split_name(word) in SPLITS else first
    return first


def _second(path: Path) -> str:
    return path.parts[1] if len(path.parts) > 2 else ""


def _datasets_of_images(folder: Path, splits: dict[str, list[Path]]) -> DatasetDict:
    """Data sets of paths, with a column `label` where all images lie in folders of at least two classes."""
    # The folder of the split is no class.
    depth = 0 if any(split_name(path.parts[0]) not in SPLITS for paths in splits.values() for path in paths) else 1
    labels = {
        split: [path.parts[depth] if len(path.parts) > depth + 1 else None for path in paths]
        for split, paths in splits.items()
    }
    found = {label for values in labels.values() for label in values}
    classes = sorted(label for label in found if label is not None)
    has_labels = len(classes) > 1 and None not in found
    if None in found and classes:
        count = sum(values.count(None) for values in labels.values())
        logger.warning_once(  # pyright: ignore[reportAttributeAccessIssue]
            f"{folder} has no labels: {count} images lie beside the folders of the classes {', '.join(classes)}."
        )
    features = Features({"image": Image(), **({"label": ClassLabel(names=classes)} if has_labels else {})})
    datasets = {}
    for split, paths in splits.items():
        columns: dict[str, list] = {"image": [str(folder.absolute() / path) for path in paths]}
        if has_labels:
            columns["label"] = labels[split]
        datasets[split] = Dataset.from_dict(columns, features=features, split=NamedSplit(split))
    return DatasetDict(datasets)
