"""What goes wrong between a client and the Hub is said in one line, and leaves nothing half-done."""

import re
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers import AutoModel

from hf_latentgen import (
    ELBOTrainer,
    LatentGenPipeline,
    LatentTrainingArguments,
    LevelsDataset,
    VAEConfig,
    VAEModel,
    load,
)
from hf_latentgen.data import load_images
from hf_latentgen.hub.publishing import full_repo_id, publish
from hf_latentgen.models import hub as client
from hf_latentgen.rows.publishing import prepare_upload
from hub_common import assert_same_weights
from hub_http import Fault

# The first request and the five times that the client tries again.
TRIES = 6
SECONDS = 5
TITLE = "Weights, configuration, card and pictures"
pytestmark = [
    pytest.mark.timeout(300),
    # The client itself raises it, of the library beneath.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The client waits for seconds before it tries again."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture(scope="module")
def others(hub):
    """Repositories that do not belong to ada, and one of hers."""
    hub.put("bob/vae", {})
    hub.put("bob/secret", {}, private=True)
    hub.put("ada/stale", {})


def said(action, *arguments, **options) -> str:
    """What an action says, in one line without the token, when it fails."""
    with pytest.raises((OSError, ValueError)) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_" not in message
    return message


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("", "ada/new", "the token is missing: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_two words", "ada/new", "the token is malformed: .*"),
        (
            "hf_nobody",
            "ada/new",
            r"ada/new was not published \(HTTP 401\): the Hub does not know the token.*: log in .*",
        ),
        ("hf_nobody", "new", r"whose new is was not found out \(HTTP 401\): the Hub does not know the token.*"),
        ("hf_ada", "ada/b/c", "Repo id .*'ada/b/c'.*"),
        ("hf_ada", "bob/new", r"bob/new was not published \(HTTP 403\): the token may not write .*"),
        ("hf_ada", "bob/vae", r"bob/vae was not published \(HTTP 403\): the token may not .*"),
        ("hf_ada", "bob/secret", r"bob/secret was not published \(HTTP 40[134]\): .*"),
    ],
)
def test_one_line_says_what_is_wrong_with_a_token_or_a_name(hub, others, rows, monkeypatch, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    found = said(lambda: publish(prepare_upload(rows / "vae", full_repo_id(name))))
    assert re.fullmatch(message, found), found
    assert {name for _, name in hub.repositories if name.startswith("bob/")} == {"bob/vae", "bob/secret"}
    assert set(hub.files("bob/vae")) == {".gitattributes"}
    assert ("models", "ada/new") not in hub.repositories


def test_a_pull_request_against_no_branch_makes_nothing(hub, rows):
    found = said(publish, prepare_upload(rows / "vae", "ada/none"), revision="old", create_pr=True)
    assert found == "revision must be a branch of ada/none for a pull request against it, got 'old'"
    assert ("models", "ada/none") not in hub.repositories


def test_invalid_metadata_stop_before_anything_is_made(hub, rows):
    upload = prepare_upload(rows / "vae", "ada/metadata")
    text = upload.contents["README.md"].replace(b"pipeline_tag: unconditional-image-generation", b"pipeline_tag: paint")
    found = said(publish, replace(upload, contents=upload.contents | {"README.md": text}))
    assert re.fullmatch(r"the Hub finds the metadata of README.md invalid: .*pipeline_tag.* must be one of .*", found)
    assert ("models", "ada/metadata") not in hub.repositories


def test_a_commit_that_came_between_is_not_overwritten_unseen(hub, others, rows):
    between = Fault("POST", "ada/stale/commit/", lambda: hub.put("ada/stale", {"notes.md": b"by somebody else"}))
    hub.server.faults = [between]
    upload = prepare_upload(rows / "vae", "ada/stale")
    assert re.fullmatch(r"ada/stale was not published \(HTTP 412\): somebody else has .* again", said(publish, upload))
    publish(upload)
    assert [commit.title for commit in hub.commits("ada/stale")] == ["initial commit", "Put", "Put", TITLE]


def fault_of_upload(hub, rows, name, action, times=1):
    """The fault in the upload of the weights of a row, which the Hub does not hold yet."""
    oid = hub.store("model.safetensors", (rows / name / "model.safetensors").read_bytes()).oid
    del hub.blobs[oid]
    return Fault("PUT", f"blobs:/{oid}", action, times)


def test_an_interrupted_upload_shows_nothing_and_a_second_run_completes_it(hub, rows):
    hub.server.faults = [fault_of_upload(hub, rows, "aae", "drop", TRIES)]
    upload = prepare_upload(rows / "aae", "ada/interrupted")
    found = said(publish, upload)
    assert re.fullmatch(r"ada/interrupted was not published, the transfer broke off: .* Try again", found), found
    assert set(hub.files("ada/interrupted")) == {".gitattributes"}
    publish(upload)
    assert len(hub.commits("ada/interrupted")) == 2
    assert {"model.safetensors", "config.json", "README.md"} <= set(hub.files("ada/interrupted"))


def test_an_upload_that_breaks_once_goes_on(hub, rows):
    hub.server.faults = [fault_of_upload(hub, rows, "local-image", "drop")]
    publish(prepare_upload(rows / "local-image", "ada/once"))
    assert "model.safetensors" in hub.files("ada/once")


def test_wrong_bytes_are_not_published(hub, rows):
    hub.server.faults = [fault_of_upload(hub, rows, "aae-classifier", "corrupt")]
    found = said(publish, prepare_upload(rows / "aae-classifier", "ada/damaged"))
    assert re.fullmatch(r"ada/damaged was not published, the transfer broke off: .* SHA-256\. Try again", found), found
    assert set(hub.files("ada/damaged")) == {".gitattributes"}


@pytest.fixture
def download(hub, rows, families, request):
    """A function that loads a model of the test's own from the Hub, and the name of its repository."""
    name = f"ada/{re.sub(r'[^a-z]+', '-', request.node.name)[:60].strip('-')}"
    paths = [path for path in (rows / "vae").iterdir() if path.suffix in {".json", ".safetensors"}]
    hub.put(name, {path.name: path.read_bytes() for path in paths})

    def attempt():
        assert_same_weights(VAEModel.from_pretrained(name), families["vae"].model)

    return name, attempt


def count(hub, name):
    """Requests for the weights of a repository."""
    return sum(call.port == "blobs" and name in str(call.query) for call in hub.server.requests)


def test_an_interrupted_download_is_tried_again(hub, download):
    name, attempt = download
    hub.server.faults = [Fault("GET", f"{name}/model.safetensors", "drop")]
    attempt()
    assert count(hub, name) == 2


def test_a_download_that_breaks_off_is_said_and_completed_by_the_next(hub, download):
    name, attempt = download
    hub.server.faults = [Fault("GET", f"{name}/model.safetensors", "drop", TRIES)]
    assert said(attempt).startswith(f"{name} was not loaded")
    attempt()
    assert count(hub, name) == TRIES + 1


def test_a_file_larger_than_declared_is_not_taken(hub, download):
    name, attempt = download
    hub.server.faults = [Fault("GET", f"{name}/model.safetensors", "grow", TRIES)]
    with pytest.raises(OSError, match=r"should be of size \d+ but has size \d+"):
        attempt()


def test_weights_of_another_content_are_not_taken_until_they_are_deleted(hub, download, cache):
    name, attempt = download
    hub.server.faults = [Fault("GET", f"{name}/model.safetensors", "corrupt")]
    for _ in range(2):
        message = rf"model.safetensors of {name} is damaged: its SHA-256 is \w{{64}}, the Hub says .*"
        assert re.fullmatch(message, said(attempt))
    shutil.rmtree(cache / f"models--{name.replace('/', '--')}")
    attempt()


def test_pickled_weights_are_refused(hub, families, tmp_path):
    model = families["vae"].model
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    hub.put("ada/pickle", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    for place in ("ada/pickle", tmp_path):
        for loader in (VAEModel, AutoModel):
            with pytest.raises(OSError, match=r"model.safetensors"):
                loader.from_pretrained(place)
            with pytest.raises(ValueError, match="use_safetensors must be True"):
                loader.from_pretrained(place, use_safetensors=False)
    with pytest.raises(FileNotFoundError, match=r"must hold model.safetensors; pickled files .* pytorch_model.bin"):
        load(tmp_path)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("pytorch_model.bin"))


def test_a_trainer_pushes_the_model_its_card_and_its_grids(hub, families, tmp_path):
    processor = families["vae"].processor
    images = LevelsDataset(load_images("digits", "validation").select(range(64)), processor)
    arguments = LatentTrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=2,
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="epoch",
        sample_epochs=[1],
        ema_decay=0.5,
        report_to="tensorboard",
        disable_tqdm=True,
        push_to_hub=True,
        hub_model_id="ada/trained",
        hub_private_repo=True,
    )
    config = VAEConfig(architecture="mlp", image_size=8, num_levels=16, latent_dim=2, hidden_channels=(8, 8))
    trainer = ELBOTrainer(
        VAEModel(config), arguments, train_dataset=images, eval_dataset=images, processing_class=processor
    )
    trainer.train()
    oid = trainer.push_to_hub().oid
    with trainer.evaluated_weights():
        trainer.model.save_pretrained(tmp_path / "averaged")
    commits = hub.commits("ada/trained")
    # The push after the end finds nothing new.
    assert [commit.title for commit in commits] == [
        "initial commit",
        "Training in progress, step 2",
        "Training in progress, step 4",
    ]
    assert commits[-1].oid == oid
    pictures = {"images/samples_epoch_001.png", "images/reconstructions_epoch_001.png"}
    files = hub.files("ada/trained")
    assert set(files) == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
        *pictures,
    }
    assert hub.repositories["models", "ada/trained"].private
    # What is evaluated is what is pushed: the averaged weights.
    assert files["model.safetensors"] == (tmp_path / "averaged" / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert "pipeline_tag: unconditional-image-generation" in card
    assert 'VAEModel.from_pretrained("ada/trained")' in card
    assert "| 2 |" in card
    assert "bits_per_dim" in card
    assert "fine-tuned" not in card


class Mute(BaseHTTPRequestHandler):
    """Takes a request and never answers it."""

    released = Event()

    def handle(self):
        self.released.wait(20)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=["refused", "black hole", "mute"])
def unreachable(request, monkeypatch):
    """An endpoint that refuses connections, does not answer them at all, or takes them and falls silent."""
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    close_session()
    if request.param == "refused":
        monkeypatch.setattr(constants, "ENDPOINT", closed_port())
        yield
    elif request.param == "mute":
        Mute.released.clear()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Mute)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        Mute.released.set()
        server.shutdown()
        server.server_close()
    else:
        # The queue of a port that accepts nothing is soon full; the system then lets further connections wait.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            waiting = [socket.socket() for _ in range(4)]
            for waiter in waiting:
                waiter.setblocking(False)
                waiter.connect_ex(server.getsockname())
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
            yield
            for waiter in waiting:
                waiter.close()
    close_session()


def test_without_network_it_is_said_soon(unreachable, rows):
    upload = prepare_upload(rows / "vae", "ada/vae")
    loaders = (VAEModel.from_pretrained, LatentGenPipeline.from_pretrained, load)
    actions = ((publish, upload), *((loader, "ada/never") for loader in loaders))
    start = time.perf_counter()
    with ThreadPoolExecutor(len(actions)) as pool:
        errors = [attempt.exception() for attempt in [pool.submit(*action) for action in actions]]
    assert time.perf_counter() - start < SECONDS
    for error in errors:
        assert isinstance(error, ConnectionError)
        assert re.match(r"http://127.0.0.1:\d+ does not answer \(.+\): check the network", str(error))
