"""One Hub for the tests of a file, and its clients: child processes with a fresh cache and a fake token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Hub

ADA, BOB = "hf_ada", "hf_bob"
CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def hub():
    hub = Hub({ADA: ["ada", "hf-latentgen"], BOB: ["bob"]})
    hub.server.start()
    yield hub
    hub.server.stop()


@pytest.fixture(scope="module")
def run_client(hub, repository, tmp_path_factory):
    """Runs a script of `clients/` in an environment in which no client of the Hub has ever run. Returns its output."""

    def run(name: str, *arguments: object, home: Path | None = None, token: str = ADA, **environment: str) -> str:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "HF_TOKEN"))}
        own = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home or tmp_path_factory.mktemp("home")),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join([str(repository / "src"), str(repository / "tests")]),
        }
        command = [sys.executable, CLIENTS / f"{name}.py", *map(str, arguments)]
        result = subprocess.run(
            command,
            env=inherited | own | environment,
            cwd=tmp_path_factory.mktemp("cwd"),
            capture_output=True,
            text=True,
            timeout=580,
        )
        assert result.returncode == 0, f"{name} failed:\n{result.stdout}\n{result.stderr}"
        return result.stdout

    return run
