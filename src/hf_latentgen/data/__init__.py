"""Data sets with fixed splits, and the batch paths that feed them to a model."""

from hf_latentgen.data.batches import GatheredDataset, collate_levels
from hf_latentgen.data.images import dataset_from_arrays, load_images, read_amat, read_idx, split_indices
from hf_latentgen.data.labels import class_names, usable_labels
from hf_latentgen.data.levels import LevelsDataset, stream_levels
from hf_latentgen.data.text import TokenBlocksDataset, load_text, stream_token_blocks

__all__ = [
    "GatheredDataset",
    "LevelsDataset",
    "TokenBlocksDataset",
    "class_names",
    "collate_levels",
    "dataset_from_arrays",
    "load_images",
    "load_text",
    "read_amat",
    "read_idx",
    "split_indices",
    "stream_levels",
    "stream_token_blocks",
    "usable_labels",
]
