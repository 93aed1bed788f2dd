"""Sizes of the test images and the test text as files of codes that everybody has, in bits per dimension or byte.

    python benchmarks/compression.py --data_dir DATA

All images of 4-bit MNIST and of the static binarized MNIST, each as a file of its own and all as one mosaic; tiny
Shakespeare's test split. Every code runs at its strongest setting. Prints tables and writes `compression.json` and
`compression.png` next to this file, in which rows of this repository stand beside the codes: with the size of their
file, as `hf-latentgen verify ROW --bytes --record` keeps it, or without one with their score. Each size is written as
soon as it is measured, and what the record holds is not measured again: without the file, all is. It needs the extra
"benchmark".
"""

import argparse
import bz2
import json
import lzma
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import imagecodecs  # pyright: ignore[reportMissingImports]
import numpy as np
from matplotlib.figure import Figure

from hf_latentgen import LevelsImageProcessor, load_images, load_text
from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.baselines import bit_depth, jpeg_xl, layouts, mosaics, smallest_png, webp
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.evaluation.results import Results
from hf_latentgen.hub.loading import row_folders

# Data set and levels by name.
IMAGES = {"mnist_4bit": ("mnist", 16), "binarized_mnist": ("binarized_mnist", 2)}
TEXT = "tinyshakespeare"
PICTURES: dict[str, Callable] = {
    "PNG": smallest_png,
    "WebP lossless": lambda image, _: webp(image),
    "JPEG XL, effort 9": jpeg_xl,
}
FILES: dict[str, Callable] = {
    "xz": partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME),
    "bz2": bz2.compress,
    "zstd -22": partial(imagecodecs.zstd_encode, level=22),
    "brotli": partial(imagecodecs.brotli_encode, level=11, lgwin=24),
}
SCORES = ("bits_per_byte", "exact_bits_per_dim", "bits_per_dim")


@cache
def load(name: str, data_dir: str | None, num_images: int | None) -> np.ndarray | bytes:
    """Levels of the test images [N, 1, H, W], or the bytes of the test text."""
    if name == TEXT:
        return "".join(load_text(TEXT, "test", data_dir=data_dir)["text"]).encode()
    dataset, num_levels = IMAGES[name]
    images = load_images(dataset, "test", data_dir=data_dir)
    return LevelsDataset(images, LevelsImageProcessor(num_levels=num_levels)).levels.numpy()[:num_images]


def bits(name: str, code: str, kind: str, data: np.ndarray | bytes, num_each: int | None) -> float:
    """Bits per dimension or byte that a code needs for data that is put into files in one of three ways."""
    if isinstance(data, bytes):
        return 8 * len(FILES[code](data)) / len(data)
    num_levels = IMAGES[name][1]
    if kind == "one file":
        return 8 * min(len(FILES[code](layout)) for layout in layouts(data, num_levels)) / data.size
    # Test images of one data set are sorted by class.
    alone = data[:: 1 if num_each is None else max(len(data) // num_each, 1), 0]
    pictures, size = (alone, alone.size) if kind == "each" else (mosaics(data[:, 0]), data.size)
    return 8 * sum(len(PICTURES[code](picture, bit_depth(num_levels))) for picture in pictures) / size


def rows(name: str) -> dict[str, dict[str, float]]:
    """What rows of this repository need: on disk, or without a file what their likelihood promises."""
    dataset, num_levels = IMAGES.get(name, (name, None))
    sizes = {}
    for results in map(Results.read, row_folders()):
        found = [metric for metric in SCORES if metric in results.metrics]
        if results.dataset == dataset and results.model.get("num_levels") == num_levels and found:
            on_disk = f"{found[0].removeprefix('exact_')}_on_disk"
            kind, metric = ("on disk", on_disk) if on_disk in results.metrics else ("score", found[0])
            sizes[results.row] = {kind: results.metrics[metric]}
    return sizes


def bars(record: dict, name: str) -> list[tuple[str, str, float]]:
    """Code or row, how it is put into files, and its size, the smallest first."""
    listed = [*record["codes"][name].items(), *record["rows"][name].items()]
    return sorted(
        ((code, kind, size) for code, sizes in listed for kind, size in sizes.items()), key=lambda bar: bar[2]
    )


def draw(record: dict, path: Path) -> None:
    """A picture of the sizes, one panel for each data set."""
    figure = Figure(figsize=(13, 4.6), dpi=110, layout="constrained")
    for axes, (name, unit) in zip(figure.subplots(1, len(record["units"])), record["units"].items(), strict=True):
        names, kinds, sizes = zip(*reversed(bars(record, name)), strict=True)
        colors = ["tab:orange" if kind in ("on disk", "score") else "tab:blue" for kind in kinds]
        container = axes.barh(range(len(names)), sizes, color=colors)
        axes.set_yticks(range(len(names)), map(", ".join, zip(names, kinds, strict=True)), fontsize=7)
        axes.bar_label(container, fmt="%.3f", fontsize=7, padding=2)
        axes.set_xlim(0, 1.18 * max(sizes))
        axes.set_xlabel(unit)
        axes.set_title(name)
    figure.savefig(path)


def main() -> None:
    """Measures, prints and writes the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir")
    parser.add_argument("--num_images", type=int, help="only the first ones, for a trial")
    parser.add_argument("--num_each", type=int, help="of images as files of their own, so many; all when left out")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    settings = {"num_images": arguments.num_images, "num_each": arguments.num_each}
    units = dict.fromkeys(IMAGES, "bits/dim") | {TEXT: "bits/byte"}
    record: dict = {"settings": settings, "units": units, "codes": {name: {} for name in units}, "rows": {}}
    record |= {"hardware": hardware(), "git_commit": git_commit()}
    record["versions"] = versions() | {"imagecodecs": imagecodecs.__version__}
    if arguments.output.exists():
        record = json.loads(arguments.output.read_text())
        if record["settings"] != settings:
            parser.error(f"{arguments.output} was measured with {record['settings']}, got {settings}: remove it")
    for name in units:
        kinds = dict.fromkeys(FILES, ("one file",)) | (
            {} if name == TEXT else dict.fromkeys(PICTURES, ("each", "mosaic"))
        )
        for code, kind in [(code, kind) for code, found in kinds.items() for kind in found]:
            sizes = record["codes"][name].setdefault(code, {})
            if kind not in sizes:
                data = load(name, arguments.data_dir, arguments.num_images)
                sizes[kind] = bits(name, code, kind, data, arguments.num_each)
                print(f"{name}: {code}, {kind}: {sizes[kind]:.4f} {units[name]}", flush=True)
                arguments.output.write_text(json.dumps(record, indent=2) + "\n")
        record["rows"][name] = rows(name)
        print(f"\n| {name} | | {units[name]} |\n|---|---|--:|")
        print("\n".join(f"| {code} | {kind} | {size:.4f} |" for code, kind, size in bars(record, name)))
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    draw(record, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
