import math
from pathlib import Path

import pytest
import torch

from hf_latentgen import (
    LevelsDataset,
    LevelsImageProcessor,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    load_images,
)
from hf_latentgen.evaluation.likelihood import image_nats
from hf_latentgen.evaluation.samples import completions
from hf_latentgen.families import LOCAL_TRANSFORMER_IMAGE
from hf_latentgen.families.family import Data, Options
from hf_latentgen.hub.loading import Checkpoint
from modeling_common import perturb

TINY = {"image_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def as_checkpoint(model):
    return Checkpoint("made", Path(), model, None)


def as_data(digits):
    train, test = digits
    return Data({"train": train, "validation": train, "test": test}.__getitem__)


def make(**fields):
    model = LocalTransformerForImageGeneration(LocalTransformerImageConfig(**(TINY | fields))).eval()
    perturb(model)
    return model


@pytest.fixture(scope="module")
def digits():
    processor = LevelsImageProcessor(size={"height": 8, "width": 8})
    train, test = (load_images("digits", split).select(range(70)) for split in ("train", "test"))
    return LevelsDataset(train, processor, with_labels=True), LevelsDataset(test, processor, with_labels=True)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"is_class_conditional": True, "num_labels": 10}])
def test_nats_of_a_split_are_those_of_its_images(digits, fields):
    model, test = make(**fields), digits[1]
    labels = test.labels if fields else None
    expected = model(test.levels, labels=labels).negative_log_likelihood
    for batch_size in (70, 32):
        found = torch.from_numpy(image_nats(model, test, batch_size)).float()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_measured_numbers(digits):
    model = make()
    measured = LOCAL_TRANSFORMER_IMAGE.measure(as_checkpoint(model), as_data(digits), Options(batch_size=32))
    metrics, diagnostics = measured.metrics, measured.diagnostics
    nats = image_nats(model, digits[1])
    assert metrics["nll_nats"] == pytest.approx(nats.mean())
    assert metrics["exact_bits_per_dim"] == pytest.approx(nats.mean() / 64 / math.log(2))
    assert metrics["nll_nats_standard_error"] == pytest.approx(nats.std(ddof=1) / math.sqrt(70))
    # Fresh weights are small: all 16 levels are about equally likely.
    assert diagnostics["untrained_bits_per_dim"] == pytest.approx(4, abs=0.3)
    assert diagnostics["nearest_training_image_rmse_of_test_images"] > 0


def test_damaged_weights_are_noticed(digits):
    model = make()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="the scores of 70 of 70 images are not finite"):
        image_nats(model, digits[1])


@pytest.mark.parametrize("fields", [{}, {"is_class_conditional": True, "num_labels": 10}])
def test_completions_keep_the_upper_half(digits, fields):
    test = digits[1]
    grid = completions(make(**fields), test).unflatten(0, (8, 8))
    originals = grid[:, :1]
    assert torch.equal(grid[:, :, :, :4], originals[:, :, :, :4].expand(-1, 8, -1, -1, -1))
    # The seven lower halves differ.
    assert all(len({image.numpy().tobytes() for image in row[1:]}) == 7 for row in grid)
    assert (originals[0, 0] == test.levels[0]).all()
