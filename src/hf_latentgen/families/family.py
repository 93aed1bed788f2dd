"""What a family of models is: one frozen object that says how it is trained, measured, drawn and described."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from hf_latentgen.evaluation.results import Results
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.trainer import LatentTrainer

# Keys that the `dataset` section of a recipe of images may have.
IMAGE_KEYS = ("name", "streaming", "skip_broken", "allow_grey", "leave_out_classes", "replaced_pixels")


@dataclass(frozen=True)
class Setup:
    """What a training starts from.

    Args:
        model: the `model` section of a recipe.
        dataset: the `dataset` section of a recipe.
        data_dir: folder with local data files.
        seed: of the training.
        checkpoint: the loaded model to start from, or None for a new one.
        skipped: where images that cannot be used are noted and left out, with the reason; None to refuse them.
    """

    model: dict
    dataset: dict
    data_dir: str | None
    seed: int
    checkpoint: Checkpoint | None
    skipped: dict[str, str] | None = None


@dataclass(frozen=True)
class Data:
    """The splits of a data set, each read once, when it is asked for: a [`LevelsDataset`], or documents as bytes.

    Args:
        read: what a split holds, by its name.
        split: the one to score.
    """

    read: Callable[[str], Any]
    split: str = "test"

    @functools.cached_property
    def train(self) -> Any:
        """The training examples."""
        return self.read("train")

    @functools.cached_property
    def validation(self) -> Any:
        """The validation examples."""
        return self.read("validation")

    @functools.cached_property
    def test(self) -> Any:
        """The examples to score."""
        return self.read(self.split)

    def __iter__(self) -> Iterator[Any]:
        """The training, validation and test examples."""
        return iter((self.train, self.validation, self.test))


@dataclass(frozen=True)
class Options:
    """How to measure. Fields that are None by default are for some families only, see `Family.options`.

    Args:
        batch_size: images at once.
        seed: of every random number.
        num_importance_samples: K of the importance-weighted likelihood, 0 to leave it out.
        budget: seconds that these samples may take, from which K follows.
        compile: compile the pass that is repeated K times.
        bf16: score in bfloat16, as many models are trained.
        classifier: in-domain classifier that judges samples.
    """

    batch_size: int = 128
    seed: int = 0
    num_importance_samples: int | None = None
    budget: float | None = None
    compile: bool | None = None
    bf16: bool | None = None
    classifier: Checkpoint | None = None


@dataclass(frozen=True)
class Measured:
    """What a family measures of a checkpoint; each field as in [`Results`]."""

    metrics: dict[str, float]
    diagnostics: dict[str, float]
    baseline: dict[str, float] = field(default_factory=dict)
    sample_text: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of models: all that the rooms above the models have to know of it.

    Args:
        model_type: as its configuration names it.
        title: heading of its table.
        classes: its model classes by name, each with its task on the Hub; the first one unless a configuration says
            otherwise.
        trainer: the trainer.
        arguments: class of the training arguments.
        model_keys: keys that the `model` section of a recipe may have; the fields of the configuration when None.
        dataset_keys: keys that the `dataset` section of a recipe may have.
        make_parts: arguments of the trainer by name, but for those of the training.
        load_data: the splits, from a checkpoint, the name of a data set, the split to score and a folder of local data.
        measure: the scores on all of the test split.
        seconds_per_sample: what one importance sample of every test image takes; None where there are no such samples.
        seconds_of_pictures: what drawing the pictures takes; None where that is next to nothing.
        verify: the scores that can be computed again in a minute or so, named as those of `measure`.
        draw: the pictures of a row by name, but for the curve of its training.
        columns: cells of its table by the title of their column, but for those of every table.
        template: the template of its card.
        baselines: scores of codes without a network on the validation examples of a trainer; None where there are none.
        options: fields of [`Options`] that it has a use for.
        tolerances: how far a verified score may be from the published one, where that is not said by its standard error
            or by four equal digits.
        history: name and unit of the score that is evaluated while training.
        tags: what people search the Hub for.
        library: library that loads it from the Hub.
        captions: what its pictures show, where they differ from those of the others.
        thumbnail: the picture that stands for a row.
        best_by: data set and metric of the row that stands for the family: the one with the lowest value.
    """

    model_type: str
    title: str
    classes: Mapping[str, str]
    trainer: type[LatentTrainer]
    make_parts: Callable[[Setup], dict]
    load_data: Callable[[Checkpoint, str, str, str | None], Data]
    measure: Callable[[Checkpoint, Data, Options], Measured]
    verify: Callable[[Checkpoint, Data, Options], dict[str, float]]
    draw: Callable[[Checkpoint, Data, Results, int], dict[str, Image.Image]]
    columns: Callable[[Results], dict[str, str]]
    template: Path
    arguments: type[LatentTrainingArguments] = LatentTrainingArguments
    model_keys: tuple[str, ...] | None = None
    dataset_keys: tuple[str, ...] = IMAGE_KEYS
    seconds_per_sample: Callable[[Checkpoint, Data, Options], float] | None = None
    seconds_of_pictures: Callable[[Checkpoint], float] | None = None
    baselines: Callable[[LatentTrainer], dict[str, float]] | None = None
    options: tuple[str, ...] = ()
    tolerances: Mapping[str, float] = field(default_factory=dict)
    history: tuple[str, str] = ("bits_per_dim", "bits/dim")
    tags: tuple[str, ...] = ()
    library: str = "transformers"
    captions: Mapping[str, str] = field(default_factory=dict)
    thumbnail: str = "samples"
    best_by: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Short name: the model type without the prefix of the package, as in "vae"."""
        return self.model_type.removeprefix("latentgen_")

    def model_class(self, model: Mapping[str, Any]) -> str:
        """Name of the class that loads a model whose configuration has these fields."""
        return (model.get("architectures") or [next(iter(self.classes))])[0]

    def task(self, model: Mapping[str, Any]) -> str:
        """What the Hub calls the use of a model whose configuration has these fields."""
        return self.classes[self.model_class(model)]
