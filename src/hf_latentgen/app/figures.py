"""Pictures that only the demo shows: the map of the latent plane, and a score among the scores of test images."""

import threading

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

# Pixels of the map: its plane lies at an exact place, so that a click on it is a point of the latent plane.
MAP_SIZE = (700, 620)
PLANE_LEFT, PLANE_TOP, PLANE_SIZE = 56, 10, 560
CLASS_COLORS = mpl.colormaps["tab10"]
# matplotlib shares its fonts between figures, and requests come in threads.
DRAWING = threading.Lock()


def map_figure(plane: np.ndarray, codes: np.ndarray, labels: np.ndarray | None, limit: float) -> Image.Image:
    """A picture of the latent plane from `-limit` to `limit`: decoded images in grey, codes as coloured dots.

    Shape: `plane` [H, W], from 0 (black) to 1 (white ink); `codes` [N, 2]; `labels` [N].
    """
    with DRAWING:
        width, height = MAP_SIZE
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        bottom = height - PLANE_TOP - PLANE_SIZE
        axes = figure.add_axes((PLANE_LEFT / width, bottom / height, PLANE_SIZE / width, PLANE_SIZE / height))
        # Pale ink on white, against which the dots stand out.
        extent = (-limit, limit, -limit, limit)
        axes.imshow(1 - 0.35 * plane, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        for label in np.unique(labels) if labels is not None else [None]:
            points = codes if labels is None else codes[labels == label]
            color = "tab:blue" if label is None else CLASS_COLORS(int(label) % 10)
            axes.scatter(points[:, 0], points[:, 1], s=20, color=color, label=label, edgecolors="white", linewidths=0.5)
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_xlabel("first latent number")
        axes.set_ylabel("second latent number", labelpad=0)
        if labels is not None:
            axes.legend(title="class", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, markerscale=1.5)
        return _render(figure)


def mark_point(picture: Image.Image, first: float, second: float, limit: float) -> Image.Image:
    """The map with a ring around a point of the plane."""
    picture = picture.copy()
    x = PLANE_LEFT + (first / limit + 1) * PLANE_SIZE / 2
    y = PLANE_TOP + (1 - second / limit) * PLANE_SIZE / 2
    draw = ImageDraw.Draw(picture)
    for radius, color, width in ((11, "white", 7), (10, "black", 4)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
    return picture


def point_at(x: float, y: float, limit: float) -> tuple[float, float]:
    """The two latent numbers at a pixel of the map, no farther out than `limit`."""
    first = ((x - PLANE_LEFT) * 2 / PLANE_SIZE - 1) * limit
    second = (1 - (y - PLANE_TOP) * 2 / PLANE_SIZE) * limit
    return float(np.clip(first, -limit, limit)), float(np.clip(second, -limit, limit))


def score_figure(scores: np.ndarray, score: float, name: str) -> Image.Image:
    """A picture of the distribution of scores [N], with a line at the score of the drawing."""
    with DRAWING:
        figure = Figure(figsize=(5.2, 3.2), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.hist(scores, bins=40, color="tab:blue", alpha=0.6, label="compared images")
        axes.axvline(score, color="tab:red", linewidth=2.5, label="this picture")
        axes.set_xlabel(f"{name}: less is more usual" if "bits" in name else f"{name}: less is better")
        axes.set_ylabel("number of images")
        axes.legend(frameon=False)
        return _render(figure)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
