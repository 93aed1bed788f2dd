"""Colour patches of the two photographs that come with scikit-learn, split by region."""

from itertools import pairwise

import numpy as np
from sklearn.datasets import load_sample_images

PATCH_SIZE = 32
# Training patches overlap: two photographs hold few that do not.
TRAIN_STRIDE = 8
CLASSES = ["china", "flower"]
# Each photograph is cut into columns as wide as a patch; the columns between these are for training.
COLUMNS = {"validation": (7, 15), "test": (3, 11, 19)}


def photo_patches(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Patches of one split and the number of the photograph of each. uint8 [N, 32, 32, 3], int64 [N].

    No pixel of a validation or test patch is in a patch of another split.
    """
    patches, labels = [], []
    for label, photo in enumerate(load_sample_images().images):
        for first, last in _regions(split, photo.shape[1] // PATCH_SIZE):
            region = photo[:, first * PATCH_SIZE : last * PATCH_SIZE]
            found = cut(region, PATCH_SIZE, TRAIN_STRIDE if split == "train" else PATCH_SIZE)
            patches.append(found)
            labels += [label] * len(found)
    return np.concatenate(patches), np.array(labels)


def cut(region: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Square patches of an image [H, W, C], row by row, `stride` apart. [N, size, size, C].

    Raises:
        ValueError: the region is smaller than a patch, or a number is below 1.
    """
    if min(size, stride) < 1:
        raise ValueError(f"size and stride must be at least 1, got {size} and {stride}")
    if min(region.shape[:2]) < size:
        raise ValueError(f"region must be at least {size}x{size}, got {region.shape[0]}x{region.shape[1]}")
    windows = np.lib.stride_tricks.sliding_window_view(region, (size, size), axis=(0, 1))[::stride, ::stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 4, 2).reshape(-1, size, size, region.shape[2]))


def _regions(split: str, num_columns: int) -> list[tuple[int, int]]:
    """First column and the one after the last of each region of a split."""
    if split != "train":
        return [(column, column + 1) for column in COLUMNS[split]]
    held_out = sorted(column for columns in COLUMNS.values() for column in columns)
    edges = [-1, *held_out, num_columns]
    return [(before + 1, after) for before, after in pairwise(edges) if after - before > 1]
