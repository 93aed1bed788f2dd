"""Adversarial trainings that stop and go on give what one that does not stop gives, to the last bit."""

import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from hf_latentgen import AAEForImageClassification, AAEModel
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.training.few_labels import FewLabelsDataset
from hf_latentgen.training.resume import complete_checkpoints
from training_common import assert_resumed_is_straight, assert_same_checkpoint, assert_same_state

# Everything that draws from the random state.
NOISY = {"posterior": "gaussian", "input_noise_std": 0.1, "discriminator_noise_std": 0.1}
NOISY |= {"input_shift": 1, "input_affine_std": 0.1}
FLOWER = {"prior": "flower", "labelled_prior": True}

RECIPE = """
dataset: {name: digits, num_labelled: 100, labelled_per_batch: 8, label_seed: 3}
model:
  model_type: latentgen_aae
  architectures: [AAEForImageClassification]
  architecture: mlp
  image_size: 8
  num_levels: 16
  num_labels: 10
  latent_dim: 2
  hidden_channels: [16]
  discriminator_channels: [12]
  posterior: gaussian
  input_noise_std: 0.1
  input_affine_std: 0.1
  consistency_weight: 0.1
training:
  # 11 steps an epoch.
  max_steps: 14
  per_device_train_batch_size: 128
  per_device_eval_batch_size: 200
  learning_rate: 0.01
  discriminator_learning_rate: 0.002
  eval_strategy: steps
  eval_steps: 7
  save_strategy: steps
  save_steps: 2
  logging_steps: 1
  disable_tqdm: true
"""

# Trains the recipe of its first argument into the folder of its second, and dies in the middle of the eighth step.
CHILD = """
import os, signal, sys

from hf_latentgen.rows import recipes
from hf_latentgen.training import adversarial

compute_loss = adversarial.AdversarialTrainer.compute_loss


def compute_loss_or_die(self, *arguments, **options):
    if self.state.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_loss(self, *arguments, **options)


adversarial.AdversarialTrainer.compute_loss = compute_loss_or_die
recipes.train_recipe(recipes.load_recipe(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize(
    ("step", "kind", "extra"),
    [
        (4, "plain", {"save_strategy": "epoch", "eval_strategy": "epoch"}),
        (3, "plain", {"eval_strategy": "steps", "eval_steps": 2, "ema_decay": 0.8}),
        (3, "flower", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}),
        (4, "few labels", {"save_strategy": "epoch", "eval_strategy": "epoch"}),
        (3, "few labels", {"sample_epochs": [0, 1]}),
    ],
    ids=["epochs-end", "mid-epoch-with-averaging", "mid-epoch-labelled-prior", "few-labels", "few-labels-mid-epoch"],
)
def test_resumed_training_is_bit_identical(make_adversary, labelled_digits, digits, tmp_path, step, kind, extra):
    few = FewLabelsDataset(labelled_digits[0], 20, 4, seed=0), labelled_digits[1]
    common = {
        "config": NOISY | (FLOWER if kind == "flower" else {}),
        "data": {"plain": digits, "flower": labelled_digits, "few labels": few}[kind],
        "model_class": AAEForImageClassification if kind == "few labels" else AAEModel,
        "num_train_epochs": 2,
        "lr_scheduler_type": "cosine",
        "discriminator_learning_rate": 3e-3,
        "seed": 7,
    }
    common |= {"save_strategy": "steps", "save_steps": 1, **extra}
    assert_resumed_is_straight(make_adversary, tmp_path, step, common)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_training_resumes_bit_identically(tmp_path):
    config, killed, straight = tmp_path / "small.yaml", tmp_path / "killed", tmp_path / "straight"
    config.write_text(RECIPE)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, config, killed], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-3000:]
    assert [folder.name for folder in complete_checkpoints(killed)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    assert not (killed / "run.json").exists()
    train_recipe(load_recipe(config), killed, resume=True)
    train_recipe(load_recipe(config), straight)
    assert_same_checkpoint(killed / "checkpoint-14", straight / "checkpoint-14")
    assert_same_state(load_file(killed / "model.safetensors"), load_file(straight / "model.safetensors"))
