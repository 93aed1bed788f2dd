"""Loading a pipeline, and writing one together with the code that loads it where this package is not installed."""

import ast
import json
from pathlib import Path
from typing import cast

import diffusers
import torch
from diffusers import ModelMixin, SchedulerMixin
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import has_file

from hf_latentgen.models import pipeline_latentgen
from hf_latentgen.models.auto import MODEL_TYPES, auto_class, reads_text
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.models.modeling_safetensors import check_hashes_of_folder, pinned_revision

INDEX = pipeline_latentgen.LatentGenPipeline.config_name
# Nothing else is fetched: no code and no pickle.
FILES = ("*.json", "*.safetensors")


class LatentGenPipeline(pipeline_latentgen.LatentGenPipeline):
    """Draws images from an image model; [`pipeline_latentgen.LatentGenPipeline`] with the loading of checkpoints."""

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        torch_dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        device_map: str | dict | None = None,
        denoiser: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
    ) -> "LatentGenPipeline":
        """The pipeline in a folder or in a repository on the Hub: one that was saved, or one around a plain model.

        Only this package's code runs, whatever the repository holds.

        Args:
            pretrained_model_name_or_path: folder, or name on the Hub, of a pipeline or of an image model.
            revision: branch, tag or commit of a repository on the Hub.
            token: access token, for a private repository.
            cache_dir: where files of the Hub are kept.
            local_files_only: use what was downloaded before.
            torch_dtype: of the weights; as they were saved when None.
            use_safetensors: None or True, as no other weights are read.
            device_map: None; `to(device)` of the pipeline moves all parts.
            denoiser: used instead of the saved one.
            scheduler: used instead of the saved one.

        Raises:
            ConnectionError: the Hub does not answer, and the pipeline is not in the cache.
            OSError: there is no such repository, a file is missing, or weights do not have their published hash.
            ValueError: the checkpoint is no image model of this package, a file is damaged, or an argument is refused.
        """
        if use_safetensors not in (None, True):
            raise ValueError(f"use_safetensors must be True or None, got {use_safetensors!r}: no pickle is ever read")
        if device_map is not None:
            raise ValueError(f"device_map must be None, got {device_map!r}: .to(device) moves the whole pipeline")
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        if not folder.is_dir():
            place = {"revision": revision, "local_files_only": local_files_only}
            if not local_files_only:
                place |= pinned_revision(name, revision, token, cache_dir, files=(INDEX, CONFIG_NAME))
            found = snapshot_download(name, token=token, cache_dir=cache_dir, allow_patterns=list(FILES), **place)
            folder = Path(found)
            check_hashes_of_folder(folder, name)
        if not any((folder / file).is_file() for file in (INDEX, CONFIG_NAME)):
            raise FileNotFoundError(f"{name} holds no checkpoint: neither {INDEX} nor {CONFIG_NAME} is there")
        try:
            parts: dict = {"denoiser": denoiser, "scheduler": scheduler}
            if not (folder / INDEX).is_file():
                return cls(_load_model(folder, name, torch_dtype), AutoImageProcessor.from_pretrained(folder), **parts)
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if not {"model", "processor"} <= index.keys():
                raise ValueError(
                    f"{name} must hold a pipeline of a model and a processor, got {index.get('_class_name')}"
                )
            parts["processor"] = AutoImageProcessor.from_pretrained(folder / "processor")
            if index.get("denoiser", [None])[0] is not None:
                options = {"use_safetensors": True, "torch_dtype": torch_dtype}
                parts["denoiser"] = denoiser or LatentDenoiser.from_pretrained(folder / "denoiser", **options)
                parts["scheduler"] = scheduler or _scheduler_class(index).from_pretrained(folder / "scheduler")
            return cls(_load_model(folder / "model", name, torch_dtype), **parts)
        except (json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{name} holds a damaged file: {error}") from error


def is_pipeline(name: str) -> bool:
    """Whether a folder, or a repository on the Hub, holds a saved pipeline, and not a model alone."""
    if Path(name).exists():
        return Path(name, INDEX).is_file()
    return has_file(name, INDEX, **pinned_revision(name, files=(INDEX, CONFIG_NAME)))


def save_with_code(pipe: pipeline_latentgen.LatentGenPipeline, folder: str | Path) -> Path:
    """The folder with the pipeline and the code that loads it where this package is not installed:

        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

    Each part lies in a folder of its own beside the one file that its class needs, with everything that the file
    imports of the package copied into it: diffusers fetches no second one.
    """
    folder = Path(folder)
    pipe.save_pretrained(folder)
    pipeline_latentgen.write_code(pipe, folder, lambda part: single_file(part.__module__.split(".")[-1]))
    return folder


def single_file(stem: str) -> str:
    """Text of a file in `models/` with those of the files that it imports from there in front, each once."""
    return "\n\n".join(_texts(stem, set()))


def _texts(stem: str, written: set[str]) -> list[str]:
    """Texts of a file and of what it imports that is not in `written`, without imports of each other."""
    written.add(stem)
    path = Path(pipeline_latentgen.__file__).with_name(f"{stem}.py")
    source = path.read_text(encoding="utf-8")
    lines, before = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is not None:
            for number in range(node.lineno, cast(int, node.end_lineno) + 1):
                lines[number - 1] = ""
            if node.module not in written:
                before += _texts(node.module, written)
    return [*before, "\n".join(lines).strip() + "\n"]


def _load_model(folder: Path, name: str, dtype: torch.dtype | None) -> PreTrainedModel:
    """The image model in a folder; `name` is what the user called it."""
    config = AutoConfig.from_pretrained(folder)
    images = [model_type for model_type in MODEL_TYPES if not reads_text(model_type)]
    if config.model_type not in images:
        raise ValueError(f"{name} must hold a model of images, of the type {images}, got {config.model_type!r}")
    try:
        options = {} if dtype is None else {"dtype": dtype}
        return auto_class(config).from_pretrained(folder, use_safetensors=True, **options)
    except RuntimeError as error:
        raise ValueError(f"the weights of {name} do not fit its config.json: {error}") from error


def _scheduler_class(index: dict) -> type[SchedulerMixin]:
    """The class of the scheduler that a `model_index.json` names, one of diffusers' own."""
    library, name = index.get("scheduler", (None, None))
    found = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(f"{INDEX} must name a scheduler of diffusers, got {[library, name]}")
    return found
