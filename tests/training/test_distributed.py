"""Two CPU processes under `accelerate launch` are compared with one process on the same global batches."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_latentgen.models import distributions
from training_common import launch_two_processes

# Three interpreters that import torch share what cores there are.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Runs in every process; its arguments are the folder of the results, the batch size of a process, and a script and its
# arguments that are to run after that.
CHILD = """
import json, runpy, sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from hf_latentgen import ELBOTrainer, LatentTrainingArguments, LevelsDataset, LevelsImageProcessor, VAEConfig, VAEModel
from hf_latentgen.data import load_images
from hf_latentgen.models import distributions

folder = Path(sys.argv[1])
standard_normal = distributions.standard_normal
processor = LevelsImageProcessor(size={"height": 8, "width": 8})
train, validation = (load_images("digits", split) for split in ("train", "validation"))
train = LevelsDataset(train.select(range(64)), processor)
validation = LevelsDataset(validation.select(range(21)), processor)


def run(name, noise, **arguments):
    distributions.standard_normal = noise
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(architecture="mlp", image_size=8, latent_dim=2, hidden_channels=[16]))
    arguments = LatentTrainingArguments(
        output_dir=str(folder / name), per_device_eval_batch_size=8, learning_rate=0.5, optim="sgd", max_steps=6,
        logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True, **arguments,
    )
    trainer = ELBOTrainer(
        model, arguments, train_dataset=train, eval_dataset=validation, processing_class=processor
    )
    counted = []
    metrics = trainer.compute_metrics
    trainer.compute_metrics = lambda prediction: counted.append(len(prediction.predictions[0])) or metrics(prediction)
    trainer.train()
    scores = trainer.evaluate()
    save_file(model.state_dict(), folder / f"{name}_{arguments.process_index}.safetensors")
    result = {
        "world_size": arguments.world_size,
        "counted": counted,
        "scores": {key: scores[key] for key in ("eval_loss", "eval_bits_per_dim", "eval_distortion", "eval_rate")},
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "is_sharded": trainer.is_fsdp_enabled,
    }
    (folder / f"{name}_{arguments.process_index}.json").write_text(json.dumps(result))


def no_noise(shape, like, generator=None):
    return torch.zeros_like(like)


drawn = []


def recorded_noise(shape, like, generator=None):
    noise = standard_normal(shape, like, generator)
    if generator is None:
        drawn.append(noise)
    return noise


run("quiet", no_noise, per_device_train_batch_size=int(sys.argv[2]))
run("noisy", recorded_noise, per_device_train_batch_size=int(sys.argv[2]), ema_decay=0.5, sample_epochs=[0])
rank = PartialState().process_index
save_file({str(step): noise for step, noise in enumerate(drawn)}, folder / f"noise_{rank}.safetensors")
if sys.argv[3:]:
    # It ends the group of processes.
    distributions.standard_normal = standard_normal
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    (folder / f"threads_{rank}.json").write_text(json.dumps(threads))
"""


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("child") / "child.py"
    path.write_text(CHILD)
    return path


@pytest.fixture(scope="module")
def two_processes(script, repository, tmp_path_factory):
    """Folder of the results of two processes with batches of 8, which then train a row: one launch for all."""
    folder = tmp_path_factory.mktemp("two")
    row = (repository / "scripts" / "train.py", repository / "configs" / "vae_digits.yaml", "training.max_steps=2")
    output = launch_two_processes(repository, script, folder, "8", *row, "--output-dir", folder / "row")
    (folder / "output.txt").write_text(output)
    return folder


@pytest.fixture
def one_process(script, tmp_path, monkeypatch):
    """Folder of the results of this process with batches of 16."""
    folder = tmp_path / "one"
    folder.mkdir()
    # The child replaces this function, which is put back after the test.
    monkeypatch.setattr(distributions, "standard_normal", distributions.standard_normal)
    monkeypatch.setattr(sys, "argv", ["child.py", str(folder), "16"])
    runpy.run_path(str(script))
    return folder


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="/proc, which names the threads, is Linux's")
@pytest.mark.parametrize("rank", [0, 1])
def test_no_thread_of_the_group_outlives_the_script(two_processes, rank):
    """Such a thread can abort the process while its interpreter ends."""
    threads = read(two_processes / f"threads_{rank}.json")
    assert len(threads) > 0
    assert [name for name in threads if "gloo" in name] == []


def test_two_processes_train_like_one_on_the_same_global_batches(two_processes, one_process):
    one, *two = (read(path) for path in (one_process / "quiet_0.json", *sorted(two_processes.glob("quiet_?.json"))))
    assert [result["world_size"] for result in (one, *two)] == [1, 2, 2]
    for name in ("loss", "distortion", "rate", "bits_per_dim", "grad_norm"):
        expected = [entry[name] for entry in one["logs"]]
        assert len(expected) == 6
        assert [entry[name] for entry in two[0]["logs"]] == pytest.approx(expected, abs=1e-5, rel=1e-5), name
    expected = load_file(one_process / "quiet_0.safetensors")
    for name, weight in load_file(two_processes / "quiet_0.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_two_processes_evaluate_each_image_once(two_processes, one_process):
    one, two = (read(folder / "quiet_0.json") for folder in (one_process, two_processes))
    assert one["counted"] == two["counted"] == [21]
    for name in ("eval_loss", "eval_bits_per_dim", "eval_distortion", "eval_rate"):
        assert two["scores"][name] == pytest.approx(one["scores"][name], abs=1e-5, rel=1e-5), name


@pytest.mark.parametrize("run", ["quiet", "noisy"])
def test_replicas_stay_equal_to_the_last_bit(two_processes, run):
    first, second = (load_file(two_processes / f"{run}_{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_processes_draw_different_noise(two_processes):
    first, second = (load_file(two_processes / f"noise_{rank}.safetensors") for rank in (0, 1))
    assert len(first) == len(second) == 6
    assert all(first[step].shape == (8, 2) and not torch.equal(first[step], second[step]) for step in first)


def test_one_process_draws_the_pictures(two_processes):
    pictures = {path.name for path in (two_processes / "noisy" / "samples").iterdir()}
    assert pictures == {"samples_epoch_000.png", "reconstructions_epoch_000.png"}


def test_a_row_trains_in_two_processes_of_which_one_reports(two_processes):
    output = (two_processes / "output.txt").read_text()
    assert output.count("trained model, its processor and run.json: ") == 1
    assert (two_processes / "row" / "model.safetensors").is_file()
