"""Scores of single files: what somebody has at hand, one number each."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_latentgen.data.levels import BROKEN
from hf_latentgen.data.sources import image_suffixes, walk_files
from hf_latentgen.evaluation.anomaly import image_bits
from hf_latentgen.evaluation.text import full_context, text_scores
from hf_latentgen.models.modeling_latentgen import LatentGenModel


def score_files(model: LatentGenModel, processor: Any, path: str | Path, seed: int = 0) -> dict[str, float]:
    """The score of each file by its name, in the unit of `model.score_name`: bits per dimension, or bits per byte.

    Args:
        model: has a likelihood.
        processor: its image processor; a tokenizer is not asked, a text being its bytes.
        path: a file, or a folder, of which all files are scored.
        seed: of the posterior noise, where the score is a bound.

    Raises:
        ValueError: the model has no likelihood, or a file is no image that can be read.
        FileNotFoundError: there is no such file, or no file in the folder.
    """
    if model.likelihood is None:
        raise ValueError(f"model must have a likelihood to score files, and this has none: {model.kind}")
    if model.config.reads_text:
        context, files = full_context(model), list_files(Path(path), images=False)
        scores = [text_scores(model, [file.read_bytes()], context)["bits_per_byte"] for file in files]
        return dict(zip(_names(files, Path(path)), scores, strict=True))
    names, levels = levels_of_files(processor, path)
    return dict(zip(names, image_bits(model, levels, seed=seed).tolist(), strict=True))


def levels_of_files(processor: Any, path: str | Path) -> tuple[list[str], torch.Tensor]:
    """Names of the images in a file or folder, and their levels. [N, C, H, W].

    Errors and arguments as in [`score_files`].
    """
    files = list_files(Path(path), images=True)
    return _names(files, Path(path)), torch.cat([_read(file, processor) for file in files])


def _names(files: list[Path], path: Path) -> list[str]:
    return [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]


def list_files(path: Path, images: bool) -> list[Path]:
    """The file itself, or the files below a folder in the order of their paths, without hidden ones.

    Args:
        path: file or folder.
        images: keep those whose ending is one of an image; empty texts are left out, an empty image is an error later.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file() and (images or path.stat().st_size):
        return [path]
    kind, endings = ("images", image_suffixes()) if images else ("files", set())
    files = [path / name for name in walk_files(path)] if path.is_dir() else []
    found = [file for file in files if (file.suffix.lower() in endings if images else file.stat().st_size)]
    if not found:
        raise FileNotFoundError(f"{path} must be a file that is not empty, or a folder that holds {kind}, found none")
    return found


def _read(file: Path, processor: Any) -> torch.Tensor:
    """Levels of one image. [1, C, H, W]."""
    try:
        with Image.open(file) as image:
            return processor(image, return_tensors="pt")["pixel_values"]
    except BROKEN as error:
        raise ValueError(f"{file} must be an image that can be read: {error}") from error
