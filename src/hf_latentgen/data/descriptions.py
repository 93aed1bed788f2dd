"""What cards and pages say about data sets: their titles, where they are on the Hub, how they are divided."""

import re
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class DataSource:
    """What a card says about a data set.

    Args:
        title: its name in words.
        hub_id: its name on the Hub, None where there is nothing to link.
        description: what it is.
        name: what `load_images` is given; of a folder its name, as where it lies is nobody else's business.
        is_folder: whether that is a folder of the author's.
    """

    title: str
    hub_id: str | None
    description: str
    name: str = ""
    is_folder: bool = False


MNIST_SPLITS = (
    "The official test split. The official training images are divided 54,000 / 6,000 into train and validation by "
    "`torch.randperm(60000)` with seed 42."
)
DATA_SOURCES = {
    "digits": DataSource(
        "scikit-learn digits",
        "sklearn-docs/digits",
        "Real handwritten digits, 8x8 grey pixels, shipped with scikit-learn: nothing is downloaded. Divided at "
        "random, stratified by class, into train, validation and test, with seed 42.",
    ),
    "photos": DataSource(
        "patches of two photographs",
        None,
        "Colour patches of 32x32 pixels of the two photographs shipped with scikit-learn, a temple and a flower: "
        "nothing is downloaded. Divided by region: no pixel of a validation or test patch is in a patch of another "
        "split. Training patches overlap.",
    ),
    "mnist": DataSource("MNIST", "ylecun/mnist", MNIST_SPLITS),
    "fashion_mnist": DataSource("Fashion-MNIST", "zalando-datasets/fashion_mnist", MNIST_SPLITS),
    "binarized_mnist": DataSource(
        "Binarized MNIST",
        None,
        "The fixed (static) binarization of Larochelle and Murray, with its own train, validation and test files. "
        "Scores on images that are binarized anew at every epoch are not comparable. The files are not on the Hub: the "
        "environment variable `HF_LATENTGEN_DATA` names the folder that holds them.",
    ),
    "tinyshakespeare": DataSource(
        "tiny Shakespeare",
        None,
        "1,115,394 bytes of plays in one file, divided by position: the first 90 % train, the next 5 % validation, the "
        "last 5 % test.",
    ),
}


def describe_data(name: str) -> DataSource:
    """What is known of a data set by the name given to `load_images`: a built-in name, a Hub id or a folder."""
    if name in DATA_SOURCES:
        return replace(DATA_SOURCES[name], name=name)
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()
    folder = Path(name).name
    return DataSource(folder, name if is_hub_id else None, "", name if is_hub_id else folder, not is_hub_id)
