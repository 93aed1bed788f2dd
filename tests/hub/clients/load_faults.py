"""Loads over connections that break, and weights that arrive damaged. Prints what is said, as JSON."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoModel

from hf_latentgen import VAEModel
from hub_common import assert_same_weights, make_families

# The client waits for a second before it tries again.
time.sleep = lambda _: None
expected = make_families()["vae"].model
messages = {}


def attempt(case: str, repo_id: str) -> None:
    try:
        assert_same_weights(VAEModel.from_pretrained(repo_id), expected)
        messages[case] = ""
    except OSError as error:
        messages[case] = str(error)


attempt("dropped once", "ada/drop-once")
attempt("dropped always", "ada/drop-always")
attempt("dropped always, second run", "ada/drop-always")
attempt("larger than declared", "ada/grown")
attempt("another content", "ada/corrupt")
attempt("another content, again", "ada/corrupt")
shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--ada--corrupt")
attempt("another content, deleted", "ada/corrupt")
for loader in (VAEModel, AutoModel):
    for place in ("ada/pickle", sys.argv[1]):
        with pytest.raises(OSError, match=r"only pickled weights \(pytorch_model.bin\), which can run code"):
            loader.from_pretrained(place)
with pytest.raises(ValueError, match="use_safetensors must be True"):
    VAEModel.from_pretrained("ada/pickle", use_safetensors=False)
print(json.dumps(messages))
