"""Publishing on the Hub: the files that may go there, the checks before, one commit."""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as DENOISER_WEIGHTS
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from hf_latentgen.cards.model_card import card_text, list_pictures, read_results
from hf_latentgen.models.auto import (
    PROCESSOR_CONFIGS,
    TOKENIZER_CONFIGS,
    WEIGHTS,
    auto_class,
    auto_processor,
)
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_safetensors import check_connection
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
REASONS = {
    401: "the Hub does not know the token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: the namespace belongs to somebody else, or the token only reads",
    412: "somebody else has committed to it since this began: look at the change, and publish again",
}


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
    loaded = _load_checked(folder, results["num_parameters"])
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

    A commit cannot hold its own hash, so that the card in it pins the code by a tag named after the contents, which is
    set afterwards. Where that fails, nothing else is loaded in its place, and publishing again sets it. A pull request
    gets its tag when, merged, it is published once more.

    Args:
        upload: what `prepare_upload` returned.
        private: make a new repository private; an existing one stays as it is.
        revision: branch to commit to, or to open a pull request against, "main" when None.
        create_pr: open a pull request instead of committing to the branch.
        token: the one to use instead of that of `hf auth login` or HF_TOKEN.
        message: title of the commit.

    Raises:
        ValueError: the token is missing or malformed, the Hub finds a field of the card invalid, or there is no such
            branch to open a pull request against.
        OSError: there is no network, the token is refused, the repository is somebody else's or has just been changed,
            or the connection broke; then nothing of this commit is visible.
    """
    api, repo_id = HfApi(token=check_token(token)), upload.repo_id
    check_connection()
    try:
        if create_pr and revision is not None and not api.revision_exists(repo_id, revision):
            raise ValueError(f"revision must be a branch of {repo_id} for a pull request against it, got {revision!r}")
        # None leaves the default of the organisation in force.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Between here and the commit the Hub is asked which files have changed.
        parent = api.model_info(repo_id, revision=revision).sha
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in upload.contents.items()],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
        if upload.tag is not None and not create_pr:
            api.create_tag(repo_id, tag=upload.tag, revision=commit.oid, exist_ok=True)
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REASONS.get(status) or error.server_message or str(error).strip().splitlines()[0]
        raise OSError(f"{repo_id} was not published (HTTP {status}): {reason}") from error
    except (HTTPError, RuntimeError) as error:
        # The client chains what it says of the file to what it says of the connection, in several lines.
        cause = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise ConnectionError(f"{repo_id} was not published, the upload broke off: {cause}. Publish again") from error
    return commit


def full_repo_id(repo_id: str, token: str | None = None) -> str:
    """The name with its namespace: that of the user where none is given, for which the Hub is asked.

    Raises:
        ValueError: bad `repo_id`, or the token is missing or malformed.
        OSError: there is no network, or the token is refused.
    """
    check_repo_id(repo_id)
    if "/" in repo_id:
        return repo_id
    token = check_token(token)
    check_connection()
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except HfHubHTTPError as error:
        raise OSError(f"whose {repo_id} is was not found out: {REASONS[401]}") from error


def check_repo_id(repo_id: str) -> None:
    """None. Raises: ValueError unless it is "name" or "namespace/name" as the Hub allows them."""
    allowed = "it must be 'namespace/name' or 'name', of letters, digits, '-', '_' and '.'"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not a name on the Hub: {allowed}. {error}") from error
    if not all(repo_id.split("/")):
        raise ValueError(f"repo_id {repo_id!r} is not a name on the Hub: {allowed}")


def check_token(token: str | None = None) -> str:
    """The token, that of the environment or of `hf auth login` when None.

    Raises: ValueError when there is none, or one with characters that no token has. The token itself is never shown.
    """
    token = token or get_token()
    if token is None:
        raise ValueError("no token was found: log in with `hf auth login`, or set HF_TOKEN")
    if re.fullmatch(r"[\w.-]+", token, re.ASCII) is None:
        raise ValueError("the token is malformed: it may hold only letters, digits, '_', '-' and '.', without spaces")
    return token


def model_files(folder: Path) -> list[str]:
    """Names of the weights, whole or in shards, and of the configurations in a folder that may be published.

    Raises: FileNotFoundError when weights, a shard, `config.json` or the processor is missing.
    """
    if (folder / INDEX).is_file():
        return _files_of_pipeline(folder)
    if (folder / WEIGHTS).is_file():
        weights = [WEIGHTS]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
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
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} must hold {CONFIG_NAME}")
    processors = (*PROCESSOR_CONFIGS, *TOKENIZER_CONFIGS)
    if not any((folder / name).is_file() for name in processors):
        raise FileNotFoundError(f"{folder} must hold {' or '.join(processors)}")
    return [*weights, *(name for name in CONFIGS if (folder / name).is_file())]


def _files_of_pipeline(folder: Path) -> list[str]:
    """Names of the files of a saved pipeline that may be published. Raises: FileNotFoundError when one is missing."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None]
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
    for key in ("tags", "datasets", "metrics"):
        if not all(isinstance(entry, str) for entry in card.data.get(key) or []):
            raise ValueError(f"the card of {folder}: {key} must be a list of names, got {card.data[key]!r}")


def _load_checked(
    folder: Path, measured_parameters: int
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
    if num_parameters != measured_parameters:
        raise ValueError(
            f"{folder} holds a model of {num_parameters:,} parameters, but its results.json is of one with "
            f"{measured_parameters:,}; run scripts/evaluate.py on this checkpoint"
        )
    return loaded
