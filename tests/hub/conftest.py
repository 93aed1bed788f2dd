"""One Hub for the tests of a file, and a client of it in this process; child processes where those are the point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_common import client_of, make_families, write_row
from hub_server import Hub

ADA, BOB = "hf_ada", "hf_bob"
CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def hub():
    hub = Hub({ADA: ["ada", "hf-latentgen"], BOB: ["bob"]})
    hub.server.start()
    yield hub
    hub.server.stop()


@pytest.fixture(scope="module", autouse=True)
def cache(hub, tmp_path_factory):
    """The client of this process talks to the Hub of the tests, with a cache of its own: its folder."""
    with client_of(hub.url, ADA, tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub.server.faults = []


@pytest.fixture(scope="module")
def families():
    return make_families()


@pytest.fixture(scope="module")
def rows(families, tmp_path_factory):
    """A folder with a row of each family, which no test may change."""
    folder = tmp_path_factory.mktemp("rows")
    for name, family in families.items():
        write_row(folder / name, family)
    return folder


@pytest.fixture(scope="module")
def run_client(hub, repository, tmp_path_factory):
    """Runs a script of `clients/` in an environment in which no client of the Hub has ever run. Returns its output."""

    def run(name: str, *arguments: object, **environment: str) -> str:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "HF_TOKEN"))}
        own = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_TOKEN": ADA,
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
        assert "require the following packages" not in result.stderr
        return result.stdout

    return run
