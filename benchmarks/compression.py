"""Sizes of the test images and the test text as files of codes that everybody has, in bits per dimension or byte.

    python benchmarks/compression.py --data_dir DATA

All images of 4-bit MNIST and of the static binarized MNIST, each as a file of its own and all as one mosaic; tiny
Shakespeare's test split. Every code runs at its strongest setting. Prints tables and writes `compression.json` and
`compression.png` next to this file, in which rows of this repository stand beside the codes: with the size of their
file, or without one with their score. It needs the extra "benchmark".
"""

import argparse
import bz2
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

import imagecodecs  # pyright: ignore[reportMissingImports]
import numpy as np
from matplotlib.figure import Figure

from hf_latentgen import LevelsImageProcessor, load_images, load_text
from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.baselines import bit_depth, jpeg_xl, layouts, mosaics, smallest_png, webp
from hf_latentgen.evaluation.metrics import headline
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.evaluation.results import Results
from hf_latentgen.hub.loading import ROWS

# Data set and levels by name.
IMAGES = {"mnist_4bit": ("mnist", 16), "binarized_mnist": ("binarized_mnist", 2)}
TEXT = "tinyshakespeare"
FILES = {
    "xz": partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME),
    "bz2": bz2.compress,
    "zstd -22": partial(imagecodecs.zstd_encode, level=22),
    "brotli": partial(imagecodecs.brotli_encode, level=11, lgwin=24),
}
OURS = {
    "mnist_4bit": ("local_mnist_4bit", "vae_mnist_4bit", "vae_mnist_4bit_fast", "vae_mnist_4bit_2d"),
    "binarized_mnist": ("local_binarized_mnist", "vae_binarized_mnist"),
    TEXT: ("local_shakespeare",),
}


def image_sizes(levels: np.ndarray, num_levels: int, num_each: int | None) -> dict[str, dict[str, float]]:
    """Bits per dimension of images [N, 1, H, W] by code and by how they are put into files."""
    depth = bit_depth(num_levels)
    codes: dict[str, Callable] = {
        "PNG": partial(smallest_png, depth=depth),
        "WebP lossless": webp,
        "JPEG XL, effort 9": partial(jpeg_xl, depth=depth),
    }
    sizes: dict[str, dict[str, float]] = {}
    # Test images of one data set are sorted by class.
    alone = levels[:: 1 if num_each is None else max(len(levels) // num_each, 1), 0]
    for name, code in codes.items():
        sizes[name] = {
            "each": 8 * sum(len(code(image)) for image in alone) / alone.size,
            "mosaic": 8 * sum(len(code(picture)) for picture in mosaics(levels[:, 0])) / levels.size,
        }
        print(name, sizes[name], flush=True)
    for name, code in FILES.items():
        sizes[name] = {"one file": 8 * min(len(code(data)) for data in layouts(levels, num_levels)) / levels.size}
        print(name, sizes[name], flush=True)
    return sizes


def own_sizes(dataset: str) -> dict[str, dict[str, float]]:
    """What rows of this repository need: on disk, or without a file what their likelihood promises."""
    sizes = {}
    for row in OURS[dataset]:
        results = Results.read(ROWS / row)
        found = {name: value for name, value in results.metrics.items() if name.endswith("_on_disk")}
        sizes[row] = (
            {"on disk": next(iter(found.values()))} if found else {"score": float(headline(results).split()[0])}
        )
    return sizes


def draw(record: dict, path: Path) -> None:
    """A picture of the sizes, one panel for each data set."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    for axes, (dataset, unit) in zip(figure.subplots(1, 3), record["units"].items(), strict=True):
        bars = [
            (f"{name}, {kind}", size, kind in ("on disk", "score"))
            for name, sizes in record[dataset].items()
            for kind, size in sizes.items()
        ]
        names, values, is_ours = zip(*sorted(bars, key=lambda bar: -bar[1]), strict=True)
        colors = ["tab:orange" if ours else "tab:blue" for ours in is_ours]
        container = axes.barh(range(len(names)), values, color=colors)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.bar_label(container, fmt="%.3f", fontsize=7, padding=2)
        axes.set_xlim(0, 1.18 * max(values))
        axes.set_xlabel(unit)
        axes.set_title(dataset)
    figure.savefig(path)


def main() -> None:
    """Measures, prints and writes the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir")
    parser.add_argument("--num_images", type=int, help="only the first ones, for a trial")
    parser.add_argument("--num_each", type=int, help="of images as files of their own, so many; all when left out")
    parser.add_argument("--redraw", action="store_true", help="only read the rows and draw again")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.redraw:
        record: dict = json.loads(arguments.output.read_text())
    else:
        record = {"units": dict.fromkeys(IMAGES, "bits/dim") | {TEXT: "bits/byte"}}
        for name, (dataset, num_levels) in IMAGES.items():
            images = load_images(dataset, "test", data_dir=arguments.data_dir)
            processor = LevelsImageProcessor(num_levels=num_levels)
            levels = LevelsDataset(images, processor).levels.numpy()[: arguments.num_images]
            record[name] = image_sizes(levels, num_levels, arguments.num_each)
        text = "".join(load_text(TEXT, "test", data_dir=arguments.data_dir)["text"]).encode()
        record[TEXT] = {name: {"one file": 8 * len(code(text)) / len(text)} for name, code in FILES.items()}
        record |= {
            "num_each": arguments.num_each,
            "num_bytes": len(text),
            "hardware": hardware(),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        record["versions"]["imagecodecs"] = imagecodecs.__version__
    for name in record["units"]:
        record[name] |= own_sizes(name)
    for name, unit in record["units"].items():
        rows = [(code, kind, size) for code, sizes in record[name].items() for kind, size in sizes.items()]
        print(f"\n| {name} | | {unit} |\n|---|---|--:|")
        print(
            "\n".join(f"| {code} | {kind} | {size:.4f} |" for code, kind, size in sorted(rows, key=lambda row: row[2]))
        )
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    draw(record, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
