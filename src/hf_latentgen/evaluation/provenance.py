"""Where a number comes from: hardware, versions and commit, as recorded in run.json and results.json."""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path

import torch

from hf_latentgen.data.sources import DATA_DIR_VARIABLE
from hf_latentgen.evaluation.results import FILE, Results
from hf_latentgen.hub.files import read_json

RECORD = "run.json"
# All that is known of how a checkpoint came about, and the keys of a `run.json` that say it.
PROVENANCE = (
    *("train_command", "config", "overrides", "seed", "reference", "training", "history", "train_seconds", "hardware"),
    *("versions", "git_commit"),
)
# Options that others have no use for.
LEFT_OUT = ("--data-dir", "--output-dir", "--budget")
PACKAGES = ("hf-latentgen", "torch", "transformers", "diffusers", "datasets", "accelerate")


def read_record(folder: Path) -> dict:
    """How the checkpoint in a folder came about, by the names of [`Results`]; empty where that is not recorded.

    A training leaves the record in `run.json`; a published row has it in its `results.json`.

    Raises:
        ValueError: the file is damaged.
    """
    if (folder / RECORD).is_file():
        run = read_json(folder / RECORD, "a training writes it", {"row": str, "dataset": dict})
        section = dict(run["dataset"])
        return {**run, "dataset": section.pop("name"), "dataset_options": section}
    if (folder / FILE).is_file():
        known = vars(Results.read(folder))
        return {key: known[key] for key in (*PROVENANCE, "row", "dataset", "dataset_options", "model")}
    return {}


def hardware() -> str:
    """The accelerator, or the processor and the number of threads used."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpu_info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(cpu_info) if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} CPU thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """Version of Python and of each package that a number depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def environment() -> dict[str, str]:
    """What a bug report needs: versions, device, threads, the commit of the package, and where data is looked for."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return {
        **versions(),
        "git commit": git_commit(),
        "platform": platform.platform(),
        "device": str(device),
        "hardware": hardware(),
        DATA_DIR_VARIABLE: os.environ.get(DATA_DIR_VARIABLE, "not set"),
    }


def public_command(words: Sequence[str]) -> str:
    """The command of these words as others can type it: folders of this machine are left out or lose their paths.

    So is a budget of time, from which another machine would draw other conclusions.
    """
    kept, is_left_out = ["hf-latentgen"], False
    for word in words:
        if is_left_out or word in LEFT_OUT:
            is_left_out = not is_left_out
        elif not word.startswith(tuple(f"{option}=" for option in LEFT_OUT)):
            # The value of an override, or the word itself.
            key, equals, value = word.rpartition("=")
            kept.append(f"{key}{equals}{_public_path(value)}")
    return shlex.join(kept)


def option_value(command: str, option: str) -> str | None:
    """What follows an option in a recorded command, or None."""
    words = shlex.split(command)
    return words[words.index(option) + 1] if option in words else None


def _public_path(word: str) -> str:
    """A path below the current folder relative to it, any other absolute one by its name; other words as they are."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)


def git_commit() -> str:
    """The commit of this package's source tree, marked "-dirty" when tracked files differ from it, or "unknown".

    A package that was installed from git tells the commit that pip recorded. One that lies in somebody else's
    repository, such as a virtual environment in a folder under git, does not take that one's commit for its own.
    """
    recorded = json.loads(distribution("hf-latentgen").read_text("direct_url.json") or "{}")
    if commit := recorded.get("vcs_info", {}).get("commit_id"):
        return commit
    package = Path(__file__).resolve().parents[1]
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or package != Path(top).resolve() / "src" / package.name:
        return "unknown"
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


def _git(folder: Path, *words: str) -> str:
    """What git says in a folder, or nothing where there is no git or no repository."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
