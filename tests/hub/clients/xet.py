"""Publishes a row through hf_xet and loads it again."""

import runpy
import sys
from pathlib import Path

from hf_latentgen import VAEModel
from hub_common import assert_same_weights, make_families

repository, row = map(Path, sys.argv[1:])
runpy.run_path(str(repository / "scripts" / "publish.py"))["main"]([str(row), "--repo-id", "ada/xet"])
assert_same_weights(VAEModel.from_pretrained("ada/xet"), make_families()["vae"].model)
