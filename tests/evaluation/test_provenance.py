"""Where a number comes from."""

import json
import subprocess
from importlib.metadata import version
from unittest.mock import Mock

import pytest

from hf_latentgen.evaluation import provenance
from hf_latentgen.evaluation.provenance import environment, git_commit, hardware, public_command, versions


@pytest.fixture
def git(tmp_path):
    """Runs git in a new repository."""

    def run(*words):
        identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        command = ["git", "-C", tmp_path, *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "-q")
    return run


@pytest.fixture
def place(tmp_path, monkeypatch, git):
    """Puts the package into a folder of the repository, as far as it can tell, and commits it."""

    def put(folder, recorded=None):
        file = tmp_path / folder / "hf_latentgen" / "evaluation" / "provenance.py"
        file.parent.mkdir(parents=True)
        file.write_text("")
        git("add", ".")
        git("commit", "-qm", "all")
        monkeypatch.setattr(provenance, "__file__", str(file))
        known = Mock(read_text=Mock(return_value=recorded))
        monkeypatch.setattr(provenance, "distribution", Mock(return_value=known))
        return file

    return put


def test_the_commit_is_that_of_the_clone(place, git):
    file = place("src")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    file.write_text("changed")
    assert git_commit() == f"{commit}-dirty"


def test_the_commit_of_a_foreign_repository_is_not_told(place):
    place(".venv/lib/python3.11/site-packages")
    assert git_commit() == "unknown"


def test_a_clone_within_a_foreign_repository_is_not_taken_for_it(place):
    place("vendored/src")
    assert git_commit() == "unknown"


def test_what_pip_installed_from_git_tells_its_commit(place):
    recorded = {"url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "f" * 40}}
    place(".venv/lib/python3.11/site-packages", json.dumps(recorded))
    assert git_commit() == "f" * 40


def test_without_git_there_is_no_commit(place, monkeypatch):
    place("src")
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "unknown"


def test_versions_and_hardware():
    assert versions()["torch"] == version("torch")
    assert {"python", "hf-latentgen", "transformers"} <= versions().keys()
    assert "CPU thread" in hardware() or " x " in hardware()
    assert environment().items() >= versions().items()


def test_a_command_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "vae_digits",
        f"dataset.name={tmp_path.parent / 'photos'}",
        "--from",
        str(tmp_path / "runs" / "a"),
    ]
    words += ["--data-dir", "/data", "--output-dir=/out", "training.seed=1"]
    assert public_command(words) == "hf-latentgen train vae_digits dataset.name=photos --from runs/a training.seed=1"
