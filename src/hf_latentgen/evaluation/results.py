"""The schema of `results.json`: written by an evaluation, read by cards and tables, checked here and nowhere else."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from hf_latentgen.hub.files import read_json
from hf_latentgen.models.configuration_latentgen import require

FILE = "results.json"
REFERENCE_KEYS = ("name", "metric", "value", "source")
REPEAT_KEYS = ("seed", "command", "metrics")


@strict
@dataclass(kw_only=True)
class Results:
    """What was measured of a checkpoint, and how the checkpoint came about where that is known.

    Args:
        row: name of the folder that was measured, or of the published row.
        dataset: name of the data set, a Hub id or the name of a folder.
        split: split that was scored, all of it.
        num_images: images, or documents of text, in it.
        metrics: scores, each named with its unit.
        diagnostics: further numbers that tell whether to trust the scores.
        baseline: scores of codes without a network on the same data: each is a score to get below.
        num_parameters: weights of the model; of a latent prior those of the denoiser.
        weights_sha256: hash of the weights that were measured, see [`weights_sha256`]; None in rows of before there was
            one.
        model: model type, class and fields of the configuration.
        autoencoder: the same of the autoencoder of a latent prior, else None.
        sample_text: what a model of texts wrote, else None.
        repeats: other trainings of the same recipe, each with its `seed`, its `command` and its `metrics`.
        spread: of each score that all trainings have, this one's included, its `mean` and standard deviation `std`.
        evaluate_command: the command that gives the same numbers.
        evaluation: seed, batch size, time, hardware, versions and commit of the evaluation.
        train_command: the command that trained it. None, as all that follows is empty, where no record was at hand.
        config: file of the recipe.
        overrides: `section.key=value` words that replaced values of the recipe.
        seed: of the training.
        dataset_options: the other fields of the `dataset` section of the recipe.
        reference: published values, each with `name`, `metric`, `value`, `source`.
        training: the `training` section of the recipe.
        history: the evaluations while training.
        train_seconds: wall time of the training.
        hardware: what it ran on.
        versions: of the packages it ran with.
        git_commit: of the source tree it ran from.
    """

    row: str
    dataset: str
    split: str
    num_images: int
    metrics: dict
    diagnostics: dict
    baseline: dict
    num_parameters: int
    weights_sha256: str | None
    model: dict
    autoencoder: dict | None
    sample_text: str | None
    repeats: list
    spread: dict
    evaluate_command: str
    evaluation: dict
    train_command: str | None = None
    config: str | None = None
    overrides: list = field(default_factory=list)
    seed: int | None = None
    dataset_options: dict = field(default_factory=dict)
    reference: list = field(default_factory=list)
    training: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    train_seconds: float | int | None = None
    hardware: str | None = None
    versions: dict = field(default_factory=dict)
    git_commit: str | None = None

    @property
    def has_provenance(self) -> bool:
        """Whether it is known how the checkpoint came about."""
        return self.train_command is not None

    @property
    def model_type(self) -> str:
        """The model type of what was measured."""
        return self.model["model_type"]

    @property
    def drawing_model(self) -> dict:
        """Fields of the configuration of the model that draws pixels or bytes: of a prior, its autoencoder's."""
        return self.autoencoder or self.model

    def validate_parts(self):
        """Raises `ValueError` if a score is no finite number, or the model has no type."""
        for part in ("metrics", "diagnostics", "baseline"):
            for key, value in getattr(self, part).items():
                is_number = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
                require(is_number, f"{part}.{key}", value, "a finite number")
        require(
            isinstance(self.model.get("model_type"), str), "model.model_type", self.model.get("model_type"), "a text"
        )
        for index, entry in enumerate(self.reference):
            wanted = sorted(REFERENCE_KEYS)
            require(isinstance(entry, dict) and sorted(entry) == wanted, f"reference[{index}]", entry, f"of {wanted}")
            value = entry["value"]
            is_number = isinstance(value, float | int) and not isinstance(value, bool)
            require(is_number, f"reference[{index}].value", value, "a number")
        for index, entry in enumerate(self.history):
            require(isinstance(entry, dict), f"history[{index}]", entry, "an object")
        for index, entry in enumerate(self.repeats):
            wanted = sorted(REPEAT_KEYS)
            require(isinstance(entry, dict) and sorted(entry) == wanted, f"repeats[{index}]", entry, f"of {wanted}")

    @classmethod
    def from_dict(cls, values: dict, source: str = FILE) -> "Results":
        """The results in the contents of a file.

        Raises:
            ValueError: a key is missing, unknown or of another kind; names `source`.
        """
        names = [own.name for own in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"{source} lacks {', '.join(missing)}; an evaluation writes it")
        if unknown := sorted(values.keys() - set(names)):
            raise ValueError(f"{source} has unknown keys: {', '.join(unknown)}; known are {', '.join(names)}")
        try:
            return cls(**values)
        except StrictDataclassError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"{source}: {reason}") from error

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """The results in `folder/results.json`. Errors as in `from_dict` and [`read_json`], naming the file."""
        path = Path(folder) / FILE
        return cls.from_dict(read_json(path, "an evaluation writes it"), str(path))

    def write(self, folder: str | Path) -> None:
        """Write `folder/results.json`."""
        content = json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False)
        (Path(folder) / FILE).write_text(f"{content}\n", encoding="utf-8")
