"""Loads from the cache what was loaded there before, with HF_HUB_OFFLINE=1 and no Hub."""

from transformers import AutoImageProcessor, AutoTokenizer

from hub_common import assert_same_weights, make_families

for name, (model, _, auto, _) in make_families().items():
    assert_same_weights(auto.from_pretrained(f"ada/{name}"), model)
    (AutoTokenizer if name == "local-text" else AutoImageProcessor).from_pretrained(f"ada/{name}")
