"""What the tests of image data share: writers of small data sets, and readers of what was loaded."""

import gzip

import numpy as np
from PIL import Image as PILImage

from hf_latentgen.data.images import (
    AMAT_FILES,
    IDX_FILES,
)


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
