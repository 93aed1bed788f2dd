"""Codes without a network, whose scores every model has to get below, in bits per dimension.

The counting models are fitted on training images and scored on test images; the compressors see the test images only.
"""

import bz2
import io
import lzma
import math
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image

from hf_latentgen.data import LevelsDataset
from hf_latentgen.models.bits import nats_to_bits_per_dim

# Rows and columns from a pixel to its causal neighbours W, N, NW, NE; the last one is the first to be left out.
NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
# 16 levels need no coarser contexts, 256 levels get contexts of 8 levels.
MAX_TABLE_ENTRIES = 2**20
# A chunk of images at a time keeps the index arrays small.
CHUNK = 4096
# How many counts a shorter context is worth.
STRENGTH = 2.0
# Rows and columns of a mosaic: larger pictures JPEG XL codes in parts that do not learn from each other.
MAX_MOSAIC_SIDE = 2048


def image_baselines(
    train: LevelsDataset, validation: LevelsDataset, test: LevelsDataset, num_levels: int
) -> dict[str, float]:
    """Score of every baseline on `test`; those that count have seen the training and validation images, but not it."""
    seen = torch.cat([part.levels for part in (train, validation) if part is not test]).numpy()
    return baseline_scores(seen, test.levels.numpy(), num_levels)


def baseline_scores(train_levels: np.ndarray, test_levels: np.ndarray, num_levels: int) -> dict[str, float]:
    """Score of every baseline on the test images, in bits per dimension.

    Shape: `train_levels` and `test_levels` [N, C, H, W], integers in `[0, num_levels - 1]`.

    Raises:
        ValueError: no images, images of different shapes, or levels out of range.
    """
    for name, levels in (("train_levels", train_levels), ("test_levels", test_levels)):
        _check_levels(name, levels, num_levels)
    if train_levels.shape[1:] != test_levels.shape[1:]:
        expected = f"the image shape of train_levels, {train_levels.shape[1:]}"
        raise ValueError(f"test_levels must have {expected}, got {test_levels.shape[1:]}")
    num_dims = math.prod(test_levels.shape[1:])
    nats = {
        "order0": order0_nats(train_levels, test_levels, num_levels),
        "per_pixel": per_pixel_nats(train_levels, test_levels, num_levels),
        "counting_4": counting_nats(train_levels, test_levels, num_levels),
    }
    bits = {name: float(nats_to_bits_per_dim(value.mean(), num_dims)) for name, value in nats.items()}
    sizes = {
        "bz2": bz2_bytes(test_levels, num_levels),
        "xz": xz_bytes(test_levels, num_levels),
        "png": png_bytes(test_levels, num_levels),
    }
    # A package of the extra "benchmark".
    if find_spec("imagecodecs") is not None:
        sizes["jpeg_xl"] = jpeg_xl_bytes(test_levels, num_levels)
    bits |= {name: 8 * size / test_levels.size for name, size in sizes.items()}
    return {f"{name}_bits_per_dim": value for name, value in bits.items()}


def order0_nats(train_levels: np.ndarray, test_levels: np.ndarray, num_levels: int) -> np.ndarray:
    """Negative log-likelihood of each test image if all pixels follow one histogram of levels, in nats. [N].

    Shape: both sets of levels [N, C, H, W]. The histogram has one added to each count, as in `per_pixel_nats`.
    """
    counts = np.bincount(train_levels.ravel(), minlength=num_levels) + 1
    log_probabilities = np.log(counts / counts.sum())
    return -_gather_sums(lambda levels: log_probabilities[levels], test_levels)


def per_pixel_nats(train_levels: np.ndarray, test_levels: np.ndarray, num_levels: int) -> np.ndarray:
    """Negative log-likelihood of each test image if every pixel has a histogram of its own, in nats. [N].

    Shape: both sets of levels [N, C, H, W].
    """
    image_shape = train_levels.shape[1:]
    positions = np.arange(math.prod(image_shape)).reshape(image_shape) * num_levels
    counts = np.ones(positions.size * num_levels)
    for start in range(0, len(train_levels), CHUNK):
        chunk = positions + train_levels[start : start + CHUNK]
        counts += np.bincount(chunk.ravel(), minlength=counts.size)
    table = counts.reshape(-1, num_levels)
    log_probabilities = np.log(table / table.sum(1, keepdims=True)).ravel()
    return -_gather_sums(lambda levels: log_probabilities[positions + levels], test_levels)


def counting_nats(train_levels: np.ndarray, test_levels: np.ndarray, num_levels: int) -> np.ndarray:
    """Negative log-likelihood of each test image under counts of the four causal neighbours, in nats. [N].

    The probability of a level after a context is `(count(context, level) + STRENGTH * backed_off) / (count(context) +
    STRENGTH)`, where `backed_off` is the same quantity for the context without its last neighbour: W, N, NW, NE; then
    W, N, NW; W, N; W; and at the end the histogram of levels with one added to each count. A neighbour outside the
    image has level 0. With more than 16 levels the neighbours (not the pixel itself) are quantised, to 8 levels for
    256, so that the table stays at about a million entries. The channels of a colour image are coded independently,
    with tables of their own.

    Shape: both sets of levels [N, C, H, W].
    """
    context_levels = num_context_levels(num_levels)
    shape = (context_levels,) * len(NEIGHBOURS) + (num_levels,)
    nats = np.zeros(len(test_levels))
    for channel in range(train_levels.shape[1]):
        counts = np.zeros(math.prod(shape))
        for start in range(0, len(train_levels), CHUNK):
            indices = _table_indices(train_levels[start : start + CHUNK, channel], num_levels, context_levels)
            counts += np.bincount(indices.ravel(), minlength=counts.size)
        log_probabilities = np.log(_backed_off(counts.reshape(shape))).ravel()
        for start in range(0, len(test_levels), CHUNK):
            indices = _table_indices(test_levels[start : start + CHUNK, channel], num_levels, context_levels)
            nats[start : start + CHUNK] -= log_probabilities[indices].sum((1, 2))
    return nats


def counting_nats_reference(train_levels: np.ndarray, test_levels: np.ndarray, num_levels: int) -> np.ndarray:
    """The same as `counting_nats`, one pixel at a time, for small inputs. [N].

    Shape: both sets of levels [N, C, H, W].
    """
    context_levels = num_context_levels(num_levels)

    def context(image: np.ndarray, row: int, column: int, length: int) -> tuple[int, ...]:
        neighbours = []
        for down, right in NEIGHBOURS[:length]:
            y, x = row + down, column + right
            inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
            neighbours.append(int(image[y, x]) * context_levels // num_levels if inside else 0)
        return tuple(neighbours)

    nats = np.zeros(len(test_levels))
    for channel in range(train_levels.shape[1]):
        counts: dict[tuple, int] = {}
        for image in train_levels[:, channel]:
            for row, column in np.ndindex(image.shape):
                for length in range(len(NEIGHBOURS) + 1):
                    neighbours = context(image, row, column, length)
                    counts[neighbours] = counts.get(neighbours, 0) + 1
                    seen = (*neighbours, "level", int(image[row, column]))
                    counts[seen] = counts.get(seen, 0) + 1
        for index, image in enumerate(test_levels[:, channel]):
            for row, column in np.ndindex(image.shape):
                level = int(image[row, column])
                probability = (counts.get(("level", level), 0) + 1) / (counts[()] + num_levels)
                for length in range(1, len(NEIGHBOURS) + 1):
                    neighbours = context(image, row, column, length)
                    joint, total = counts.get((*neighbours, "level", level), 0), counts.get(neighbours, 0)
                    probability = (joint + STRENGTH * probability) / (total + STRENGTH)
                nats[index] -= math.log(probability)
    return nats


def num_context_levels(num_levels: int) -> int:
    """The finest quantisation of the neighbours whose table stays within `MAX_TABLE_ENTRIES` entries."""
    fitting = [q for q in range(2, num_levels + 1) if q ** len(NEIGHBOURS) * num_levels <= MAX_TABLE_ENTRIES]
    return max(fitting)


def bz2_bytes(levels: np.ndarray, num_levels: int) -> int:
    """Bytes of all images in one bz2 file: the smaller of one pixel per byte and as many pixels per byte as fit.

    Shape: `levels` [N, C, H, W], integers below 256.
    """
    return min(len(bz2.compress(data)) for data in layouts(levels, num_levels))


def xz_bytes(levels: np.ndarray, num_levels: int) -> int:
    """Bytes of all images in one xz file at its strongest setting, the smaller of the two layouts of `bz2_bytes`.

    Shape: `levels` [N, C, H, W], integers below 256.
    """
    preset = 9 | lzma.PRESET_EXTREME
    return min(len(lzma.compress(data, preset=preset)) for data in layouts(levels, num_levels))


def png_bytes(levels: np.ndarray, num_levels: int) -> int:
    """Bytes of all images as PNG files of their levels, one file per image, including the headers.

    The smaller total of two encoders: adaptive filters at 8 bits per value, which suit photographs, and no filter at
    the bit depth that `num_levels` needs, which suits drawings. Images with other than 1 or 3 channels become one file
    per channel.

    Shape: `levels` [N, C, H, W], integers below 256.
    """
    images = _pictures(levels)
    depth = 8 if images.shape[-1] == 3 else bit_depth(num_levels)
    return min(sum(len(_filtered_png(image)) for image in images), sum(len(unfiltered_png(i, depth)) for i in images))


def smallest_png(image: np.ndarray, depth: int) -> bytes:
    """The smaller one of two PNG files of the levels of one grey image: with adaptive filters, and as it is.

    Shape: `image` uint8 [H, W].
    """
    return min(_filtered_png(image[..., None]), unfiltered_png(image[..., None], depth), key=len)


def jpeg_xl_bytes(levels: np.ndarray, num_levels: int) -> int:
    """Bytes of all images as `mosaics` in lossless JPEG XL at effort 9.

    Images with other than 1 or 3 channels become one for each channel. It needs the package imagecodecs.

    Shape: `levels` [N, C, H, W], integers below 256.
    """
    return sum(len(jpeg_xl(picture, bit_depth(num_levels))) for picture in mosaics(_pictures(levels)))


def jpeg_xl(image: np.ndarray, depth: int) -> bytes:
    """A lossless JPEG XL codestream of levels at effort 9. Shape: `image` uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    import imagecodecs  # pyright: ignore[reportMissingImports]

    image = image[..., 0] if image.shape[-1] == 1 and image.ndim == 3 else image
    return bytes(imagecodecs.jpegxl_encode(image, lossless=True, effort=9, usecontainer=False, bitspersample=depth))


def webp(image: np.ndarray) -> bytes:
    """A lossless WebP file of levels. Shape: `image` uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    image = image[..., 0] if image.shape[-1] == 1 and image.ndim == 3 else image
    file = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(file, format="WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def mosaics(images: np.ndarray) -> list[np.ndarray]:
    """All images side by side and below each other in pictures of at most `MAX_MOSAIC_SIDE` rows and columns.

    Shape: `images` [N, H, W] or [N, H, W, C]; places that are left over hold zeros.
    """
    height, width = images.shape[1:3]
    most = max(MAX_MOSAIC_SIDE // height, 1) * max(MAX_MOSAIC_SIDE // width, 1)
    count = -(-len(images) // most)
    pictures = []
    for part in np.array_split(images.astype(np.uint8), count):
        columns = min(math.ceil(len(part) ** 0.5), max(MAX_MOSAIC_SIDE // width, 1))
        rows = -(-len(part) // columns)
        part = np.concatenate([part, np.zeros((rows * columns - len(part), *part.shape[1:]), np.uint8)])
        grid = part.reshape(rows, columns, *part.shape[1:]).swapaxes(1, 2)
        pictures.append(np.ascontiguousarray(grid.reshape(rows * height, columns * width, *part.shape[3:])))
    return pictures


def unfiltered_png(image: np.ndarray, depth: int) -> bytes:
    """A PNG file of the levels of one image at `depth` bits per value, without a filter.

    Shape: `image` uint8 [H, W, 1] or, at depth 8 only, [H, W, 3].
    """
    height, width, channels = image.shape
    rows = [b"\0" + _pack(row.ravel(), depth) for row in image]
    header = struct.pack(">IIBBBBB", width, height, depth, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _pictures(levels: np.ndarray) -> np.ndarray:
    """Images [N, C, H, W] with their channels last, each alone unless there are three. uint8 [M, H, W, 1 or 3]."""
    images = levels.astype(np.uint8).transpose(0, 2, 3, 1)
    return images if images.shape[-1] == 3 else images.transpose(0, 3, 1, 2).reshape(-1, *images.shape[1:3], 1)


def _filtered_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(file, format="PNG", optimize=True)
    return file.getvalue()


def bit_depth(num_levels: int) -> int:
    """The smallest of 1, 2, 4 and 8 bits that can hold every level."""
    return next(depth for depth in (1, 2, 4, 8) if num_levels <= 2**depth)


def _pack(flat: np.ndarray, depth: int) -> bytes:
    """Values of `depth` bits, as many to a byte as fit, the first one in the highest bits."""
    per_byte = 8 // depth
    groups = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte - 1, -1, -1, dtype=np.uint8) * np.uint8(depth)
    return (groups << shifts).sum(1, dtype=np.uint8).tobytes()


def layouts(levels: np.ndarray, num_levels: int) -> list[bytes]:
    """The images in raster order with one pixel per byte, and with as many as fit: compressors differ in taste."""
    flat = levels.astype(np.uint8).ravel()
    return [flat.tobytes()] + [_pack(flat, depth) for depth in (bit_depth(num_levels),) if depth < 8]


def _table_indices(levels: np.ndarray, num_levels: int, context_levels: int) -> np.ndarray:
    """Position of each pixel in the table [context_levels] * 4 + [num_levels]. [N, H, W]."""
    _, height, width = levels.shape
    padded = np.pad(levels.astype(np.int64) * context_levels // num_levels, ((0, 0), (1, 0), (1, 1)))
    indices = np.zeros(levels.shape, dtype=np.int64)
    for down, right in NEIGHBOURS:
        neighbour = padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        indices = indices * context_levels + neighbour
    return indices * num_levels + levels


def _backed_off(counts: np.ndarray) -> np.ndarray:
    """Probability of the last axis given the others; each context backs off to the one without its last neighbour."""
    num_neighbours = counts.ndim - 1
    probabilities = counts.sum(axis=tuple(range(num_neighbours))) + 1
    probabilities /= probabilities.sum()
    for length in range(1, num_neighbours + 1):
        seen = counts.sum(axis=tuple(range(length, num_neighbours)))
        probabilities = (seen + STRENGTH * probabilities[..., None, :]) / (seen.sum(-1, keepdims=True) + STRENGTH)
    return probabilities


def _gather_sums(log_probability, levels: np.ndarray) -> np.ndarray:
    chunks = [levels[start : start + CHUNK] for start in range(0, len(levels), CHUNK)]
    return np.concatenate([log_probability(chunk).reshape(len(chunk), -1).sum(1) for chunk in chunks])


def _check_levels(name: str, levels: np.ndarray, num_levels: int) -> None:
    if levels.ndim != 4 or levels.size == 0:
        raise ValueError(f"{name} must have shape [N, C, H, W] with N >= 1, got {list(levels.shape)}")
    if not np.issubdtype(levels.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {levels.dtype}")
    if levels.min() < 0 or levels.max() >= num_levels:
        raise ValueError(f"{name} must lie in [0, {num_levels - 1}], got [{levels.min()}, {levels.max()}]")
