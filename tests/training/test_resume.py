import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from hf_latentgen import LatentTrainingArguments
from hf_latentgen.data import load_images, stream_levels
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.training.resume import (
    PARTS,
    SETTINGS,
    TRAINING_WEIGHTS,
    check_resumed_settings,
    complete_checkpoints,
    last_good_checkpoint,
    record_part,
)
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
        (3, {"muon_learning_rate": 1e-2}),
        (3, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}),
        (3, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (4, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
    ],
    ids=[
        *("epochs-end", "mid-epoch", "mid-epoch-without-averaging", "mid-epoch-with-muon"),
        "mid-epoch-with-accumulation",
        *("mid-epoch-with-persistent-workers", "epochs-end-with-persistent-workers"),
    ],
)
def test_resumed_training_is_bit_identical(make_trainer, tmp_path, step, extra):
    common = {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "kl_warmup_steps": 6, "seed": 7}
    common |= {"save_strategy": "steps", "save_steps": 1, **extra}
    resumed = assert_resumed_is_straight(make_trainer, tmp_path, step, common)
    assert not (resumed / "samples" / "samples_epoch_000.png").exists()


@pytest.mark.parametrize(
    ("step", "extra"),
    [
        (2, {}),
        (5, {}),
        (6, {}),
        (6, {"save_strategy": "epoch", "eval_strategy": "epoch"}),
        (5, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (6, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (5, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "ema_decay": 0.8}),
    ],
    ids=[
        *("first-pass", "mid-pass", "passes-end", "passes-end-saved-by-epoch"),
        *("mid-pass-with-persistent-workers", "passes-end-with-persistent-workers", "mid-pass-with-accumulation"),
    ],
)
def test_resumed_training_on_a_stream_is_bit_identical(make_trainer, processor, tmp_path, step, extra):
    # Three batches a pass, of which the last holds 5 images; with accumulation three steps, which leave 3 images out.
    images = load_images("digits", "train").select(range(21))
    options = {"max_steps": 8, "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 1, **extra}

    def make(folder, **arguments):
        trainer = make_trainer(folder, **arguments)
        stream = images.to_iterable_dataset().shuffle(seed=1, buffer_size=10)
        trainer.train_dataset = stream_levels(stream, processor)
        return trainer

    assert_resumed_is_straight(make, tmp_path, step, options)


def test_passes_over_a_stream_are_shuffled_anew_and_leave_short_steps_out(make_trainer, processor):
    images = load_images("digits", "train").select(range(21))
    trainer = make_trainer(max_steps=7, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    stream = images.to_iterable_dataset().shuffle(seed=1, buffer_size=21)
    trainer.train_dataset = stream_levels(stream, processor)
    seen = []
    model = trainer.model
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True)
    trainer.train()
    assert [len(batch) for batch in seen] == [3] * 14
    first, second = torch.cat(seen[:6]), torch.cat(seen[6:12])
    assert not torch.equal(first, second)
    assert len(first.flatten(1).unique(dim=0)) == len(second.flatten(1).unique(dim=0)) == 18


def test_a_stream_is_not_resumed_as_something_else(make_trainer, processor, checkpoint):
    resumed = make_trainer(max_steps=2, ema_decay=0.5)
    stream = load_images("digits", "train").select(range(21)).to_iterable_dataset()
    resumed.train_dataset = stream_levels(stream, processor)
    with pytest.raises(ValueError, match="train_dataset must be data of known length, got a stream"):
        resumed.train(resume_from_checkpoint=str(checkpoint))


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


@pytest.fixture
def checkpoint(make_trainer, tmp_path):
    """The first checkpoint of a training with averaged weights, of two steps."""
    make_trainer(max_steps=2, save_strategy="steps", save_steps=1, ema_decay=0.5).train()
    return tmp_path / "run" / "checkpoint-1"


@pytest.mark.parametrize(
    ("setting", "before", "value"),
    [
        ("learning_rate", 0.01, 0.3),
        ("ema_decay", 0.5, 0.0),
        ("seed", 42, 43),
        ("per_device_train_batch_size", 16, 8),
        ("lr_scheduler_type", "linear", "cosine"),
        ("world_size", 1, 2),
    ],
)
def test_other_settings_are_refused_by_name(make_trainer, checkpoint, monkeypatch, setting, before, value):
    if setting == "world_size":
        resumed = make_trainer(max_steps=4, ema_decay=0.5)
        monkeypatch.setattr(LatentTrainingArguments, "world_size", value)
    else:
        resumed = make_trainer(**({"max_steps": 4, "ema_decay": 0.5} | {setting: value}))
    with pytest.raises(ValueError, match=f"checkpoint-1 under other settings: {setting} must be {before!r}, got "):
        resumed.train(resume_from_checkpoint=str(checkpoint))


def test_how_long_and_what_is_logged_and_saved_may_change(make_trainer, checkpoint, tmp_path):
    words = {"logging_steps": 3, "eval_strategy": "epoch", "save_steps": 2, "save_total_limit": 1, "sample_epochs": [2]}
    resumed = make_trainer("elsewhere", num_train_epochs=2, ema_decay=0.5, save_strategy="steps", **words)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 8
    # Settings that another version of transformers does not know are compared with nothing.
    settings = json.loads((checkpoint / SETTINGS).read_text())
    settings["settings"] |= {"gone": 1}
    settings["settings"].pop("adam_epsilon")
    (checkpoint / SETTINGS).write_text(json.dumps(settings))
    check_resumed_settings(resumed.args, checkpoint)
    assert "hub_token" not in settings["settings"]
    assert str(tmp_path) not in json.dumps(settings)


def test_incomplete_checkpoints_are_refused_by_file(make_trainer, checkpoint, tmp_path):
    resumed = make_trainer(max_steps=2, ema_decay=0.5)
    for name in ("model.safetensors", TRAINING_WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", SETTINGS):
        # The settings are written whole before the file that makes a checkpoint complete.
        for kind in ("missing", "cut")[: 1 if name == SETTINGS else 2]:
            copy = shutil.copytree(checkpoint, tmp_path / f"{kind}-{name}")
            if kind == "cut":
                os.truncate(copy / name, (copy / name).stat().st_size - 10)
            else:
                (copy / name).unlink()
            with pytest.raises(ValueError, match=f"cannot resume from {copy}: .*{name}"):
                resumed.train(resume_from_checkpoint=str(copy))


def part(step, **changes):
    dataset, model = {"name": "digits"}, {"latent_dim": 2, "hidden_channels": (8, 8)}
    return {"first_step": step, "dataset": dataset, "model": model, "training": {"seed": 0}} | changes


def test_parts_of_a_training_are_told(tmp_path):
    assert [entry["first_step"] for entry in record_part(tmp_path, part(0))] == [0]
    record_part(tmp_path, part(20))
    # Started again from an earlier checkpoint, and once more by another process of the same training.
    for _ in range(2):
        parts = record_part(tmp_path, part(10, training={"max_steps": 30}))
        assert [entry["first_step"] for entry in parts] == [0, 10]
    assert parts[1]["training"] == {"max_steps": 30}
    assert [entry["first_step"] for entry in record_part(tmp_path, part(0))] == [0]


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("dataset", {"name": "mnist"}, "dataset.name must be 'digits', as when it began, got 'mnist'"),
        ("dataset", {"name": "digits", "streaming": True}, "dataset.streaming must be None, .* got True"),
        ("model", {"latent_dim": 3, "hidden_channels": [8, 8]}, "model.latent_dim must be 2, .* got 3"),
    ],
)
def test_another_data_set_or_model_is_refused_by_name(tmp_path, section, value, message):
    record_part(tmp_path, part(0))
    with pytest.raises(ValueError, match=message):
        record_part(tmp_path, part(10, **{section: value}))
    assert [entry["first_step"] for entry in record_part(tmp_path, part(10))] == [0, 10]


def test_a_resumed_part_needs_the_first(tmp_path):
    with pytest.raises(ValueError, match=f"{PARTS}, .*, is missing"):
        record_part(tmp_path, part(10))


def test_complete_checkpoints_are_those_written_to_their_end(tmp_path):
    assert complete_checkpoints(tmp_path / "missing") == []
    for step, text in ((2, "{}"), (10, '{"epoch": 1}'), (9, "{}"), (11, ""), (12, '{"epoch": 1'), (13, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    # Somebody's own.
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    # Without weights none is good.
    assert last_good_checkpoint(tmp_path) is None
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
            # A file that is there need not be whole yet.
            while killed / "checkpoint-10" not in complete_checkpoints(killed) and child.poll() is None:
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
