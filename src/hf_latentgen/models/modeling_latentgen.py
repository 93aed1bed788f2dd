# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""What all models share: what they say of themselves, and how they are loaded and pushed, with safetensors only."""

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import CommitInfo, HfApi, ResolvedRevision, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)
from transformers.utils.hub import has_file

from .hub import IMAGE_TASK, check_connection, commit_files, folder_contents, short_card

logger = logging.get_logger(__name__)

# A file that is not stored as a large one is named by a shorter hash.
SHA256_DIGITS = 64


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
            OSError: there are no safetensors, only pickles; or downloaded weights do not have their published hash.
            RuntimeError: weights do not have the shapes of the configuration.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors must be True: pickled weights can run code when they are loaded")
        name = pretrained_model_name_or_path
        is_remote = name is not None and not Path(name).exists()
        if is_remote and not kwargs.get("local_files_only"):
            kwargs |= pinned_revision(str(name), kwargs.get("revision"), kwargs.get("token"), kwargs.get("cache_dir"))
        try:
            loaded = super().from_pretrained(name, *model_args, use_safetensors=True, **kwargs)
        except OSError as error:
            # What transformers says then is to load the pickle.
            pickles = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if SAFE_WEIGHTS_NAME in str(error) else ()
            where: dict[str, Any] = {key: kwargs.get(key) for key in ("revision", "token", "cache_dir")}
            found = [pickle for pickle in pickles if has_file(str(name), pickle, **where)]
            if found:
                raise OSError(
                    f"{name} holds no {SAFE_WEIGHTS_NAME}, only pickled weights ({found[0]}), which can run code when "
                    "they are loaded: they are refused. Ask for a repository saved with `save_pretrained`"
                ) from error
            raise
        except RuntimeError as error:
            # What transformers says then is to read the log.
            if "ignore_mismatched_sizes" not in str(error):
                raise
            again = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
            try:
                found: Any = super().from_pretrained(name, *model_args, use_safetensors=True, **again)
            except NotImplementedError:
                # Tied weights without values cannot be compared.
                raise error from None
            (weight, stored, expected), *others = sorted(found[1]["mismatched_keys"])
            raise RuntimeError(
                f"{weight} must have shape {list(expected)}, as the configuration says, got {list(stored)} in {name}"
                f"{f', and {len(others)} more weights of other shapes' if others else ''}; with "
                "ignore_mismatched_sizes=True they are made anew"
            ) from error
        if is_remote:
            place = (kwargs.get("revision"), kwargs.get("cache_dir"), kwargs.get("subfolder") or "")
            check_hashes(str(name), *place)
        return loaded

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
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            card = short_card(type(self).__name__, self.hub_task, "transformers", tags)
            message = commit_message or f"Upload {type(self).__name__}"
            place = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
            place |= {"description": commit_description, "keeps_card": True}
            return commit_files(repo_id, folder_contents(folder, card), message, **place)


def pinned_revision(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    files: tuple[str, ...] = (CONFIG_NAME,),
) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which all files come from one commit; from the cache if there is no network.

    Raises:
        OSError: it is no name on the Hub.
        ConnectionError: the Hub does not answer, and none of `files` is in the cache.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OSError(f"{name} is neither a folder nor a name on the Hub, 'namespace/name'") from error
    if is_offline_mode():
        return {}
    # A `ResolvedRevision` comes from an Auto class, which has just talked to the Hub.
    if not isinstance(revision, ResolvedRevision):
        cached = (try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision) for file in files)
        is_cached = any(isinstance(path, str) for path in cached)
        if is_cached and re.fullmatch(r"[0-9a-f]{40}", revision or ""):
            return {}
        try:
            check_connection()
        except ConnectionError as error:
            if not is_cached:
                raise
            logger.warning(f"{error}. Loading {name} from the cache")
            return {"local_files_only": True}
    try:
        found = HfApi().resolve_revision(name, revision=revision, token=token, cache_dir=cache_dir)
    except HfHubHTTPError:
        # transformers explains which of name, revision and token is wrong.
        return {}
    # The name of a branch would make transformers ask a service to convert pickles, and wait for it.
    return {"revision": found.resolved}


def check_hashes(name: str, revision: str | None, cache_dir: str | None, subfolder: str = "") -> None:
    """Raise `OSError` when weights in the cache do not have the SHA-256 that the Hub tells of them."""
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        path = f"{subfolder}/{file}" if subfolder else file
        found = try_to_load_from_cache(name, path, cache_dir=cache_dir, revision=revision)
        if isinstance(found, str):
            check_hashes_of_folder(Path(found).parent, name)


def check_hashes_of_folder(folder: Path, name: str) -> None:
    """Raise `OSError` when weights in a folder of the cache, or below it, do not have their published SHA-256."""
    for weights in folder.rglob("*.safetensors"):
        # The cache links to a name made of this hash, which may be a link itself; a system without links has none.
        declared = weights.readlink().name if weights.is_symlink() else ""
        if len(declared) != SHA256_DIGITS:
            continue
        with weights.open("rb") as content:
            actual = sha_fileobj(content).hex()
        if actual != declared:
            raise OSError(
                f"{weights.name} of {name} is damaged: its SHA-256 is {actual}, the Hub says {declared}. "
                f"Delete {weights.resolve()} and load it again"
            )
