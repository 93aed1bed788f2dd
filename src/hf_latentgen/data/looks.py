"""What images look like before any is read as levels: their sizes, and whether they have colours."""

import io
import itertools
from dataclasses import dataclass

import numpy as np
import PIL.Image
from datasets import Dataset, Image, IterableDataset

from hf_latentgen.data.levels import BROKEN
from hf_latentgen.data.sources import file_content

# Images that stand for all.
NUM_LOOKED_AT = 16
# A scanned grey page saved with three channels differs by this much between them at most.
GREY_DIFFERENCE = 8


@dataclass(frozen=True)
class Looks:
    """What some images of a data set look like.

    Args:
        width: the median of them, in pixels.
        height: the same.
        has_colours: whether any is coloured.
    """

    width: int
    height: int
    has_colours: bool


def look_at(dataset: Dataset | IterableDataset) -> Looks | None:
    """What some images look like, spread over a data set in memory, or the first of a stream; None if none can be read.

    An image that is broken is passed over: who reads all of them names it.
    """
    rows = dataset.with_format(None).select_columns(["image"])
    feature = (dataset.features or {}).get("image")
    if isinstance(feature, Image):
        rows = rows.cast_column("image", Image(decode=False))
    if isinstance(rows, Dataset):
        stride = max(1, -(-len(rows) // NUM_LOOKED_AT))
        rows = rows.select(range(0, len(rows), stride))
    sizes, has_colours = [], False
    for row in itertools.islice(rows, NUM_LOOKED_AT):
        try:
            image = row["image"]
            if isinstance(image, dict):
                image = PIL.Image.open(io.BytesIO(file_content(image)))
            sizes.append(image.size)
            has_colours |= _has_colours(image)
        except BROKEN:
            continue
    if not sizes:
        return None
    width, height = np.median(sizes, axis=0).astype(int).tolist()
    return Looks(width, height, has_colours)


def _has_colours(image: PIL.Image.Image) -> bool:
    """Whether the channels of an image differ."""
    # A photo need not be decoded in full for that.
    image.draft("RGB", (64, 64))
    values = np.asarray(image.convert("RGBA"), np.int16)
    colours = values[values[..., 3] > 0, :3]
    return bool(colours.size) and bool(np.ptp(colours, axis=-1).max() > GREY_DIFFERENCE)
