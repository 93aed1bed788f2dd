import copy
import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hf_latentgen import (
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
from hf_latentgen.coding import compress
from hf_latentgen.coding.codecs import BitsBackCodec, ByteCodec, PixelCodec
from modeling_common import perturb

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
MLP = {"architecture": "mlp", "image_size": 6, "num_levels": 4, "latent_dim": 3, "hidden_channels": (16,)}
LADDER = {"architecture": "resnet", "image_size": 8, "hidden_channels": (8, 8), "ladder_channels": (2,)}
IMAGE_MODELS = {
    "grey": lambda: LocalTransformerImageConfig(**TINY, image_size=5, num_levels=3),
    "colour": lambda: LocalTransformerImageConfig(**TINY, image_size=4, num_levels=256, num_channels=3, window_rows=1),
    "spans": lambda: LocalTransformerImageConfig(
        **TINY, image_size=5, num_levels=3, attention_span="trimmed", span_ramp=2, layer_windows=[[4, 10, 4, 5], 7]
    ),
    "vae": lambda: VAEConfig(**MLP),
    "mixture": lambda: VAEConfig(
        **MLP | {"num_channels": 3, "num_levels": 256, "pixel_likelihood": "logistic_mixture"}
    ),
    "ladder": lambda: VAEConfig(**(MLP | LADDER)),
    "vlae": lambda: VLAEConfig(**(MLP | LADDER), decoder_radius=1, decoder_channels=8),
}


@dataclass
class Case:
    """A model, what prepares its inputs, and data of several chunks."""

    model: Any
    processor: Any
    data: Any


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks and batches so small that tiny data has several of them, the last one smaller."""
    for codec, chunk, batch in ((PixelCodec, 16, 6), (BitsBackCodec, 24, 4)):
        monkeypatch.setattr(codec, "chunk", chunk)
        monkeypatch.setattr(codec, "batch", batch)
    monkeypatch.setattr(ByteCodec, "chunk", 300)
    monkeypatch.setattr(ByteCodec, "group", 3)


def image_case(kind: str, number: int = 26) -> Case:
    """A case of its own for each test, which may change the model. The images are drawn once."""
    return copy.deepcopy(_drawn(kind, number))


@functools.cache
def _drawn(kind: str, number: int) -> Case:
    torch.manual_seed(0)
    config = IMAGE_MODELS[kind]()
    if isinstance(config, VAEConfig):
        model = VLAEModel(config) if isinstance(config, VLAEConfig) else VAEModel(config)
    else:
        model = LocalTransformerForImageGeneration(config)
        perturb(model)
    size = {"height": config.image_size, "width": config.image_size}
    processor = LevelsImageProcessor(size=size, num_levels=config.num_levels, num_channels=config.num_channels)
    levels = model.eval().sample(number, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return Case(model, processor, levels)


@pytest.fixture(params=IMAGE_MODELS)
def images(request):
    return image_case(request.param)


@pytest.fixture
def grey():
    return image_case("grey")


@functools.cache
def _grey_file() -> bytes:
    case = image_case("grey")
    return compress(case.model, case.processor, case.data)


@pytest.fixture
def grey_file(small_chunks) -> bytes:
    """What `grey` compresses to, which is the same each time and so made once."""
    return _grey_file()


@pytest.fixture
def text():
    torch.manual_seed(0)
    model = LocalTransformerForCausalLM(LocalTransformerConfig(**TINY, window=32)).eval()
    return Case(model, ByteTokenizer(), bytes(range(256)) + b"to be or not to be, " * 38)


@pytest.fixture
def make_images():
    return image_case
