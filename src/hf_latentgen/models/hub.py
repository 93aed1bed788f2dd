# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Commits to the Hub, whoever makes them: checked before, one commit that leaves nothing stale, errors in words."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import get_session, get_token, validate_repo_id

# Seconds in which the Hub has to answer. The client itself would try again for most of a minute, file by file.
TIMEOUT = 4
IMAGE_TASK = "unconditional-image-generation"
REASONS = {
    401: "the Hub does not know the token: log in again with `hf auth login`, or set HF_TOKEN",
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
    rf"(diffusion_pytorch_)?model(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?|(generation_)?config\.json|"
    rf"{PROCESSORS}|{PART}[^/]+\.(json|safetensors|py)|({PART})?((diffusion_)?pytorch_model.*\.bin(\.index\.json)?|"
    r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth)|pipeline\.py|"
) + "|".join(re.escape(path.name) for path in Path(__file__).parent.glob("[!_]*.py"))
# What the libraries leave where they know nothing, and what they add to their template of a card.
BLANK = "[More Information Needed]"
GENERATED = re.compile(r".*This model card has been automatically generated\.|library_name: \w+|tags: \[\]")
OWN_NAME = "NAMESPACE/NAME"
# `empty` is empty: transformers would take a line here that begins with an import for one of the code.
SHORT_CARD = """---
library_name: {library}
pipeline_tag: {task}
tags:
- hf_latentgen
{tags}---

# {name}

A `{kind}` of hf-latentgen. How it was trained and how good it is was not told when it was pushed.

## How to use

From a clone of the hf-latentgen repository, `pip install .`, then:

```python
{empty}from hf_latentgen import {kind}

loaded = {kind}.from_pretrained("{name}")
```
"""


def short_card(kind: str, task: str, library: str, tags: list[str] | None = None) -> str:
    """The card of an object of which nothing is known but its class. It has `OWN_NAME` for the name on the Hub."""
    named = "".join(f"- {tag}\n" for tag in tags or [])
    return SHORT_CARD.format(kind=kind, task=task, library=library, tags=named, name=OWN_NAME, empty="")


def folder_contents(folder: str, card: str) -> dict[str, Path | bytes]:
    """All files of a folder by their paths in a repository, and a card."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths} | {CARD: card.encode()}


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
    if revision is not None and not re.fullmatch(r"[^\s~^:?*\[\\]+", revision):
        raise ValueError(f"revision must be the name of a branch, without spaces and ~^:?*[\\, got {revision!r}")
    api, refused = checked_client(repo_id, token), f"{repo_id} was not published"
    files = dict(contents)
    with said_in_words(refused):
        card = ModelCard(bytes(files[CARD]).decode())
        try:
            card.validate()
        except ValueError as error:
            found = "; ".join(entry["message"] for entry in json.loads(str(error))["errors"])
            raise ValueError(f"the Hub finds the metadata of {CARD} invalid: {found}") from error
        if create_pr and revision is not None and not api.revision_exists(repo_id, revision):
            raise ValueError(f"revision must be a branch of {repo_id} for a pull request against it, got {revision!r}")
    info = open_repo(api, repo_id, private, revision, makes_branch=not create_pr)
    repo_id, present = info.id, {file.rfilename for file in info.siblings or []}
    with said_in_words(refused):
        if keeps_card and CARD in present and _is_written(api.hf_hub_download(repo_id, CARD, revision=info.sha)):
            del files[CARD]
        elif keeps_card:
            files[CARD] = bytes(files[CARD]).replace(OWN_NAME.encode(), repo_id.encode())
        stale = {name for name in present - files.keys() if re.fullmatch(REPLACED, name)}
        if not any(re.fullmatch(PROCESSORS, name) for name in files):
            # A model alone is pushed without its processor, which stays.
            stale = {name for name in stale if name == INDEX or not re.fullmatch(PROCESSORS, name)}
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo_id,
            [*additions, *map(CommitOperationDelete, sorted(stale))],
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
            # Between the look at the repository and the commit the Hub is asked which files have changed.
            parent_commit=info.sha,
        )
    if tag is not None and not create_pr:
        with said_in_words(f"{repo_id} is published, but without its tag {tag}, which publishing again sets"):
            api.create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=True)
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
def said_in_words(what: str, transfer: str = "upload", advice: str = "Publish again") -> Iterator[None]:
    """Context in which an error of the client becomes an `OSError` of one line: what has failed, why, what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REASONS.get(status) or error.server_message or str(error).strip().splitlines()[0]
        raise OSError(f"{what} (HTTP {status}): {reason}") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, RuntimeError) as error:
        # The client chains what it says of the file to what it says of the connection, in several lines.
        told = dict.fromkeys(" ".join(str(part).split()).rstrip(".") for part in (error, error.__cause__) if part)
        raise ConnectionError(f"{what}, the {transfer} broke off: {'. '.join(told)}. {advice}") from error


def checked_client(repo_id: str, token: bool | str | None) -> HfApi:
    """The client, once name and token are well formed and the Hub answers. Errors as in `commit_files`."""
    check_repo_id(repo_id)
    api = HfApi(token=check_token(token))
    check_connection()
    return api


def _is_written(path: str) -> bool:
    """Whether a card holds anything that is not of the template of the libraries."""
    text = Path(path).read_text(encoding="utf-8")
    template = {BLANK, *str(ModelCard.from_template(ModelCardData())).splitlines()} if BLANK in text else set()
    return any(line not in template and not GENERATED.fullmatch(line) for line in text.splitlines())


def check_connection() -> None:
    """Raise `ConnectionError` when the Hub does not answer."""
    endpoint = HfApi().endpoint
    try:
        get_session().head(endpoint, timeout=TIMEOUT)
    except HTTPError as error:
        reason = str(error) or type(error).__name__
        advice = "check the network, and HF_ENDPOINT if it is set"
        raise ConnectionError(f"{endpoint} does not answer ({reason}): {advice}") from error


def check_repo_id(repo_id: str) -> None:
    """Raise `ValueError` unless it is "name" or "namespace/name" as the Hub allows them."""
    allowed = "it must be 'namespace/name' or 'name', of letters, digits, '-', '_' and '.'"
    try:
        validate_repo_id(repo_id)
        if not all(repo_id.split("/")):
            raise HFValidationError("A part of it is empty")
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not a name on the Hub: {allowed}. {error}") from error


def check_token(token: bool | str | None = None) -> str:
    """The token, that of the environment or of `hf auth login` when None or True.

    Raises: ValueError when there is none, or one with characters that no token has. The token itself is never shown.
    """
    if token is not False and not isinstance(token, str):
        token = get_token()
    if not token:
        raise ValueError("no token was found: log in with `hf auth login`, or set HF_TOKEN")
    if re.fullmatch(r"[\w.-]+", token, re.ASCII) is None:
        raise ValueError("the token is malformed: it may hold only letters, digits, '_', '-' and '.', without spaces")
    return token
