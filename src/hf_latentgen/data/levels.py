"""Images to levels, one after another: the batch path in memory and as a stream."""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import PIL.Image
import torch
from datasets import Dataset, Image, IterableDataset
from transformers.utils import logging

from hf_latentgen.data.batches import GatheredDataset
from hf_latentgen.data.labels import NO_LABEL, usable_labels
from hf_latentgen.data.sources import file_content
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor

# Rows whose files are in memory at a time, and the pixels after which images are processed and dropped. A stream keeps
# several copies of its rows.
ROWS_AT_ONCE, STREAMED_ROWS_AT_ONCE = 8, 2
PIXELS_AT_ONCE = 2**21
# What Pillow raises for files that are no images, cut, damaged or far too large; the last two for AVIF and QOI.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, PIL.Image.DecompressionBombError)
BROKEN += (RuntimeError, IndexError)

logger = logging.get_logger(__name__)


class LevelsDataset(GatheredDataset):
    """Levels of all images of a data set in one uint8 tensor, from which a whole batch is gathered at once.

    Images are decoded, processed and dropped one after another. A stream is read to its end. `levels`: uint8
    [N, C, H, W]; `labels`: int64 [N], or None without `with_labels`.

    skipped: where images that cannot be used are noted and left out, by file or row, with the reason; without it they
        are refused.

    Raises: ValueError when the data set has no image, no labels when they are asked for, or an image that cannot be
        used, naming its file or row.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        image_processor: LevelsImageProcessor,
        with_labels: bool = False,
        skipped: dict[str, str] | None = None,
    ):
        rows, to_levels = _reader(dataset, image_processor, with_labels, skipped)
        parts, first = [], 0
        for batch in rows.iter(batch_size=rows_at_once(dataset)):
            indices = range(first, first := first + len(batch["image"]))
            parts.append(to_levels(batch, indices))
        parts = [part for part in parts if len(part["pixel_values"])]
        if not parts:
            split = f" for split {str(dataset.split)!r}" if dataset.split else ""
            raise ValueError(f"dataset must hold at least one image{split}, got an empty data set.")
        self.levels = torch.cat([part["pixel_values"] for part in parts])
        self.labels = torch.cat([part["labels"] for part in parts]) if with_labels else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.levels)

    def gather(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """`pixel_values`: uint8 levels [B, C, H, W]; `labels`: int64 [B], when kept."""
        rows = torch.as_tensor(indices)
        batch = {"pixel_values": self.levels[rows]}
        if self.labels is not None:
            batch["labels"] = self.labels[rows]
        return batch


def stream_levels(
    dataset: IterableDataset,
    image_processor: LevelsImageProcessor,
    with_labels: bool = False,
    skipped: dict[str, str] | None = None,
) -> IterableDataset:
    """Stream of `pixel_values`, uint8 levels [C, H, W], and `labels`, int64 [], when asked for.

    Images are processed as they are read. To shuffle large ones, shuffle the levels, which are smaller than files, and
    with `max_buffer_input_shards=1`: otherwise up to ten shards are read and decoded at the same time.

    skipped: as in [`LevelsDataset`]; a worker process of a `DataLoader` fills a copy of its own.

    Raises: ValueError when labels are asked for and the data set has none, or they cannot be used.
    """
    rows, to_levels = _reader(dataset, image_processor, with_labels, skipped)
    columns = ["image", "label"] if with_labels else ["image"]
    return rows.map(
        to_levels, with_indices=True, batched=True, batch_size=STREAMED_ROWS_AT_ONCE, remove_columns=columns
    )


def replace_pixels(levels: torch.Tensor, share: float, num_levels: int, seed: int) -> torch.Tensor:
    """Images in which a share of the values is replaced by levels drawn at random. uint8 [N, C, H, W].

    Raises: ValueError for a share that is not above 0 and at most 1.

    Source: Ren et al. (2019), Likelihood Ratios for Out-of-Distribution Detection.
    """
    if isinstance(share, bool) or not isinstance(share, float | int) or not 0 < share <= 1:
        raise ValueError(f"dataset.replaced_pixels must be above 0 and at most 1, got {share!r}.")
    generator, parts = torch.Generator().manual_seed(seed), []
    # Random numbers of all images at once would take four times the memory of the images.
    for part in levels.split(1024):
        drawn = torch.randint(num_levels, part.shape, generator=generator, dtype=torch.uint8)
        parts.append(torch.where(torch.rand(part.shape, generator=generator) < share, drawn, part))
    return torch.cat(parts)


def rows_at_once(dataset: Dataset | IterableDataset) -> int:
    """How many rows of a data set are read at a time."""
    return ROWS_AT_ONCE if isinstance(dataset, Dataset) else STREAMED_ROWS_AT_ONCE


def _reader(
    dataset: Dataset | IterableDataset,
    image_processor: LevelsImageProcessor,
    with_labels: bool,
    skipped: dict[str, str] | None,
) -> tuple[Any, Callable[[dict[str, list], Sequence[int]], dict[str, torch.Tensor]]]:
    """The data set with its files not yet decoded, and the function from a batch of its rows to levels."""
    columns = dataset.column_names or []
    if "image" not in columns:
        raise ValueError(f"dataset must have a column 'image', got {', '.join(columns) or 'none'}.")
    if with_labels:
        usable_labels(dataset, needed=True)
    rows = dataset.with_format(None).select_columns(["image", "label"] if with_labels else ["image"])
    feature = (dataset.features or {}).get("image")
    if isinstance(feature, Image):
        rows = rows.cast_column("image", Image(mode=feature.mode, decode=False))
    decoder = Image(mode=feature.mode) if isinstance(feature, Image) else Image()
    of_split = f" of {dataset.split}" if dataset.split else ""

    def to_levels(batch: dict[str, list], indices: Sequence[int]) -> dict[str, torch.Tensor]:
        def note(position: int, error: BaseException) -> None:
            name = _name(batch["image"][position], f"row {indices[position]}{of_split}")
            # Pillow prints the address of what it was given.
            unknown = isinstance(error, PIL.UnidentifiedImageError)
            reason = "it is no image that Pillow can read" if unknown else str(error).rstrip(".")
            if skipped is None:
                remedy = "Repair or remove it, or leave such images out with dataset.skip_broken=true."
                raise ValueError(f"{name} cannot be used: {reason}. {remedy}") from error
            if name not in skipped:
                logger.warning(f"{name} is left out: {reason}.")
            skipped[name] = reason

        levels: dict[int, torch.Tensor] = {}
        for images in _decoded(batch["image"], decoder, note):
            levels |= _processed(images, image_processor, note)
        size: Any = image_processor.size
        empty = torch.empty(0, image_processor.num_channels, size.height, size.width, dtype=torch.uint8)
        read = {"pixel_values": torch.stack([*levels.values()]) if levels else empty}
        if with_labels:
            labels = [batch["label"][position] for position in levels]
            for position, label in zip(levels, labels, strict=True):
                if not isinstance(label, int) or label == NO_LABEL:
                    name = _name(batch["image"][position], f"row {indices[position]}{of_split}")
                    raise ValueError(f"the column 'label' must hold class numbers, got {label!r} for {name}.")
            read["labels"] = torch.tensor(labels, dtype=torch.int64)
        return read

    return rows, to_levels


def _name(value: Any, row: str) -> str:
    """The file of an image, or its row, with the name that the file had."""
    if not isinstance(value, dict) or not value["path"]:
        return row
    return value["path"] if value["bytes"] is None else f"{row} ({value['path']})"


def _decoded(
    values: list, decoder: Image, note: Callable[[int, BaseException], None]
) -> Iterator[dict[int, PIL.Image.Image]]:
    """Images by their position, some at a time, so that large ones are never in memory together."""
    images, num_pixels = {}, 0
    for position, value in enumerate(values):
        try:
            image = value
            if isinstance(value, dict):
                # Read here: Pillow would leave a broken file open.
                image = decoder.decode_example({"bytes": file_content(value), "path": None})
            if not isinstance(image, PIL.Image.Image):
                raise ValueError(f"it holds no image, but {image!r}")
        except BROKEN as error:
            note(position, error)
            continue
        images[position] = image
        num_pixels += image.width * image.height
        if num_pixels >= PIXELS_AT_ONCE:
            yield images
            images, num_pixels = {}, 0
    if images:
        yield images


def _processed(
    images: dict[int, PIL.Image.Image],
    image_processor: LevelsImageProcessor,
    note: Callable[[int, BaseException], None],
) -> dict[int, torch.Tensor]:
    """Levels of images by their position, without those that the processor refuses."""
    try:
        levels = image_processor([*images.values()], return_tensors="pt")["pixel_values"]
    except ValueError as error:
        # Which one is refused shows when each is processed alone.
        if len(images) > 1:
            alone = (_processed({position: image}, image_processor, note) for position, image in images.items())
            return {position: levels for part in alone for position, levels in part.items()}
        note(next(iter(images)), error)
        return {}
    return dict(zip(images, levels, strict=True))
