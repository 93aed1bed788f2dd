"""Tiny random checkpoints of every family, and a page that serves them."""

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from app_common import make_checkpoint
from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    AAEModel,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    VAEConfig,
    VAEModel,
)
from hf_latentgen.app.checkpoints import load_checkpoints

IMAGE = {"image_size": 8, "num_levels": 16}
SMALL = {"architecture": "mlp", "hidden_channels": (16,), **IMAGE}
TRANSFORMER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "vae_plane": lambda: VAEModel(VAEConfig(latent_dim=2, **SMALL)),
    "vae": lambda: VAEModel(VAEConfig(latent_dim=4, **SMALL)),
    # As large as the row vae_mnist_4bit.
    "vae_mnist": lambda: VAEModel(VAEConfig()),
    "vae_other_size": lambda: VAEModel(VAEConfig(latent_dim=2, **(SMALL | {"image_size": 12}))),
    "vae_colour": lambda: VAEModel(VAEConfig(latent_dim=2, num_channels=3, **SMALL)),
    "aae_colour": lambda: AAEModel(AAEConfig(latent_dim=2, num_channels=3, **SMALL)),
    "aae": lambda: AAEModel(AAEConfig(latent_dim=3, **SMALL)),
    "aae_flower": lambda: AAEModel(
        AAEConfig(latent_dim=2, prior="flower", labelled_prior=True, num_labels=10, **SMALL)
    ),
    "aae_classes": lambda: AAEForImageClassification(AAEConfig(latent_dim=2, num_labels=10, **SMALL)),
    "pixels": lambda: LocalTransformerForImageGeneration(LocalTransformerImageConfig(**TRANSFORMER, **IMAGE)),
    "pixels_classes": lambda: LocalTransformerForImageGeneration(
        LocalTransformerImageConfig(is_class_conditional=True, num_labels=10, **TRANSFORMER, **IMAGE)
    ),
    "bytes": lambda: LocalTransformerForCausalLM(LocalTransformerConfig(window=16, **TRANSFORMER)),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of each checkpoint, by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    return {name: make_checkpoint(make(), root / name) for name, make in MODELS.items()}


@pytest.fixture(scope="session")
def checkpoints(folders):
    """All of them, loaded."""
    return load_checkpoints([str(folder) for folder in folders.values()])


# The command of the demo, which also reports whatever it looks for beyond this machine.
WATCHED = """
import sys

def watch(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in (None, "127.0.0.1", "0.0.0.0", "::1", "localhost"):
        print("OUTSIDE", host, file=sys.stderr)

sys.addaudithook(watch)
from hf_latentgen_cli import main
sys.argv.insert(1, "app")
main()
"""


class Server(NamedTuple):
    url: str
    folder: Path


@pytest.fixture(scope="session")
def server(folders, tmp_path_factory):
    """The demo with all these checkpoints, started as by its command; and a folder for what it answers."""
    pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[app]"')
    folder = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name != "HF_LATENTGEN_DATA"}
    environment |= {"GRADIO_TEMP_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", WATCHED, *map(str, folders.values())]
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
        try:
            while "http://" not in (line := lines.get(timeout=300)):
                pass
            yield Server("http://" + line.split("http://")[1].strip(), folder)
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()
    assert "OUTSIDE" not in (folder / "errors.txt").read_text()
