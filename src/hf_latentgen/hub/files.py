"""The files of a checkpoint: which there are, which may be published, and the hash of its weights."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

WEIGHTS = "model.safetensors"
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_CONFIGS = ("tokenizer_config.json",)
# What validation images score.
CALIBRATION = "calibration.json"
# With the weights, `README.md` and `images/*.png`, all that is ever published, whoever publishes; code when asked for.
CONFIGS = (CONFIG_NAME, GENERATION_CONFIG_NAME, *PROCESSOR_CONFIGS, *TOKENIZER_CONFIGS, CALIBRATION)
INDEX = "model_index.json"
# Of a pipeline, whose parts lie in folders of their own.
PIPELINE_FILES = (
    INDEX,
    *(f"model/{name}" for name in (CONFIG_NAME, WEIGHTS)),
    f"processor/{PROCESSOR_CONFIGS[0]}",
    *(f"denoiser/{name}" for name in (CONFIG_NAME, "diffusion_pytorch_model.safetensors")),
    "scheduler/scheduler_config.json",
)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
KINDS = {dict: "an object", str: "a text"}


def read_json(path: Path, origin: str, kinds: Mapping[str, type] | None = None) -> dict:
    """The object in a file that `origin` tells who writes, with fields of these kinds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, no object, or lacks a field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {origin}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it must be an object, got {found!r}")
    for key, kind in (kinds or {}).items():
        if key not in found:
            raise ValueError(f"{path} lacks {key}; {origin}")
        if not isinstance(found[key], kind):
            raise ValueError(f"{path}: {key} must be {KINDS[kind]}, got {found[key]!r}")
    return found


def model_files(folder: Path) -> list[str]:
    """Names of the weights, whole or in shards, and of the configurations in a folder that may be published.

    Raises:
        FileNotFoundError: weights, a shard, `config.json`, the processor or a part of a pipeline is missing.
    """
    if (folder / INDEX).is_file():
        return _files_of_pipeline(folder)
    weights = weight_files(folder)
    for needed in ((CONFIG_NAME,), PROCESSOR_CONFIGS + TOKENIZER_CONFIGS):
        if not any((folder / name).is_file() for name in needed):
            raise FileNotFoundError(f"{folder} must hold {' or '.join(needed)}")
    return [*weights, *(name for name in CONFIGS if (folder / name).is_file())]


def weight_files(folder: Path) -> list[str]:
    """Names of the weights of a model in a folder: one file, or an index and its shards. Errors as in `model_files`."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME, "save_pretrained writes it", {"weight_map": dict})
        shards = sorted(set(map(str, index["weight_map"].values())))
        missing = [name for name in shards if not SHARD.fullmatch(name) or not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named in {SAFE_WEIGHTS_INDEX_NAME}")
        return [SAFE_WEIGHTS_INDEX_NAME, *shards]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    found = f"; pickled files are never loaded or published, found {', '.join(pickles)}" if pickles else ""
    raise FileNotFoundError(f"{folder} must hold {WEIGHTS}{found}")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds the weights of a model or of a pipeline."""
    names = (WEIGHTS, SAFE_WEIGHTS_INDEX_NAME)
    return any((folder / part / name).is_file() for part in ("", "model") for name in names)


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the names and values of all weights in a folder, the same in whatever shards they lie."""
    files, tensors = [name for name in model_files(folder) if name.endswith(".safetensors")], {}
    for name in files:
        tensors |= {f"{name.rpartition('/')[0]}/{key}": value for key, value in load_file(folder / name).items()}
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _files_of_pipeline(folder: Path) -> list[str]:
    index = read_json(folder / INDEX, "save_pretrained writes it")
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])]
    names = [name for name in PIPELINE_FILES if name == INDEX or name.split("/")[0] in parts]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} must hold all parts that its {INDEX} names, and lacks {', '.join(missing)}")
    return names
