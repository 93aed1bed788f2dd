"""What is published of a row: only what may be, and only if it is whole and was measured."""

import json
import re
import shutil
import socket
from dataclasses import asdict, replace

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from hf_latentgen import LevelsImageProcessor, VAEConfig, VAEModel
from hf_latentgen.evaluation.anomaly import Calibration
from hf_latentgen.evaluation.results import Results
from hf_latentgen.hub.files import has_weights, weights_sha256
from hf_latentgen.rows.cards import Choices
from hf_latentgen.rows.command import publish_command
from hf_latentgen.rows.publishing import prepare_upload
from hf_latentgen_cli import app
from hub_common import make_results
from rows_common import names

REPO_ID = "someone/small-vae"
PUBLISHED = [
    "README.md",
    "config.json",
    "images/manifold.png",
    "images/samples.png",
    "model.safetensors",
    "preprocessor_config.json",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A row as a training and an evaluation leave it, with more beside it than may be published."""
    folder = tmp_path_factory.mktemp("row")
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(image_size=8, latent_dim=2, hidden_channels=[4, 4, 4]))
    model.save_pretrained(folder)
    LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    make_results(model, row="vae_small").write(folder)
    for name in ("images", "images/private.png", "checkpoint-10", "samples"):
        (folder / name).mkdir()
    for name in ("images/samples.png", "images/manifold.png", "images/private.png/a.png", "samples/b.png"):
        Image.new("L", (8, 8)).save(folder / name)
    for name in ("training_args.bin", "run.json", "notes.md", ".env", "checkpoint-10/optimizer.pt", "images/notes.txt"):
        (folder / name).write_text("not to be published")
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-10" / "model.safetensors")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the row that a test may damage."""
    return shutil.copytree(trained, tmp_path / "row")


def make_calibration(digest):
    return Calibration(
        dataset="digits",
        num_images=2,
        weights_sha256=digest,
        background_sha256=None,
        mean_bits_per_dim=1.0,
        shares=[0.0, 1.0],
        quantiles={"typicality": [0.0, 1.0]},
    )


def test_what_validation_images_score_is_published_with_the_weights(folder):
    make_calibration(weights_sha256(folder)).write(folder)
    assert prepare_upload(folder, REPO_ID).contents["calibration.json"] == folder / "calibration.json"


def test_a_calibration_of_other_weights_or_none_is_refused(folder):
    make_calibration("0" * 64).write(folder)
    with pytest.raises(ValueError, match="weights_sha256 of .*calibration.json must be"):
        prepare_upload(folder, REPO_ID)
    (folder / "calibration.json").write_text("garbage")
    with pytest.raises(ValueError, match="calibration.json"):
        prepare_upload(folder, REPO_ID)


@pytest.fixture
def no_network(monkeypatch):
    """Any connection fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_only_allowed_files_are_published(trained):
    upload = prepare_upload(trained, REPO_ID)
    assert sorted(upload.contents) == PUBLISHED
    left_out = {".env", "checkpoint-10", "notes.md", "results.json", "run.json", "samples", "training_args.bin"}
    assert set(upload.left_out) == left_out


def test_card_is_rendered_for_the_repository(trained):
    upload = prepare_upload(trained, REPO_ID)
    text = upload.contents["README.md"].decode()
    assert f'from_pretrained("{REPO_ID}")' in text
    assert "images/manifold.png" in text
    assert ModelCard(text).data.eval_results[0].metric_value == 1.5
    assert not (trained / "README.md").exists()


def test_sizes_are_those_of_the_files(trained):
    upload = prepare_upload(trained, REPO_ID)
    sizes = upload.sizes()
    assert sizes["model.safetensors"] == (trained / "model.safetensors").stat().st_size
    assert sizes["README.md"] == len(upload.contents["README.md"])


def test_dry_run_lists_files_and_sizes_without_network(trained, no_network, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish_command(str(trained), REPO_ID, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    listed = sorted(line.split()[-1] for line in lines if " bytes  " in line)
    assert listed == PUBLISHED
    size = (trained / "model.safetensors").stat().st_size
    assert f"{size:>12,} bytes  model.safetensors" in lines
    assert lines[-2].startswith("left out: .env, checkpoint-10, ")
    page = tmp_path / "runs" / "to_publish" / "small-vae"
    assert lines[-1] == "the page to look at: runs/to_publish/small-vae/README.md"
    assert (page / "README.md").read_bytes() == prepare_upload(trained, REPO_ID).contents["README.md"]
    assert names(page) == ["README.md", "images", "images/manifold.png", "images/samples.png"]


def test_a_model_of_ones_own_needs_a_licence(folder, no_network):
    replace(Results.read(folder), overrides=["model.latent_dim=2"]).write(folder)
    with pytest.raises(ValueError, match="license must be chosen for .*: --license"):
        prepare_upload(folder, REPO_ID)
    upload = prepare_upload(folder, REPO_ID, choices=Choices(license="mit"))
    data = ModelCard(upload.contents["README.md"].decode()).data
    assert (data.license, data.model_name) == ("mit", "small-vae")


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "a//b", "-a/b", "a/b c", "../b", "a/b.git", "a/" + "b" * 100])
def test_bad_repo_id(trained, repo_id):
    with pytest.raises(ValueError, match=re.escape(repr(repo_id))):
        prepare_upload(trained, repo_id)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.safetensors",
            r"must hold model\.safetensors; pickled files are never .*, found training_args\.bin",
        ),
        ("config.json", r"must hold config\.json"),
        ("preprocessor_config.json", r"must hold preprocessor_config\.json or processor_config\.json"),
        ("results.json", r"results\.json does not exist; an evaluation writes it"),
    ],
)
def test_missing_files_are_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        prepare_upload(folder, REPO_ID)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        prepare_upload(tmp_path / "nowhere", REPO_ID)


def test_truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="does not load: .*weights"):
        prepare_upload(folder, REPO_ID)


def test_weights_of_another_shape(folder):
    VAEModel(VAEConfig(image_size=8, latent_dim=3, hidden_channels=[4, 4, 4])).save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"does not load: .*do not fit"):
        prepare_upload(folder, REPO_ID)


def test_results_of_another_model(folder):
    replace(Results.read(folder), num_parameters=12).write(folder)
    with pytest.raises(ValueError, match=r"its num_parameters is \d+, that in results\.json is 12; evaluate"):
        prepare_upload(folder, REPO_ID)


def test_other_weights_than_those_that_were_measured(folder):
    replace(Results.read(folder), weights_sha256=weights_sha256(folder)).write(folder)
    prepare_upload(folder, REPO_ID)
    model = VAEModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=4_000)
    # The same weights in shards.
    prepare_upload(folder, REPO_ID)
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    model.save_pretrained(folder, max_shard_size=4_000)
    with pytest.raises(ValueError, match=r"its weights_sha256 is \w{64}, that in results\.json is \w{64}; evaluate"):
        prepare_upload(folder, REPO_ID)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors.index.json", "{}", "lacks weight_map; save_pretrained writes it"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "weight_map must be an object, got 3"),
        ("model.safetensors.index.json", "{", "is not valid JSON"),
        ("model_index.json", "[]", r"it must be an object, got \[\]"),
        ("model_index.json", "{", "is not valid JSON"),
    ],
)
def test_a_broken_index_is_named(folder, name, content, message):
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}:? {message}"):
        prepare_upload(folder, REPO_ID)


def test_results_without_a_score(folder):
    replace(Results.read(folder), metrics={}).write(folder)
    with pytest.raises(ValueError, match="lacks the metadata eval_results"):
        prepare_upload(folder, REPO_ID)


def test_a_score_that_is_no_number_is_named(folder):
    results = asdict(Results.read(folder))
    for value in (float("nan"), "high", None, True):
        (folder / "results.json").write_text(json.dumps(results | {"metrics": {"bits_per_dim": value}}))
        with pytest.raises(ValueError, match=r"metrics\.bits_per_dim must be a finite number, got"):
            prepare_upload(folder, REPO_ID)


def test_a_missing_shard_is_named(folder):
    model = VAEModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=4_000)
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    upload = prepare_upload(folder, REPO_ID)
    assert {"model.safetensors.index.json", *shards} <= set(upload.contents)
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {shards[1]}, named in model.safetensors.index.json"):
        prepare_upload(folder, REPO_ID)


def test_an_index_cannot_smuggle_another_file(folder):
    (folder / "model.safetensors").unlink()
    for name in (".env", "../secret.safetensors", "checkpoint-10/model.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
        with pytest.raises(FileNotFoundError, match="lacks"):
            prepare_upload(folder, REPO_ID)


def test_code_is_added_when_asked_for(folder, no_network, capsys):
    publish_command(str(folder), "small-vae", dry_run=True, with_code=True)
    listed = {line.split()[-1] for line in capsys.readouterr().out.splitlines() if " bytes  " in line}
    assert listed - set(PUBLISHED) == {
        *("bits.py", "configuration_image_autoencoder.py", "configuration_vae.py", "distributions.py"),
        *("image_processing_levels.py", "modeling_image_autoencoder.py", "modeling_latentgen.py", "modeling_vae.py"),
        *("configuration_latentgen.py", "hub.py", "networks.py"),
    }
    # The folder itself, and what is saved later, stay without code.
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    VAEModel.from_pretrained(folder).save_pretrained(folder / "again")
    assert sorted(path.name for path in (folder / "again").iterdir()) == ["config.json", "model.safetensors"]


def test_the_tag_of_the_code_is_that_of_the_contents(folder):
    first = prepare_upload(folder, REPO_ID, with_code=True)
    assert first.tag == prepare_upload(folder, "someone/else", with_code=True).tag
    assert f'repo_id, revision = "{REPO_ID}", "{first.tag}"\n' in first.contents["README.md"].decode()
    assert prepare_upload(folder, REPO_ID).tag is None
    VAEModel(VAEConfig(image_size=8, latent_dim=2, hidden_channels=[4, 4, 4])).save_pretrained(folder)
    assert prepare_upload(folder, REPO_ID, with_code=True).tag != first.tag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--repo-id", "a//b", "--dry-run"], "a//b"), (["--repo-id", REPO_ID], "offline mode is enabled")],
)
def test_mistakes_end_the_command_with_one_line(trained, no_network, monkeypatch, arguments, message):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    ended = CliRunner().invoke(app, ["publish", str(trained), *arguments])
    assert ended.exit_code == 1
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert message in line
    assert ended.output.endswith(f"{line}\n")


def test_weights_are_those_of_a_model_its_shards_or_a_pipeline(folder, repository):
    assert has_weights(folder)
    assert has_weights(repository / "model_cards" / "prior_vae_mnist")
    model = VAEModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    assert not has_weights(folder)
    model.save_pretrained(folder, max_shard_size=4_000)
    assert has_weights(folder)
