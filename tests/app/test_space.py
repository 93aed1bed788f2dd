"""The folder of the Space: its front matter is what the Hub accepts, and its versions are the tested ones."""

import ast
import runpy
from importlib.metadata import requires, version

import pytest
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# All that the Hub takes; another one is refused when the Space is pushed.
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def space(repository):
    return repository / "space"


@pytest.fixture(scope="module")
def front_matter(space):
    return RepoCard.load(space / "README.md", repo_type="space").data.to_dict()


@pytest.fixture(scope="module")
def pins(repository):
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name: next(iter(pin.specifier)).version for pin in pinned}


def test_the_front_matter_is_what_the_hub_accepts(front_matter, space):
    assert front_matter["sdk"] == "gradio"
    assert front_matter["license"] == "apache-2.0"
    assert {front_matter["colorFrom"], front_matter["colorTo"]} <= COLORS
    assert 0 < len(front_matter["short_description"]) <= 60
    assert front_matter["title"]
    assert len(front_matter["emoji"]) == 1
    ast.parse((space / front_matter["app_file"]).read_text(encoding="utf-8"))


def test_the_versions_are_the_tested_ones(front_matter, space, pins):
    assert front_matter["sdk_version"] == pins["gradio"]
    # A number would lose the zero of 3.10.
    assert front_matter["python_version"] == "3.11"
    lines = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {Requirement(line).name: Requirement(line) for line in lines if line and line[0] not in "#-"}
    assert "gradio" not in required
    assert required["hf-latentgen"].specifier.contains(version("hf-latentgen"))
    # Without its extras the package would take the newest version of each dependency, whatever that breaks.
    runtime = {canonicalize_name(need.name) for need in map(Requirement, requires("hf-latentgen")) if not need.marker}
    assert "torch" in runtime
    assert set(required) - {"hf-latentgen"} == runtime
    assert {name: str(required[name].specifier) for name in runtime} == {name: f"=={pins[name]}" for name in runtime}


def test_its_models_are_rows_that_are_loaded_before_it_starts(front_matter, repository):
    models = front_matter["models"]
    assert models == front_matter["preload_from_hub"]
    assert len(set(models)) == len(models)
    for model in models:
        namespace, row = model.split("/")
        assert namespace == "hf-latentgen"
        assert (repository / "configs" / f"{row}.yaml").is_file()


def test_the_program_serves_the_models_of_the_front_matter(front_matter, space, monkeypatch):
    pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[app]"')
    served = []
    monkeypatch.setattr("hf_latentgen.app.checkpoints.load_checkpoints", lambda names: names)
    monkeypatch.setattr("hf_latentgen.app.interface.build", lambda checkpoints: checkpoints)
    monkeypatch.setattr("hf_latentgen.app.interface.launch", served.append)
    runpy.run_path(str(space / "app.py"))
    assert served == [front_matter["models"]]
