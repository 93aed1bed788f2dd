"""Runs the snippet of each card for users without the package, where the package cannot be imported."""

import re
import sys
from pathlib import Path

# An import of it fails as if it were not installed.
sys.modules["hf_latentgen"] = None

import pytest
import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

for name in sys.argv[1:]:
    repo_id = f"ada/{name}-code"
    card = Path(hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "trust_remote_code" in code]
    found = {}
    exec(snippet, found)
    model, revision = found["model"], found["revision"]
    weights = load_file(hf_hub_download(repo_id, "model.safetensors", revision=revision))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    config = transformers.AutoConfig.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules.")
    print("loaded", name)
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModel.from_pretrained(repo_id, trust_remote_code=False)
