"""Tiny models on real 8x8 digits: a step takes a millisecond, and every run starts from the same weights."""

import pytest
import torch

from hf_latentgen import (
    AAEConfig,
    AAEModel,
    AdversarialTrainer,
    AdversarialTrainingArguments,
    ELBOTrainer,
    LatentTrainingArguments,
    LevelsDataset,
    LevelsImageProcessor,
    VAEConfig,
    VAEModel,
)
from hf_latentgen.data import load_images
from hf_latentgen.models import distributions


@pytest.fixture(scope="session")
def processor():
    return LevelsImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture(scope="session")
def digits(processor):
    """64 images to train on and 21 to evaluate on: with batches of 16, four steps an epoch and a short last batch."""
    train, validation = (load_images("digits", split) for split in ("train", "validation"))
    return LevelsDataset(train.select(range(64)), processor), LevelsDataset(validation.select(range(21)), processor)


@pytest.fixture(scope="session")
def labelled_digits(processor):
    """The same images with their labels."""
    train, validation = (load_images("digits", split) for split in ("train", "validation"))
    return (
        LevelsDataset(train.select(range(64)), processor, with_labels=True),
        LevelsDataset(validation.select(range(21)), processor, with_labels=True),
    )


@pytest.fixture
def make_model():
    def make(**config):
        torch.manual_seed(0)
        defaults = {"architecture": "mlp", "image_size": 8, "latent_dim": 2, "hidden_channels": [16]}
        return VAEModel(VAEConfig(**(defaults | config)))

    return make


@pytest.fixture
def make_trainer(tmp_path, digits, processor, make_model):
    """A trainer of a new model; keyword arguments are training arguments, `config` the fields of the model's."""

    def make(folder="run", config=None, callbacks=None, **arguments):
        defaults = {
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 16,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return ELBOTrainer(
            make_model(**(config or {})),
            LatentTrainingArguments(output_dir=str(tmp_path / folder), **(defaults | arguments)),
            train_dataset=digits[0],
            eval_dataset=digits[1],
            processing_class=processor,
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def make_adversary(tmp_path, digits, processor):
    """A trainer of a new adversarial autoencoder; arguments as for `make_trainer`."""

    def make(folder="run", config=None, model_class=AAEModel, data=digits, callbacks=None, **arguments):
        torch.manual_seed(0)
        fields = {"architecture": "mlp", "image_size": 8, "latent_dim": 2, "hidden_channels": [16], "num_levels": 16}
        fields |= {"discriminator_channels": [12], "reconstruction_weight": 0.9, "num_labels": 10}
        defaults = {
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 16,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return AdversarialTrainer(
            model_class(AAEConfig(**(fields | (config or {})))),
            AdversarialTrainingArguments(output_dir=str(tmp_path / folder), **(defaults | arguments)),
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=processor,
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def without_noise(monkeypatch):
    """Posterior samples are posterior means: what is compared does not depend on who draws which noise."""

    def zeros(shape, like, generator=None):
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    monkeypatch.setattr(distributions, "standard_normal", zeros)


@pytest.fixture
def training_logs():
    """The logs of steps, without the speed and the wall time, which differ from run to run."""

    def select(trainer):
        times = ("elapsed_seconds", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        steps = (entry for entry in trainer.state.log_history if "loss" in entry)
        return [{name: value for name, value in entry.items() if name not in times} for entry in steps]

    return select
