"""Labels of a data set: what their classes are called, and whether a model can use them."""

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, IterableDataset, Value
from transformers.utils import logging

# What a `ClassLabel` of datasets holds where the class is not known.
NO_LABEL = -1

logger = logging.get_logger(__name__)


def class_names(dataset: Dataset | IterableDataset) -> list[str] | None:
    """Names of the classes in the order of their numbers, or None where there are no labels or only numbers."""
    feature = (dataset.features or {}).get("label")
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def usable_labels(dataset: Dataset | IterableDataset, needed: bool = False) -> bool:
    """Whether the column `label` holds class numbers; why it does not is said once.

    Raises: ValueError naming the column and the reason when labels are needed and cannot be used.
    """
    columns = dataset.column_names or []
    if "label" not in columns:
        if needed:
            raise ValueError(f"dataset must have a column 'label', got {', '.join(columns) or 'none'}.")
        return False
    problem = _problem(dataset)
    if problem is None:
        return True
    message = f"the column 'label' must hold class numbers, got {problem}"
    if needed:
        raise ValueError(f"dataset cannot be used with labels: {message}.")
    logger.warning_once(f"Labels are ignored: {message}.")  # pyright: ignore[reportAttributeAccessIssue]
    return False


def without_classes(dataset: Dataset | IterableDataset, classes: list[int]) -> Dataset:
    """The images of a data set whose label is none of these class numbers.

    Raises: ValueError when the data set is a stream or has no labels, or these are no classes of it, or all of them.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError("dataset.leave_out_classes needs a data set in memory: dataset.streaming must be false.")
    usable_labels(dataset, needed=True)
    labels = np.array(dataset["label"])
    known = np.unique(labels).tolist()
    is_list = isinstance(classes, list) and all(number in known for number in classes)
    if not is_list or len({*classes}) == len(known):
        raise ValueError(f"dataset.leave_out_classes must be a list of some of the classes {known}, got {classes!r}.")
    return dataset.select(np.flatnonzero(~np.isin(labels, classes)))


def encode_strings(dataset: Dataset, names: list[str]) -> Dataset:
    """The data set with its column `label` of strings as numbers of the classes `names`."""
    feature = ClassLabel(names=names)
    numbers = [feature.str2int(name) for name in dataset["label"]]
    return dataset.remove_columns("label").add_column("label", numbers, feature=feature)


def is_string(feature: object) -> bool:
    """Whether a column of this feature holds strings."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _problem(dataset: Dataset | IterableDataset) -> str | None:
    """What the column `label` holds in place of class numbers, or None."""
    feature = (dataset.features or {}).get("label")
    # A stream that does not state its columns is judged by what it gives.
    if feature is None:
        return None
    labels = dataset.select_columns("label").with_format(None)[:]["label"] if isinstance(dataset, Dataset) else []
    missing = labels.count(None) + labels.count(NO_LABEL)
    is_whole = isinstance(feature, Value) and (pa.types.is_integer(feature.pa_type) or feature.dtype == "bool")
    if not isinstance(feature, ClassLabel) and not is_whole:
        hint = "; load it with streaming=False to make classes of them" * isinstance(dataset, IterableDataset)
        hint = f", and {missing} rows without one" if missing else hint
        return f"strings{hint}" if is_string(feature) else f"{feature}"
    return f"{missing} rows without a number" if missing else None
