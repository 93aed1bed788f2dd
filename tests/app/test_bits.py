"""What a picture costs with each model and with other codes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latentgen.app.bits import costs, heat_map, rated, table
from hf_latentgen.app.inference import digit
from hf_latentgen.evaluation.baselines import webp


def test_models_with_a_likelihood_are_counted(checkpoints):
    names = {checkpoint.name for checkpoint in rated(checkpoints)}
    assert {"vae", "vae_colour", "pixels", "pixels_classes"} <= names
    assert not names & {"aae", "aae_classes", "bytes"}


@pytest.mark.parametrize("name", ["vae", "vae_colour", "pixels", "pixels_classes"])
def test_costs_are_bytes_of_the_likelihood_and_of_files(checkpoints, name):
    checkpoint = checkpoints[name]
    levels = digit(checkpoint, 3)
    own, png, web, *_ = costs(checkpoint, levels)
    # A model that has learned nothing needs four bits for each value, or some more for latents.
    assert 0.4 * levels.numel() < own.size < 1.5 * levels.numel()
    assert own.picture == "8×8, 16 levels"
    assert png.size > 60
    assert web.size == len(webp(levels[0].movedim(0, -1).numpy()))


def test_webp_is_lossless():
    rng = np.random.default_rng(0)
    for shape in ((6, 5), (6, 5, 3)):
        levels = rng.integers(0, 256, shape).astype(np.uint8)
        with Image.open(io.BytesIO(webp(levels))) as image:
            assert np.array_equal(np.asarray(image.convert("RGB" if len(shape) == 3 else "L")), levels)


def test_the_brightest_pixel_costs_most(checkpoints):
    checkpoint = checkpoints["pixels"]
    levels = digit(checkpoint, 3)
    bits = checkpoint.model.code_lengths(levels)[0, 0]
    picture = torch.from_numpy(np.asarray(heat_map(checkpoint, levels)).copy()).sum(-1)
    scale = len(picture) // 8
    assert picture[::scale, ::scale].argmax() == bits.argmax()
    assert all(heat_map(checkpoints[name], digit(checkpoints[name], 3)) is None for name in ("vae", "pixels_classes"))


def test_a_table_names_each_code_once_and_the_smallest_first(checkpoints):
    found = [cost for name in ("vae", "pixels") for cost in costs(checkpoints[name], digit(checkpoints[name], 3))]
    lines = [line.split(" | ") for line in table(found).splitlines() if line.startswith("| 8×8")]
    assert [line[1] for line in lines].count("PNG") == 1
    sizes = [int(line[2].rstrip(" |")) for line in lines]
    assert sizes == sorted(sizes)
