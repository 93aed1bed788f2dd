"""Loads a pipeline whose weights arrive damaged, and what is no checkpoint at all."""

import pytest
from transformers import AutoModel

from hf_latentgen import LatentGenPipeline

for load in (LatentGenPipeline.from_pretrained, lambda name: AutoModel.from_pretrained(name, subfolder="model")):
    with pytest.raises(OSError, match=r"^model.safetensors of ada/prior-code is damaged: its SHA-256 is \w+, the Hub"):
        load("ada/prior-code")
with pytest.raises(FileNotFoundError, match="ada/empty holds no checkpoint: neither model_index.json nor config.json"):
    LatentGenPipeline.from_pretrained("ada/empty")
with pytest.raises(OSError, match="^/nowhere/at/all is neither a folder nor a name on the Hub"):
    LatentGenPipeline.from_pretrained("/nowhere/at/all")
