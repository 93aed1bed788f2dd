import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.training.trainer import TRAINING_WEIGHTS, complete_checkpoints
from training_common import assert_resumed_is_straight, assert_same_checkpoint, assert_same_state, steps_of

RECIPE = """
dataset: {name: digits}
model: {architecture: mlp, image_size: 8, latent_dim: 2, hidden_channels: [16]}
training:
  # 11 steps an epoch.
  max_steps: 60
  per_device_train_batch_size: 128
  per_device_eval_batch_size: 200
  learning_rate: 0.01
  lr_scheduler_type: cosine
  kl_warmup_steps: 50
  ema_decay: 0.9
  eval_strategy: steps
  eval_steps: 10
  save_strategy: steps
  save_steps: 5
  logging_steps: 1
"""


@pytest.mark.parametrize(
    ("step", "extra"),
    [
        (4, {"save_strategy": "epoch", "eval_strategy": "epoch", "ema_decay": 0.8}),
        (3, {"eval_strategy": "steps", "eval_steps": 2, "ema_decay": 0.8}),
        (3, {"sample_epochs": [0, 1]}),
        (3, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}),
    ],
    ids=["epochs-end", "mid-epoch", "mid-epoch-without-averaging", "mid-epoch-with-accumulation"],
)
def test_resumed_training_is_bit_identical(make_trainer, tmp_path, step, extra):
    common = {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "kl_warmup_steps": 6, "seed": 7}
    common |= {"save_strategy": "steps", "save_steps": 1, **extra}
    resumed = assert_resumed_is_straight(make_trainer, tmp_path, step, common)
    assert not (resumed / "samples" / "samples_epoch_000.png").exists()


def test_elapsed_time_goes_on(make_trainer, tmp_path):
    first = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
    first.train()
    state = tmp_path / "run" / "checkpoint-1" / "trainer_state.json"
    content = json.loads(state.read_text())
    content["log_history"][-1]["elapsed_seconds"] = 1000.0
    state.write_text(json.dumps(content))
    resumed = make_trainer(max_steps=2)
    resumed.train(resume_from_checkpoint=str(state.parent))
    assert resumed.state.log_history[-1]["elapsed_seconds"] >= 1000


def test_averaging_cannot_be_switched_on_by_resuming(make_trainer, tmp_path):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=1).train()
    resumed = make_trainer(max_steps=2, ema_decay=0.5)
    with pytest.raises(ValueError, match=rf"ema_decay is 0\.5, but .*checkpoint-1 has no {TRAINING_WEIGHTS}"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_complete_checkpoints_are_those_written_to_their_end(tmp_path):
    assert complete_checkpoints(tmp_path / "missing") == []
    for step, text in ((2, "{}"), (10, '{"epoch": 1}'), (9, "{}"), (11, ""), (12, '{"epoch": 1'), (13, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == [
        "checkpoint-10",
        "checkpoint-9",
        "checkpoint-2",
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_training_resumes_bit_identically(tmp_path, repository, monkeypatch, capsys):
    config = tmp_path / "small.yaml"
    config.write_text(RECIPE)
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    script = str(repository / "scripts" / "train.py")
    command = [sys.executable, script, str(config), "--output-dir", str(killed)]
    with (tmp_path / "output.txt").open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path)
        try:
            while not (killed / "checkpoint-10" / "trainer_state.json").is_file() and child.poll() is None:
                time.sleep(0.005)
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    assert not (killed / "run.json").exists()
    last = complete_checkpoints(killed)[0]
    assert 10 <= int(last.name.split("-")[1]) < 60
    # What a kill in the middle of writing the next checkpoints leaves.
    for name in ("checkpoint-58", "checkpoint-59"):
        shutil.copytree(last, killed / name)
        os.truncate(killed / name / "optimizer.pt", 100)
    (killed / "checkpoint-58" / "trainer_state.json").unlink()
    os.truncate(killed / "checkpoint-59" / "trainer_state.json", 100)

    monkeypatch.setattr(sys, "argv", [script, str(config), "--output-dir", str(killed), "--resume"])
    runpy.run_path(script, run_name="__main__")
    assert str(killed) in capsys.readouterr().out
    train_recipe(load_recipe(config), straight)

    assert_same_checkpoint(killed / "checkpoint-60", straight / "checkpoint-60")
    assert_same_state(load_file(killed / "model.safetensors"), load_file(straight / "model.safetensors"))
    histories = [
        json.loads((folder / "checkpoint-60" / "trainer_state.json").read_text()) for folder in (killed, straight)
    ]
    assert steps_of(histories[0]["log_history"]) == steps_of(histories[1]["log_history"])
    assert len(steps_of(histories[0]["log_history"])) > 60
    records = [json.loads((folder / "run.json").read_text()) for folder in (killed, straight)]
    assert [entry["eval_bits_per_dim"] for entry in records[0]["history"]] == [
        entry["eval_bits_per_dim"] for entry in records[1]["history"]
    ]
