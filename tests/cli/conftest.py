"""A command in the process of the tests, in a folder of its own, and a checkpoint for it."""

import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from hf_latentgen.families import inputs
from hf_latentgen_cli import app
from rows_common import load_few, save_vae, write_run

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


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The folder from which commands run, with a recipe."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch):
    """Runs the words of a command. Returns what it printed, once the exit code is as expected."""

    def run(words, code=0):
        arguments = shlex.split(words)
        monkeypatch.setattr("sys.argv", ["hf-latentgen", *arguments])
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return run


@pytest.fixture
def refused(command):
    """Runs the words of a command that must end with one line that says why. Returns it."""

    def run(words):
        # transformers and diffusers may have logged something before, and a progress bar may stand in front.
        (line,) = re.findall("error: .+", command(words, code=1))
        return line

    return run


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A checkpoint as a training leaves it."""
    folder = save_vae(tmp_path_factory.mktemp("runs") / "vae_small")
    write_run(folder)
    return folder


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(inputs, "load_images", load_few)


@pytest.fixture
def checkpoint(vae, here):
    """A copy of it to change."""
    return shutil.copytree(vae, here / "runs" / "vae_small")
