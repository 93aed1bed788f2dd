"""Two CPU processes under `accelerate launch` train an adversarial autoencoder: their replicas stay equal."""

import json

import pytest
import torch
from safetensors.torch import load_file

from training_common import launch_two_processes

# Two interpreters that import torch share what cores there are.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Runs in every process; its argument is the folder of the results.
CHILD = """
import gc, json, sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from hf_latentgen import (
    AAEConfig, AAEForImageClassification, AAEModel, AdversarialTrainer, AdversarialTrainingArguments, LevelsDataset,
    LevelsImageProcessor,
)
from hf_latentgen.data import load_images
from hf_latentgen.training.few_labels import FewLabelsDataset

folder = Path(sys.argv[1])
processor = LevelsImageProcessor(size={"height": 8, "width": 8})
train, validation = (load_images("digits", split) for split in ("train", "validation"))
train = LevelsDataset(train.select(range(64)), processor, with_labels=True)
validation = LevelsDataset(validation.select(range(21)), processor, with_labels=True)


def run(name, model_class, train, **fields):
    torch.manual_seed(0)
    config = AAEConfig(
        architecture="mlp", image_size=8, num_levels=16, latent_dim=2, hidden_channels=(16,), num_labels=10,
        discriminator_channels=(12,), **fields,
    )
    arguments = AdversarialTrainingArguments(
        output_dir=str(folder / name), per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=50,
        learning_rate=1e-2, discriminator_learning_rate=3e-3, logging_steps=10, save_strategy="no", disable_tqdm=True,
        use_cpu=True,
    )
    model = model_class(config)
    initial = {key: weight.clone() for key, weight in model.state_dict().items()}
    trainer = AdversarialTrainer(
        model, arguments, train_dataset=train, eval_dataset=validation, processing_class=processor
    )
    samples = []
    draw = model.prior.sample
    model.prior.sample = lambda *rest: samples.append(draw(*rest)) or samples[-1]
    counted = []
    metrics = trainer.compute_metrics
    trainer.compute_metrics = lambda prediction: (
        counted.append(len(prediction.predictions["reconstruction_loss"])) or metrics(prediction)
    )
    trainer.train()
    rank = arguments.process_index
    drawn = {str(step): sample for step, sample in enumerate(samples)}
    save_file(drawn, folder / f"{name}_samples_{rank}.safetensors")
    scores = trainer.evaluate()
    save_file(model.state_dict(), folder / f"{name}_{rank}.safetensors")
    moved = {key.split(".")[0] for key, weight in model.state_dict().items() if (weight != initial[key]).any()}
    result = {
        "world_size": arguments.world_size,
        "counted": counted,
        "moved": sorted(moved),
        "scores": {key: value for key, value in scores.items() if "per_second" not in key and "runtime" not in key},
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    (folder / f"{name}_{rank}.json").write_text(json.dumps(result))


few = FewLabelsDataset(train, 20, 4, seed=0)
run("game", AAEModel, train, reconstruction_weight=0.9)
run("plain", AAEModel, train, reconstruction_weight=1)
run("limit", AAEModel, train, reconstruction_weight=0)
normed = {"posterior": "gaussian", "class_batch_norm": True}
run("classifier", AAEForImageClassification, few, reconstruction_weight=0.9, **normed)
# As in scripts/train.py.
gc.collect()
PartialState().destroy_process_group()
"""
RUNS = ("game", "plain", "limit", "classifier")
PLAYERS = {
    "game": ["decoder", "discriminator", "encoder"],
    "plain": ["decoder", "encoder"],
    "limit": ["discriminator", "encoder"],
    "classifier": ["class_discriminator", "code_norm", "decoder", "discriminator", "encoder"],
}


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def two_processes(repository, tmp_path_factory):
    """Folder of the results of two processes."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "child.py"
    script.write_text(CHILD)
    launch_two_processes(repository, script, folder)
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_replicas_stay_equal_to_the_last_bit(two_processes, run):
    results = [read(two_processes / f"{run}_{rank}.json") for rank in (0, 1)]
    assert [result["world_size"] for result in results] == [2, 2]
    assert [result["moved"] for result in results] == [PLAYERS[run]] * 2
    first, second = (load_file(two_processes / f"{run}_{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("run", ["game", "limit", "classifier"])
def test_processes_draw_different_samples_of_the_prior(two_processes, run):
    first, second = (load_file(two_processes / f"{run}_samples_{rank}.safetensors") for rank in (0, 1))
    assert len(first) == len(second) == 50
    # A batch of images with a label brings companions.
    shape = (12, 2) if run == "classifier" else (8, 2)
    assert all(first[step].shape == shape and not torch.equal(first[step], second[step]) for step in first)


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_evaluate_each_image_once(two_processes, run):
    results = [read(two_processes / f"{run}_{rank}.json") for rank in (0, 1)]
    assert [result["counted"] for result in results] == [[21], [21]]
    assert results[0]["scores"]["eval_reconstruction_loss"] > 0
    assert ("eval_real_loss" in results[0]["scores"]) == (run != "plain")


def test_logged_parts_are_means_over_both_processes(two_processes):
    for entry in read(two_processes / "game_0.json")["logs"]:
        game = 0.1 * entry["generator_loss"] + entry["discriminator_loss"]
        # The loss of the log is the mean over both, too.
        assert entry["loss"] == pytest.approx(0.9 * entry["reconstruction_loss"] + game, rel=1e-5)
