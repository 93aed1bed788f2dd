# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The exchange with the Hub: commits that leave nothing stale, downloads as they were published, errors in words."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    is_offline_mode,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import get_session, get_token, validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Seconds in which the Hub has to answer. The client itself would try again for most of a minute, file by file.
TIMEOUT = 4
# A file that is not stored as a large one is named by a shorter hash.
SHA256_DIGITS = 64
# Nothing else is fetched: no code and no pickle.
FETCHED = ("*.json", "*.safetensors")
IMAGE_TASK = "unconditional-image-generation"
REASONS = {
    401: "the Hub does not know the token, or shows nothing of this name without one: log in with `hf auth login`, or "
    "set HF_TOKEN",
    403: "the token may not write there: the namespace belongs to somebody else, or the token only reads",
    412: "somebody else has committed to it since this began: look at the change, and publish again",
}
CARD, INDEX = "README.md", "model_index.json"
PROCESSORS = (
    r"((pre)?processor|tokenizer)_config\.json|(image_processing_levels|tokenization_bytes)\.py|model_index\.json"
)
# Files of a model, a pipeline or a training, which would be loaded instead of what is published, or are pickles: the
# commit deletes those that it does not hold, and the code that lies beside this file. Files of other names stay.
PART = r"(model|processor|denoiser|scheduler)/"
REPLACED = (
    rf"(diffusion_pytorch_)?model(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?|((generation_)?config|calibration)\.json|"
    rf"{PROCESSORS}|{PART}[^/]+\.(json|safetensors|py)|({PART})?((diffusion_)?pytorch_model.*\.bin(\.index\.json)?|"
    r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth)|pipeline\.py|"
) + "|".join(re.escape(path.name) for path in Path(__file__).parent.glob("[!_]*.py"))
# What the libraries leave where they know nothing, and what they add to their template of a card.
BLANK = "[More Information Needed]"
GENERATED = re.compile(r".*This model card has been automatically generated\.|library_name: \w+|tags: \[\]")
OWN_NAME = "NAMESPACE/NAME"
# `empty` is empty: transformers would take a line here that begins with an import for one of the code.
SHORT_CARD = """---
{{{{ card_data }}}}
---

# {name}

A `{kind}` of hf-latentgen. How it was trained and how good it is was not told when it was pushed.

## How to use

From a clone of the hf-latentgen repository, `pip install .`, then:

```python
{empty}from hf_latentgen import {kind}

loaded = {kind}.from_pretrained("{name}")
```
"""


def folder_contents(
    folder: str, kind: str, task: str, library: str, tags: list[str] | None = None
) -> dict[str, Path | bytes]:
    """All files of a folder by their paths in a repository, and the card of a `kind` of which nothing else is known."""
    metadata = ModelCardData(library_name=library, pipeline_tag=task, tags=["hf_latentgen", *(tags or [])])
    text = SHORT_CARD.format(kind=kind, name=OWN_NAME, empty="")
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    contents = {path.relative_to(folder).as_posix(): path for path in paths}
    return contents | {CARD: str(ModelCard.from_template(metadata, template_str=text)).encode()}


def commit_files(
    repo_id: str,
    contents: Mapping[str, Path | bytes],
    message: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    description: str | None = None,
    tag: str | None = None,
    keeps_card: bool = False,
) -> CommitInfo:
    """The one commit of files, which also deletes what they replace. Repository and branch are made if missing.

    `contents` has a file or bytes for each path in the repository, `README.md` among them, which is left out if
    `keeps_card` and somebody has written one there. `tag` names the commit afterwards, unless it is a pull request.
    Other arguments as in `PreTrainedModel.push_to_hub`, but a public repository is refused where it is to be private.

    Raises:
        ValueError: name, token or revision is malformed, the Hub finds the card invalid, there is no such branch for a
            pull request against it, or the repository is public and `private` is asked for.
        OSError: there is no network, the token is refused, the repository is somebody else's or has just been changed,
            or the connection broke; then nothing of this commit is visible, unless only the tag is missing.
    """
    if revision is not None and not re.fullmatch(r"[^\s~^:?*[\\]+", revision):
        raise ValueError(f"revision must be the name of a branch, without spaces and ~^:?*[\\, got {revision!r}")
    api, refused = checked_client(repo_id, token), f"{repo_id} was not published"
    files = dict(contents)
    with said_in_words(refused):
        try:
            ModelCard(bytes(files[CARD]).decode()).validate()
        except ValueError as error:
            raise ValueError(f"the Hub finds the metadata of {CARD} invalid: {error}") from error
        if create_pr and revision is not None and not api.revision_exists(repo_id, revision):
            raise ValueError(f"revision must be a branch of {repo_id} for a pull request against it, got {revision!r}")
    info = open_repo(api, repo_id, private, revision, makes_branch=not create_pr)
    present = {file.rfilename for file in info.siblings or []}
    with said_in_words(refused):
        if keeps_card and CARD in present and _is_written(api.hf_hub_download(info.id, CARD, revision=info.sha)):
            del files[CARD]
        elif keeps_card:
            files[CARD] = bytes(files[CARD]).replace(OWN_NAME.encode(), info.id.encode())
        stale = {name for name in present - files.keys() if re.fullmatch(REPLACED, name)}
        if not any(re.fullmatch(PROCESSORS, name) for name in files):
            # A model alone is pushed without its processor, which stays.
            stale = {name for name in stale if name == INDEX or not re.fullmatch(PROCESSORS, name)}
        commit = api.create_commit(
            info.id,
            [CommitOperationAdd(*file) for file in files.items()] + [CommitOperationDelete(name) for name in stale],
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
            # Between the look at the repository and the commit the Hub is asked which files have changed.
            parent_commit=info.sha,
        )
    if tag is not None and not create_pr:
        with said_in_words(f"{repo_id} is published, but without its tag {tag}, which publishing again sets"):
            api.create_tag(info.id, tag=tag, revision=commit.oid, exist_ok=True)
    return commit


def open_repo(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None = None, makes_branch: bool = True
) -> ModelInfo:
    """What the Hub knows of a repository at a revision, both made if missing. Errors as in `commit_files`."""
    with said_in_words(f"{repo_id} was not published"):
        # None leaves the default of the organisation in force.
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if revision is not None and makes_branch:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
    if private and not info.private:
        raise ValueError(f"{repo_id} is public already: make it private in its settings on the Hub, or drop private")
    return info


@contextlib.contextmanager
def said_in_words(what: str) -> Iterator[None]:
    """Context in which an error of the client becomes an `OSError` of one line: what has failed, and why."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REASONS.get(status) or error.server_message or str(error).strip().splitlines()[0]
        raise OSError(f"{what} (HTTP {status}): {reason}") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, RuntimeError) as error:
        # The client chains what it says of the file to what it says of the connection, in several lines.
        told = dict.fromkeys(" ".join(str(part).split()).rstrip(".") for part in (error, error.__cause__) if part)
        raise ConnectionError(f"{what}, the transfer broke off: {'. '.join(told)}. Try again") from error


def checked_client(repo_id: str, token: bool | str | None = None) -> HfApi:
    """The client, once name and token are well formed and the Hub answers. Errors as in `commit_files`.

    Without a token it is that of the environment, or of `hf auth login`.
    """
    validate_repo_id(repo_id)
    token = get_token() if token in (None, True) else token
    # The client would show a malformed token in its error.
    if not token or re.fullmatch(r"[\w.-]+", str(token), re.ASCII) is None:
        found = "malformed" if token else "missing"
        raise ValueError(f"the token is {found}: log in with `hf auth login`, or set HF_TOKEN")
    check_connection()
    return HfApi(token=token)


def check_connection() -> None:
    """Raise `ConnectionError` when the Hub does not answer."""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except HTTPError as error:
        advice = f"({str(error) or type(error).__name__}): check the network, and HF_ENDPOINT if it is set"
        raise ConnectionError(f"{constants.ENDPOINT} does not answer {advice}") from error


def snapshot(
    name: str,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Path:
    """The folder in the cache with the weights and configurations of one commit, as they were published.

    Without a network it is what was downloaded before.

    Raises:
        ConnectionError: the Hub does not answer, and the files are not in the cache; or the connection broke.
        OSError: it is no name on the Hub, there is no such repository or revision, or weights do not have the SHA-256
            that the Hub tells of them.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OSError(f"{name} is neither a folder nor a name on the Hub, 'namespace/name'") from error
    unreachable, patterns = None, [f"{subfolder}/{pattern}".lstrip("/") for pattern in FETCHED]
    if not local_files_only and not is_offline_mode():
        try:
            check_connection()
        except ConnectionError as error:
            unreachable, local_files_only = error, True
    place = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    try:
        with said_in_words(f"{name} was not loaded"):
            folder = snapshot_download(name, allow_patterns=patterns, **place)
    except ConnectionError as error:
        raise (unreachable or error) from None
    if unreachable is not None:
        logger.warning(f"{unreachable}. Loading {name} from the cache")
    for weights in Path(folder, subfolder).rglob("*.safetensors"):
        # The cache links to a name made of this hash, which may be a link itself; a system without links has none.
        declared = weights.readlink().name if weights.is_symlink() else ""
        if len(declared) == SHA256_DIGITS:
            with weights.open("rb") as content:
                actual = sha_fileobj(content).hex()
            if actual != declared:
                told = f"{weights.name} of {name} is damaged: its SHA-256 is {actual}, the Hub says {declared}"
                raise OSError(f"{told}. Delete {weights.resolve()} and load it again")
    return Path(folder)


def _is_written(path: str) -> bool:
    """Whether a card holds anything that is not of the template of the libraries."""
    text = Path(path).read_text(encoding="utf-8")
    template = {BLANK, *str(ModelCard.from_template(ModelCardData())).splitlines()} if BLANK in text else set()
    return any(line not in template and not GENERATED.fullmatch(line) for line in text.splitlines())
