"""Recipes: the YAML files in configs/, one per published row, and the training they describe."""

import difflib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from datasets import Dataset, IterableDataset
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel, set_seed
from yaml import YAMLError

from hf_latentgen.data import (
    LevelsDataset,
    TokenBlocksDataset,
    load_images,
    load_text,
    stream_levels,
    stream_token_blocks,
)
from hf_latentgen.data.speakers import renamed_copies
from hf_latentgen.evaluation.clusters import name_clusters
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.auto import MODEL_TYPES, auto_class, auto_processor, reads_text
from hf_latentgen.models.configuration_aae import AAEConfig
from hf_latentgen.models.configuration_local_transformer import LocalTransformerConfig
from hf_latentgen.models.configuration_local_transformer_image import LocalTransformerImageConfig
from hf_latentgen.models.configuration_vae import VAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification
from hf_latentgen.models.tokenization_bytes import ByteTokenizer
from hf_latentgen.training.adversarial import AdversarialTrainer
from hf_latentgen.training.arguments import AdversarialTrainingArguments, LatentTrainingArguments
from hf_latentgen.training.few_labels import FewLabelsDataset
from hf_latentgen.training.latent_prior import PRIOR_KEYS, PRIOR_TYPE, PriorTrainer, prior_parts
from hf_latentgen.training.likelihood import LikelihoodTrainer
from hf_latentgen.training.trainer import ELBOTrainer, LatentTrainer, complete_checkpoints

IMAGE_KEYS = ("name", "streaming", "num_labelled", "labelled_per_batch", "label_seed")
TEXT_KEYS = ("name", "streaming", "block_size", "renamed_copies")
TRAINERS: dict[str, type[LatentTrainer]] = {
    VAEConfig.model_type: ELBOTrainer,
    AAEConfig.model_type: AdversarialTrainer,
    LocalTransformerConfig.model_type: LikelihoodTrainer,
    LocalTransformerImageConfig.model_type: LikelihoodTrainer,
}
# Ids of a block of text.
BLOCK_SIZE = 1024
# Images, or blocks of text, of a stream among which the next one is drawn.
SHUFFLE_BUFFER = 10_000


@dataclass
class Recipe:
    """What is needed to train a row again.

    Args:
        path: the YAML file.
        overrides: `section.key=value` words given on the command line.
        dataset: `name`, a data set name or folder, and `streaming`; for a classifier with few labels `num_labelled`,
            `labelled_per_batch` and `label_seed`, the arguments of [`FewLabelsDataset`]; for a text `block_size`, and
            `renamed_copies` to train on that many copies of plays, see [`renamed_copies`].
        model: `model_type`, the fields of its config, and `architectures` with the class of a classifier; for a latent
            diffusion prior `autoencoder`, the checkpoint whose latents it learns, and the fields of its denoiser.
        training: fields of [`LatentTrainingArguments`], or of [`AdversarialTrainingArguments`].
        reference: published values that the row is compared with, each with `name`, `metric`, `value`, `source`.
    """

    path: Path
    overrides: list[str]
    dataset: dict
    model: dict
    training: dict
    reference: list[dict]

    @property
    def row(self) -> str:
        """Name of the row: the file's, without its ending."""
        return self.path.stem

    @property
    def arguments_class(self) -> type[LatentTrainingArguments]:
        """Class of the training arguments."""
        is_adversarial = self.model["model_type"] == AAEConfig.model_type
        return AdversarialTrainingArguments if is_adversarial else LatentTrainingArguments

    @property
    def is_prior(self) -> bool:
        """Whether a latent diffusion prior is trained."""
        return self.model["model_type"] == PRIOR_TYPE

    @property
    def reads_text(self) -> bool:
        """Whether the data are texts, not images."""
        return reads_text(self.model["model_type"])


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML file, with `section.key=value` overrides.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is unknown (names the nearest one), or the file or an override is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}; a recipe is a YAML file such as configs/vae_digits.yaml")
    for override in overrides or []:
        if "=" not in override:
            raise ValueError(f"an override must have the form section.key=value, got {override!r}")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
        given = cast(dict, OmegaConf.to_container(merged, resolve=True))
    except (YAMLError, OmegaConfBaseException, OSError, TypeError) as error:
        raise ValueError(f"{path} with {overrides or 'no overrides'} is no mapping of sections: {error}") from error
    _check_keys("", given, ("dataset", "model", "training", "reference"))
    sections = {"dataset": {"name": "digits"}, "model": {}, "training": {}, "reference": [], **given}
    for name, section in sections.items():
        kind = list if name == "reference" else dict
        if not isinstance(section, kind):
            raise ValueError(f"{name} in {path} must be a {kind.__name__}, got {section!r}")
    model_type = sections["model"].setdefault("model_type", "latentgen_vae")
    # YAML reads the word no as false.
    for key, value in sections["training"].items():
        if key.endswith("_strategy") and value is False:
            sections["training"][key] = "no"
    recipe = Recipe(path, list(overrides or []), **sections)
    if recipe.is_prior:
        known, dataset_keys = PRIOR_KEYS, ("name",)
    else:
        _check_model_type("model.model_type", model_type, (*MODEL_TYPES, PRIOR_TYPE))
        known = ["model_type", "num_labels", *(field.name for field in fields(CONFIG_MAPPING[model_type]))]
        dataset_keys = TEXT_KEYS if recipe.reads_text else IMAGE_KEYS
    _check_keys("model.", recipe.model, known)
    _check_keys("dataset.", recipe.dataset, dataset_keys)
    _check_keys("training.", sections["training"], [field.name for field in fields(recipe.arguments_class)])
    return recipe


def train_recipe(
    recipe: Recipe,
    output_dir: str | Path | None = None,
    data_dir: str | None = None,
    checkpoint: str | None = None,
    resume: bool = False,
) -> Path:
    """The folder with the trained model, its image processor and `run.json`, which says how it came about.

    Args:
        recipe: what to train.
        output_dir: folder to write; `runs/<row>` when None.
        data_dir: folder with local data files.
        checkpoint: folder or Hub id of a published model to start from; its config and image processor are kept.
        resume: go on from the last complete checkpoint in `output_dir`.

    Raises:
        ValueError: checkpoints are missing for `resume`, or there without it, or the model section is overridden
            although the model comes from a checkpoint, or the checkpoint cannot be loaded.
        PermissionError: `output_dir` cannot be written.
    """
    output_dir = Path(output_dir or Path("runs", recipe.row))
    last_checkpoint = next(iter(complete_checkpoints(output_dir)), None)
    if resume and last_checkpoint is None:
        raise ValueError(f"cannot resume: {output_dir} holds no complete checkpoint (a folder checkpoint-<step>)")
    if not resume and last_checkpoint is not None:
        raise ValueError(f"{output_dir} holds {last_checkpoint.name} already: resume it, or name another output folder")
    arguments = recipe.arguments_class(output_dir=str(output_dir), **recipe.training)
    set_seed(arguments.seed)
    parts = _trainer_parts(recipe, data_dir, checkpoint, arguments.seed)
    trainer_class = PriorTrainer if recipe.is_prior else TRAINERS[recipe.model["model_type"]]
    # Only now, so that a mistake in the recipe leaves no folder behind.
    _make_writable(output_dir)
    trainer = trainer_class(args=arguments, **parts)
    model = trainer.model
    # Noted before training: the source tree may move on during a long one.
    commit = git_commit()
    trainer.train(resume_from_checkpoint=str(last_checkpoint) if resume else None)
    if isinstance(model, AAEForImageClassification) and model.config.num_clusters is not None:
        with trainer.evaluated_weights():
            model.config.cluster_labels = name_clusters(model, cast(LevelsDataset, parts["eval_dataset"]))
    trainer.save_model()
    if trainer.is_world_process_zero():
        record = run_record(trainer, recipe, checkpoint, commit)
        Path(output_dir, "run.json").write_text(json.dumps(record, indent=2) + "\n")
    return output_dir


def run_record(trainer: LatentTrainer, recipe: Recipe, checkpoint: str | None, commit: str) -> dict:
    """The provenance of a trained model: recipe, command, time, hardware, versions, commit, and validation history."""
    # Folder and name: where the folder lies is nobody else's business.
    config = Path(*recipe.path.parts[-2:])
    command = ["python", "scripts/train.py", str(config), *recipe.overrides]
    command += ["--from", checkpoint] if checkpoint else []
    unwanted = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_beta")
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "row": recipe.row,
        "config": str(config),
        "overrides": recipe.overrides,
        "train_command": shlex.join(command),
        "train_seconds": trainer.elapsed_seconds,
        "seed": trainer.args.seed,
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": commit,
        "dataset": recipe.dataset,
        "model": recipe.model,
        "training": recipe.training,
        "num_parameters": trainer.model.num_parameters(),
        "reference": recipe.reference,
        "history": [{key: value for key, value in entry.items() if key not in unwanted} for entry in evaluations],
    }


def _trainer_parts(recipe: Recipe, data_dir: str | None, checkpoint: str | None, seed: int) -> dict:
    """Arguments of the trainer by name, but for those of the training: the model, its processor and its data."""
    if recipe.is_prior:
        if checkpoint is not None:
            raise ValueError(f"a latent diffusion prior starts from a new denoiser, not from {checkpoint}")
        return prior_parts(recipe.model, recipe.dataset["name"], data_dir)
    model, processor = _model_and_processor(recipe, checkpoint)
    if isinstance(processor, ByteTokenizer):
        training, validation = _token_blocks(recipe, data_dir, seed)
    else:
        training, validation = _levels(recipe, model, processor, data_dir, seed)
    return {
        "model": model,
        "train_dataset": training,
        "eval_dataset": validation,
        "processing_class": processor,
    }


def _model_and_processor(
    recipe: Recipe, checkpoint: str | None
) -> tuple[PreTrainedModel, LevelsImageProcessor | ByteTokenizer]:
    """The model and image processor or tokenizer of a checkpoint, or new ones as the recipe says."""
    if checkpoint is not None:
        overridden = [override for override in recipe.overrides if override.startswith("model.")]
        if overridden:
            raise ValueError(f"the model comes from {checkpoint}: its fields cannot be overridden, got {overridden}")
        try:
            config = AutoConfig.from_pretrained(checkpoint)
            _check_model_type(f"the model type of {checkpoint}", config.model_type)
            if config.model_type != recipe.model["model_type"]:
                expected = f"{recipe.model['model_type']!r}, as in {recipe.path}"
                raise ValueError(f"the model type of {checkpoint} must be {expected}, got {config.model_type!r}")
            model = auto_class(config).from_pretrained(checkpoint, use_safetensors=True)
            return model, auto_processor(config).from_pretrained(checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"cannot load a model from {checkpoint}: {error}") from error
    config = AutoConfig.for_model(**recipe.model)
    model = auto_class(config).from_config(config)
    if recipe.reads_text:
        # What a model draws need not be UTF-8, and shall be printed all the same.
        return model, ByteTokenizer(errors="replace")
    size = {"height": config.image_size, "width": config.image_size}
    return model, LevelsImageProcessor(size=size, num_channels=config.num_channels, num_levels=config.num_levels)


def _levels(
    recipe: Recipe, model: PreTrainedModel, processor: LevelsImageProcessor, data_dir: str | None, seed: int
) -> tuple[LevelsDataset | FewLabelsDataset | IterableDataset, LevelsDataset]:
    """Levels of the training images, all in memory or a stream shuffled through a buffer, and of the validation images.

    The labels of validation images only measure; those of training images also teach, unless clusters are sought.
    Validation images are kept in memory even when they come from a stream: they are few, and needed every epoch.
    """
    config = model.config
    needs_labels = isinstance(model, AAEForImageClassification)
    needs_labels |= getattr(config, "labelled_prior", False) or getattr(config, "is_class_conditional", False)
    is_taught = needs_labels and getattr(config, "num_clusters", None) is None
    name, streaming = recipe.dataset["name"], recipe.dataset.get("streaming", False)
    training = load_images(name, "train", data_dir=data_dir, streaming=streaming)
    validation = load_images(name, "validation", data_dir=data_dir, streaming=streaming)
    if isinstance(training, Dataset):
        levels = LevelsDataset(training, processor, is_taught)
    else:
        levels = stream_levels(training.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), processor, is_taught)
    if "num_labelled" in recipe.dataset:
        levels = _few_labels(recipe, levels, is_taught)
    return levels, LevelsDataset(validation, processor, with_labels=needs_labels)


def _token_blocks(
    recipe: Recipe, data_dir: str | None, seed: int
) -> tuple[TokenBlocksDataset | IterableDataset, TokenBlocksDataset]:
    """Blocks of ids of the training texts, all in memory or a stream shuffled through a buffer, and of validation."""
    name, block_size = recipe.dataset["name"], recipe.dataset.get("block_size", BLOCK_SIZE)
    streaming = recipe.dataset.get("streaming", False)
    training = load_text(name, "train", data_dir=data_dir, streaming=streaming)
    validation = TokenBlocksDataset(load_text(name, "validation", data_dir=data_dir, streaming=streaming), block_size)
    if "renamed_copies" in recipe.dataset:
        training = renamed_copies(training, recipe.dataset["renamed_copies"], seed)
    if isinstance(training, Dataset):
        return TokenBlocksDataset(training, block_size), validation
    blocks = stream_token_blocks(training, block_size)
    return blocks.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), validation


def _few_labels(recipe: Recipe, levels: LevelsDataset | IterableDataset, is_taught: bool) -> FewLabelsDataset:
    """The training images with few labels, as the `dataset` section says."""
    if not is_taught or not isinstance(levels, LevelsDataset):
        raise ValueError("dataset.num_labelled needs a model that learns from labels, and a data set in memory")
    section = recipe.dataset
    return FewLabelsDataset(
        levels, section["num_labelled"], section.get("labelled_per_batch", 32), section.get("label_seed", 0)
    )


def _make_writable(folder: Path) -> None:
    """Raises `PermissionError` unless files can be written to `folder`, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        # Another process of the same training may have been faster.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise PermissionError(f"the output folder {folder} is not writable: {error}") from error


def _check_model_type(field: str, model_type: str, allowed: tuple[str, ...] = MODEL_TYPES) -> None:
    """Raises `ValueError` unless a model type is one of this package."""
    if model_type not in allowed:
        raise ValueError(f"{field} must be one of {allowed}, got {model_type!r}")


def _check_keys(section: str, given: dict, allowed: Iterable[str]) -> None:
    """Raises `ValueError` for a key of `given` that is not allowed, with the nearest one that is."""
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, allowed, n=1, cutoff=0.0)
            raise ValueError(f"unknown key {section}{key}; the nearest valid key is {section}{nearest[0]}")
