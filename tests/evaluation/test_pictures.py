import io

import matplotlib as mpl
import numpy as np
import pytest
import torch

from hf_latentgen.evaluation import pictures
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


def inked_rows(margin, count, step):
    """Whether there is a dark pixel beside each row of a grid."""
    return [bool((margin[index * step : (index + 1) * step] < 128).any()) for index in range(count)]


def test_labels_stand_beside_their_rows_and_above_their_columns():
    bare = np.asarray(image_grid(constant_images([0, 5, 15], size=4), 16, columns=2, scale=10))
    options = {"columns": 2, "scale": 10, "row_labels": ["above", ""], "column_labels": ["", "right"]}
    pixels = np.asarray(image_grid(constant_images([0, 5, 15], size=4), 16, **options))
    height, width = bare.shape
    assert (pixels[-height:, -width:] == bare).all()
    step = 50
    assert inked_rows(pixels[-height:, :-width], 2, step) == [True, False]
    assert inked_rows(pixels[:-height, -width:].T, 2, step) == [False, True]
    assert (pixels[:-height, :-width] == 255).all()


def test_a_long_label_of_a_column_is_broken_into_lines():
    whole = image_grid(constant_images([0], size=28), 16, column_labels=["T - shirt / top"])
    assert whole.width == image_grid(constant_images([0], size=28), 16).width
    assert whole.height > image_grid(constant_images([0], size=28), 16, column_labels=["Coat"]).height


@pytest.mark.parametrize(("size", "gap"), [(8, 7), (28, 2), (64, 2)])
def test_images_are_a_pixel_of_theirs_apart(size, gap):
    assert image_grid(torch.zeros(2, 1, size, size), 2).width == 3 * gap + 2 * size * max(1, -(-56 // size))


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
    bare = reconstruction_grid(originals, reconstructions, 256, columns=2, padding=0, scale=1, labels=())
    assert np.asarray(bare).tolist() == [[0, 1], [5, 6], [2, PADDING_VALUE], [7, PADDING_VALUE]]
    labelled = reconstruction_grid(originals, reconstructions, 256, columns=2, padding=0, scale=20)
    pixels = np.asarray(labelled)
    assert (pixels[:, -40:] == np.kron(np.asarray(bare), np.ones((20, 20)))).all()
    assert inked_rows(pixels[:, :-40], 4, 20) == [True] * 4


def test_manifold_is_a_square_without_gaps():
    pixels = np.asarray(manifold_grid(constant_images([0, 1, 2, 3], size=1), 256, scale=40, padding=0))
    assert pixels[-80:, -80:][::40, ::40].tolist() == [[0, 1], [2, 3]]
    assert (pixels[-80:, -80:] == np.kron([[0, 1], [2, 3]], np.ones((40, 40)))).all()
    # Minus stands at the left and at the bottom: the one label that is longer.
    top, left = pixels[:-80, -80:], pixels[-80:, :-80]
    assert (top[:, :40] < 128).sum() > (top[:, 40:] < 128).sum()
    assert (left[:40] < 128).sum() < (left[40:] < 128).sum()


def test_pictures_are_the_same_bytes_each_time(monkeypatch):
    history = falling(8, train_bits_per_dim=3.1)
    means = np.random.default_rng(0).normal(size=(50, 2))
    labels = np.arange(50) % 5

    def draw():
        return [
            png(picture)
            for picture in (
                history_plot(history, [0.6], {"counting": 0.7}),
                latent_scatter(means, labels),
                span_plot(np.array([[0.0, 31.5], [64.0, 3.0], [8.0, 9.0]]), 64),
                image_grid(constant_images([0, 1]), 2, column_labels=["none", "ink"]),
            )
        ]

    first = draw()
    # The user's own settings for figures must not matter.
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 9.0)
    assert draw() == first
    assert not any(word in data for data in first for word in (b"tEXt", b"tIME", b"Software"))


@pytest.fixture
def axes_of(monkeypatch):
    """What is drawn of a history, before it becomes pixels."""
    monkeypatch.setattr(pictures, "_render", lambda figure: figure)

    def draw(*arguments, **options):
        figure = history_plot(*arguments, **options)
        figure.canvas.draw()
        return figure.axes[0]

    return draw


def names_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def falling(count=3, **more):
    """A training from 3.5 to 3 bits per dimension."""
    values = np.linspace(3.5, 3, count)
    return [
        {"epoch": number + 1.0, "step": 10 * (number + 1), "eval_bits_per_dim": float(value), **more}
        for number, value in enumerate(values)
    ]


def test_the_limits_of_a_history_come_from_its_curve(axes_of):
    """Scores of other data, or of a code that is far off, must not push the curve out of the picture."""
    axes = axes_of(falling(), [0.519, 3.2], {"counting": 1.9})
    low, high = axes.get_ylim()
    assert 2.9 < low < 3 < 3.5 < high < 3.6
    assert names_of(axes) == ["validation", "published: 3.2"]
    near = axes_of(falling(), [], {"counting": 2.8})
    assert names_of(near) == ["validation", "counting: 2.8"]
    assert near.get_ylim()[0] < 2.8


def test_published_scores_that_are_nearly_the_same_share_a_line(axes_of):
    assert names_of(axes_of(falling(), [3.2, 3.205, 3.2])) == ["validation", "published: 3.2 to 3.205"]
    assert names_of(axes_of(falling(), [3.1, 3.3])) == ["validation", "published: 3.1", "published: 3.3"]


def test_scores_of_training_images_are_a_second_curve(axes_of):
    history = falling()
    history[1]["train_bits_per_dim"], history[2]["train_bits_per_dim"] = 3.1, 2.8
    axes = axes_of(history)
    assert names_of(axes) == ["validation", "training"]
    assert axes.lines[1].get_xydata().tolist() == [[2, 3.1], [3, 2.8]]
    assert axes.get_ylim()[0] < 2.8


@pytest.mark.parametrize(("count", "length", "name"), [(3, 1, "epoch"), (80, 1, "epoch"), (8, 0.1, "step")])
def test_the_horizontal_axis_has_whole_numbers(axes_of, count, length, name):
    history = [entry | {"epoch": entry["epoch"] * length} for entry in falling(count)]
    axes = axes_of(history)
    assert axes.get_xlabel() == name
    assert axes.get_title()
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_no_axis_has_an_offset(axes_of):
    history = [entry | {"eval_bits_per_dim": 1.4096 + 1e-6 * entry["step"]} for entry in falling()]
    axes = axes_of(history)
    assert axes.yaxis.get_offset_text().get_text() == axes.xaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_grid(torch.zeros(0, 1, 2, 2), 2), r"N >= 1 .* got \[0, 1, 2, 2\]"),
        (lambda: image_grid(torch.zeros(1, 2, 2, 2), 2), r"C of 1 or 3, got \[1, 2, 2, 2\]"),
        (lambda: image_grid(torch.zeros(2, 2), 2), r"got \[2, 2\]"),
        (lambda: image_grid(torch.full((1, 1, 2, 2), 16), 16), r"0 ... 15"),
        (lambda: image_grid(torch.full((1, 1, 2, 2), torch.nan), 16), r"0 ... 15"),
        (lambda: image_grid(torch.zeros(3, 1, 2, 2), 2, 2, row_labels=["a"]), "row_labels must be 2, .* got 1"),
        (lambda: image_grid(torch.zeros(3, 1, 2, 2), 2, 2, column_labels="abc"), "column_labels must be 2, .* got 3"),
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
