"""Runs published code, and code in folders, where the package cannot be imported."""

import re
import sys
from pathlib import Path

# An import of it fails as if it were not installed.
sys.modules["hf_latentgen"] = None

import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

folder, models, pipelines = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(",")


def run_snippet(repo_id):
    """What the snippet for users without the package, on the card of a repository, leaves behind."""
    card = Path(hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "trust_remote_code" in code]
    found = {}
    exec(snippet, found)
    return found


for name in models:
    repo_id = f"ada/{name}-code"
    found = run_snippet(repo_id)
    model, revision = found["model"], found["revision"]
    weights = load_file(hf_hub_download(repo_id, "model.safetensors", revision=revision))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    config = transformers.AutoConfig.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules.")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModel.from_pretrained(repo_id, trust_remote_code=False)
    print("loaded", name)

found = run_snippet("ada/prior-code")
assert found["images"][0].size == (28, 28)
drawn = found["pipe"](4, torch.Generator().manual_seed(0), output_type="pt").images
assert torch.equal(drawn, torch.load(folder / "prior-code.pt"))
# Pushed from here it has the same card as a model, and its code.
found["pipe"].push_to_hub("ada/pushed-without-package")
print("loaded prior-code")

for name in pipelines:
    place, expected = str(folder / name), torch.load(folder / f"{name}.pt")

    def check(pipe, expected=expected, name=name):
        assert torch.equal(expected, pipe(3, torch.Generator().manual_seed(0), output_type="pt").images), name

    pipe = DiffusionPipeline.from_pretrained(place, trust_remote_code=True)
    check(pipe)
    check(DiffusionPipeline.from_pretrained(place, custom_pipeline=place, trust_remote_code=True))
    assert pipe(1).images[0].size == (8, 8)
    pipe.save_pretrained(f"{place}-saved")
    check(DiffusionPipeline.from_pretrained(f"{place}-saved", trust_remote_code=True))
    check(type(pipe).from_pipe(pipe))
    print("loaded", name)
