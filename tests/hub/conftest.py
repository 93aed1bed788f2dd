"""One Hub for the tests of a file, and a client of it in this process; child processes where those are the point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session
from transformers.utils import hub as transformers_hub

from hub_common import make_families, write_row
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
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(hf_api.api, "endpoint", hub.url)
        patch.setattr(transformers_hub, "_hf_api", None)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        pattern = constants.HUGGINGFACE_CO_URL_TEMPLATE[len(os.environ.get("HF_ENDPOINT", "https://huggingface.co")) :]
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + pattern)
        patch.setenv("HF_TOKEN", ADA)
        close_session()
        yield folder
        close_session()


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
