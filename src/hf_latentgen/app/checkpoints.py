"""The checkpoints that the demo offers, each with images to compare with."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_latentgen.data import LevelsDataset, load_images
from hf_latentgen.data.sources import data_root
from hf_latentgen.evaluation.checkpoints import load_checkpoint
from hf_latentgen.models.auto import WEIGHTS
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_aae import AAEModel
from hf_latentgen.models.modeling_image_autoencoder import ImageAutoencoderModel
from hf_latentgen.models.modeling_local_transformer import LocalTransformerForCausalLM
from hf_latentgen.models.modeling_local_transformer_image import LocalTransformerForImageGeneration
from hf_latentgen.models.modeling_vae import VAEModel
from hf_latentgen.models.tokenization_bytes import ByteTokenizer
from hf_latentgen.pipelines import INDEX, LatentGenPipeline, is_pipeline

DATA_TITLES = {"digits": "scikit-learn's digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
# Enough for a distribution and a map, few enough to be encoded while somebody waits.
NUM_DIGITS = 500
# A transformer draws its images pixel by pixel.
NUM_DRAWN_DIGITS = 20
BATCH_SIZE = 100
# Where the package was installed from a clone, the trained rows lie beside it.
MODEL_CARDS = Path(__file__).resolve().parents[3] / "model_cards"


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
    model: PreTrainedModel
    processor: LevelsImageProcessor | ByteTokenizer
    dataset: str | None = None
    data_dir: str | None = None
    # Where a latent diffusion draws what the model decodes.
    prior: LatentGenPipeline | None = None

    def __post_init__(self):
        # A processor that was saved with its defaults is one of grey images, whatever the model is.
        if isinstance(self.processor, LevelsImageProcessor):
            self.processor.num_channels = self.model.config.num_channels

    @property
    def images(self) -> LevelsImageProcessor:
        """The image processor of a model of images."""
        return cast(LevelsImageProcessor, self.processor)

    @property
    def family(self) -> str:
        """What kind of model it is, in words."""
        if self.prior is not None:
            return "latent diffusion prior"
        if isinstance(self.model, VAEModel):
            return "variational autoencoder"
        if isinstance(self.model, AAEModel):
            return "adversarial autoencoder"
        return "transformer of pixels" if not isinstance(self.processor, ByteTokenizer) else "transformer of text"

    @property
    def title(self) -> str:
        """Name and sizes, in words."""
        if isinstance(self.processor, ByteTokenizer):
            return self.name
        size = self.model.config.image_size
        latents = f", {self.model.num_latents} latent numbers" if isinstance(self.model, ImageAutoencoderModel) else ""
        return f"{self.name}: {size}×{size}{latents}"

    @property
    def num_classes(self) -> int:
        """How many classes a sample can be asked for, 0 when the model knows none."""
        if self.prior is not None:
            return self.prior.num_classes
        if isinstance(self.model, ImageAutoencoderModel | LocalTransformerForImageGeneration):
            return self.model.num_sample_classes
        return 0

    @property
    def has_temperature(self) -> bool:
        """Whether samples have a temperature."""
        return self.prior is None and not isinstance(self.model, AAEModel)

    @cached_property
    def digits(self) -> Digits:
        """Test images, or samples of the model itself where there are none on this machine. Read or drawn once."""
        config = self.model.config
        name = self.dataset or {8: "digits", 28: "mnist"}.get(config.image_size, "")
        # By its path, a folder is read without asking the Hub.
        folder = Path(data_root(self.data_dir) or "", name)
        if name == "digits" or (name and folder.is_dir()):
            dataset = cast(Dataset, load_images("digits" if name == "digits" else folder, "test"))
            rows = np.linspace(0, len(dataset) - 1, min(NUM_DIGITS, len(dataset))).astype(int)
            has_labels = "label" in dataset.column_names
            data = LevelsDataset(dataset.select(rows), self.images, with_labels=has_labels)
            labels = None if data.labels is None else data.labels.numpy()
            return Digits(data.levels, labels, f"{len(rows)} test images of {DATA_TITLES.get(name, name)}")
        number = NUM_DRAWN_DIGITS if isinstance(self.model, LocalTransformerForImageGeneration) else NUM_DIGITS
        levels = self.model.sample(number, torch.Generator().manual_seed(0)).cpu()  # pyright: ignore[reportCallIssue]
        where = "no test images are on this machine (HF_LATENTGEN_DATA can name their folder)"
        return Digits(levels, None, f"{number} samples of the model itself, because {where}")

    @cached_property
    @torch.no_grad()
    def codes(self) -> np.ndarray:
        """Latent means of `digits`. [N, L]."""
        model = cast(ImageAutoencoderModel, self.model)
        batches = self.digits.levels.split(BATCH_SIZE)
        return torch.cat([model.posterior(batch.to(model.device)).mean.cpu() for batch in batches]).numpy()

    @cached_property
    def scores(self) -> np.ndarray:
        """What `score` gives each image of `digits`. [N]."""
        generator = torch.Generator().manual_seed(0)
        return torch.cat([self.score(batch, generator) for batch in self.digits.levels.split(BATCH_SIZE)]).numpy()

    @property
    def score_name(self) -> str:
        """What `score` is, in words."""
        return "bits per dimension" if isinstance(self.model, VAEModel) else "mean squared error on [-1, 1]"

    @torch.no_grad()
    def score(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """How badly an autoencoder fits each image: bits per dimension if it has a likelihood, else an error. [B]."""
        levels = levels.to(self.model.device)
        if isinstance(self.model, VAEModel):
            return self.model.bits_per_dim(levels, generator).cpu()
        means = cast(ImageAutoencoderModel, self.model).reconstruct(levels)
        return ((means - levels) * (2 / (self.model.config.num_levels - 1))).square().flatten(1).mean(1).cpu()


# What each tab of the page needs: its models, in words and as a condition.
NEEDS = {
    "sample": ("a model of images", lambda model: not isinstance(model, LocalTransformerForCausalLM)),
    "map": (
        "an autoencoder with two latent numbers",
        lambda model: isinstance(model, ImageAutoencoderModel) and model.num_latents == 2,
    ),
    "autoencoder": ("an autoencoder", lambda model: isinstance(model, ImageAutoencoderModel)),
    "complete": ("a transformer of pixels", lambda model: isinstance(model, LocalTransformerForImageGeneration)),
    "text": ("a transformer of text", lambda model: isinstance(model, LocalTransformerForCausalLM)),
}


class Checkpoints(dict[str, Checkpoint]):
    """Checkpoints by name."""

    def fitting(self, need: str) -> list[Checkpoint]:
        """Those that fit a need, one of `NEEDS`."""
        return [checkpoint for checkpoint in self.values() if NEEDS[need][1](checkpoint.model)]

    def pick(self, name: str | None, need: str) -> Checkpoint:
        """The checkpoint of a name. Raises: ValueError when there is none, or it does not fit the need."""
        fitting = self.fitting(need)
        checkpoint = self.get(name or "")
        if checkpoint in fitting:
            return cast(Checkpoint, checkpoint)
        given = f"{name!r} ({checkpoint.family if checkpoint else 'not loaded'})"
        allowed = ", ".join(found.name for found in fitting) or "none is loaded"
        raise ValueError(f"This needs {NEEDS[need][0]}, got {given}. Fitting: {allowed}.")


def default_checkpoints(folder: Path = MODEL_CARDS) -> list[str]:
    """The trained rows that hold weights, the last names first: a VAE of MNIST makes the best beginning.

    Raises:
        ValueError: there are none, as where the package was installed without its repository.
    """
    rows = [path.parent for path in folder.glob(f"*/{WEIGHTS}") if (path.parent / "config.json").is_file()]
    rows += [path.parent for path in folder.glob(f"*/{INDEX}") if (path.parent / "model" / WEIGHTS).is_file()]
    if not rows:
        raise ValueError("CHECKPOINT must be given here, one or more folders or Hub ids: no trained model is at hand")
    return sorted(map(str, rows), reverse=True)


def load_checkpoints(paths: list[str], data_dir: str | None = None) -> Checkpoints:
    """The checkpoints of folders, called after them, and of Hub ids.

    Args:
        paths: the folders and ids.
        data_dir: folder with `mnist/` and so on; HF_LATENTGEN_DATA when None.

    Raises:
        ValueError: two folders have one name, or as in `load_checkpoint`.
    """
    checkpoints = Checkpoints()
    for path in paths:
        name = Path(path).resolve().name if Path(path).is_dir() else path
        if name in checkpoints:
            raise ValueError(f"CHECKPOINT must have different names, got {name!r} twice")
        dataset = _dataset(Path(path))
        if is_pipeline(path):
            pipe = LatentGenPipeline.from_pretrained(path)
            pipe.set_progress_bar_config(disable=True)
            prior = pipe if pipe.denoiser is not None else None
            checkpoints[name] = Checkpoint(name, pipe.model, pipe.processor, dataset, data_dir, prior)
        else:
            checkpoints[name] = Checkpoint(name, *load_checkpoint(path), dataset, data_dir)
    return checkpoints


def _dataset(folder: Path) -> str | None:
    """The data set that the records beside a checkpoint name."""
    for record in ("results.json", "run.json"):
        if (folder / record).is_file():
            named = json.loads((folder / record).read_text(encoding="utf-8"))["dataset"]
            return named if isinstance(named, str) else named["name"]
    return None
