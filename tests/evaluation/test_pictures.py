import io

import matplotlib as mpl
import numpy as np
import pytest
import torch

from hf_latentgen.evaluation.pictures import (
    PADDING_VALUE,
    history_plot,
    image_grid,
    latent_scatter,
    manifold_grid,
    reconstruction_grid,
    span_plot,
)


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def constant_images(values, size=2, channels=1):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, channels, size, size)


def test_grid_lays_images_out_row_by_row():
    pixels = np.asarray(image_grid(constant_images([0, 5, 15]), 16, columns=2, padding=1, scale=2))
    assert pixels.shape == (1 + 2 * 5, 1 + 2 * 5)
    assert (pixels[1:5, 1:5] == 0).all()
    assert (pixels[1:5, 6:10] == 85).all()
    assert (pixels[6:10, 1:5] == 255).all()
    assert (pixels[6:10, 6:10] == PADDING_VALUE).all()
    assert (pixels[[0, 5, 10]] == PADDING_VALUE).all()
    assert (pixels[:, [0, 5, 10]] == PADDING_VALUE).all()


def test_grid_enlarges_by_repeating_pixels():
    levels = torch.arange(4).view(1, 1, 2, 2)
    pixels = np.asarray(image_grid(levels, 4, padding=0, scale=3))
    assert (pixels == np.kron([[0, 85], [170, 255]], np.ones((3, 3)))).all()


@pytest.mark.parametrize(("size", "expected"), [(8, 7 * 8), (28, 2 * 28), (32, 2 * 32), (64, 64)])
def test_small_images_are_enlarged(size, expected):
    assert image_grid(torch.zeros(1, 1, size, size), 2, padding=0).size == (expected, expected)


def test_grid_is_no_wider_than_its_images():
    assert image_grid(constant_images([0, 1]), 2, columns=8, padding=0, scale=1).size == (4, 2)


def test_grid_of_colour_images():
    levels = torch.tensor([255, 0, 7]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    picture = image_grid(levels, 256, padding=0, scale=1)
    assert picture.mode == "RGB"
    assert (np.asarray(picture) == [255, 0, 7]).all()


def test_real_levels_may_leave_the_range_by_rounding():
    pixels = np.asarray(image_grid(torch.tensor([-1e-6, 15 + 1e-6]).view(2, 1, 1, 1), 16, padding=0, scale=1))
    assert pixels.tolist() == [[0, 255]]


def test_reconstructions_stand_below_their_originals():
    originals, reconstructions = constant_images([0, 1, 2], size=1), constant_images([5.0, 6.0, 7.0], size=1)
    pixels = np.asarray(reconstruction_grid(originals, reconstructions, 256, columns=2, padding=0, scale=1))
    assert pixels.tolist() == [[0, 1], [5, 6], [2, PADDING_VALUE], [7, PADDING_VALUE]]


def test_manifold_is_a_square_without_gaps():
    pixels = np.asarray(manifold_grid(constant_images([0, 1, 2, 3], size=1), 256, scale=1, padding=0))
    assert pixels.tolist() == [[0, 1], [2, 3]]


def test_pictures_are_the_same_bytes_each_time(monkeypatch):
    history = [{"epoch": epoch, "eval_bits_per_dim": 4 / epoch} for epoch in range(1, 9)]
    means = np.random.default_rng(0).normal(size=(50, 2))
    labels = np.arange(50) % 5

    def draw():
        return [
            png(picture)
            for picture in (
                history_plot(history, {"published": 0.6}, {"counting": 0.7}),
                latent_scatter(means, labels),
                span_plot(np.array([[0.0, 31.5], [64.0, 3.0], [8.0, 9.0]]), 64),
                image_grid(constant_images([0, 1]), 2),
            )
        ]

    first = draw()
    # The user's own settings for figures must not matter.
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 9.0)
    assert draw() == first
    assert not any(word in data for data in first for word in (b"tEXt", b"tIME", b"Software"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_grid(torch.zeros(0, 1, 2, 2), 2), r"N >= 1 .* got \[0, 1, 2, 2\]"),
        (lambda: image_grid(torch.zeros(1, 2, 2, 2), 2), r"C of 1 or 3, got \[1, 2, 2, 2\]"),
        (lambda: image_grid(torch.zeros(2, 2), 2), r"got \[2, 2\]"),
        (lambda: image_grid(torch.full((1, 1, 2, 2), 16), 16), r"0 ... 15"),
        (lambda: image_grid(torch.full((1, 1, 2, 2), torch.nan), 16), r"0 ... 15"),
        (lambda: reconstruction_grid(torch.zeros(1, 1, 2, 2), torch.zeros(2, 1, 2, 2), 2), "shape of the originals"),
        (lambda: manifold_grid(torch.zeros(3, 1, 2, 2), 2), "a square number, got 3"),
        (lambda: history_plot([]), "at least one evaluation"),
        (lambda: latent_scatter(np.zeros((4, 3)), np.zeros(4)), r"\[N, 2\], got \[4, 3\]"),
        (lambda: span_plot(np.zeros(4), 8), r"\[layers, heads\], got \[4\]"),
        (lambda: span_plot(np.full((1, 2), 9.0), 8), r"0 \.\.\. 8, got values from 9 to 9"),
        (lambda: latent_scatter(np.zeros((4, 2)), np.zeros(3)), r"\[4\], one for each mean, got \[3\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
