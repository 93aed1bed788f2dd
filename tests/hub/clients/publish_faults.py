"""Tries what must fail. Prints what the script says to each, as JSON; a success says nothing."""

import json
import os
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from hf_latentgen.cards.publishing import prepare_upload, publish

repository, rows = map(Path, sys.argv[1:])
publish_main = runpy.run_path(str(repository / "scripts" / "publish.py"))["main"]
# The client waits for up to eight seconds before it tries again.
time.sleep = lambda _: None
messages = {}


def attempt(case: str, row: str, repo_id: str, *options: str, token: str = "hf_ada") -> None:
    os.environ["HF_TOKEN"] = token
    try:
        publish_main([str(rows / row), "--repo-id", repo_id, *options])
        messages[case] = ""
    except SystemExit as error:
        messages[case] = str(error)


attempt("missing token", "vae", "ada/new", token="")
attempt("malformed token", "vae", "ada/new", token="hf_two words")
attempt("wrong token", "vae", "ada/new", token="hf_nobody")
attempt("wrong token, own name", "vae", "new", token="hf_nobody")
attempt("bad name", "vae", "ada/b/c")
attempt("namespace of somebody else", "vae", "bob/new")
attempt("repository of somebody else", "vae", "bob/vae")
attempt("private repository of somebody else", "vae", "bob/secret")
attempt("pull request against no branch", "vae", "ada/none", "--revision", "old", "--create-pr")
attempt("stale parent", "vae", "ada/stale")
attempt("stale parent, second run", "vae", "ada/stale")
attempt("interrupted", "aae", "ada/interrupted")
messages["files after the interruption"] = HfApi().list_repo_files("ada/interrupted")
attempt("interrupted, second run", "aae", "ada/interrupted")
attempt("interrupted once", "local-image", "ada/once")
attempt("wrong bytes arrive", "aae-classifier", "ada/damaged")

upload = prepare_upload(rows / "vae", "ada/metadata")
card = upload.contents["README.md"].replace(b"pipeline_tag: unconditional-image-generation", b"pipeline_tag: painting")
try:
    publish(replace(upload, contents=upload.contents | {"README.md": card}))
except ValueError as error:
    messages["invalid metadata"] = str(error)
print(json.dumps(messages))
