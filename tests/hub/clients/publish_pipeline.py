"""Publishes a row that is a pipeline with its code, draws from what was published, and loads it again offline."""

import runpy
import sys
from pathlib import Path

import torch
from huggingface_hub import constants

from hf_latentgen import LatentGenPipeline

repository, row, output = map(Path, sys.argv[1:])
publish_main = runpy.run_path(str(repository / "scripts" / "publish.py"))["main"]
assert publish_main([str(row), "--repo-id", "ada/prior-code", "--with-code"]) == 0


def draw(**options: bool) -> torch.Tensor:
    pipe = LatentGenPipeline.from_pretrained("ada/prior-code", **options)
    return pipe(4, torch.Generator().manual_seed(0), output_type="pt").images


drawn = draw()
torch.save(drawn, output)
assert torch.equal(drawn, draw(local_files_only=True))
assert draw(torch_dtype=torch.float64).shape == drawn.shape
LatentGenPipeline.from_pretrained(row).push_to_hub("ada/pushed", private=True)
constants.HF_HUB_OFFLINE = True
assert torch.equal(drawn, draw())
