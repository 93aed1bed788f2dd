"""Images without meaning, and nothing of the machine the tests run on."""

import datasets
import numpy as np
import pytest

from hf_latentgen.models.image_processing_levels import LevelsImageProcessor


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path, monkeypatch):
    """No data folder of the machine, and a cache of the test's own."""
    monkeypatch.delenv("HF_LATENTGEN_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def random_images():
    return np.random.default_rng(0).integers(0, 256, (60, 6, 5), dtype=np.uint8)


@pytest.fixture
def processor():
    return LevelsImageProcessor(size=(6, 5), num_levels=256)
