"""Published code, and code in folders, runs in a process that cannot import this package."""

import pytest
import torch
from diffusers import DiffusionPipeline

from hf_latentgen import LatentGenPipeline
from hf_latentgen.hub.code import save_with_code
from hf_latentgen.rows.command import publish_command
from pipelines_common import make_pipe

MODELS = ("vae", "vlae", "aae", "aae-classifier", "local-text", "local-image")
PIPELINES = ("vae", "classifier", "classes", "prior")
PIPELINE = {
    ".gitattributes",
    "README.md",
    "denoiser/config.json",
    "denoiser/diffusion_pytorch_model.safetensors",
    "model/config.json",
    "model/model.safetensors",
    "model_index.json",
    "processor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
}
CODE = {
    "denoiser/modeling_latent_denoiser.py",
    "model/modeling_vae.py",
    "pipeline.py",
    "processor/image_processing_levels.py",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def draw(pipe, count):
    pipe.set_progress_bar_config(disable=True)
    return pipe(count, torch.Generator().manual_seed(0), output_type="pt").images


@pytest.fixture(scope="module")
def ran(run_client, repository, rows, tmp_path_factory):
    """Folder with pipelines saved with their code, those saved again by the process, and what the process printed."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name in MODELS:
        publish_command(str(rows / name), f"ada/{name}-code", with_code=True)
    prior = repository / "model_cards" / "prior_vae_mnist"
    publish_command(str(prior), "ada/prior-code", with_code=True)
    torch.save(draw(LatentGenPipeline.from_pretrained(prior), 4), folder / "prior-code.pt")
    for name in PIPELINES:
        pipe = make_pipe(name)
        save_with_code(pipe, folder / name)
        torch.save(draw(pipe, 3), folder / f"{name}.pt")
    modules = str(tmp_path_factory.mktemp("modules"))
    arguments = (folder, ",".join(MODELS), ",".join(PIPELINES))
    return folder, run_client("without_package", *arguments, HF_MODULES_CACHE=modules)


def test_models_and_pipelines_load_by_the_snippets_of_their_cards(ran):
    loaded = [line.removeprefix("loaded ") for line in ran[1].splitlines() if line.startswith("loaded ")]
    assert loaded == [*MODELS, "prior-code", *PIPELINES]


def test_a_pipeline_pushed_from_there_has_its_code_and_a_card(hub, ran):
    files = hub.files("ada/pushed-without-package")
    assert set(files) == PIPELINE | CODE
    card = files["README.md"].decode()
    assert 'LatentGenPipeline.from_pretrained("ada/pushed-without-package")' in card
    assert "[More Information Needed]" not in card


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_saved_from_there_keeps_its_code(ran, name):
    first, second = (
        {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
        for folder in (ran[0] / name, ran[0] / f"{name}-saved")
    )
    assert first
    assert first == second


@pytest.mark.parametrize("name", PIPELINES)
def test_with_the_package_the_code_in_the_folder_needs_no_trust(ran, name):
    folder = ran[0] / name
    assert torch.equal(draw(LatentGenPipeline.from_pretrained(folder), 3), torch.load(ran[0] / f"{name}.pt"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder)
