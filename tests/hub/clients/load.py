"""Loads what `push.py` has published, in every way there is, with the package."""

import logging
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, pipeline

from hf_latentgen import VAEModel
from hf_latentgen.evaluation.checkpoints import load_checkpoint
from hub_common import assert_same_weights, make_families

folder = Path(sys.argv[1])
families = make_families()
# As in push.py: the first load of a process imports more.
VAEModel.from_pretrained("ada/warm")
for name, (model, processor, auto, _) in families.items():
    start = time.perf_counter()
    loaded = type(model).from_pretrained(f"ada/{name}")
    loaded_processor = type(processor).from_pretrained(f"ada/{name}")
    print(f"load {name} {time.perf_counter() - start:.2f} s")
    assert_same_weights(loaded, model)
    assert loaded_processor.to_dict() == processor.to_dict() if name != "local-text" else len(loaded_processor) == 259
    auto_loaded = auto.from_pretrained(f"ada/{name}")
    assert type(auto_loaded) is type(model)
    assert_same_weights(auto_loaded, model)
    assert type(AutoConfig.from_pretrained(f"ada/{name}")) is type(model.config)
    auto_processor = AutoTokenizer if name == "local-text" else AutoImageProcessor
    assert type(auto_processor.from_pretrained(f"ada/{name}")) is type(processor)
    for place in (f"ada/{name}-code", folder / name):
        assert_same_weights(load_checkpoint(place)[0], model)

expected = families["vae"].model
assert_same_weights(VAEModel.from_pretrained("ada/sharded"), expected)
assert_same_weights(load_checkpoint(folder / "sharded")[0], expected)
assert_same_weights(AutoModel.from_pretrained("ada/vae", revision="measured"), expected)
assert_same_weights(AutoModel.from_pretrained("bob/vae", revision="refs/pr/1"), expected)
assert_same_weights(VAEModel.from_pretrained("ada/vae", device_map="auto").cpu(), expected)
half = VAEModel.from_pretrained("ada/vae", dtype=torch.bfloat16, device_map="cpu")
assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
assert pipeline("text-generation", model="ada/local-text")("A", max_new_tokens=3, do_sample=False)

for loader in (VAEModel, AutoModel):
    with pytest.raises(OSError, match="private repository"):
        loader.from_pretrained("ada/hidden", token=False)
    with pytest.raises(OSError, match="ada/none is not a local folder and is not a valid model identifier"):
        loader.from_pretrained("ada/none")
    with pytest.raises(OSError, match="none is not a valid git identifier"):
        loader.from_pretrained("ada/vae", revision="none")

# A model that was loaded once loads without a network: told so by the environment, or found out soon.
logged = []
handler = logging.Handler()
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("hf_latentgen").addHandler(handler)
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
start = time.perf_counter()
assert_same_weights(VAEModel.from_pretrained("ada/vae"), expected)
assert time.perf_counter() - start < 5
assert any("Loading ada/vae from the cache" in message for message in logged), logged
print(f"without network {time.perf_counter() - start:.2f} s")
