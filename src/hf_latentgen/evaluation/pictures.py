"""Pictures of a run: grids of images, the training curve, the map of a two-dimensional latent space.

Every function returns a `PIL.Image` that depends on its arguments only: saved as PNG, equal arguments give equal bytes.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from hf_latentgen.evaluation.results import Results
from hf_latentgen.models.image_processing_levels import uint8_from_levels
from hf_latentgen.models.modeling_image_autoencoder import manifold_axis

# Mid-grey, so that the border differs from the black background and from white strokes.
PADDING_VALUE = 128
FONT_SIZE, LETTER_WIDTH, LABEL_MARGIN = 12, 8, 4


def image_grid(
    levels: torch.Tensor | np.ndarray,
    num_levels: int,
    columns: int = 8,
    padding: int | None = None,
    scale: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """A picture of the images side by side, row after row, with mid-grey between them.

    Shape: `levels` [N, C, H, W], integers or real numbers in `[0, num_levels - 1]`; C is 1 or 3.

    Args:
        levels: the images.
        num_levels: level `num_levels - 1` is white.
        columns: images in a row.
        padding: pixels of mid-grey between two images, after the enlargement; by default as many as a pixel of an
            image has become, and at least two.
        scale: factor of the nearest-neighbour enlargement; by default images below 56 pixels are enlarged to that.
        row_labels: what stands to the left of each row, if anything.
        column_labels: what stands above each column, if anything.

    Raises:
        ValueError: no images, a shape that is not [N, 1 or 3, H, W], levels out of range, or labels that are too many
            or too few.
    """
    return _tile(_cells(levels, num_levels), columns, padding, scale, 56, row_labels, column_labels)


def reconstruction_grid(
    originals: torch.Tensor | np.ndarray,
    reconstructions: torch.Tensor | np.ndarray,
    num_levels: int,
    columns: int = 8,
    padding: int | None = None,
    scale: int | None = None,
    labels: Sequence[str] = ("original", "reconstruction"),
) -> Image.Image:
    """A picture whose odd rows are originals, each with its reconstruction below it.

    Shape: `originals` and `reconstructions` [N, C, H, W], levels as for `image_grid`. `labels` say what the two are;
    with none the rows have no labels.

    Raises:
        ValueError: the two shapes differ, or as in `image_grid`.
    """
    first, second = _cells(originals, num_levels), _cells(reconstructions, num_levels)
    if first.shape != second.shape:
        raise ValueError(f"reconstructions must have the shape of the originals, {first.shape}, got {second.shape}")
    missing = -len(first) % columns
    blank = np.full((missing, *first.shape[1:]), PADDING_VALUE, dtype=np.uint8)
    rows = [np.concatenate([images, blank]).reshape(-1, columns, *first.shape[1:]) for images in (first, second)]
    pairs = np.stack(rows, axis=1).reshape(-1, *first.shape[1:])
    return _tile(pairs, columns, padding, scale, 56, [*labels] * len(rows[0]))


def manifold_grid(
    levels: torch.Tensor | np.ndarray, num_levels: int, padding: int | None = None, scale: int | None = None
) -> Image.Image:
    """A square picture of the decoded grid of a two-dimensional latent space, with the latent numbers at its sides.

    Shape: `levels` [grid_size * grid_size, C, H, W], row after row, levels as for `image_grid`.

    Raises:
        ValueError: the number of images is not a square, or as in `image_grid`.
    """
    cells = _cells(levels, num_levels)
    grid_size = math.isqrt(len(cells))
    if grid_size**2 != len(cells):
        raise ValueError(f"levels must hold grid_size * grid_size images, a square number, got {len(cells)}")
    numbers = [f"{number:.1f}" for number in manifold_axis(grid_size).tolist()]
    return _tile(cells, grid_size, padding, scale, 28, numbers[::-1], numbers)


def history_plot(
    history: list[dict[str, float]],
    references: Sequence[float] = (),
    baseline: dict[str, float] | None = None,
    metric: str = "bits_per_dim",
    label: str = "bits per dimension",
) -> Image.Image:
    """A picture of a score against epochs, by default of the bits per dimension, of validation and training images.

    A training of no more than an epoch that is evaluated within it is shown against its steps.

    Args:
        history: one `{"epoch": ..., "step": ..., "eval_<metric>": ...}` per evaluation; where it also has
            `train_<metric>`, the mean of the training images since the evaluation before, that is a second curve.
        references: published scores. Those that lie too close for a line each share one.
        baseline: label -> score of a code without a network, drawn as dotted lines.
        metric: name of the score.
        label: what the vertical axis shows.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("history must hold at least one evaluation, got an empty list")
    is_short = history[-1]["epoch"] <= 1 and any(entry["epoch"] % 1 for entry in history)
    unit = "step" if is_short else "epoch"
    curves = {}
    for name, key in (("validation", f"eval_{metric}"), ("training", f"train_{metric}")):
        points = [(entry[unit], entry[key]) for entry in history if key in entry]
        if points:
            curves[name] = points
    scores = [score for points in curves.values() for _, score in points]
    # The first evaluations lie far above the rest and would flatten everything of interest.
    low = min(scores)
    high = min(max(scores), low + 0.6 * abs(low))
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 0.05
    # Others are shown where they are near the curves; far from them they would flatten them too.
    least, most = 2 * low - high - margin, 2 * high - low + margin
    published: list[list[float]] = []
    for value in sorted(value for value in references if least <= value <= most):
        if published and value - published[-1][-1] <= margin:
            published[-1].append(value)
        else:
            published.append([value])
    lines = [(group[0], f"published: {_range(group)}", "--") for group in published]
    codes = [(value, f"{name}: {value:.4g}", ":") for name, value in (baseline or {}).items() if least <= value <= most]
    shown = [low, high, *(value for value, *_ in lines + codes)]
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained")
        axes = figure.subplots()
        for (name, points), color in zip(curves.items(), ("tab:blue", "tab:gray"), strict=False):
            marker = "." if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name, zorder=3 - len(axes.lines))
        for index, (value, name, style) in enumerate(lines + codes):
            axes.axhline(value, linestyle=style, color=f"C{index + 1}", label=name)
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.set_title(f"{' and '.join(curves)} score while training".capitalize())
        axes.set_xlabel(unit)
        axes.set_ylabel(label)
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="best", fontsize="small")
        return _render(figure)


def score_history(results: Results, metric: str = "bits_per_dim", label: str = "bits per dimension") -> Image.Image:
    """The score of results against epochs, beside the published scores and the best baseline."""
    published = [entry["value"] for entry in results.reference if entry["metric"] == metric]
    codes = {}
    if results.baseline:
        best = min(results.baseline, key=results.baseline.__getitem__)
        codes[f"best baseline, {best.removesuffix(f'_{metric}').replace('_', ' ')}"] = results.baseline[best]
    return history_plot(results.history, published, codes, metric, label)


def latent_scatter(means: np.ndarray, labels: np.ndarray) -> Image.Image:
    """A picture of two-dimensional posterior means, one colour per class.

    Shape: `means` [N, 2]; `labels` [N], integers.

    Raises:
        ValueError: the latents are not two-dimensional, or there is not one label for each.
    """
    if means.ndim != 2 or means.shape[1] != 2:
        raise ValueError(f"means must have shape [N, 2], got {list(means.shape)}")
    if labels.shape != means.shape[:1]:
        raise ValueError(f"labels must have shape [{len(means)}], one for each mean, got {list(labels.shape)}")
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = Figure(figsize=(6.4, 6.4), dpi=100, layout="constrained")
        axes = figure.subplots()
        classes = np.unique(labels)
        colors = mpl.colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for index, label in enumerate(classes):
            points = means[labels == label]
            axes.scatter(points[:, 0], points[:, 1], s=4, color=colors(index % colors.N), label=str(label))
        axes.set_aspect("equal")
        axes.set_title("Latent means of images, coloured by class")
        axes.set_xlabel("latent 1")
        axes.set_ylabel("latent 2")
        axes.legend(title="class", markerscale=3, fontsize="small")
        return _render(figure)


def span_plot(spans: np.ndarray, window: int) -> Image.Image:
    """A picture of the learned attention spans: one row per layer, one column per head, the tokens in each cell.

    Shape: `spans` [layers, heads], in tokens.

    Args:
        spans: how far back each head looks.
        window: the longest span there could be, which has the darkest colour.

    Raises:
        ValueError: the spans are not a matrix, or not in 0 to `window`.
    """
    if spans.ndim != 2 or spans.size == 0:
        raise ValueError(f"spans must have shape [layers, heads], got {list(spans.shape)}")
    if spans.min() < 0 or spans.max() > window:
        raise ValueError(f"spans must be in 0 ... {window}, got values from {spans.min():g} to {spans.max():g}")
    layers, heads = spans.shape
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = Figure(figsize=(2.0 + 0.6 * heads, 1.2 + 0.6 * layers), dpi=100, layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(spans, cmap="Blues", vmin=0, vmax=window, aspect="auto")
        for (layer, head), span in np.ndenumerate(spans):
            color = "white" if span > window / 2 else "black"
            axes.text(head, layer, f"{span:.0f}", ha="center", va="center", color=color, fontsize="small")
        axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
        axes.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        figure.colorbar(shown, label="learned span in tokens")
        return _render(figure)


def _cells(levels: torch.Tensor | np.ndarray, num_levels: int) -> np.ndarray:
    """The images as 8-bit values, channels last. uint8 [N, H, W, C]."""
    array = levels.detach().float().cpu().numpy() if isinstance(levels, torch.Tensor) else np.asarray(levels)
    if array.ndim != 4 or len(array) == 0 or array.shape[1] not in (1, 3):
        raise ValueError(f"levels must have shape [N, C, H, W] with N >= 1 and C of 1 or 3, got {list(array.shape)}")
    # A mean over levels can leave the range by a rounding error.
    return np.asarray(uint8_from_levels(array.round(3), num_levels)).transpose(0, 2, 3, 1)


def _tile(
    cells: np.ndarray,
    columns: int,
    padding: int | None,
    scale: int | None,
    least_size: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    number, height, width, channels = cells.shape
    if scale is None:
        scale = max(1, -(-least_size // max(height, width)))
    if padding is None:
        padding = max(2, scale)
    columns = min(columns, number)
    rows = -(-number // columns)
    for name, labels, count in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if labels and len(labels) != count:
            raise ValueError(f"{name} must be {count}, one for each, or none, got {len(labels)}")
    step_y, step_x = height * scale + padding, width * scale + padding
    canvas = np.full((rows * step_y + padding, columns * step_x + padding, channels), PADDING_VALUE, dtype=np.uint8)
    for index, cell in enumerate(cells):
        top, left = (index // columns) * step_y + padding, (index % columns) * step_x + padding
        enlarged = cell.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = enlarged
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    return _labelled(picture, step_x, step_y, row_labels, column_labels) if row_labels or column_labels else picture


def _labelled(
    picture: Image.Image, step_x: int, step_y: int, row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """The picture of a grid with white margins, in which the labels stand."""
    font = ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), FONT_SIZE)
    wrapped = ["\n".join(textwrap.wrap(label, max(4, step_x // LETTER_WIDTH))) for label in column_labels]
    measure = ImageDraw.Draw(picture).multiline_textbbox
    boxes = [[measure((0, 0), label, font) for label in labels] for labels in (row_labels, wrapped)]
    # Room for the longest label of the rows, and for the highest of the columns.
    left, top = (
        math.ceil(max((box[end] for box in found), default=-2 * LABEL_MARGIN)) + 2 * LABEL_MARGIN
        for found, end in zip(boxes, (2, 3), strict=True)
    )
    canvas = Image.new(picture.mode, (left + picture.width, top + picture.height), "white")
    canvas.paste(picture, (left, top))
    draw = ImageDraw.Draw(canvas)
    for index, label in enumerate(row_labels):
        place = (left - LABEL_MARGIN, top + round((index + 0.5) * step_y))
        draw.multiline_text(place, label, "black", font, anchor="rm", align="right")
    for index, label in enumerate(wrapped):
        place = (left + round((index + 0.5) * step_x), top - LABEL_MARGIN)
        draw.multiline_text(place, label, "black", font, anchor="md", align="center")
    return canvas


def _range(values: Sequence[float]) -> str:
    """The least and the largest of sorted numbers, or the one that they are when they are written."""
    texts = dict.fromkeys(f"{value:.4g}" for value in (values[0], values[-1]))
    return " to ".join(texts)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
