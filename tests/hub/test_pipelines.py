"""A latent prior, which is a pipeline of several parts, goes to a Hub and comes back."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel

from hf_latentgen import LatentGenPipeline, LatentTrainingArguments, LevelsDataset, load
from hf_latentgen.data import load_images
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.rows.command import publish_command
from hf_latentgen.training.latent_prior import PriorTrainer, encoded
from hub_common import assert_same_weights
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
PART = {"subfolder": "model"}
pytestmark = [
    pytest.mark.timeout(300),
    # The client itself raises it, of the library beneath.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def published(hub, repository, tmp_path_factory):
    """The row, with more beside it than may be published, has been published with its code."""
    row = tmp_path_factory.mktemp("pipeline") / "prior_vae_mnist"
    shutil.copytree(repository / "model_cards" / "prior_vae_mnist", row)
    for name in ("run.json", "notes.md", "model/pytorch_model.bin", "denoiser/optimizer.pt", "model/evil.py"):
        (row / name).write_text("not to be published")
    publish_command(str(row), "ada/prior-code", with_code=True)
    return row


def draw(**options):
    pipe = LatentGenPipeline.from_pretrained("ada/prior-code", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe(4, torch.Generator().manual_seed(0), output_type="pt").images


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


def test_what_was_published_draws_what_the_row_draws_from_the_hub_and_from_the_cache(published, monkeypatch):
    row = LatentGenPipeline.from_pretrained(published)
    row.set_progress_bar_config(disable=True)
    expected = row(4, torch.Generator().manual_seed(0), output_type="pt").images
    assert torch.equal(draw(), expected)
    assert torch.equal(draw(local_files_only=True), expected)
    assert draw(torch_dtype=torch.float64).shape == expected.shape
    assert_same_weights(load("ada/prior-code").denoiser, row.denoiser)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(draw(), expected)


def test_a_pushed_pipeline_has_a_short_card_of_its_own(hub, published):
    LatentGenPipeline.from_pretrained(published).push_to_hub("ada/pushed", private=True)
    files = hub.files("ada/pushed")
    assert set(files) == PIPELINE
    assert hub.repositories["models", "ada/pushed"].private
    card = files["README.md"].decode()
    assert "library_name: diffusers" in card
    assert 'LatentGenPipeline.from_pretrained("ada/pushed")' in card
    assert "[More Information Needed]" not in card


def test_damaged_weights_of_a_pipeline_are_noticed(hub, published, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.server.faults = [Fault("GET", "ada/prior-code/model/model.safetensors", "corrupt")]
    for loader, options in ((load, {}), (LatentGenPipeline.from_pretrained, {}), (AutoModel.from_pretrained, PART)):
        with pytest.raises(OSError, match=r"^model.safetensors of ada/prior-code is damaged: its SHA-256 is \w+, the "):
            loader("ada/prior-code", **options)


def test_a_part_of_a_pipeline_loads_alone(hub, published, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert_same_weights(AutoModel.from_pretrained("ada/prior-code", **PART), load(published, device="cpu").model)
    assert not list(tmp_path.rglob("diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("loader", [load, LatentGenPipeline.from_pretrained])
def test_what_is_no_checkpoint_is_named(hub, loader):
    hub.put("ada/empty", {"notes.txt": b""})
    with pytest.raises(FileNotFoundError, match=r"models--ada--empty.*config.json does not exist"):
        loader("ada/empty")
    with pytest.raises(OSError, match="^/nowhere/at/all is neither a folder nor a name on the Hub"):
        loader("/nowhere/at/all")


def test_a_trainer_pushes_the_pipeline_and_its_card(hub, families, tmp_path):
    autoencoder, processor, *_ = families["vae"]
    latents = encoded(autoencoder, LevelsDataset(load_images("digits", "validation").select(range(64)), processor))
    arguments = LatentTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="epoch",
        ema_decay=0.5,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=True,
        hub_model_id="ada/prior",
    )
    trainer = PriorTrainer(
        LatentDenoiser(2, hidden_size=8, num_blocks=1),
        arguments,
        autoencoder=autoencoder,
        train_dataset=latents,
        eval_dataset=latents,
        processing_class=processor,
    )
    trainer.train()
    oid = trainer.push_to_hub().oid
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
    pipe = LatentGenPipeline.from_pretrained("ada/prior")
    assert_same_weights(pipe.model, autoencoder)
    with trainer.evaluated_weights():
        assert_same_weights(pipe.denoiser, trainer.model)
