"""The pipeline of this package: [`pipeline_latentgen.LatentGenPipeline`] with the one loader."""

from pathlib import Path

import torch
from diffusers import ModelMixin, SchedulerMixin

from hf_latentgen.hub.loading import load
from hf_latentgen.models import pipeline_latentgen


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

        Only this package's code runs, whatever the repository holds. `denoiser` and `scheduler` take the place of those
        that were saved; `torch_dtype` is the `dtype` of [`load`], whose arguments the others are.

        Raises:
            ValueError: the checkpoint holds no image model, `use_safetensors` is False or `device_map` not None, or as
                in `load`.
            OSError: as in `load`.
        """
        if use_safetensors not in (None, True):
            raise ValueError(f"use_safetensors must be True or None, got {use_safetensors!r}: no pickle is ever read")
        if device_map is not None:
            raise ValueError(f"device_map must be None, got {device_map!r}: .to(device) moves the whole pipeline")
        place = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        # As in diffusers, a pipeline stays where it was loaded until it is moved.
        found = load(pretrained_model_name_or_path, revision, dtype=torch_dtype, device="cpu", **place)
        return cls(found.model, found.processor, denoiser or found.denoiser, scheduler or found.scheduler)
