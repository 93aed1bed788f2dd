"""What images and texts share: the names of splits, where local data lies, and how the Hub is asked."""

import os
import re
from pathlib import Path
from typing import cast

import PIL.Image
from datasets import DatasetDict, IterableDatasetDict, load_dataset
from datasets.packaged_modules.cache.cache import Cache
from datasets.utils.file_utils import xopen
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

DATA_DIR_VARIABLE = "HF_LATENTGEN_DATA"
SPLITS = ("train", "validation", "test")
# Names under which data sets keep their validation split.
SPLIT_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def split_name(name: str) -> str:
    """The one of `SPLITS` that a name stands for, in any case and under any alias; another name in small letters."""
    return SPLIT_ALIASES.get(name.lower(), name.lower())


def image_suffixes() -> set[str]:
    """Endings of the files that Pillow reads as images, rather than as documents or containers of data."""
    formats = PIL.Image.registered_extensions()
    return {
        suffix
        for suffix, name in formats.items()
        if name in PIL.Image.OPEN and PIL.Image.MIME.get(name, "").startswith("image/")
    }


def walk_files(folder: Path) -> list[Path]:
    """Files below a folder and behind its links, relative to it and in the order of their paths, without hidden ones.

    A link to a folder that holds the link leads nowhere. A link to a file that is missing is listed: reading it fails.
    """
    found = []

    def walk(current: Path, ancestors: set[Path]) -> None:
        target = current.resolve()
        if target in ancestors:
            return
        for path in current.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                walk(path, {*ancestors, target, *target.parents})
            elif path.is_file() or path.is_symlink():
                found.append(path.relative_to(folder))

    walk(folder, set())
    return sorted(found, key=Path.as_posix)


def file_content(file: dict | None) -> bytes:
    """What a row of a data set holds as an image file, on this machine, elsewhere or in the row; of no file nothing."""
    if file is None or file["bytes"] is not None:
        return file["bytes"] if file else b""
    if file["path"] is None:
        return b""
    path = Path(file["path"])
    with path.open("rb") if path.exists() or path.is_absolute() else xopen(file["path"], "rb") as opened:
        return opened.read()


def data_root(data_dir: str | os.PathLike | None) -> Path | None:
    """The folder of local data sets: `data_dir`, else what HF_LATENTGEN_DATA names, else None.

    Raises: FileNotFoundError when it is no folder.
    """
    root = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if root and not Path(root).is_dir():
        raise FileNotFoundError(f"data_dir (or {DATA_DIR_VARIABLE}) must be an existing folder, got {str(root)!r}.")
    return Path(root) if root else None


def load_hub(hub_id: str, looked_for: str, streaming: bool) -> DatasetDict | IterableDatasetDict:
    """All splits of a data set on the Hub, or of its copy in the local cache when the Hub cannot be reached.

    Raises: FileNotFoundError, which begins with `looked_for`, when there is neither.
    """
    # One request without retries: load_dataset would retry for half a minute before it says that there is no network.
    try:
        HfApi().dataset_info(hub_id, timeout=10)
    except HfHubHTTPError:
        raise
    # Without an answer from the Hub: the base error of the HTTP library, which differs between huggingface_hub 1 and 2.
    except (HTTPError, OfflineModeIsEnabled) as error:
        try:
            cached = Cache(dataset_name=hub_id.split("/")[-1], repo_id=hub_id, version="auto", hash="auto")
        except ValueError:
            raise FileNotFoundError(
                f"{looked_for}; the Hub data set {hub_id} is not in the local cache and the Hub cannot be reached "
                f"({type(error).__name__})."
            ) from error
        return cast(DatasetDict, cached.as_streaming_dataset() if streaming else cached.as_dataset())
    return load_dataset(hub_id, streaming=streaming)
