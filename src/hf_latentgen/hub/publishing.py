"""Publishing on the Hub: what one publication consists of, and its one commit."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo
from huggingface_hub.utils import validate_repo_id

from hf_latentgen.models.hub import checked_client, commit_files, said_in_words

MESSAGE = "Weights, configuration, card and pictures"


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


def publish(
    upload: Upload, private: bool | None = None, revision: str | None = None, create_pr: bool = False
) -> CommitInfo:
    """The one commit that holds all files of `upload`, see `commit_files`, whose arguments and errors it has.

    A commit cannot hold its own hash, so that the card in it pins the code by a tag named after the contents, which is
    set afterwards; a pull request gets it when, merged, it is published once more.
    """
    place = {"private": private, "revision": revision, "create_pr": create_pr}
    return commit_files(upload.repo_id, upload.contents, MESSAGE, **place, tag=upload.tag)


def full_repo_id(repo_id: str, token: str | None = None) -> str:
    """The name with its namespace: that of the user where none is given. Errors as in `commit_files`."""
    validate_repo_id(repo_id)
    if "/" in repo_id:
        return repo_id
    with said_in_words(f"whose {repo_id} is was not found out"):
        return f"{checked_client(repo_id, token).whoami()['name']}/{repo_id}"
