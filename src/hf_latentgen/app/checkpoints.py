"""The checkpoints that the demo offers, each with images to compare with."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from torch import Tensor

from hf_latentgen.data import LevelsDataset, load_images, usable_labels
from hf_latentgen.data.descriptions import describe_data
from hf_latentgen.data.sources import data_root
from hf_latentgen.evaluation.provenance import read_record
from hf_latentgen.hub.files import has_weights
from hf_latentgen.hub.loading import load, row_folders
from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.models.tokenization_bytes import ByteTokenizer

# Enough for a distribution and a map, few enough to be encoded while somebody waits.
NUM_DIGITS = 500
# A transformer draws its images pixel by pixel.
NUM_DRAWN_DIGITS = 20
BATCH_SIZE = 100
# As many test digits of MNIST, for where the whole data set is not at hand.
MNIST = Path(__file__).with_name("mnist")
# A tab opens on the first of these that fits it: the best one, or the one that shows best what the tab is about.
FIRST_ROWS = ("prior_vae_mnist", "vae_mnist_4bit_fast", "vae_mnist_4bit_2d", "aae_mnist", "local_mnist_4bit")


@dataclass
class Digits:
    """Images to compare with: levels [N, C, H, W], classes [N] if they are known, and in words where they are from."""

    levels: Tensor
    labels: np.ndarray | None
    source: str


@dataclass(eq=False)
class Checkpoint:
    """A loaded checkpoint under the name that the page shows. Two are equal only if they are one."""

    name: str
    model: LatentGenModel
    processor: LevelsImageProcessor | ByteTokenizer
    dataset: str | None = None
    data_dir: str | None = None
    # Where a latent diffusion draws what the model decodes.
    prior: LatentGenPipeline | None = None
    # Where it was loaded from.
    folder: Path | None = None

    @property
    def images(self) -> LevelsImageProcessor:
        """The image processor of a model of images."""
        return cast(LevelsImageProcessor, self.processor)

    @property
    def family(self) -> str:
        """What kind of model it is, in words."""
        return self.model.kind if self.prior is None else "latent diffusion prior"

    @cached_property
    def card(self) -> str:
        """Its model card as it is shown here, without metadata and without pictures, whose files are not served.

        Empty where there is none.
        """
        if self.folder is None or not (self.folder / "README.md").is_file():
            return ""
        text = ModelCard((self.folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True).text
        without_list = re.sub(r"^## Pictures\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
        return re.sub(r"!\[[^\]]*\]\([^)]*\)", "", without_list).strip()

    @property
    def about(self) -> str:
        """A sentence on what it is, the first one of its card, and a link where the card is on the Hub."""
        paragraphs = [text for text in self.card.split("\n\n") if text.strip() and not text.startswith("#")]
        kind = f"{'An' if self.family[0] in 'aeiou' else 'A'} {self.family}."
        link = f" [Its card](https://huggingface.co/{self.name})" if "/" in self.name else ""
        return " ".join((paragraphs[0] if paragraphs else kind).split()) + link

    @property
    def title(self) -> str:
        """Name and sizes, in words."""
        if self.model.config.reads_text:
            return self.name
        size, latents = self.model.config.image_size, self.model.num_latents
        return f"{self.name}: {size}×{size}{f', {latents} latent numbers' if latents else ''}"

    @property
    def num_classes(self) -> int:
        """How many classes a sample can be asked for, 0 when the model knows none."""
        return self.model.num_sample_classes if self.prior is None else self.prior.num_classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that a sample can be asked for; of clusters, and without names, their numbers."""
        names = cast(dict[int, str], self.model.config.id2label or {})
        is_named = len(names) == self.num_classes and not any(name.startswith("LABEL_") for name in names.values())
        is_named = is_named and getattr(self.model.config, "num_clusters", None) is None
        return [names[number] if is_named else str(number) for number in range(self.num_classes)]

    @property
    def has_temperature(self) -> bool:
        """Whether samples have a temperature."""
        return self.model.has_temperature if self.prior is None else self.prior.has_temperature

    @cached_property
    def digits(self) -> Digits:
        """Test images, or samples of the model itself where there are none on this machine. Read or drawn once."""
        config = self.model.config
        name = self.dataset or {8: "digits", 28: "mnist"}.get(config.image_size, "")
        # By its path, a folder is read without asking the Hub.
        folder = Path(data_root(self.data_dir) or "", name)
        if name == "mnist" and not folder.is_dir():
            folder = MNIST
        if name == "digits" or (name and folder.is_dir()):
            dataset = cast(Dataset, load_images("digits" if name == "digits" else folder, "test"))
            rows = np.linspace(0, len(dataset) - 1, min(NUM_DIGITS, len(dataset))).astype(int)
            data = LevelsDataset(dataset.select(rows), self.images, with_labels=usable_labels(dataset))
            labels = None if data.labels is None else data.labels.numpy()
            return Digits(data.levels, labels, f"{len(rows)} test images of {describe_data(name).title}")
        number = NUM_DRAWN_DIGITS if self.model.can_complete else NUM_DIGITS
        levels = self.model.sample(number, torch.Generator().manual_seed(0)).cpu()  # pyright: ignore[reportCallIssue]
        where = "no test images are on this machine (HF_LATENTGEN_DATA can name their folder)"
        return Digits(levels, None, f"{number} samples of the model itself, because {where}")

    @cached_property
    @torch.no_grad()
    def codes(self) -> np.ndarray:
        """Latent means of `digits`. [N, L]."""
        model = self.model
        batches = self.digits.levels.split(BATCH_SIZE)
        return torch.cat([model.posterior(batch.to(model.device)).mean.cpu() for batch in batches]).numpy()

    @cached_property
    def scores(self) -> np.ndarray:
        """What the model's `score` gives each image of `digits`. [N]."""
        generator, device = torch.Generator().manual_seed(0), self.model.device
        batches = self.digits.levels.split(BATCH_SIZE)
        return torch.cat([self.model.score(batch.to(device), generator).cpu() for batch in batches]).numpy()


# What each tab of the page needs: its models, in words and as a condition.
NEEDS = {
    "sample": ("a model of images", lambda model: model.draws_images),
    "map": ("an autoencoder with two latent numbers", lambda model: model.num_latents == 2),
    "autoencoder": ("an autoencoder", lambda model: model.num_latents > 0),
    "complete": ("a transformer of pixels", lambda model: model.can_complete),
    "text": ("a transformer of text", lambda model: model.config.reads_text),
}


class Checkpoints(dict[str, Checkpoint]):
    """Checkpoints by name."""

    def fitting(self, need: str) -> list[Checkpoint]:
        """Those that fit a need, one of `NEEDS`; a prior only samples, its autoencoder is a row of its own."""
        fitting = (checkpoint for checkpoint in self.values() if NEEDS[need][1](checkpoint.model))
        return [checkpoint for checkpoint in fitting if checkpoint.prior is None or need == "sample"]

    def pick(self, name: str | None, need: str) -> Checkpoint:
        """The checkpoint of a name. Raises: ValueError when there is none, or it does not fit the need."""
        fitting = self.fitting(need)
        checkpoint = self.get(name or "")
        if checkpoint in fitting:
            return cast(Checkpoint, checkpoint)
        given = f"{name!r} ({checkpoint.family if checkpoint else 'not loaded'})"
        allowed = ", ".join(found.name for found in fitting) or "none is loaded"
        raise ValueError(f"This needs {NEEDS[need][0]}, got {given}. Fitting: {allowed}.")


def default_checkpoints() -> list[str]:
    """The rows of the clone that hold weights, those of `FIRST_ROWS` first, then the last names.

    Raises:
        ValueError: there are none, as where the package was installed without its repository.
    """
    rows = {folder.name: str(folder) for folder in reversed(row_folders()) if has_weights(folder)}
    if not rows:
        raise ValueError("CHECKPOINT must be given here, one or more folders or Hub ids: no trained model is at hand")
    return [rows[name] for name in dict.fromkeys([*FIRST_ROWS, *rows]) if name in rows]


def load_checkpoints(paths: list[str], data_dir: str | None = None) -> Checkpoints:
    """The checkpoints of folders, called after them, and of Hub ids.

    Args:
        paths: the folders and ids.
        data_dir: folder with `mnist/` and so on; HF_LATENTGEN_DATA when None.

    Raises:
        ValueError: two folders have one name, or as in [`load`].
    """
    checkpoints = Checkpoints()
    for path in paths:
        name = Path(path).resolve().name if Path(path).is_dir() else path
        if name in checkpoints:
            raise ValueError(f"CHECKPOINT must have different names, got {name!r} twice")
        found = load(path)
        prior = None
        if found.denoiser is not None:
            prior = LatentGenPipeline(*found.parts)
            prior.set_progress_bar_config(disable=True)
        dataset = read_record(found.folder).get("dataset")
        checkpoints[name] = Checkpoint(name, found.model, found.processor, dataset, data_dir, prior, found.folder)
    return checkpoints
