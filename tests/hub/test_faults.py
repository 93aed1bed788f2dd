"""What goes wrong between a client and the Hub is said in one line, and leaves nothing half-done."""

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from hf_latentgen import LatentGenPipeline, VAEModel
from hf_latentgen.cards.publishing import prepare_upload, publish
from hf_latentgen.evaluation.checkpoints import load_checkpoint
from hub_common import make_families, write_row
from hub_http import Fault

# The first request and the five times that the client tries again.
TRIES = 6
SECONDS = 5
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, family in make_families().items():
        write_row(folder / name, family)
    return folder


def upload_of(hub, rows, name) -> str:
    """The address to which the weights of a row are uploaded, as faults name it."""
    return f"blobs:/{hub.store('model.safetensors', (rows / name / 'model.safetensors').read_bytes()).oid}"


@pytest.fixture(scope="module")
def said(hub, rows, run_client, repository):
    """What the script said to each attempt to publish."""
    hub.put("bob/vae", {})
    hub.put("bob/secret", {}, private=True)
    hub.put("ada/stale", {})
    addresses = {name: upload_of(hub, rows, name) for name in ("aae", "local-image", "aae-classifier")}
    hub.blobs = {oid: content for oid, content in hub.blobs.items() if f"blobs:/{oid}" not in addresses.values()}
    hub.server.faults = [
        Fault("POST", "ada/stale/commit/", lambda: hub.put("ada/stale", {"notes.md": b"by somebody else"})),
        Fault("PUT", addresses["aae"], "drop", TRIES),
        Fault("PUT", addresses["local-image"], "drop"),
        Fault("PUT", addresses["aae-classifier"], "corrupt"),
    ]
    return json.loads(run_client("publish_faults", repository, rows).splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing token", r"publish: no token was found: log in with `hf auth login`, or set HF_TOKEN"),
        ("malformed token", r"publish: the token is malformed: it may hold only letters, .*"),
        ("wrong token", r"publish: ada/new was not published \(HTTP 401\): the Hub does not know the token: log in .*"),
        (
            "wrong token, own name",
            r"publish: whose new is was not found out \(HTTP 401\): the Hub does not know the token: .*",
        ),
        ("bad name", r"publish: repo_id 'ada/b/c' is not a name on the Hub: it must be 'namespace/name' or 'name'.*"),
        ("namespace of somebody else", r"publish: bob/new was not published \(HTTP 403\): the token may not write .*"),
        ("repository of somebody else", r"publish: bob/vae was not published \(HTTP 403\): the token may not .*"),
        ("private repository of somebody else", r"publish: bob/secret was not published \(HTTP 40[134]\): .*"),
        (
            "pull request against no branch",
            r"publish: revision must be a branch of ada/none for a pull request against it, got 'old'",
        ),
        ("stale parent", r"publish: ada/stale was not published \(HTTP 412\): somebody else has committed .* again"),
        ("stale parent, second run", ""),
        ("interrupted", r"publish: ada/interrupted was not published, the upload broke off: .* Publish again"),
        ("interrupted, second run", ""),
        ("interrupted once", ""),
        (
            "wrong bytes arrive",
            r"publish: ada/damaged was not published, the upload broke off: .* SHA-256\. Publish .*",
        ),
    ],
)
def test_one_line_says_what_is_wrong(said, case, message):
    assert re.fullmatch(message, said[case]), said[case]
    assert "hf_" not in said[case]


def test_an_interrupted_upload_shows_nothing_and_a_second_run_completes_it(hub, said):
    assert said["files after the interruption"] == [".gitattributes"]
    assert len(hub.commits("ada/interrupted")) == 2
    assert {"model.safetensors", "config.json", "README.md"} <= set(hub.files("ada/interrupted"))


def test_a_commit_that_came_between_is_not_overwritten_unseen(hub, said):
    titles = [commit.title for commit in hub.commits("ada/stale")]
    assert titles == ["initial commit", "Put", "Put", "Weights, configuration, card and pictures"]


def test_refused_publications_leave_nothing(hub, said):
    assert {name for _, name in hub.repositories if name.startswith("bob/")} == {"bob/vae", "bob/secret"}
    assert set(hub.files("bob/vae")) == {".gitattributes"}
    assert set(hub.files("ada/damaged")) == {".gitattributes"}
    assert ("models", "ada/none") not in hub.repositories


def test_invalid_metadata_stop_before_anything_is_made(hub, said):
    message = r'the Hub finds the metadata of README.md invalid: "pipeline_tag" must be one of .*'
    assert re.fullmatch(message, said["invalid metadata"])
    assert ("models", "ada/metadata") not in hub.repositories


@pytest.fixture(scope="module")
def heard(hub, rows, run_client, tmp_path_factory):
    """What was said to each attempt to load."""
    paths = [path for path in (rows / "vae").iterdir() if path.suffix in {".json", ".safetensors"}]
    files = {path.name: path.read_bytes() for path in paths}
    for name in ("drop-once", "drop-always", "grown", "corrupt"):
        hub.put(f"ada/{name}", files)
    folder = tmp_path_factory.mktemp("pickle")
    model = make_families()["vae"].model
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    hub.put("ada/pickle", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.server.faults = [
        Fault("GET", "ada/drop-once/model.safetensors", "drop"),
        Fault("GET", "ada/drop-always/model.safetensors", "drop", TRIES),
        Fault("GET", "ada/grown/model.safetensors", "grow", TRIES),
        Fault("GET", "ada/corrupt/model.safetensors", "corrupt"),
    ]
    return json.loads(run_client("load_faults", folder).splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("dropped once", ""),
        ("dropped always", r".+"),
        ("dropped always, second run", ""),
        ("larger than declared", r".*should be of size \d+ but has size \d+.*"),
        (
            "another content",
            r"model.safetensors of ada/corrupt is damaged: its SHA-256 is \w{64}, the Hub .*",
        ),
        ("another content, again", r"model.safetensors of ada/corrupt is damaged: .*"),
        ("another content, deleted", ""),
    ],
)
def test_damaged_downloads_are_noticed(heard, case, message):
    assert re.fullmatch(message, heard[case], re.DOTALL), heard[case]


def test_an_interrupted_download_is_tried_again(hub, heard):
    def count(name):
        return sum(call.port == "blobs" and name in str(call.query) for call in hub.server.requests)

    assert (count("ada/drop-once"), count("ada/drop-always")) == (2, TRIES + 1)


def test_a_trainer_pushes_the_model_its_card_and_its_grids(hub, run_client, tmp_path):
    oid = run_client("train", tmp_path / "run", tmp_path / "averaged").splitlines()[-1]
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
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    close_session()
    if request.param == "refused":
        monkeypatch.setattr(constants, "ENDPOINT", closed_port())
        yield
    elif request.param == "mute":
        Mute.released.clear()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Mute)
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        Mute.released.set()
        server.shutdown()
        server.server_close()
    else:
        # The queue of a port that accepts nothing is soon full; the system then lets further connections wait.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            waiting = [socket.socket() for _ in range(4)]
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(server.getsockname())
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
            yield
            for client in waiting:
                client.close()
    close_session()


def test_without_network_it_is_said_soon(unreachable, rows):
    upload = prepare_upload(rows / "vae", "ada/vae")
    loaders = (VAEModel.from_pretrained, LatentGenPipeline.from_pretrained, load_checkpoint)
    actions = ((publish, upload), *((load, "ada/never") for load in loaders))
    start = time.perf_counter()
    with ThreadPoolExecutor(len(actions)) as pool:
        errors = [attempt.exception() for attempt in [pool.submit(*action) for action in actions]]
    assert time.perf_counter() - start < SECONDS
    for error in errors:
        assert isinstance(error, ConnectionError)
        assert re.match(r"http://127.0.0.1:\d+ does not answer \(.+\): check the network", str(error))
