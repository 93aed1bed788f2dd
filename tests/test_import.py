"""What it costs to import the package, and to ask the command for help."""

import os
import subprocess
import sys

import pytest

import hf_latentgen

# Of training, evaluation and pipelines: a model needs none of them.
HEAVY = (
    "datasets",
    "diffusers",
    "evaluate",
    "matplotlib",
    "pandas",
    "prdc",
    "pyarrow",
    "sklearn",
    "typer",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(repository):
    """Runs a program in a process of its own. Returns the CPU seconds that it took, and what it printed."""

    def start(program, *words):
        command = [sys.executable, "-c", program, *words]
        environment = os.environ | {"PYTHONPATH": str(repository / "src")}
        before = os.times()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        after = os.times()
        assert done.returncode == 0, done.stderr
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        return seconds, done.stdout

    return start


def test_models_need_nothing_of_training_and_evaluation(run):
    program = f"import sys; from hf_latentgen import VAEModel; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(program)[1] == "[]\n"


def test_import_costs_little_more_than_torch_and_transformers(run):
    """Both in one process, one after the other, so that what else the machine does slows both."""
    program = """
import time
start = time.process_time()
import torch, transformers.modeling_utils
theirs = time.process_time() - start
import hf_latentgen
print((time.process_time() - start) / theirs)
"""
    # Another process may have had the caches of the processor for a moment.
    ratios = []
    while not ratios or (ratios[-1] > 1.15 and len(ratios) < 3):
        ratios.append(float(run(program)[1]))
    assert ratios[-1] <= 1.15, ratios


@pytest.mark.timeout(300)
def test_help_comes_at_once(run):
    program = "from hf_latentgen_cli import main; main()"
    seconds, text = min(run(program, "--help") for _ in range(3))
    assert "evaluate" in text
    assert seconds < 1.5


def test_public_names_are_found():
    assert sorted(hf_latentgen.__all__) == hf_latentgen.__all__
    assert all(getattr(hf_latentgen, name) is not None for name in hf_latentgen.__all__)
    assert set(hf_latentgen.__all__) <= set(dir(hf_latentgen))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = hf_latentgen.Nothing
