"""Runs the snippet of the card of a pipeline for users without the package, where the package cannot be imported."""

import re
import sys
from pathlib import Path

# An import of it fails as if it were not installed.
sys.modules["hf_latentgen"] = None

import torch
from huggingface_hub import hf_hub_download

card = Path(hf_hub_download("ada/prior-code", "README.md")).read_text(encoding="utf-8")
(snippet,) = [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "trust_remote_code" in code]
found = {}
exec(snippet, found)
assert found["images"][0].size == (28, 28)
drawn = found["pipe"](4, torch.Generator().manual_seed(0), output_type="pt").images
assert torch.equal(drawn, torch.load(sys.argv[1]))
# Pushed from here it has the same card as a model, and its code.
found["pipe"].push_to_hub("ada/pushed-without-package")
