"""Pictures of a run: grids of images, the training curve, the map of a two-dimensional latent space.

Every function returns a `PIL.Image` that depends on its arguments only: saved as PNG, equal arguments give equal bytes.
"""

import math

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from hf_latentgen.evaluation.results import Results
from hf_latentgen.models.image_processing_levels import uint8_from_levels

# Mid-grey, so that the border differs from the black background and from white strokes.
PADDING_VALUE = 128


def image_grid(
    levels: torch.Tensor | np.ndarray,
    num_levels: int,
    columns: int = 8,
    padding: int = 2,
    scale: int | None = None,
) -> Image.Image:
    """A picture of the images side by side, row after row, with mid-grey between them.

    Shape: `levels` [N, C, H, W], integers or real numbers in `[0, num_levels - 1]`; C is 1 or 3.

    Args:
        levels: the images.
        num_levels: level `num_levels - 1` is white.
        columns: images in a row.
        padding: pixels of mid-grey between two images, after the enlargement.
        scale: factor of the nearest-neighbour enlargement; by default images below 56 pixels are enlarged to that.

    Raises:
        ValueError: no images, a shape that is not [N, 1 or 3, H, W], or levels out of range.
    """
    return _tile(_cells(levels, num_levels), columns, padding, scale, least_size=56)


def reconstruction_grid(
    originals: torch.Tensor | np.ndarray,
    reconstructions: torch.Tensor | np.ndarray,
    num_levels: int,
    columns: int = 8,
    padding: int = 2,
    scale: int | None = None,
) -> Image.Image:
    """A picture whose odd rows are originals, each with its reconstruction below it.

    Shape: `originals` and `reconstructions` [N, C, H, W], levels as for `image_grid`.

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
    return _tile(pairs, columns, padding, scale, least_size=56)


def manifold_grid(
    levels: torch.Tensor | np.ndarray, num_levels: int, padding: int = 2, scale: int | None = None
) -> Image.Image:
    """A square picture of the decoded grid of a two-dimensional latent space.

    Shape: `levels` [grid_size * grid_size, C, H, W], row after row, levels as for `image_grid`.

    Raises:
        ValueError: the number of images is not a square, or as in `image_grid`.
    """
    cells = _cells(levels, num_levels)
    grid_size = math.isqrt(len(cells))
    if grid_size**2 != len(cells):
        raise ValueError(f"levels must hold grid_size * grid_size images, a square number, got {len(cells)}")
    return _tile(cells, grid_size, padding, scale, least_size=28)


def history_plot(
    history: list[dict[str, float]],
    references: dict[str, float] | None = None,
    baseline: dict[str, float] | None = None,
    metric: str = "bits_per_dim",
    label: str = "bits per dimension",
) -> Image.Image:
    """A picture of a validation score against epochs, by default of the bits per dimension.

    Args:
        history: one `{"epoch": ..., "eval_<metric>": ...}` per evaluation.
        references: label -> published score, drawn as dashed lines.
        baseline: label -> score of a code without a network, drawn as dotted lines.
        metric: name of the score.
        label: what the vertical axis shows.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("history must hold at least one evaluation, got an empty list")
    epochs = [entry["epoch"] for entry in history]
    scores = [entry[f"eval_{metric}"] for entry in history]
    # The first evaluations lie far above the rest and would flatten everything of interest.
    low, high = min(scores), min(max(scores), 1.6 * min(scores))
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 0.05
    lines = [(value, name, "--") for name, value in (references or {}).items()]
    lines += [(value, name, ":") for name, value in (baseline or {}).items()]
    # Others are shown where they are near the curve; far from it they would flatten it too.
    near = []
    for line in lines:
        is_near = low - (high - low) - margin <= line[0] <= high + (high - low) + margin
        # Lines of the same value would lie upon each other.
        if is_near and all(abs(line[0] - other[0]) > margin / 5 for other in near):
            near.append(line)
    shown = [low, high, *(value for value, _, _ in near)]
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.plot(epochs, scores, color="tab:blue", marker="." if len(scores) < 30 else None, label="validation")
        for index, (value, name, style) in enumerate(near):
            axes.axhline(value, linestyle=style, color=f"C{index + 1}", label=f"{name}: {value:.4g}")
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.set_title("Validation score while training")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.ticklabel_format(useOffset=False)
        if max(epochs) > 1:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right", fontsize="small")
        return _render(figure)


def likelihood_history(
    results: Results, metric: str = "bits_per_dim", label: str = "bits per dimension"
) -> Image.Image:
    """The validation score of results against epochs, beside the published scores and the best baseline."""
    best = min(results.baseline, key=results.baseline.__getitem__)
    published = {entry["name"]: entry["value"] for entry in results.reference if entry["metric"] == metric}
    name = f"baseline: {best.removesuffix(f'_{metric}').replace('_', ' ')}"
    return history_plot(results.history, published, {name: results.baseline[best]}, metric, label)


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
        axes.set_xlabel("latent 1")
        axes.set_ylabel("latent 2")
        axes.legend(markerscale=3, fontsize="small")
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


def _tile(cells: np.ndarray, columns: int, padding: int, scale: int | None, least_size: int) -> Image.Image:
    number, height, width, channels = cells.shape
    if scale is None:
        scale = max(1, -(-least_size // max(height, width)))
    columns = min(columns, number)
    rows = -(-number // columns)
    step_y, step_x = height * scale + padding, width * scale + padding
    canvas = np.full((rows * step_y + padding, columns * step_x + padding, channels), PADDING_VALUE, dtype=np.uint8)
    for index, cell in enumerate(cells):
        top, left = (index // columns) * step_y + padding, (index % columns) * step_x + padding
        enlarged = cell.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = enlarged
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
