"""Publishing a row on the Hub: the files that may go there, the checks before, one commit."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig

from hf_latentgen.cards.model_card import card_text, list_pictures, read_results
from hf_latentgen.models.auto import (
    PROCESSOR_CONFIGS,
    TOKENIZER_CONFIGS,
    WEIGHTS,
    auto_class,
    auto_processor,
)

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "model_name", "eval_results")


@dataclass(frozen=True)
class Upload:
    """What one publication consists of.

    Args:
        repo_id: name on the Hub, "namespace/name".
        contents: path in the repository -> local file, or the bytes of the rendered card.
        left_out: entries of the folder that are not published.
    """

    repo_id: str
    contents: dict[str, Path | bytes]
    left_out: list[str]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path in the repository."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.contents.items()
        }


def prepare_upload(folder: str | Path, repo_id: str) -> Upload:
    """The files of a row, checked: they load, the card is complete and tells of this model. Needs no network.

    The card is rendered for `repo_id`, so that its snippet loads what is published.

    Raises:
        FileNotFoundError: the folder, the weights, a configuration or results.json is missing.
        ValueError: bad `repo_id`, weights that do not load or are not those that were measured, or an incomplete card.
    """
    folder = Path(folder)
    _check_repo_id(repo_id)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    contents: dict[str, Path | bytes] = {name: folder / name for name in _model_files(folder)}
    card = card_text(folder, repo_id)
    _check_metadata(ModelCard(card), folder)
    _check_model(folder, read_results(folder)["num_parameters"])
    contents["README.md"] = card.encode()
    contents |= {f"images/{name}": folder / "images" / name for name in list_pictures(folder)}
    published = {name.split("/")[0] for name in contents}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in published)
    return Upload(repo_id, contents, left_out)


def publish(
    upload: Upload,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    api: HfApi | None = None,
) -> CommitInfo:
    """The commit that holds all files of `upload`. The repository, and the branch `revision`, are made if missing.

    Args:
        upload: what `prepare_upload` returned.
        private: make a new repository private; an existing one stays as it is.
        revision: branch to commit to, "main" when None.
        create_pr: open a pull request instead of committing to the branch.
        api: client to use, for another endpoint or token.
    """
    api = api or HfApi()
    # None leaves the default of the organisation in force.
    api.create_repo(upload.repo_id, private=private or None, exist_ok=True)
    if revision is not None and not create_pr:
        api.create_branch(upload.repo_id, branch=revision, exist_ok=True)
    operations = [CommitOperationAdd(name, content) for name, content in upload.contents.items()]
    return api.create_commit(
        upload.repo_id,
        operations,
        commit_message="Weights, configuration, card and pictures",
        revision=revision,
        create_pr=create_pr,
    )


def _model_files(folder: Path) -> list[str]:
    """Names of the weights, the model configuration and the processor or tokenizer configuration."""
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        found = f"; pickled files are never published, found {', '.join(pickles)}" if pickles else ""
        raise FileNotFoundError(
            f"{folder} must hold {WEIGHTS}{found}; large weights stay where they were trained: run scripts/evaluate.py "
            "on that folder with itself as --output-dir, and publish it"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} must hold config.json")
    candidates = (*PROCESSOR_CONFIGS, *TOKENIZER_CONFIGS)
    processors = [name for name in candidates if (folder / name).is_file()]
    if not processors:
        raise FileNotFoundError(f"{folder} must hold {' or '.join(candidates)}")
    return [WEIGHTS, "config.json", *processors]


def _check_repo_id(repo_id: str) -> None:
    allowed = "it must be 'namespace/name' of letters, digits, '-', '_' and '.'"
    if re.fullmatch(r"[^/]+/[^/]+", repo_id) is None:
        raise ValueError(f"repo_id {repo_id!r} is not a name on the Hub: {allowed}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not a name on the Hub: {allowed}. {error}") from error


def _check_metadata(card: ModelCard, folder: Path) -> None:
    missing = [key for key in REQUIRED_METADATA if not card.data.get(key)]
    if missing:
        raise ValueError(f"the card of {folder} lacks the metadata {', '.join(missing)}; is results.json complete?")


def _check_model(folder: Path, measured_parameters: int) -> None:
    """Raises `ValueError` if model or processor do not load completely, or another model was measured."""
    try:
        config = AutoConfig.from_pretrained(folder)
        model, report = auto_class(config).from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        auto_processor(config).from_pretrained(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} does not load with from_pretrained: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ValueError(f"{folder / WEIGHTS} does not fit config.json, {problem}: {sorted(report[problem])}")
    if model.num_parameters() != measured_parameters:
        raise ValueError(
            f"{folder} holds a model of {model.num_parameters():,} parameters, but its results.json is of one with "
            f"{measured_parameters:,}; run scripts/evaluate.py on this checkpoint"
        )
