"""From a trained checkpoint to the folder of its row: `results.json`, pictures, and the model when it is small."""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from hf_latentgen.cards.publishing import CONFIGS, PIPELINE_FILES, weights_sha256
from hf_latentgen.data import LevelsDataset, load_images
from hf_latentgen.evaluation import aae, autoregressive, latent_prior, text, vae
from hf_latentgen.evaluation.baselines import floor_scores
from hf_latentgen.evaluation.checkpoints import load_checkpoint, read_run_record
from hf_latentgen.evaluation.clusters import classification_error
from hf_latentgen.evaluation.pictures import likelihood_history
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.auto import WEIGHTS
from hf_latentgen.models.configuration_aae import AAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_aae import AAEModel
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification
from hf_latentgen.models.modeling_local_transformer import LocalTransformerForCausalLM
from hf_latentgen.models.modeling_local_transformer_image import LocalTransformerForImageGeneration
from hf_latentgen.models.modeling_vae import VAEModel
from hf_latentgen.models.tokenization_bytes import ByteTokenizer
from hf_latentgen.pipelines import INDEX, LatentGenPipeline

# Larger weights belong on the Hub, not into a git repository.
MAX_WEIGHT_BYTES = 3 * 2**20
# What a row keeps of a checkpoint: a model, or a pipeline with its parts.
KEPT_FILES = (*CONFIGS, WEIGHTS, *PIPELINE_FILES)


def evaluate_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path | None = None,
    *,
    split: str = "test",
    batch_size: int = 128,
    num_importance_samples: int = 500,
    compile_likelihood: bool = False,
    classifier: str | Path | None = None,
    draws: Sequence[str | Path] = (),
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
        num_importance_samples: K of the importance-weighted estimate of a VAE.
        compile_likelihood: compile the pass of that estimate; on a CPU it needs a C++ compiler.
        classifier: folder or Hub id of the in-domain classifier that judges the samples of an adversarial autoencoder,
            for which these scores are left out without one, and of a latent diffusion prior, which needs it.
        draws: classifiers of the same recipe trained with other labelled images or seeds; their errors, with that of
            the checkpoint, give a mean and a spread.
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
    pipe = LatentGenPipeline.from_pretrained(checkpoint) if Path(checkpoint, INDEX).is_file() else None
    model, processor = load_checkpoint(checkpoint) if pipe is None else (pipe.model, pipe.processor)
    if pipe is not None and (pipe.denoiser is None or classifier is None):
        raise ValueError("a pipeline must have a denoiser, and be judged by a classifier, got one without the other")
    folder = Path(output_dir or Path("model_cards", run["row"]))
    staging = _make_staging_folder(folder)
    try:
        name, reference = run["dataset"]["name"], _reference(run)
        errors, sample = [], None
        if isinstance(processor, ByteTokenizer):
            train, validation, test = (
                text.load_documents(name, part, data_dir) for part in ("train", "validation", split)
            )
            floor = text.text_floors(b"".join(train), b"".join(test))
            reader = cast(LocalTransformerForCausalLM, model)
            metrics, diagnostics = text.measure(reader, train, validation, test, seed)
            sample = text.sample_text(reader, test[0][: text.PROMPT_LENGTH], seed)
        else:
            test, train, validation = (
                _load(name, part, processor, data_dir) for part in (split, "train", "validation")
            )
            # Codes without a network have a likelihood; an adversarial autoencoder, and samples alone, have none.
            seen = torch.cat([train.levels, validation.levels]).numpy()
            is_adversarial = isinstance(model, AAEModel)
            floor = (
                {}
                if is_adversarial or pipe is not None
                else floor_scores(seen, test.levels.numpy(), model.config.num_levels)
            )
            if pipe is not None:
                judge = _load_classifier(cast(str, classifier))
                metrics, diagnostics = latent_prior.measure(pipe, train, test, judge, batch_size, seed)
            elif isinstance(model, VAEModel):
                if compile_likelihood:
                    # Convolutions compile best with the channels last.
                    torch.nn.Module.to(model, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                    model.compile_likelihood()
                metrics, diagnostics = vae.measure(model, train, test, batch_size, seed, num_importance_samples)
            elif isinstance(model, AAEModel):
                judge = None if classifier is None else _load_classifier(classifier)
                metrics, diagnostics = aae.measure(model, train, validation, test, batch_size, seed, judge)
                if draws:
                    others = [classification_error(_load_classifier(other), test, batch_size) for other in draws]
                    errors = [metrics["test_error"], *others]
                    metrics["test_error_mean"] = float(np.mean(errors))
                    metrics["test_error_std"] = float(np.std(errors, ddof=1))
            else:
                painter = cast(LocalTransformerForImageGeneration, model)
                metrics, diagnostics = autoregressive.measure(painter, train, test, batch_size, seed)
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
            "num_parameters": model.num_parameters() if pipe is None else pipe.denoiser.num_parameters(),
            "weights_sha256": weights_sha256(Path(checkpoint)),
            "num_labelled": run["dataset"].get("num_labelled"),
            "dataset_options": {key: value for key, value in run["dataset"].items() if key != "name"},
            "test_errors_of_draws": errors,
            "sample_text": sample,
            "model": _config_fields(model.config) if pipe is None else run["model"] | latent_prior.fields(pipe),
            "autoencoder": None if pipe is None else _config_fields(model.config),
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
        (staging / "images").mkdir()
        if pipe is None:
            pictures = _draw(model, train, test, results, seed)
        else:
            pictures = latent_prior.draw(pipe, cast(LevelsDataset, train), results, seed)
        for picture_name, picture in pictures.items():
            picture.save(staging / "images" / f"{picture_name}.png", optimize=True)
        # Drawn during training: what the model was like before it, and after some epochs.
        pattern = "*_epoch_*.png" if isinstance(model, AAEModel) else "samples_epoch_*.png"
        for path in Path(checkpoint, "samples").glob(pattern):
            shutil.copy(path, staging / "images")
        content = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)
        (staging / "results.json").write_text(f"{content}\n", encoding="utf-8")
        _publish(staging, Path(checkpoint), folder)
    finally:
        shutil.rmtree(staging)
    return folder


def _draw(model: PreTrainedModel, train, test, results: dict, seed: int) -> dict[str, Image.Image]:
    """The pictures of a row by name."""
    if isinstance(model, VAEModel):
        return vae.draw(model, train, test, results, seed)
    if isinstance(model, AAEModel):
        return aae.draw(model, train, test, results, seed)
    if isinstance(model, LocalTransformerForImageGeneration):
        return autoregressive.draw(model, train, test, results, seed)
    return {"history": likelihood_history(results, "bits_per_byte", "bits per byte")} if results["history"] else {}


def _load(name: str, split: str, processor: LevelsImageProcessor, data_dir: str | None) -> LevelsDataset:
    images = cast(Dataset, load_images(name, split, data_dir=data_dir))
    return LevelsDataset(images, processor, with_labels="label" in images.column_names)


def _reference(run: dict) -> list[dict]:
    """Published values: those in the recipe, or the copy made by the training if the recipe is not at hand."""
    recipe = Path(run["config"])
    if not recipe.is_file():
        return run["reference"]
    return cast(dict, OmegaConf.to_container(OmegaConf.load(recipe))).get("reference", [])


def _load_classifier(checkpoint: str | Path) -> AAEForImageClassification:
    classifier, _ = load_checkpoint(checkpoint)
    if not isinstance(classifier, AAEForImageClassification):
        raise ValueError(f"classifier must be an AAEForImageClassification, got {checkpoint}")
    return classifier


def _config_fields(config: PreTrainedConfig) -> dict:
    """The model type, the class, and the fields that this family adds to those of every configuration."""
    common = {field.name for field in fields(PreTrainedConfig)}
    own = [field.name for field in fields(config) if field.name not in common]
    values = config.to_dict()
    described = {"model_type": config.model_type, "architectures": config.architectures}
    if isinstance(config, AAEConfig):
        described["num_labels"] = config.num_classes
    return described | {name: values[name] for name in own}


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
        for name in KEPT_FILES:
            source, target = checkpoint / name, staging / name
            if source.is_file() and (source.suffix != ".safetensors" or source.stat().st_size < MAX_WEIGHT_BYTES):
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
            else:
                (folder / name).unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "results.json"):
        if path.is_dir() and (folder / path.name).exists():
            shutil.rmtree(folder / path.name)
        path.rename(folder / path.name)
