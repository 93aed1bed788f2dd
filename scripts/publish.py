"""Publish a row in Python: prepare, look, publish. `hf-latentgen publish` does the same from the command line.

python scripts/publish.py model_cards/vae_digits NAMESPACE/NAME
"""

import sys

from hf_latentgen.hub.publishing import full_repo_id, publish
from hf_latentgen.rows.publishing import prepare_upload


def main(folder: str, repo_id: str) -> None:
    """Publish the weights, configuration, card and pictures of a row in one commit."""
    upload = prepare_upload(folder, full_repo_id(repo_id))
    for name, size in upload.sizes().items():
        print(f"{size:>12,} bytes  {name}")
    print(publish(upload).commit_url)


if __name__ == "__main__":
    main(*sys.argv[1:])
