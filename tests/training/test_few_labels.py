import copy

import pytest
import torch

from hf_latentgen.training.few_labels import FewLabelsDataset


@pytest.fixture
def images(labelled_digits):
    """64 digits, of each class at least three."""
    return labelled_digits[0]


def test_every_class_has_the_same_number_of_labels(images):
    for num_labelled in (10, 20, 30):
        labelled = FewLabelsDataset(images, num_labelled, 4, seed=3).labelled
        assert len(set(labelled.tolist())) == num_labelled
        classes = images.labels[labelled]
        assert torch.equal(classes.bincount(), torch.full((10,), num_labelled // 10))
        # Any run of ten holds each class once.
        for start in range(num_labelled):
            assert set(classes.roll(-start)[:10].tolist()) == set(range(10))


def test_seed_chooses_the_labelled_images(images):
    first, again, other = (FewLabelsDataset(images, 20, 4, seed).labelled.tolist() for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)
    # More labels of one seed are those that fewer are taken from.
    assert set(FewLabelsDataset(images, 10, 4, seed=0).labelled.tolist()) < set(first)


def test_images_bring_labelled_ones_along(images):
    dataset = FewLabelsDataset(images, 20, 3, seed=0)
    assert len(dataset) == len(images) == 64
    rows = [50, 7, 21, 0, 63]
    batch = dataset.gather(rows)
    companions = dataset.labelled[torch.tensor([50 % 20, 7, 21 % 20])]
    assert torch.equal(batch["pixel_values"], images.levels[torch.cat([torch.tensor(rows), companions])])
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(batch["labels"], torch.cat([torch.full((5,), -100), images.labels[companions]]))
    # No label of another image is ever shown.
    assert set(companions.tolist()) <= set(dataset.labelled.tolist())


def test_nothing_is_drawn(images):
    state = torch.get_rng_state()
    dataset = FewLabelsDataset(images, 20, 4, seed=0)
    first, again = (dataset.gather([3, 1, 4, 1, 5]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_short_batch_brings_as_many_as_it_holds(images):
    batch = FewLabelsDataset(images, 20, 32, seed=0).gather([2, 5])
    assert len(batch["pixel_values"]) == len(batch["labels"]) == 4
    assert (batch["labels"] >= 0).tolist() == [False, False, True, True]


def test_every_labelled_image_is_seen_in_an_epoch(images):
    dataset = FewLabelsDataset(images, 30, 8, seed=0)
    seen = torch.cat([dataset.gather(rows.tolist())["pixel_values"][8:] for rows in torch.arange(64).split(8)])
    expected = images.levels[dataset.labelled].flatten(1).unique(dim=0)
    assert torch.equal(seen.flatten(1).unique(dim=0), expected)


def test_single_image_has_no_label(images):
    example = FewLabelsDataset(images, 20, 4, seed=0)[5]
    assert torch.equal(example["pixel_values"], images.levels[5])
    assert example["labels"].item() == -100


@pytest.mark.parametrize("num_labelled", [0, -10, 15, 1000])
def test_bad_number_of_labels_is_refused(images, num_labelled):
    most = 10 * int(images.labels.bincount().min())
    with pytest.raises(ValueError, match=f"num_labelled must be a multiple of 10, at most {most}, got {num_labelled}"):
        FewLabelsDataset(images, num_labelled, 4, seed=0)


def test_batch_without_labelled_images_is_refused(images):
    with pytest.raises(ValueError, match="labelled_per_batch must be at least 1, got 0"):
        FewLabelsDataset(images, 20, 0, seed=0)


def test_data_without_labels_is_refused(images):
    unlabelled = copy.copy(images)
    unlabelled.labels = None
    with pytest.raises(ValueError, match="dataset must hold labels, got one without"):
        FewLabelsDataset(unlabelled, 20, 4, seed=0)
