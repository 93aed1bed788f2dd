import json
import runpy
import shlex
import sys

import pytest
from safetensors.torch import load_file

RECIPE = """
dataset: {name: digits}
model: {architecture: mlp, image_size: 8, latent_dim: 2, hidden_channels: [8]}
training:
  max_steps: 2
  per_device_train_batch_size: 32
  save_strategy: steps
  save_steps: 1
  disable_tqdm: true
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def train(repository, monkeypatch):
    """Runs scripts/train.py with the given words."""

    def run(words):
        script = str(repository / "scripts" / "train.py")
        monkeypatch.setattr(sys, "argv", [script, *shlex.split(words)])
        runpy.run_path(script, run_name="__main__")

    return run


def test_trains_resumes_and_starts_from_the_result(train, recipe, tmp_path, capsys):
    train("small.yaml training.seed=1 --output_dir runs/a training.logging_steps=1")
    assert capsys.readouterr().out.endswith("trained model, image processor and run.json: runs/a\n")
    run = json.loads((tmp_path / "runs/a/run.json").read_text())
    assert run["seed"] == 1
    assert run["train_command"] == "python scripts/train.py small.yaml training.seed=1 training.logging_steps=1"
    assert (tmp_path / "runs/a/preprocessor_config.json").is_file()

    train("small.yaml training.seed=1 training.max_steps=3 --output_dir runs/a --resume")
    assert (tmp_path / "runs/a/checkpoint-3").is_dir()

    train("small.yaml --from runs/a training.learning_rate=0.0")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("runs/a", "runs/small"))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("missing.yaml", "error: no recipe at missing.yaml"),
        ("small.yaml training.lr=1", "error: unknown key training.lr; the nearest valid key is training."),
        ("small.yaml training.seed", "error: an override must have the form section.key=value"),
        ("small.yaml --resume", "error: cannot resume: runs/small holds no complete checkpoint"),
        (
            "small.yaml dataset.name=mnist --data_dir nowhere",
            "error: data_dir .* must be an existing folder, got 'nowhere'",
        ),
        ("small.yaml --output_dir small.yaml", "error: the output folder small.yaml is not writable"),
        ("small.yaml --from nowhere", "error: cannot load a model from nowhere: "),
        ("small.yaml model.latent_dim=0", "error: (?s:.*)latent_dim must be at least 1, got 0"),
    ],
)
def test_mistakes_end_with_one_line(train, recipe, tmp_path, words, complaint):
    with pytest.raises(SystemExit, match=complaint) as ending:
        train(words)
    assert isinstance(ending.value.code, str)
    assert not (tmp_path / "runs" / "small" / "model.safetensors").exists()


@pytest.mark.parametrize("words", ["", "small.yaml --unknown"])
def test_words_that_cannot_be_parsed(train, recipe, words, capsys):
    with pytest.raises(SystemExit) as ending:
        train(words)
    assert ending.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help(train, capsys):
    with pytest.raises(SystemExit) as ending:
        train("--help")
    assert ending.value.code == 0
    assert "--from" in capsys.readouterr().out
