"""Where a number comes from: hardware, versions and commit, as recorded in run.json and results.json."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("hf-latentgen", "torch", "transformers", "diffusers", "datasets", "accelerate")


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


def git_commit() -> str:
    """The commit of the source tree, marked "-dirty" when tracked files differ from it, or "unknown" outside of one."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return described.stdout.strip() if described.returncode == 0 else "unknown"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
