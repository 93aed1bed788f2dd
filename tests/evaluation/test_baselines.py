import bz2
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from hf_latentgen import LevelsDataset, LevelsImageProcessor, load_images
from hf_latentgen.data import read_idx
from hf_latentgen.evaluation.baselines import (
    MAX_MOSAIC_SIDE,
    baseline_scores,
    bit_depth,
    bz2_bytes,
    counting_nats,
    counting_nats_reference,
    jpeg_xl,
    jpeg_xl_bytes,
    mosaics,
    num_context_levels,
    order0_nats,
    per_pixel_nats,
    png_bytes,
    unfiltered_png,
    xz_bytes,
)
from hf_latentgen.models.image_processing_levels import levels_from_uint8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def smooth_images(rng, number, num_levels, channels=1, size=5):
    """Images whose neighbouring pixels are alike."""
    steps = rng.integers(0, 2, (number, channels, size, size))
    return (steps.cumsum(2).cumsum(3) % num_levels).astype(np.uint8)


@pytest.mark.parametrize(("num_levels", "channels"), [(2, 1), (3, 2), (16, 1), (40, 1), (256, 3)])
def test_counting_equals_the_readable_reference(rng, num_levels, channels):
    train, test = (smooth_images(rng, number, num_levels, channels) for number in (6, 3))
    fast, slow = (nats(train, test, num_levels) for nats in (counting_nats, counting_nats_reference))
    assert fast.shape == (3,)
    np.testing.assert_allclose(fast, slow, rtol=1e-12)


@pytest.mark.parametrize("model", [order0_nats, per_pixel_nats, counting_nats])
def test_probabilities_of_all_images_sum_to_one(rng, model):
    train = smooth_images(rng, 20, 3, size=2)
    every = np.array(list(itertools.product(range(3), repeat=4)), dtype=np.uint8).reshape(-1, 1, 2, 2)
    assert np.exp(-model(train, every, 3)).sum() == pytest.approx(1, abs=1e-12)


def test_contexts_are_quantised_only_where_the_table_would_be_too_large():
    assert [num_context_levels(num_levels) for num_levels in (2, 16, 32, 256)] == [2, 16, 13, 8]


def test_histograms_match_brute_force(rng):
    train, test = rng.integers(0, 4, (50, 2, 2, 2)), rng.integers(0, 4, (3, 2, 2, 2))
    counts = [(train == level).sum() + 1 for level in range(4)]
    expected = [-sum(math.log(counts[level] / sum(counts)) for level in image.ravel()) for image in test]
    np.testing.assert_allclose(order0_nats(train, test, 4), expected)
    expected = np.zeros(3)
    for position in np.ndindex(2, 2, 2):
        values = train[(slice(None), *position)]
        for index, image in enumerate(test):
            expected[index] -= math.log(((values == image[position]).sum() + 1) / (len(train) + 4))
    np.testing.assert_allclose(per_pixel_nats(train, test, 4), expected)


def test_noise_costs_all_bits_and_stripes_almost_none(rng):
    noise = rng.integers(0, 4, (500, 1, 8, 8), dtype=np.uint8)
    scores = baseline_scores(noise[:400], noise[400:], 4)
    # JPEG XL is there where its package is.
    assert [name for name in scores if name != "jpeg_xl_bits_per_dim"] == [
        "order0_bits_per_dim",
        "per_pixel_bits_per_dim",
        "counting_4_bits_per_dim",
        "bz2_bits_per_dim",
        "xz_bits_per_dim",
        "png_bits_per_dim",
    ]
    assert scores["order0_bits_per_dim"] == pytest.approx(2, abs=0.01)
    assert min(scores.values()) > 1.99
    stripes = np.broadcast_to(np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1) % 4, (500, 1, 8, 8))
    scores = baseline_scores(stripes[:400], stripes[400:], 4)
    assert scores["order0_bits_per_dim"] == pytest.approx(2, abs=0.01)
    # Only the first row, where every neighbour is outside, and the left edge need more than the row above.
    assert scores["counting_4_bits_per_dim"] < 0.2
    assert scores["per_pixel_bits_per_dim"] < 0.1
    assert scores["xz_bits_per_dim"] < 0.2


@pytest.mark.parametrize(
    ("depth", "channels", "mode"), [(1, 1, "1"), (2, 1, "L"), (4, 1, "L"), (8, 1, "L"), (8, 3, "RGB")]
)
def test_unfiltered_png_is_a_png_of_the_levels(rng, depth, channels, mode):
    levels = rng.integers(0, 2**depth, (5, 7, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(unfiltered_png(levels, depth))) as picture:
        assert (picture.size, picture.mode) == ((7, 5), mode)
        values = np.asarray(picture).reshape(levels.shape).astype(int)
    # Depths below 8 are spread over 0 ... 255 by the reader.
    scale = 1 if mode == "1" else 255 // (2**depth - 1)
    assert (values == levels.astype(int) * scale).all()


def test_compressors_take_the_better_layout(rng):
    levels = rng.integers(0, 16, (20, 1, 8, 8), dtype=np.uint8)
    packed = (levels.ravel()[::2] << 4 | levels.ravel()[1::2]).tobytes()
    assert bz2_bytes(levels, 16) == min(len(bz2.compress(levels.tobytes())), len(bz2.compress(packed)))
    assert xz_bytes(levels, 16) < levels.size * 0.6
    assert bz2_bytes(levels, 256) == len(bz2.compress(levels.tobytes()))


def test_png_files_of_noise_are_larger_than_the_pixels(rng):
    levels = rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    assert png_bytes(levels, 256) > levels.size
    assert png_bytes(levels[:, :2], 256) > levels[:, :2].size


def test_baselines_of_real_4_bit_mnist(data_root):
    train = levels_from_uint8(read_idx(data_root / "mnist" / "train-images-idx3-ubyte.gz", 3)[:, None], 16)
    images = load_images("mnist", "test", data_dir=data_root)
    test = LevelsDataset(images, LevelsImageProcessor(num_levels=16)).levels.numpy()
    assert test.shape == (10_000, 1, 28, 28)

    def bits_per_dim(nats):
        return round(nats.mean() / (784 * math.log(2)), 3)

    assert bits_per_dim(order0_nats(train, test, 16)) == 1.238
    assert bits_per_dim(per_pixel_nats(train, test, 16)) == 0.977
    assert bits_per_dim(counting_nats(train, test, 16)) in (0.545, 0.546)
    assert round(8 * bz2_bytes(test, 16) / test.size, 3) == 0.742


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (np.zeros((0, 1, 2, 2), int), np.zeros((1, 1, 2, 2), int), r"train_levels must have shape .* \[0, 1, 2, 2\]"),
        (np.zeros((1, 1, 2, 2), int), np.zeros((2, 2), int), r"test_levels must have shape .* got \[2, 2\]"),
        (np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2), int), "train_levels must be integers, got float64"),
        (np.zeros((1, 1, 2, 2), int), np.full((1, 1, 2, 2), 4), r"test_levels must lie in \[0, 3\], got \[4, 4\]"),
        (np.zeros((1, 1, 2, 2), int), np.zeros((1, 1, 3, 2), int), r"\(1, 2, 2\), got \(1, 3, 2\)"),
    ],
)
def test_bad_input_is_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        baseline_scores(train, test, 4)


@pytest.mark.parametrize(("count", "side"), [(1, 3), (7, 3), (10, 700), (9, 700)])
def test_mosaics_hold_every_image_once(rng, count, side):
    images = rng.integers(1, 9, (count, side, side)).astype(np.uint8)
    pictures = mosaics(images)
    assert all(max(picture.shape) <= MAX_MOSAIC_SIDE for picture in pictures)
    tiles = [
        picture[row : row + side, column : column + side]
        for picture in pictures
        for row in range(0, len(picture), side)
        for column in range(0, picture.shape[1], side)
    ]
    filled = [tile for tile in tiles if tile.any()]
    assert np.array_equal(np.stack(filled), images)


def test_jpeg_xl_is_smaller_in_a_mosaic_and_loses_nothing(rng):
    imagecodecs = pytest.importorskip("imagecodecs")
    for shape, num_levels in (((40, 1, 8, 8), 16), ((10, 3, 8, 8), 256), ((10, 2, 8, 8), 2)):
        levels = np.repeat(rng.integers(0, num_levels, shape), 2, axis=0)
        assert jpeg_xl_bytes(levels, num_levels) < sum(jpeg_xl_bytes(image[None], num_levels) for image in levels)
        image = np.ascontiguousarray(levels[0, 0].astype(np.uint8))
        assert np.array_equal(imagecodecs.jpegxl_decode(jpeg_xl(image, bit_depth(num_levels))), image)
    scores = baseline_scores(levels, levels, 2)
    assert scores["jpeg_xl_bits_per_dim"] == 8 * jpeg_xl_bytes(levels, 2) / levels.size
