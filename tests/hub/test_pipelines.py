"""A latent prior, which is a pipeline of several parts, goes to a Hub and comes back."""

import json
import shutil

import pytest

from hub_http import Fault

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
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def published(run_client, repository, tmp_path_factory):
    """The row with more beside it than may be published has been published; the file with what was drawn from it."""
    folder = tmp_path_factory.mktemp("pipeline")
    row = shutil.copytree(repository / "model_cards" / "prior_vae_mnist", folder / "prior_vae_mnist")
    for name in ("run.json", "notes.md", "model/pytorch_model.bin", "denoiser/optimizer.pt", "model/evil.py"):
        (row / name).write_text("not to be published")
    run_client("publish_pipeline", repository, row, folder / "drawn.pt")
    return folder / "drawn.pt"


def test_a_pipeline_is_published_in_one_commit_with_what_the_list_allows(hub, published):
    files = set(hub.files("ada/prior-code"))
    pictures = {name for name in files if name.startswith("images/")}
    assert "images/samples.png" in pictures
    assert files - pictures == PIPELINE | CODE
    assert len(hub.commits("ada/prior-code")) == 2


def test_the_card_pins_the_code_by_a_tag_of_the_commit(hub, published):
    references = hub.repositories["models", "ada/prior-code"].refs
    ((tag, oid),) = [(name, oid) for name, oid in references.items() if name.startswith("refs/tags/")]
    assert oid == references["refs/heads/main"]
    card = hub.files("ada/prior-code")["README.md"].decode()
    assert f'repo_id, revision = "ada/prior-code", "{tag.removeprefix("refs/tags/")}"\n' in card
    assert "with diffusers and transformers alone" in card


def test_it_loads_and_is_pushed_with_its_code_where_the_package_is_missing(hub, run_client, published):
    run_client("load_pipeline_with_code", published)
    files = hub.files("ada/pushed-without-package")
    assert set(files) == PIPELINE | CODE
    card = files["README.md"].decode()
    assert 'LatentGenPipeline.from_pretrained("ada/pushed-without-package")' in card
    assert "[More Information Needed]" not in card


def test_a_pushed_pipeline_has_a_short_card_of_its_own(hub, published):
    files = hub.files("ada/pushed")
    assert set(files) == PIPELINE
    assert hub.repositories["models", "ada/pushed"].private
    card = files["README.md"].decode()
    assert "library_name: diffusers" in card
    assert 'LatentGenPipeline.from_pretrained("ada/pushed")' in card
    assert "[More Information Needed]" not in card


def test_damaged_weights_of_a_pipeline_are_noticed(hub, run_client, published):
    hub.put("ada/empty", {"notes.txt": b""})
    hub.server.faults = [Fault("GET", "ada/prior-code/model/model.safetensors", "corrupt")]
    run_client("load_damaged_pipeline")


def test_a_trainer_pushes_the_pipeline_and_its_card(hub, run_client, tmp_path):
    oid = run_client("train_prior", tmp_path / "run").splitlines()[-1]
    commits = hub.commits("ada/prior")
    assert [commit.title for commit in commits] == [
        "initial commit",
        "Training in progress, step 2",
        "Training in progress, step 4",
    ]
    assert commits[-1].oid == oid
    files = hub.files("ada/prior")
    assert set(files) == PIPELINE
    assert json.loads(files["model_index.json"])["denoiser"][1] == "LatentDenoiser"
    card = files["README.md"].decode()
    assert "library_name: diffusers" in card
    assert 'LatentGenPipeline.from_pretrained("ada/prior")' in card
    assert "velocity_mse" in card
