"""Publish a row on the Hugging Face Hub: weights, configuration, card and pictures, in one commit.

`python scripts/publish.py model_cards/vae_digits --repo-id org/name --dry-run` checks and lists the files.
Log in first with `hf auth login`, or set HF_TOKEN.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_latentgen.cards.publishing import full_repo_id, prepare_upload, publish


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0. Errors end the program with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds model.safetensors, config.json, results.json and images/")
    parser.add_argument("--repo-id", required=True, help="namespace/name on the Hub, or name in your own namespace")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to, made if missing (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--with-code", action="store_true", help="add the code, for use without this package")
    parser.add_argument("--dry-run", action="store_true", help="check and list the files, without network")
    arguments = parser.parse_args(argv)
    try:
        repo_id = arguments.repo_id if arguments.dry_run else full_repo_id(arguments.repo_id)
        upload = prepare_upload(arguments.folder, repo_id, arguments.with_code)
        for name, size in upload.sizes().items():
            print(f"{size:>12,} bytes  {name}")
        if upload.left_out:
            print(f"left out: {', '.join(upload.left_out)}")
        if arguments.dry_run:
            return 0
        commit = publish(upload, arguments.private, arguments.revision, arguments.create_pr)
    except (OSError, ValueError) as error:
        raise SystemExit(f"publish: {error}") from error
    print(commit.pr_url or commit.commit_url)
    if commit.pr_url and upload.tag:
        print(f"the card names the tag {upload.tag}: publish once more when the pull request is merged, which sets it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
