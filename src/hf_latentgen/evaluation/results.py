"""From a trained checkpoint to the folder of its row: `results.json`, pictures, and the model when it is small."""

import json
import shutil
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig

from hf_latentgen.data import LevelsDataset, load_images
from hf_latentgen.evaluation.baselines import floor_scores
from hf_latentgen.evaluation.latents import (
    active_units,
    aggregate_posterior_metrics,
    linear_probe_accuracy,
    posterior_moments,
)
from hf_latentgen.evaluation.likelihood import evaluate_likelihood, untrained_metrics
from hf_latentgen.evaluation.pictures import (
    history_plot,
    image_grid,
    latent_scatter,
    manifold_grid,
    reconstruction_grid,
)
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.evaluation.samples import nearest_images, prior_samples, reconstruction_mse
from hf_latentgen.models.configuration_vae import VAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_vae import VAEModel

WEIGHTS = "model.safetensors"
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")
# Larger weights belong on the Hub, not into a git repository.
MAX_WEIGHT_BYTES = 3_000_000
NUM_SAMPLES = 64
NUM_RECONSTRUCTIONS = 32
NUM_INTERPOLATIONS = 8


def load_checkpoint(checkpoint: str | Path) -> tuple[VAEModel, LevelsImageProcessor]:
    """The model, in `eval()` mode on the accelerator if there is one, and its image processor.

    Args:
        checkpoint: a folder, checked file by file, or a Hub id.

    Raises:
        FileNotFoundError: a file is missing from the folder.
        ValueError: a file is truncated, of another model type, or the weights do not fit the configuration.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        _check_folder(folder)
    _check_model_type(AutoConfig.from_pretrained(checkpoint).model_type, folder)
    try:
        model, report = AutoModel.from_pretrained(checkpoint, use_safetensors=True, output_loading_info=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit config.json: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ValueError(f"{folder / WEIGHTS} does not fit config.json, {problem}: {sorted(report[problem])}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(checkpoint)


def read_run_record(folder: str | Path) -> dict:
    """The contents of `folder/run.json`: how the checkpoint was trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    return _read_json(Path(folder, "run.json"), "training writes it beside the weights")


def evaluate_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path | None = None,
    *,
    split: str = "test",
    batch_size: int = 128,
    num_importance_samples: int = 500,
    data_dir: str | None = None,
    seed: int = 0,
    command: str = "",
) -> Path:
    """The folder with `results.json`, pictures in `images/`, and copies of config, processor and small weights.

    Nothing is written there before everything has been measured.

    Args:
        checkpoint: folder that a training wrote, with its `run.json`.
        output_dir: folder to write; `model_cards/<row>` when None.
        split: split to score, all of its images.
        batch_size: images at once.
        num_importance_samples: K of the importance-weighted estimate.
        data_dir: folder with local data files.
        seed: of every random number.
        command: what was typed, for the record.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: an argument is out of range, a file is damaged, or a score is not finite.
        PermissionError: `output_dir` cannot be written.
    """
    for name, value in (("batch_size", batch_size), ("num_importance_samples", num_importance_samples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    started = time.monotonic()
    run = read_run_record(checkpoint)
    model, processor = load_checkpoint(checkpoint)
    folder = Path(output_dir or Path("model_cards", run["row"]))
    staging = _make_staging_folder(folder)
    try:
        name = run["dataset"]["name"]
        test, train = (_load(name, part, processor, data_dir) for part in (split, "train"))
        validation = _load(name, "validation", processor, data_dir)
        floor = floor_scores(
            torch.cat([train.levels, validation.levels]).numpy(), test.levels.numpy(), model.config.num_levels
        )
        metrics, diagnostics = measure(model, train, test, batch_size, seed, num_importance_samples)
        reference = _reference(run)
        results = {
            "row": run["row"],
            "config": run["config"],
            "overrides": run["overrides"],
            "seed": run["seed"],
            "dataset": name,
            "split": split,
            "num_images": len(test),
            "metrics": metrics,
            "diagnostics": diagnostics,
            "reference": reference,
            "floor": floor,
            "num_parameters": model.num_parameters(),
            "model": _config_fields(model.config),
            "training": run["training"],
            "history": run["history"],
            "train_command": run["train_command"],
            "train_seconds": run["train_seconds"],
            "hardware": run["hardware"],
            "versions": run["versions"],
            "git_commit": run["git_commit"],
            "evaluate_command": command,
            "evaluation": {
                "seed": seed,
                "batch_size": batch_size,
                "seconds": round(time.monotonic() - started, 1),
                "hardware": hardware(),
                "versions": versions(),
                "git_commit": git_commit(),
            },
        }
        draw(model, train, test, results, seed, staging / "images")
        # Drawn during training: what the model was like before it, and after some epochs.
        for picture in Path(checkpoint, "samples").glob("samples_epoch_*.png"):
            shutil.copy(picture, staging / "images")
        text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)
        (staging / "results.json").write_text(f"{text}\n", encoding="utf-8")
        _publish(staging, Path(checkpoint), folder)
    finally:
        shutil.rmtree(staging)
    return folder


def measure(
    model: VAEModel, train: LevelsDataset, test: LevelsDataset, batch_size: int, seed: int, num_importance_samples: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of a model on all test images, and further numbers that tell whether to trust them.

    The linear probe is left out where the images have no labels.
    """
    metrics = evaluate_likelihood(model, test.levels, batch_size, seed, num_importance_samples).metrics()
    means, stds = posterior_moments(model, test.levels, batch_size)
    metrics["active_units"] = active_units(means)
    if train.labels is not None and test.labels is not None:
        train_means, _ = posterior_moments(model, train.levels, batch_size)
        labels = train.labels.numpy(), test.labels.numpy()
        metrics["linear_probe_accuracy"] = linear_probe_accuracy(train_means, labels[0], means, labels[1])
    metrics["reconstruction_mse"] = reconstruction_mse(model, test.levels, batch_size)
    diagnostics = untrained_metrics(model, test.levels, batch_size, seed)
    diagnostics |= aggregate_posterior_metrics(means, stds)
    # Samples much nearer to the training images than unseen images are would be memorised ones.
    unseen = test.levels[_spread(len(test), NUM_SAMPLES)]
    samples = prior_samples(model, NUM_SAMPLES, seed)["sample"]
    for name, levels in (("samples", samples), ("test_images", unseen)):
        distances = nearest_images(levels, train.levels)[1] / (model.config.num_levels - 1)
        diagnostics[f"nearest_training_image_rmse_of_{name}"] = float(distances.mean())
    return metrics, diagnostics


@torch.no_grad()
def draw(model: VAEModel, train: LevelsDataset, test: LevelsDataset, results: dict, seed: int, folder: Path) -> None:
    """None. Writes the pictures of a row as PNG files into `folder`, which is made."""
    folder.mkdir()
    num_levels = model.config.num_levels
    samples = prior_samples(model, NUM_SAMPLES, seed)
    pictures = {"samples": image_grid(samples["sample"], num_levels)}
    pictures |= {f"samples_{output}": image_grid(samples[output], num_levels) for output in ("mode", "mean")}
    nearest, _ = nearest_images(samples["sample"][:NUM_RECONSTRUCTIONS], train.levels)
    pictures["samples_above_nearest_training_images"] = reconstruction_grid(
        samples["sample"][:NUM_RECONSTRUCTIONS], train.levels[nearest], num_levels
    )
    # A test file may be sorted by class: the images shown are spread over all of it.
    shown = test.levels[_spread(len(test), NUM_RECONSTRUCTIONS)]
    reconstructions = model.reconstruct(shown.to(model.device)).cpu()
    pictures["reconstructions"] = reconstruction_grid(shown, reconstructions, num_levels)
    pictures["interpolations"] = image_grid(_interpolations(model, test.levels), num_levels, columns=8)
    if sum(model.latent_sizes) == 2:
        pictures["manifold"] = manifold_grid(model.manifold(), num_levels)
        if test.labels is not None:
            pictures["latents"] = latent_scatter(posterior_moments(model, test.levels)[0], test.labels.numpy())
    if results["history"]:
        floor = results["floor"]
        best = min(floor, key=floor.__getitem__)
        references = {
            entry["name"]: entry["value"] for entry in results["reference"] if entry["metric"] == "bits_per_dim"
        }
        label = f"floor: {best.removesuffix('_bits_per_dim').replace('_', ' ')}"
        pictures["history"] = history_plot(results["history"], references, {label: floor[best]})
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)


def _interpolations(model: VAEModel, levels: Tensor) -> Tensor:
    """Rows of eight steps between pairs of images, real levels. [8 * 8, C, H, W]."""
    first, second = levels[_spread(len(levels), 2 * NUM_INTERPOLATIONS)].to(model.device).unflatten(0, (2, -1))
    return model.interpolate(first, second, num_steps=8).flatten(0, 1).cpu()


def _spread(length: int, count: int) -> np.ndarray:
    """Indices of `count` images spread evenly over `length`."""
    return np.linspace(0, length - 1, count).round().astype(np.int64)


def _load(name: str, split: str, processor: LevelsImageProcessor, data_dir: str | None) -> LevelsDataset:
    images = cast(Dataset, load_images(name, split, data_dir=data_dir))
    return LevelsDataset(images, processor, with_labels="label" in images.column_names)


def _reference(run: dict) -> list[dict]:
    """Published values: those in the recipe, or the copy made by the training if the recipe is not at hand."""
    recipe = Path(run["config"])
    if not recipe.is_file():
        return run["reference"]
    return cast(dict, OmegaConf.to_container(OmegaConf.load(recipe))).get("reference", [])


def _config_fields(config: VAEConfig) -> dict:
    """The model type and the fields that this family adds to those of every configuration."""
    common = {field.name for field in fields(PreTrainedConfig)}
    own = [field.name for field in fields(VAEConfig) if field.name not in common]
    values = config.to_dict()
    return {"model_type": config.model_type, **{name: values[name] for name in own}}


def _check_folder(folder: Path) -> None:
    """Raises as `load_checkpoint` does, naming the file."""
    _check_model_type(_read_json(folder / "config.json", "save_pretrained writes it").get("model_type"), folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} does not exist; a checkpoint holds config.json, {WEIGHTS} and a processor")
    try:
        with safe_open(weights, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{weights} is truncated or corrupt: {error}") from error
    if not any((folder / name).is_file() for name in PROCESSOR_CONFIGS):
        raise FileNotFoundError(f"{folder} holds no image processor; one of {PROCESSOR_CONFIGS} must be there")


def _check_model_type(model_type: str | None, folder: Path) -> None:
    if model_type != VAEConfig.model_type:
        raise ValueError(f"{folder / 'config.json'}: model_type must be {VAEConfig.model_type!r}, got {model_type!r}")


def _read_json(path: Path, origin: str) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {origin}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _make_staging_folder(folder: Path) -> Path:
    """A new folder on the file system of `folder`, so that its files can be renamed into place.

    It lies in `folder`, or where that will be made: a failure must not leave an empty row behind.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        return Path(tempfile.mkdtemp(prefix=".evaluation-", dir=existing))
    except OSError as error:
        raise PermissionError(f"the output folder {folder} is not writable: {error}") from error


def _publish(staging: Path, checkpoint: Path, folder: Path) -> None:
    """Moves the staged files, and copies of those of the model, to `folder`; `results.json` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.resolve() != folder.resolve():
        for name in ("config.json", *PROCESSOR_CONFIGS, WEIGHTS):
            source = checkpoint / name
            if source.is_file() and (name != WEIGHTS or source.stat().st_size < MAX_WEIGHT_BYTES):
                shutil.copyfile(source, staging / name)
            else:
                (folder / name).unlink(missing_ok=True)
    if (folder / "images").exists():
        shutil.rmtree(folder / "images")
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "results.json"):
        path.rename(folder / path.name)
