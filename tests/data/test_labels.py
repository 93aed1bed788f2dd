"""Labels of data sets that others made: strings become classes, what cannot be used is said or refused."""

import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from data_common import write_parquet
from hf_latentgen.data import (
    LevelsDataset,
    class_names,
    dataset_from_arrays,
    load_images,
    stream_levels,
    usable_labels,
)
from hf_latentgen.data.labels import without_classes


def labelled(images, labels, feature):
    dataset = dataset_from_arrays(images[: len(labels)], split="train")
    return dataset.add_column("label", labels, feature=feature)


@pytest.fixture
def strings(tmp_path, random_images):
    """A folder whose training images are cats and dogs, and whose test images are dogs and birds."""
    splits = {"train": ["cat", "dog", "cat"], "validation": ["cat", "cat"], "test": ["dog", "bird"]}
    datasets = {split: labelled(random_images, labels, Value("string")) for split, labels in splits.items()}
    return write_parquet(tmp_path / "strings", datasets, num_shards=1)


def test_strings_become_classes_that_all_splits_share(strings, processor):
    train, test = load_images(strings, "train"), load_images(strings, "test")
    assert class_names(train) == class_names(test) == ["bird", "cat", "dog"]
    assert train["label"][:] == [1, 2, 1]
    assert LevelsDataset(test, processor, with_labels=True).labels.tolist() == [2, 0]


def test_strings_of_a_stream_are_no_labels(strings, processor):
    stream = load_images(strings, "train", streaming=True)
    assert not usable_labels(stream)
    with pytest.raises(ValueError, match="'label' must hold class numbers, got strings; load it with streaming=False"):
        stream_levels(stream, processor, with_labels=True)
    assert len(list(stream_levels(stream, processor))) == 3


UNUSABLE = [
    (["cat", None, "dog"], Value("string"), "got strings, and 1 rows without one"),
    ([0.0, 1.0, 2.5], Value("float32"), "got Value('float32')"),
    ([[0], [1, 2], []], List(Value("int64")), "got List(Value('int64'))"),
    ([None, None, None], Value("null"), "got Value('null')"),
    ([0, None, 1], Value("int64"), "got 1 rows without a number"),
    ([0, None, None], ClassLabel(names=["a", "b"]), "got 2 rows without a number"),
    ([-1, None, -1], ClassLabel(names=["a", "b"]), "got 3 rows without a number"),
    ([-1, -1, -1], Value("int32"), "got 3 rows without a number"),
]


@pytest.mark.parametrize(("labels", "feature", "problem"), UNUSABLE)
def test_labels_that_cannot_be_used_are_ignored_with_one_warning(
    tmp_path, random_images, processor, caplog, labels, feature, problem
):
    splits = {"train": labelled(random_images, labels, feature), "validation": labelled(random_images, labels, feature)}
    dataset = load_images(write_parquet(tmp_path / "data", splits, num_shards=1))
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [usable_labels(dataset) for _ in range(3)] == [False] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"Labels are ignored: the column 'label' must hold class numbers, {problem}."
    ]
    assert len(LevelsDataset(dataset, processor)) == 3


@pytest.mark.parametrize(("labels", "feature", "problem"), UNUSABLE)
def test_labels_that_cannot_be_used_are_refused_by_name_where_they_are_needed(
    random_images, processor, labels, feature, problem
):
    dataset = labelled(random_images, labels, feature)
    for needs in (lambda: usable_labels(dataset, needed=True), lambda: LevelsDataset(dataset, processor, True)):
        with pytest.raises(ValueError) as raised:
            needs()
        assert f"the column 'label' must hold class numbers, {problem}" in str(raised.value)


@pytest.mark.parametrize("missing", [None, -1])
def test_a_missing_number_in_a_stream_is_refused_with_its_row(random_images, processor, missing):
    stream = labelled(random_images, [0, missing, 1], Value("int64")).to_iterable_dataset()
    with pytest.raises(ValueError, match=f"the column 'label' must hold class numbers, got {missing} for row 1\\."):
        list(stream_levels(stream, processor, with_labels=True))


@pytest.mark.parametrize(
    ("labels", "feature", "names"),
    [
        ([2, 0, 1], Value("int32"), None),
        ([2, 0, 1], Value("uint64"), None),
        ([True, False, True], Value("bool"), None),
        ([1, 0, 1], ClassLabel(names=["cat", "dog"]), ["cat", "dog"]),
    ],
)
def test_numbers_and_classes_are_labels(random_images, processor, labels, feature, names):
    dataset = labelled(random_images, labels, feature)
    assert usable_labels(dataset, needed=True)
    assert class_names(dataset) == names
    levels = LevelsDataset(dataset, processor, with_labels=True).labels
    assert levels.tolist() == labels
    assert str(levels.dtype) == "torch.int64"


def test_no_labels_are_none(random_images):
    dataset = dataset_from_arrays(random_images, split="train")
    assert not usable_labels(dataset)
    assert class_names(dataset) is None
    with pytest.raises(ValueError, match="must have a column 'label', got image"):
        usable_labels(dataset, needed=True)


def test_the_named_sets_name_their_classes(tmp_path, random_images):
    assert class_names(load_images("digits", "test")) == [str(number) for number in range(10)]
    assert class_names(dataset_from_arrays(random_images, np.arange(60) % 3, split="train"))[:3] == ["0", "1", "2"]


def test_a_stream_that_states_no_columns_is_judged_by_what_it_gives(random_images, processor):
    rows = Dataset.from_dict({"image": list(random_images)}, features=Features(image=Image())).to_iterable_dataset()
    named = rows.map(lambda row: {**row, "label": "cat"}).remove_columns([])
    assert named.features is None
    with pytest.raises(ValueError, match="got image|got none|got 'cat' for row 0"):
        LevelsDataset(named, processor, with_labels=True)


def test_images_of_some_classes_are_left_out(random_images):
    dataset = dataset_from_arrays(random_images, np.arange(60) % 4, split="train")
    kept = without_classes(dataset, [1, 3])
    assert kept["label"] == [0, 2] * 15
    assert (np.asarray(kept[1]["image"]) == random_images[2]).all()
    # The others keep their numbers.
    assert class_names(kept) == class_names(dataset)
    assert len(without_classes(dataset, [])) == 60


@pytest.mark.parametrize("classes", [4, [4], ["1"], [0, 1, 2, 3], [[1]], None])
def test_classes_that_cannot_be_left_out_are_refused(random_images, classes):
    dataset = dataset_from_arrays(random_images, np.arange(60) % 4, split="train")
    with pytest.raises(ValueError) as raised:
        without_classes(dataset, classes)
    field = "dataset.leave_out_classes must be a list of some of the classes [0, 1, 2, 3]"
    assert str(raised.value) == f"{field}, got {classes!r}."


def test_classes_are_left_out_of_images_in_memory_with_labels_only(random_images):
    dataset = dataset_from_arrays(random_images, np.arange(60) % 4, split="train")
    with pytest.raises(ValueError, match="dataset.leave_out_classes .* dataset.streaming must be false"):
        without_classes(dataset.to_iterable_dataset(), [1])
    with pytest.raises(ValueError, match="must have a column 'label', got image"):
        without_classes(dataset_from_arrays(random_images, split="train"), [1])


def test_rows_that_are_left_out_have_no_say(random_images):
    dataset = labelled(random_images, [0, 1, -1, 1], Value("int64"))
    assert not usable_labels(dataset)
    known = dataset.filter(lambda label: label >= 0, input_columns="label")
    assert usable_labels(known)
    assert list(known["label"]) == [0, 1, 1]
