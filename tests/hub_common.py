"""Tiny random models of all families, and rows to publish; imported by the tests of the Hub and by their clients."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    AAEModel,
    ByteTokenizer,
    LevelsImageProcessor,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    VAEConfig,
    VAEModel,
)
from hf_latentgen.models.auto import auto_class

IMAGES = {"image_size": 8, "num_levels": 16}
AUTOENCODER = IMAGES | {"architecture": "mlp", "latent_dim": 2, "hidden_channels": (8, 8)}
ADVERSARIAL = AUTOENCODER | {"discriminator_channels": (8, 8)}
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class Family(NamedTuple):
    model: PreTrainedModel
    processor: LevelsImageProcessor | ByteTokenizer
    auto: type[_BaseAutoModelClass]
    dataset: str


def make_families() -> dict[str, Family]:
    """A model of each family, the same in every process, with random weights."""
    models = {
        "vae": (VAEModel, VAEConfig(**AUTOENCODER)),
        "aae": (AAEModel, AAEConfig(**ADVERSARIAL)),
        "aae-classifier": (AAEForImageClassification, AAEConfig(num_labels=10, **ADVERSARIAL)),
        "local-text": (LocalTransformerForCausalLM, LocalTransformerConfig(window=8, **LAYERS)),
        "local-image": (
            LocalTransformerForImageGeneration,
            LocalTransformerImageConfig(window_rows=2, **IMAGES, **LAYERS),
        ),
    }
    families = {}
    for name, (model_class, config) in models.items():
        torch.manual_seed(0)
        model = model_class(config).eval()
        # As a training leaves it: a classifier is told by the name of its class.
        model.config.architectures = [model_class.__name__]
        reads_text = name == "local-text"
        processor = (
            ByteTokenizer(errors="replace") if reads_text else LevelsImageProcessor(size={"height": 8, "width": 8})
        )
        families[name] = Family(
            model, processor, auto_class(model.config), "tinyshakespeare" if reads_text else "digits"
        )
    return families


def write_row(folder: Path, family: Family, max_shard_size: int | str = "50GB") -> Path:
    """A row as a training and an evaluation leave it, with more beside it than may be published."""
    family.model.save_pretrained(folder, max_shard_size=max_shard_size)
    family.processor.save_pretrained(folder)
    results = {
        "row": folder.name,
        "metrics": {"bits_per_byte" if family.dataset == "tinyshakespeare" else "reconstruction_mse": 1.5},
        "num_parameters": family.model.num_parameters(),
        "model": family.model.config.to_dict(),
        "dataset": family.dataset,
        "sample_text": "To be",
        "diagnostics": {"num_bytes": 10, "context": 4} if family.dataset == "tinyshakespeare" else {},
    }
    results |= {"config": f"configs/{folder.name}.yaml", "split": "test", "seed": 0, "num_images": 300, "floor": {}}
    results |= {"reference": [], "training": {}, "history": [], "versions": {}, "hardware": "cpu", "train_seconds": 1.0}
    results |= {"train_command": "train", "evaluate_command": "evaluate", "git_commit": "0"}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "images").mkdir()
    Image.new("L", (8, 8)).save(folder / "images" / "samples.png")
    (folder / "checkpoint-10").mkdir()
    for name in ("training_args.bin", "checkpoint-10/optimizer.pt", "run.json", "events.out.tfevents.1", "notes.md"):
        (folder / name).write_text("not to be published")
    return folder


def assert_same_weights(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    """The two models hold the same numbers, bit by bit."""
    states = found.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
