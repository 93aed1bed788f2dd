"""A folder of images becomes a training: `configs/own_images.yaml`, with what the images themselves decide."""

import copy
import math
import re
import time
from pathlib import Path
from typing import cast

import torch
from datasets import Dataset
from transformers import AutoConfig

from hf_latentgen.data import load_images
from hf_latentgen.data.looks import Looks, look_at
from hf_latentgen.hub.files import has_weights
from hf_latentgen.hub.loading import Checkpoint, new_model
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.rows.cards import duration
from hf_latentgen.rows.recipes import Recipe, check_start, load_recipe, recipe_files

RECIPE = "own_images"
# Steps that are timed, after one that warms up.
TIMED_STEPS = 3
# What an image of an evaluation costs, in images of a training, whose gradients take longer.
COST_OF_EVALUATION = 1 / 3


def is_folder(name: str) -> bool:
    """Whether what is to be trained is a folder of images; the name of a row is that of its recipe, even beside one."""
    return Path(name).is_dir() and name not in [path.stem for path in recipe_files()]


def folder_recipe(
    folder: str, overrides: list[str] | None = None, checkpoint: Checkpoint | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe for a folder of images, and what was chosen and how long it will take, in sentences.

    The size and the channels of the model are those of the images, up to the largest size of the recipe, but for what
    is overridden.

    Args:
        folder: of images, as [`load_images`] reads it.
        overrides: `size=...` and `section.key=value` words that replace values of the recipe.
        checkpoint: the model to start from, whose fields are kept.

    Raises:
        ValueError: no image can be read, a split is missing, a setting is out of range, the checkpoint is of another
            family, or as in [`load_recipe`].
    """
    words = list(overrides or [])
    if has_weights(Path(folder)):
        raise ValueError(f"{folder} is a checkpoint and no folder of images: train its recipe --from {folder}")
    if Path(folder).name in ("", ".."):
        folder = str(Path(folder).resolve())
    # The name of a folder may be that of a data set, as that of the photos is, or of one on the Hub.
    folder = folder if folder.startswith(("/", ".")) else f"./{folder}"
    training = cast(Dataset, load_images(folder, "train"))
    looks = look_at(training)
    if looks is None:
        raise ValueError(f"{folder} must hold images for training, got none that can be read")
    chosen: dict[str, object] = {"dataset.name": folder if re.fullmatch(r"[\w./-]+", folder) else _quoted(folder)}
    if checkpoint is None:
        largest = load_recipe(RECIPE, [word for word in words if word.startswith("size=")]).model["image_size"]
        chosen["model.image_size"] = min(largest, looks.width, looks.height)
        chosen["model.num_channels"] = 3 if looks.has_colours else 1
    given = {word.split("=")[0] for word in words}
    recipe = load_recipe(RECIPE, [f"{key}={value}" for key, value in chosen.items() if key not in given] + words)
    if checkpoint:
        check_start(recipe, checkpoint)
    recipe.family.arguments(output_dir="", **recipe.training)
    for name in ("max_steps", "per_device_train_batch_size", "eval_steps"):
        if not recipe.training[name] > 0:
            raise ValueError(f"{name} must be above 0, got {recipe.training[name]}")
    model = copy.deepcopy(checkpoint.model) if checkpoint else new_model(AutoConfig.for_model(**recipe.model))
    return recipe, _sentences(recipe, model, looks, len(training))


def _quoted(text: str) -> str:
    """A text as YAML and OmegaConf read it: whatever it holds stands for itself."""
    return "'" + text.replace("'", "''").replace("${", r"\${") + "'"


def _sentences(recipe: Recipe, model: LatentGenModel, looks: Looks, num_images: int) -> list[str]:
    """What is trained on what, and for how long."""
    folder, training, config = recipe.dataset["name"], recipe.training, model.config
    num_held_out = len(cast(Dataset, load_images(folder, "validation")))
    batch, steps = training["per_device_train_batch_size"], training["max_steps"]
    evaluations = (steps if training["eval_steps"] >= 1 else 1) / training["eval_steps"]
    images = steps * batch + COST_OF_EVALUATION * num_held_out * evaluations
    seconds = images / batch * step_seconds(model, batch)
    colours = "coloured" if looks.has_colours else "grey"
    try:
        tested = f"{len(cast(Dataset, load_images(folder, 'test'))):,} for test"
    except ValueError:
        tested = "none for test: evaluate with --split validation"
    return [
        f"{Path(folder).resolve().name}: {num_images:,} {colours} images of {looks.width}x{looks.height} for training, "
        f"{num_held_out:,} for validation, {tested}",
        f"{RECIPE}: {config.num_channels} channels, {config.image_size}x{config.image_size} pixels, "
        f"{config.num_levels} levels, {sum(map(math.prod, config.latent_shapes)):,} latents, "
        f"{model.num_parameters():,} parameters",
        f"{steps:,} steps of {batch} images, each image {steps * batch / num_images:.3g} times: "
        f"about {duration(seconds)}",
    ]


def step_seconds(model: LatentGenModel, batch_size: int) -> float:
    """Seconds of a training step on this machine: the mean of some, on images of noise."""
    config, started = model.config, 0.0
    shape = (batch_size, config.num_channels, config.image_size, config.image_size)
    levels = torch.randint(config.num_levels, shape, dtype=torch.uint8)
    model.train()
    for step in range(1 + TIMED_STEPS):
        if step == 1:
            started = time.perf_counter()
        model(levels.to(model.device)).loss.backward()
    return (time.perf_counter() - started) / TIMED_STEPS
