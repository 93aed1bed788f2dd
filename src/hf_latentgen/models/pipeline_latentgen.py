# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The pipeline that draws images. It imports one small file, so that a checkpoint can carry both as one."""

import inspect
import json
import tempfile
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import CommitInfo
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from .configuration_latentgen import check_processor
from .hub import IMAGE_TASK, commit_files, folder_contents

# diffusers looks for the class of a pipeline in a file of this name.
PIPELINE_FILE = "pipeline.py"
# The package as which diffusers imports code that came with a checkpoint.
REMOTE_CODE = "diffusers_modules"
OUTPUT_TYPES = ("pil", "np", "pt")
NUM_INFERENCE_STEPS = 50


class LatentGenPipeline(DiffusionPipeline):
    """Draws images from an image model: a VAE, an adversarial autoencoder, or a transformer over pixels.

    With a denoiser and a scheduler the latents of an autoencoder come from a diffusion over latents, and not from the
    prior that the autoencoder was trained with.

    Args:
        model: the image model.
        processor: its image processor.
        denoiser: a [`LatentDenoiser`] trained on the latents of `model`, or None.
        scheduler: the scheduler of diffusers that takes the steps, where there is a denoiser.

    Raises:
        ValueError: the model draws no images, or the parts do not fit together.
    """

    model_cpu_offload_seq = "denoiser->model"
    _optional_components = ["denoiser", "scheduler"]

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        denoiser: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
    ):
        super().__init__()
        # Not a class: beside a published checkpoint a model comes from a file of its own.
        if not getattr(type(model), "draws_images", False):
            raise ValueError(f"model must be a model of hf-latentgen that draws images, got {type(model).__name__}")
        check_processor(model.config, processor)
        if (denoiser is None) != (scheduler is None):
            raise ValueError("denoiser and scheduler must be given together, got one of them")
        if denoiser is not None:
            if model.num_latents == 0:
                raise ValueError(f"denoiser must be None for {type(model).__name__}, which has no latents")
            if denoiser.config.latent_dim != model.num_latents:
                expected = f"the {model.num_latents} latents of the model"
                raise ValueError(f"denoiser must be one of {expected}, got one of {denoiser.config.latent_dim}")
        self.register_modules(model=model.eval(), processor=processor, denoiser=denoiser, scheduler=scheduler)

    @property
    def num_classes(self) -> int:
        """How many classes an image can be asked of, 0 for a model that cannot be asked."""
        return self.model.num_sample_classes if self.denoiser is None else 0

    @property
    def has_temperature(self) -> bool:
        """Whether the model has a temperature: not an adversarial autoencoder, nor latents that a denoiser draws."""
        return self.denoiser is None and self.model.has_temperature

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        class_labels: int | Sequence[int] | Tensor | None = None,
        images: Image.Image | np.ndarray | Tensor | Sequence | None = None,
        rows: int | None = None,
        output: str = "sample",
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Drawn images, as `.images` or, without `return_dict`, as a tuple of one element.

        Args:
            batch_size: how many images; with `images`, how many completions of each, which stand side by side.
            generator: source of all noise.
            num_inference_steps: denoising steps, where there is a denoiser; 50 when None.
            temperature: the standard deviation of the latents of a VAE, or what the logits of a pixel transformer are
                divided by. It must be 1 where there is no such thing.
            class_labels: class of all images, or one for each (of `images`, where there are any), for a model that has
                classes: those of its labels, or the clusters of a model with clusters. Drawn when None.
            images: images whose upper rows are kept while a pixel transformer draws the others.
            rows: how many rows of `images` are kept; the upper half when None.
            output: draw each pixel ("sample"), or take the "mode" or the "mean" of its distribution.
            output_type: "pil" for PIL images, "np" for values in [0, 1], [B, H, W, C], or "pt" for the levels that the
                model draws, [B, C, H, W].
            return_dict: return an `ImagePipelineOutput`.

        Raises:
            ValueError: an argument is out of range, or the model has no use for it.
        """
        _check_whole("batch_size", batch_size)
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(f"generator must be one torch.Generator or None, got {type(generator).__name__}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        if not isinstance(temperature, Real) or not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a number above 0 and finite, got {temperature!r}")
        kind = type(self.model).__name__ if self.denoiser is None else "latents that a denoiser draws"
        if temperature != 1 and not self.has_temperature:
            raise ValueError(f"temperature must be 1 for {kind}, got {temperature}")
        if self.denoiser is None and num_inference_steps is not None:
            raise ValueError(f"num_inference_steps must be None without a denoiser, got {num_inference_steps}")
        if images is None and rows is not None:
            raise ValueError(f"rows must be None without images to complete, got {rows}")
        draws_by_row = self.model.can_complete and self.denoiser is None
        if images is not None and not draws_by_row:
            raise ValueError(f"images can be completed by a model that draws pixel by pixel only, got {kind}")
        options = {"generator": generator, "output": output}
        if self.has_temperature:
            options["temperature"] = temperature
        if draws_by_row:
            levels = self._draw_by_row(batch_size, class_labels, images, rows, options)
        elif self.denoiser is not None:
            self._labels(class_labels, batch_size)
            latents = self.prior_latents(batch_size, generator, num_inference_steps)
            levels = self.model.decode(latents).draw(output, generator)
        else:
            labels = self._labels(class_labels, batch_size)
            if labels is not None:
                options["labels"] = labels
            levels = self.model.sample(batch_size, **options)
        self.maybe_free_model_hooks()
        drawn = self._as(output_type, levels)
        if not return_dict:
            return (drawn,)
        return ImagePipelineOutput(images=drawn)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def prior_latents(
        self, batch_size: int, generator: torch.Generator | None = None, num_inference_steps: int | None = None
    ) -> Tensor:
        """Latents that the denoiser draws, from noise to those that the model decodes. [batch_size, latent_dim].

        Raises:
            ValueError: there is no denoiser, nothing to draw, or steps fewer than 1 or more than those of the training.
        """
        if self.denoiser is None:
            raise ValueError("denoiser must be there for latents of a diffusion prior, got None")
        steps = NUM_INFERENCE_STEPS if num_inference_steps is None else num_inference_steps
        _check_whole("batch_size", batch_size)
        _check_whole("num_inference_steps", steps, self.scheduler.config.num_train_timesteps)
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        shape = (batch_size, self.denoiser.config.latent_dim)
        sample = randn_tensor(shape, generator, self._execution_device, self.denoiser.dtype)
        sample = sample * self.scheduler.init_noise_sigma
        # Not every scheduler draws noise.
        noise = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        bar = self.progress_bar(self.scheduler.timesteps)  # pyright: ignore[reportCallIssue]
        for timestep in bar:  # pyright: ignore[reportGeneralTypeIssues]
            predicted = self.denoiser(self.scheduler.scale_model_input(sample, timestep), timestep).sample
            sample = self.scheduler.step(predicted, timestep, sample, **noise).prev_sample
        return self.denoiser.restore(sample)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts) -> "LatentGenPipeline":
        """A pipeline of the parts of another one; those given here by their names take the place of its own."""
        return cls(**{**pipeline.components, **parts})

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Saves all parts, with the code that came with them where it was loaded by `trust_remote_code`.

        Raises:
            ValueError: `safe_serialization` is not True or `variant` not None: nothing else can be loaded again.
        """
        if not safe_serialization or variant is not None:
            got = f"got {safe_serialization} and {variant!r}: only safetensors of the usual names are loaded"
            raise ValueError(f"safe_serialization must be True and variant None, {got}")
        super().save_pretrained(save_directory)
        if type(self).__module__.split(".")[0] == REMOTE_CODE:
            write_code(self, Path(save_directory), lambda part: Path(inspect.getfile(part)).read_text(encoding="utf-8"))

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        revision: str | None = None,
    ) -> CommitInfo:
        """The one commit with all parts, and with a short card where there is none yet.

        Arguments as in `DiffusionPipeline.push_to_hub`, with a branch, `revision`. Errors as in `hub.commit_files` and
        `save_pretrained`.
        """
        kind = LatentGenPipeline.__name__
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant)
            contents = folder_contents(folder, kind, IMAGE_TASK, "diffusers")
            place = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
            return commit_files(repo_id, contents, commit_message or f"Upload {kind}", **place, keeps_card=True)

    def _draw_by_row(self, batch_size: int, class_labels, images, rows, options: dict) -> Tensor:
        """Levels that a pixel transformer draws below the given rows, with a bar of rows. [B, C, H, W]."""
        size = self.model.config.image_size
        if images is None:
            given, rows = self.model.blank(batch_size), 0
            labels = self._labels(class_labels, batch_size)
        else:
            given = self.processor(images, return_tensors="pt")["pixel_values"].to(self._execution_device)
            labels = self._labels(class_labels, len(given))
            given = given.repeat_interleave(batch_size, 0)
            labels = None if labels is None else labels.repeat_interleave(batch_size)
            rows = size // 2 if rows is None else rows
        steps = self.model.complete_by_row(given, rows, labels=labels, **options)
        levels = next(steps)
        left = range(int(rows), size)
        for _ in self.progress_bar(left):  # pyright: ignore[reportCallIssue, reportArgumentType, reportGeneralTypeIssues]
            levels = next(steps)
        return levels

    def _labels(self, class_labels: int | Sequence[int] | Tensor | None, count: int) -> Tensor | None:
        """The classes of `count` images, on the device of the model. [count]."""
        if class_labels is None:
            return None
        if self.num_classes == 0:
            raise ValueError(f"class_labels must be None for a model that has no classes, got {class_labels!r}")
        expected = f"class_labels must be a class or {count} of them, whole numbers, got {class_labels!r}"
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(expected) from error
        labels = labels.expand(count) if labels.ndim == 0 else labels
        if tuple(labels.shape) != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(expected)
        if ((labels < 0) | (labels >= self.num_classes)).any():
            raise ValueError(f"class_labels must be in 0 ... {self.num_classes - 1}, got {class_labels}")
        return labels.to(self._execution_device)

    def _as(self, output_type: str, levels: Tensor) -> list[Image.Image] | np.ndarray | Tensor:
        """The levels as the given type."""
        if output_type == "pt":
            return levels
        # A mean over levels can leave the range by a rounding error.
        last_level = self.model.config.num_levels - 1
        levels = levels.clamp(0, last_level)
        if output_type == "pil":
            return self.processor.post_process_images(levels)
        return (levels.movedim(1, -1).float() / last_level).cpu().numpy()


def _check_whole(name: str, value: object, most: int | None = None) -> None:
    """Raises `ValueError` naming the argument unless it is an integer, by its type too, in 1 ... `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= (most or float("inf")):
        allowed = "of at least 1" if most is None else f"in 1 ... {most}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def write_code(pipe: LatentGenPipeline, folder: Path, source: Callable[[type], str]) -> None:
    """Puts beside each part of a saved pipeline the one file that its class needs, and names them in the index.

    Args:
        pipe: what was saved.
        folder: where.
        source: text of the file of a class.
    """
    path = folder / pipe.config_name
    index = json.loads(path.read_text(encoding="utf-8"))
    for name, part in pipe.components.items():
        module = type(part).__module__
        if part is not None and module.split(".")[0] not in ("diffusers", "transformers"):
            stem = module.split(".")[-1]
            (folder / name / f"{stem}.py").write_text(source(type(part)), encoding="utf-8")
            index[name] = [stem, type(part).__name__]
    (folder / PIPELINE_FILE).write_text(source(LatentGenPipeline), encoding="utf-8")
    index["_class_name"] = [Path(PIPELINE_FILE).stem, LatentGenPipeline.__name__]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
