"""The demo as a Space: the models of README.md, from the Hub."""

from pathlib import Path

from huggingface_hub import RepoCard

from hf_latentgen.app.checkpoints import load_checkpoints
from hf_latentgen.app.interface import build, launch

card = RepoCard.load(Path(__file__).with_name("README.md"), repo_type="space")
launch(build(load_checkpoints(card.data.to_dict()["models"])))
