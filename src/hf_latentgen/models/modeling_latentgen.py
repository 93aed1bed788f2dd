# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""What all models share: what they say of themselves, and how they are loaded and pushed, with safetensors only."""

import os
import tempfile
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedModel

from .distributions import check_output
from .hub import IMAGE_TASK, commit_files, folder_contents, snapshot

# Arguments of `from_pretrained` that tell where on the Hub a model is.
PLACE = ("revision", "token", "cache_dir", "local_files_only")


class LatentGenModel(PreTrainedModel):
    """Base of all models. What a model can do is asked of the model, never of its class.

    Weights come from safetensors alone, those of the Hub as they were published there.

    Args (class attributes):
        kind: what the model is, in words.
        hub_task: what the Hub calls its use.
        likelihood: "exact", "bound" (an upper bound on bits, estimated by sampling), or None.
        draws_images: it has `sample`.
        has_temperature: `sample` takes one.
        can_complete: it draws the lower rows of images whose upper rows are given (`complete`, `complete_by_row`).
        score_name: what `score` gives, in words; lower is better.
    """

    if TYPE_CHECKING:
        # What a model can do beyond this is asked of `draws_images` and its like.
        def __getattr__(self, name: str) -> Any: ...

    kind = "model"
    hub_task = IMAGE_TASK
    likelihood: ClassVar[str | None] = None
    draws_images = False
    has_temperature = False
    can_complete = False
    score_name = "bits per dimension"

    @property
    def num_latents(self) -> int:
        """Size of the latent vector, 0 for a model without latents."""
        return 0

    @property
    def num_sample_classes(self) -> int:
        """How many classes `sample` can be asked for, 0 where it knows none."""
        return 0

    def score(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """How badly the model fits each image, see `score_name`. [B].

        Raises:
            ValueError: bad levels.
        """
        raise NotImplementedError

    def blank(self, num_images: int) -> Tensor:
        """Images of which no row is known yet, for `complete` and `complete_by_row`. [num_images, C, H, W].

        Raises:
            ValueError: `num_images` is below 1.
        """
        check_at_least("num_images", num_images, 1)
        size = self.config.image_size
        return torch.zeros(num_images, self.config.num_channels, size, size, dtype=torch.int64, device=self.device)

    def complete(
        self,
        pixel_values: Tensor,
        rows: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images whose first rows are given and whose others are drawn, as levels. [B, C, H, W].

        Of models that `can_complete`. Arguments and errors as in their `complete_by_row`.
        """
        *_, images = self.complete_by_row(pixel_values, rows, generator, output, temperature, labels)
        return images

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        use_safetensors: bool | None = True,
        **kwargs: Any,
    ):
        """The model, in `eval()` mode. Arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: `use_safetensors` is False.
            ConnectionError: the Hub does not answer, and the model is not in the cache.
            OSError: there are no safetensors, or as in `hub.snapshot`.
            RuntimeError: weights do not have the shapes of the configuration.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors must be True: pickled weights can run code when they are loaded")
        name = source = pretrained_model_name_or_path
        if name is not None and not Path(name).exists():
            place = {key: kwargs.pop(key) for key in PLACE if key in kwargs}
            source = snapshot(str(name), subfolder=kwargs.get("subfolder") or "", **place)
        try:
            return super().from_pretrained(source, *model_args, use_safetensors=True, **kwargs)
        except RuntimeError as error:
            # What transformers says then is to read the log.
            if "ignore_mismatched_sizes" not in str(error):
                raise
            again = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
            try:
                found: Any = super().from_pretrained(source, *model_args, use_safetensors=True, **again)
            except NotImplementedError:
                # Tied weights without values cannot be compared.
                raise error from None
            (weight, stored, expected), *_ = sorted(found[1]["mismatched_keys"])
            raise RuntimeError(
                f"{weight} must have shape {list(expected)}, as the configuration says, got {list(stored)} in {name}; "
                "with ignore_mismatched_sizes=True such weights are made anew"
            ) from error

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> CommitInfo:
        """The one commit with weights and configuration, and with a short card where there is none yet.

        Arguments as in `PreTrainedModel.push_to_hub`, errors as in `hub.commit_files`.
        """
        kind = type(self).__name__
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            contents = folder_contents(folder, kind, self.hub_task, "transformers", tags)
            place = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
            place |= {"description": commit_description, "keeps_card": True}
            return commit_files(repo_id, contents, commit_message or f"Upload {kind}", **place)


def check_levels(pixel_values: Tensor, num_channels: int, image_size: int, num_levels: int) -> None:
    """Raises `ValueError` unless the images are integer levels of the given size and range, at least one of them."""
    shape = (num_channels, image_size, image_size)
    if not isinstance(pixel_values, Tensor):
        given = type(pixel_values).__name__
        raise ValueError(f"pixel_values must be a tensor of levels, as LevelsImageProcessor makes one, got a {given}")
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != shape or pixel_values.shape[0] == 0:
        expected = f"[B, {', '.join(map(str, shape))}] with B at least 1"
        raise ValueError(f"pixel_values must have shape {expected}, got {list(pixel_values.shape)}")
    if pixel_values.is_floating_point() or pixel_values.dtype == torch.bool:
        raise ValueError(f"pixel_values must be integer levels, got {pixel_values.dtype}")
    # A compiled graph cannot stop on a value.
    if not torch.compiler.is_compiling():
        low, high = (value.item() for value in pixel_values.aminmax())
        if low < 0 or high >= num_levels:
            allowed = f"levels in 0 ... {num_levels - 1}"
            raise ValueError(f"pixel_values must be {allowed}, got values from {low} to {high}")


def check_completion(image_size: int, rows: int, output: str, temperature: float) -> None:
    """Raises `ValueError` unless the first `rows` rows of images can be given and the others drawn like this."""
    if not isinstance(rows, Integral) or isinstance(rows, bool) or rows not in range(image_size + 1):
        raise ValueError(f"rows must be a whole number in 0 ... {image_size}, got {rows!r}")
    check_output(output)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises `ValueError` naming the argument unless it is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
