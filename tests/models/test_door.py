"""What is no tensor of levels, no generator and no number of images is refused at the door of every model of images."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from hub_common import make_families

MODELS = {name: family.model for name, family in make_families().items() if name != "local-text"}
LEVELS = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "given", [Image.new("L", (8, 8)), [[0]], np.zeros((1, 1, 8, 8), np.uint8), BatchFeature({"pixel_values": LEVELS})]
)
def test_what_is_no_tensor_is_refused(name, given):
    with pytest.raises(ValueError, match=f"^pixel_values must be a tensor .*, got a {type(given).__name__}$"):
        MODELS[name](given)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("number", ["8", 0, 1.5, True])
def test_what_is_no_number_of_images_is_refused(name, number):
    with pytest.raises(ValueError, match=f"^num_images must be .*, got {number!r}$"):
        MODELS[name].sample(number)


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_is_no_generator(name):
    with pytest.raises(ValueError, match="^generator must be a torch.Generator or None, got 0$"):
        MODELS[name].sample(1, generator=0)
