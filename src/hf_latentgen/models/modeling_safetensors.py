# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""What all models share when they are loaded: safetensors only, undamaged, and soon an error without a network."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ResolvedRevision, constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session
from huggingface_hub.utils.sha import sha_fileobj
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

logger = logging.get_logger(__name__)

# Seconds in which the Hub has to answer. The client itself would try again for most of a minute, file by file.
TIMEOUT = 4
# A file that is not stored as a large one is named by a shorter hash.
SHA256_DIGITS = 64


class SafetensorsModel(PreTrainedModel):
    """Base of all models: weights come from safetensors alone, those of the Hub as they were published there."""

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
            revision, token, cache_dir = (kwargs.get(key) for key in ("revision", "token", "cache_dir"))
            found = [
                pickle
                for pickle in pickles
                if has_file(str(name), pickle, revision=revision, token=token, cache_dir=cache_dir)
            ]
            if found:
                raise OSError(
                    f"{name} holds no {SAFE_WEIGHTS_NAME}, only pickled weights ({found[0]}), which can run code when "
                    "they are loaded: they are refused. Ask for a repository saved with `save_pretrained`"
                ) from error
            raise
        if is_remote:
            check_hashes(str(name), kwargs.get("revision"), kwargs.get("cache_dir"))
        return loaded


def pinned_revision(
    name: str, revision: str | None = None, token: str | bool | None = None, cache_dir: str | None = None
) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which all files come from one commit; from the cache if there is no network.

    Raises: ConnectionError when the Hub does not answer and the configuration is not in the cache.
    """
    if is_offline_mode():
        return {}
    # A `ResolvedRevision` comes from an Auto class, which has just talked to the Hub.
    if not isinstance(revision, ResolvedRevision):
        is_cached = isinstance(try_to_load_from_cache(name, CONFIG_NAME, cache_dir=cache_dir, revision=revision), str)
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


def check_connection() -> None:
    """None. Raises: ConnectionError when the Hub does not answer."""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ConnectionError(
            f"{constants.ENDPOINT} does not answer ({reason}): check the network, and HF_ENDPOINT if it is set"
        ) from error


def check_hashes(name: str, revision: str | None, cache_dir: str | None) -> None:
    """None. Raises: OSError when weights in the cache do not have the SHA-256 that the Hub tells of them."""
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
        if not isinstance(found, str):
            continue
        for weights in Path(found).parent.glob("*.safetensors"):
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
