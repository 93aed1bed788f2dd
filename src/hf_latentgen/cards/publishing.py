"""Publishing on the Hub: the files that may go there, the checks before, one commit."""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as DENOISER_WEIGHTS
from huggingface_hub import CommitInfo, ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from hf_latentgen.cards.model_card import card_text, list_pictures, read_json, read_results
from hf_latentgen.models.auto import (
    PROCESSOR_CONFIGS,
    TOKENIZER_CONFIGS,
    WEIGHTS,
    auto_class,
    auto_processor,
)
from hf_latentgen.models.hub import check_repo_id, checked_client, commit_files, said_in_words
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.tokenization_bytes import ByteTokenizer
from hf_latentgen.pipelines import INDEX, LatentGenPipeline, save_with_code

# With the weights, `README.md` and `images/*.png`, all that is ever published, whoever publishes; code when asked for.
CONFIGS = (CONFIG_NAME, GENERATION_CONFIG_NAME, *PROCESSOR_CONFIGS, *TOKENIZER_CONFIGS)
# Of a pipeline, whose parts lie in folders of their own.
PIPELINE_FILES = (
    INDEX,
    *(f"model/{name}" for name in (CONFIG_NAME, WEIGHTS)),
    f"processor/{PROCESSOR_CONFIGS[0]}",
    *(f"denoiser/{name}" for name in (CONFIG_NAME, DENOISER_WEIGHTS)),
    f"scheduler/{SCHEDULER_CONFIG_NAME}",
)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "model_name", "eval_results")


@dataclass(frozen=True)
class Upload:
    """What one publication consists of.

    Args:
        repo_id: name on the Hub, "namespace/name".
        contents: path in the repository -> local file, or the bytes of what was rendered.
        left_out: entries of the folder that are not published.
        tag: name of the tag that the card pins the code to; None without code.
    """

    repo_id: str
    contents: dict[str, Path | bytes]
    left_out: list[str]
    tag: str | None = None

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path in the repository."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.contents.items()
        }


def prepare_upload(folder: str | Path, repo_id: str, with_code: bool = False) -> Upload:
    """The files of a row, checked: they load, the card is complete and tells of this model. Needs no network.

    The card is rendered for `repo_id`, so that its snippet loads what is published.

    Args:
        folder: what `scripts/evaluate.py` leaves: weights, configurations, results.json and images/.
        repo_id: name on the Hub, "namespace/name", or "name" where nothing is going to be published.
        with_code: add the code of the model, so that it loads where this package is not installed.

    Raises:
        FileNotFoundError: the folder, the weights, a configuration or results.json is missing.
        ValueError: bad `repo_id`, weights that do not load or are not those that were measured, or an incomplete card.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    contents: dict[str, Path | bytes] = {name: folder / name for name in model_files(folder)}
    results = read_results(folder)
    loaded = _load_checked(folder, results)
    if with_code:
        contents |= _pipeline_code(loaded) if isinstance(loaded, LatentGenPipeline) else code_files(folder, *loaded)
    tag = _content_tag(contents) if with_code else None
    card = card_text(folder, repo_id, tag)
    _check_metadata(ModelCard(card), folder)
    contents["README.md"] = card.encode()
    contents |= {f"images/{name}": folder / "images" / name for name in list_pictures(folder)}
    published = {name.split("/")[0] for name in contents}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in published)
    return Upload(repo_id, contents, left_out, tag)


def publish(
    upload: Upload,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    message: str = "Weights, configuration, card and pictures",
) -> CommitInfo:
    """The one commit that holds all files of `upload`. The repository, and the branch `revision`, are made if missing.

    It deletes what would be loaded in their place, or never is: other weights, configurations, code, and pickles.
    A commit cannot hold its own hash, so that the card in it pins the code by a tag named after the contents, which is
    set afterwards. Where that fails, nothing else is loaded in its place, and publishing again sets it. A pull request
    gets its tag when, merged, it is published once more.

    Arguments and errors as in `commit_files`.
    """
    place = {"private": private, "revision": revision, "create_pr": create_pr, "token": token, "tag": upload.tag}
    return commit_files(upload.repo_id, upload.contents, message, **place)


def full_repo_id(repo_id: str, token: str | None = None) -> str:
    """The name with its namespace: that of the user where none is given. Errors as in `commit_files`."""
    check_repo_id(repo_id)
    if "/" in repo_id:
        return repo_id
    api = checked_client(repo_id, token)
    with said_in_words(f"whose {repo_id} is was not found out"):
        return f"{api.whoami()['name']}/{repo_id}"


def model_files(folder: Path) -> list[str]:
    """Names of the weights, whole or in shards, and of the configurations in a folder that may be published.

    Raises: FileNotFoundError when weights, a shard, `config.json` or the processor is missing.
    """
    if (folder / INDEX).is_file():
        return _files_of_pipeline(folder)
    if (folder / WEIGHTS).is_file():
        weights = [WEIGHTS]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME, "save_pretrained writes it", {"weight_map": dict})
        shards = sorted(set(map(str, index["weight_map"].values())))
        missing = [name for name in shards if not SHARD.fullmatch(name) or not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named in {SAFE_WEIGHTS_INDEX_NAME}")
        weights = [SAFE_WEIGHTS_INDEX_NAME, *shards]
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        found = f"; pickled files are never published, found {', '.join(pickles)}" if pickles else ""
        raise FileNotFoundError(
            f"{folder} must hold {WEIGHTS}{found}; large weights stay where they were trained: run scripts/evaluate.py "
            "on that folder with itself as --output-dir, and publish it"
        )
    for needed in ((CONFIG_NAME,), (*PROCESSOR_CONFIGS, *TOKENIZER_CONFIGS)):
        if not any((folder / name).is_file() for name in needed):
            raise FileNotFoundError(f"{folder} must hold {' or '.join(needed)}")
    return [*weights, *(name for name in CONFIGS if (folder / name).is_file())]


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
    """Names of the files of a saved pipeline that may be published. Raises: FileNotFoundError when one is missing."""
    index = read_json(folder / INDEX, "save_pretrained writes it")
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])]
    names = [name for name in PIPELINE_FILES if name == INDEX or name.split("/")[0] in parts]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} must hold all parts that its {INDEX} names, and lacks {', '.join(missing)}")
    return names


def _pipeline_code(pipe: LatentGenPipeline) -> dict[str, bytes]:
    """The sources that a pipeline needs, and the index that names their classes. Contents by name."""
    with tempfile.TemporaryDirectory() as saved:
        folder = save_with_code(pipe, saved)
        sources = (folder / INDEX, *sorted(folder.rglob("*.py")))
        return {str(path.relative_to(folder)): path.read_bytes() for path in sources}


def code_files(
    folder: Path, model: PreTrainedModel, processor: LevelsImageProcessor | ByteTokenizer
) -> dict[str, bytes]:
    """The sources that the model needs, and the configurations of `folder` that name its classes. Contents by name."""
    files = (*PROCESSOR_CONFIGS, *TOKENIZER_CONFIGS)
    processor_file = next(name for name in files if (folder / name).is_file())
    settings = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in (CONFIG_NAME, processor_file)}
    named = (
        (model.config, "AutoConfig", CONFIG_NAME),
        (model, auto_class(model.config).__name__, CONFIG_NAME),
        (processor, auto_processor(model.config).__name__, processor_file),
    )
    with tempfile.TemporaryDirectory() as sources:
        for item, auto, name in named:
            # Of this object alone: registering its class would add code to whatever is saved from then on.
            item._auto_class = auto  # pyright: ignore[reportAttributeAccessIssue]
            custom_object_save(item, sources, settings[name])
        code = {path.name: path.read_bytes() for path in sorted(Path(sources).glob("*.py"))}
    return code | {name: f"{json.dumps(content, indent=2)}\n".encode() for name, content in settings.items()}


def _content_tag(contents: dict[str, Path | bytes]) -> str:
    """Name of a tag for these contents: other weights or other code have another one."""
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    return f"code-{digest.hexdigest()[:12]}"


def _check_metadata(card: ModelCard, folder: Path) -> None:
    missing = [key for key in REQUIRED_METADATA if not card.data.get(key)]
    if missing:
        raise ValueError(f"the card of {folder} lacks the metadata {', '.join(missing)}; is results.json complete?")


def _load_checked(
    folder: Path, results: dict
) -> tuple[PreTrainedModel, LevelsImageProcessor | ByteTokenizer] | LatentGenPipeline:
    """Model and processor, or a pipeline. `ValueError` if it does not load completely, or another was measured."""
    try:
        if (folder / INDEX).is_file():
            loaded = LatentGenPipeline.from_pretrained(folder)
            num_parameters = (loaded.denoiser or loaded.model).num_parameters()
        else:
            config = AutoConfig.from_pretrained(folder)
            model, report = auto_class(config).from_pretrained(folder, output_loading_info=True)
            for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                if report[problem]:
                    raise ValueError(f"the weights do not fit config.json, {problem}: {sorted(report[problem])}")
            loaded = model, auto_processor(config).from_pretrained(folder)
            num_parameters = model.num_parameters()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} does not load with from_pretrained: {error}") from error
    # Results of before weights had a hash tell no more of them than how many there are.
    for name, actual in (("num_parameters", num_parameters), ("weights_sha256", weights_sha256(folder))):
        if (measured := results.get(name, actual)) != actual:
            raise ValueError(
                f"{folder} does not hold the model that was measured: its {name} is {actual}, that in "
                f"results.json is {measured}; run scripts/evaluate.py on this checkpoint"
            )
    return loaded
