"""Tiny random models of all families, and rows to publish; imported by the tests of the Hub and by their clients."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import hub as transformers_hub

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
    VLAEConfig,
    VLAEModel,
)
from hf_latentgen.evaluation.results import Results

IMAGES = {"image_size": 8, "num_levels": 16}
AUTOENCODER = IMAGES | {"architecture": "mlp", "latent_dim": 2, "hidden_channels": (8, 8)}
ADVERSARIAL = AUTOENCODER | {"discriminator_channels": (8, 8)}
SMALL_VLAE = IMAGES | {"latent_dim": 2, "hidden_channels": (8, 8), "decoder_channels": 8, "decoder_radius": 1}
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class Family(NamedTuple):
    model: PreTrainedModel
    processor: LevelsImageProcessor | ByteTokenizer
    auto: type[_BaseAutoModelClass]
    dataset: str


@contextlib.contextmanager
def client_of(url: str, token: str, cache: Path) -> Iterator[Path]:
    """Context in which the client of this process talks to the Hub at an address, with a cache of its own: its folder.

    The client reads the environment when it is imported.
    """
    pattern = constants.HUGGINGFACE_CO_URL_TEMPLATE[len(os.environ.get("HF_ENDPOINT", "https://huggingface.co")) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(hf_api.api, "endpoint", url)
        patch.setattr(transformers_hub, "_hf_api", None)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + pattern)
        patch.setenv("HF_TOKEN", token)
        close_session()
        yield cache
        close_session()


def make_families() -> dict[str, Family]:
    """A model of each family, the same in every process, with random weights."""
    models = {
        "vae": (VAEModel, VAEConfig(**AUTOENCODER)),
        "vlae": (VLAEModel, VLAEConfig(**SMALL_VLAE)),
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
            model,
            processor,
            getattr(transformers, model.config.auto_model),
            "tinyshakespeare" if reads_text else "digits",
        )
    return families


def make_results(model: PreTrainedModel, **changes: object) -> Results:
    """The results of a small row, complete, with other values for some of them."""
    values = {
        "row": "small",
        "dataset": "digits",
        "split": "test",
        "num_images": 300,
        "metrics": {"bits_per_dim": 1.5},
        "diagnostics": {},
        "baseline": {},
        "num_parameters": model.num_parameters(),
        "weights_sha256": None,
        "model": model.config.described(),
        "autoencoder": None,
        "sample_text": None,
        "repeats": [],
        "spread": {},
        "evaluate_command": "evaluate",
        "evaluation": {},
        "train_command": "train",
        "config": "configs/vae_digits.yaml",
        "seed": 0,
        "train_seconds": 1.0,
        "hardware": "cpu",
        "git_commit": "0",
    }
    return Results(**(values | changes))


def write_row(folder: Path, family: Family, max_shard_size: int | str = "50GB") -> Path:
    """A row as a training and an evaluation leave it, with more beside it than may be published."""
    family.model.save_pretrained(folder, max_shard_size=max_shard_size)
    family.processor.save_pretrained(folder)
    is_text = family.dataset == "tinyshakespeare"
    make_results(
        family.model,
        row=folder.name,
        dataset=family.dataset,
        metrics={"bits_per_byte" if is_text else "reconstruction_mse": 1.5},
        sample_text="To be" if is_text else None,
        diagnostics={"num_bytes": 10, "context": 4} if is_text else {},
    ).write(folder)
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
