"""The results of a made row, from which the cards of the tests are rendered; a recipe of two steps; a checkpoint."""

import shutil

import datasets
import pytest

import hf_latentgen
from cards_common import CONFIG
from hf_latentgen.families.family import Options
from hf_latentgen.rows.evaluation import evaluate
from rows_common import REFERENCE, save_vae, write_run

TINY = """
dataset: {name: digits}
model: {architecture: mlp, image_size: 8, latent_dim: 2, hidden_channels: [8]}
training:
  max_steps: 2
  per_device_train_batch_size: 32
  per_device_eval_batch_size: 200
  logging_steps: 1
  save_strategy: "no"
reference:
  - {name: someone, metric: bits_per_dim, value: 1.5, source: somewhere}
"""


@pytest.fixture
def results():
    return {
        "row": "vae_digits",
        "config": "configs/vae_digits.yaml",
        "seed": 1042,
        "dataset": "digits",
        "split": "test",
        "num_images": 1300,
        "metrics": {
            "bits_per_dim": 1.23456,
            "bits_per_dim_standard_error": 0.0123,
            "negative_elbo_nats": 54.321,
            "distortion_nats": 48.123,
            "rate_nats": 6.198,
            "nll_nats_iw500": 53.456,
            "active_units": 2,
            "linear_probe_accuracy": 0.8765,
            "reconstruction_mse": 0.034567,
        },
        "reference": [
            {"name": "a paper", "metric": "bits_per_dim", "value": 1.111, "source": "table 7"},
            {"name": "a log", "metric": "nll_nats_iw5000", "value": 52.22, "source": "https://example.org/log"},
        ],
        "baseline": {"order0_bits_per_dim": 3.0303, "counting_4_bits_per_dim": 1.4141},
        "num_parameters": 12345,
        "weights_sha256": "f" * 64,
        "autoencoder": None,
        "sample_text": None,
        "repeats": [],
        "spread": {},
        "overrides": [],
        "dataset_options": {},
        "train_command": "python scripts/train.py configs/vae_digits.yaml",
        "evaluate_command": "hf-latentgen evaluate runs/vae_digits",
        "train_seconds": 127.4,
        "hardware": "a computer, 2 CPU threads",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git_commit": "0123abcd",
        "model": hf_latentgen.VAEConfig(**CONFIG).to_dict(),
        "training": {"learning_rate": 0.00123, "num_train_epochs": 37, "seed": 1042},
        "diagnostics": {"untrained_bits_per_dim": 4.0123},
        "evaluation": {"seed": 2042, "seconds": 61.2},
        "history": [{"epoch": 1, "eval_bits_per_dim": 2.5}, {"epoch": 2.0, "eval_bits_per_dim": 1.3}],
    }


@pytest.fixture
def nothing_outside(tmp_path, monkeypatch):
    """No data folder of the machine, and a cache of the test's own."""
    monkeypatch.delenv("HF_LATENTGEN_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tiny(tmp_path):
    """The file of a recipe that trains two steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint as a training leaves it."""
    folder = save_vae(tmp_path_factory.mktemp("runs") / "vae_small")
    history = [{"epoch": 1.0, "eval_bits_per_dim": 3.0}, {"epoch": 2.0, "eval_bits_per_dim": 2.0}]
    write_run(folder, reference=REFERENCE, history=history)
    return folder


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A copy of the checkpoint to damage."""
    return shutil.copytree(trained, tmp_path / "runs" / "vae_small")


@pytest.fixture(scope="module")
def evaluation(trained):
    """What was measured of the checkpoint."""
    return evaluate(
        hf_latentgen.load(trained), options=Options(num_importance_samples=3, seed=1), command="evaluate it"
    )
