"""Every way to push ends in the same commit: nothing stale stays, nothing of a person is lost, refusals say why."""

import json
import re
import shutil
import socket
import time
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, constants

import hub_server
from hf_latentgen import ELBOTrainer, LatentGenPipeline, LatentTrainingArguments, LevelsDataset, VAEModel, load
from hf_latentgen.data import load_images
from hf_latentgen.families.family import Options
from hf_latentgen.hub.publishing import publish
from hf_latentgen.models import hub as client
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from hf_latentgen.rows.publishing import prepare_upload
from hub_common import assert_same_weights, write_row
from hub_http import Fault

TEMPLATE = str(ModelCard.from_template(ModelCardData(library_name="transformers")))
SECONDS = 5
pytestmark = [
    pytest.mark.timeout(300),
    # The client itself raises it, of the library beneath.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture
def row(families, tmp_path):
    return write_row(tmp_path / "vae", families["vae"])


@pytest.fixture
def prior(repository, tmp_path):
    return shutil.copytree(repository / "model_cards" / "prior_vae_mnist", tmp_path / "prior")


def names(hub, name):
    return {path for path in hub.files(name) if not path.startswith(("images/", ".git"))}


def make_trainer(families, folder, **arguments):
    model, processor, *_ = families["vae"]
    images = LevelsDataset(load_images("digits", "validation").select(range(64)), processor)
    own = {"max_steps": 2, "per_device_train_batch_size": 32, "report_to": "none", "disable_tqdm": True}
    options = LatentTrainingArguments(output_dir=str(folder), **own, **arguments)
    return ELBOTrainer(
        VAEModel(model.config), options, train_dataset=images, eval_dataset=images, processing_class=processor
    )


def test_whole_weights_and_shards_replace_each_other(hub, row):
    publish(prepare_upload(row, "ada/shards"))
    model = VAEModel.from_pretrained(row)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    (row / "model.safetensors").unlink()
    model.save_pretrained(row, max_shard_size=20_000)
    publish(prepare_upload(row, "ada/shards"))
    assert "model.safetensors" not in names(hub, "ada/shards")
    assert_same_weights(VAEModel.from_pretrained("ada/shards"), model)
    model.push_to_hub("ada/shards")
    assert {name for name in names(hub, "ada/shards") if "safetensors" in name} == {"model.safetensors"}
    assert "preprocessor_config.json" in names(hub, "ada/shards")
    model.push_to_hub("ada/shards", max_shard_size=20_000)
    assert "model.safetensors" not in names(hub, "ada/shards")
    assert len(hub.commits("ada/shards")) == 5


def test_a_model_and_a_pipeline_replace_each_other(hub, row, prior):
    plain = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    publish(prepare_upload(row, "ada/kinds", with_code=True))
    publish(prepare_upload(prior, "ada/kinds", with_code=True))
    assert {name for name in names(hub, "ada/kinds") if "/" not in name} == {
        "README.md",
        "model_index.json",
        "pipeline.py",
    }
    publish(prepare_upload(row, "ada/kinds"))
    assert names(hub, "ada/kinds") == plain
    pipe = LatentGenPipeline.from_pretrained(prior)
    pipe.push_to_hub("ada/kinds")
    assert "config.json" not in names(hub, "ada/kinds")
    VAEModel.from_pretrained(row).push_to_hub("ada/kinds")
    assert names(hub, "ada/kinds") == plain - {"preprocessor_config.json"}


def test_code_and_pickles_go_and_files_of_somebody_stay(hub, row):
    own = {"notes.md", "train.py", "data/table.json", "model/notes.md", "latents.bin", "images/old.png"}
    pickles = {"training_args.bin", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "optimizer.pt"}
    hub.put("ada/dirty", dict.fromkeys(own | pickles, b"x"))
    publish(prepare_upload(row, "ada/dirty", with_code=True))
    assert {"modeling_vae.py", "hub.py"} <= names(hub, "ada/dirty")
    publish(prepare_upload(row, "ada/dirty"))
    assert set(hub.files("ada/dirty")) - own == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
        "images/samples.png",
    }
    assert own <= set(hub.files("ada/dirty"))
    before = len(hub.commits("ada/dirty"))
    publish(prepare_upload(row, "ada/dirty"))
    assert len(hub.commits("ada/dirty")) == before


@pytest.mark.parametrize(
    ("card", "is_kept"),
    [
        ("# My card\n\nWritten for hours.\n\n## Bias\n\n[More Information Needed]\n", True),
        (TEMPLATE.replace("## Uses", "## Uses\n\nFor stamps."), True),
        (TEMPLATE.replace("library_name: transformers", "library_name: transformers\nlicense: mit"), True),
        (TEMPLATE, False),
    ],
    ids=["own", "one sentence", "licence", "untouched"],
)
def test_only_an_untouched_template_is_replaced(hub, families, card, is_kept):
    name = f"ada/card-{hub_server.git_oid(card.encode())[:8]}"
    hub.put(name, {"README.md": card.encode()})
    families["vae"].model.push_to_hub(name)
    assert (hub.files(name)["README.md"].decode() == card) == is_kept


def test_a_card_that_cannot_be_read_is_not_replaced(hub, families, monkeypatch):
    hub.put("ada/unread", {"README.md": b"# My card\n"})
    resolve = hub_server.Hub.resolve

    def fail(self, call, prefix, name, revision, path):
        if path == "README.md":
            raise hub_server.HubError(503, "Service Unavailable")
        return resolve(self, call, prefix, name, revision, path)

    routes = [(method, path, fail if answer is resolve else answer) for method, path, answer in hub_server.ROUTES]
    monkeypatch.setattr(hub_server, "ROUTES", routes)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(OSError, match="ada/unread was not published"):
        families["vae"].model.push_to_hub("ada/unread")
    assert hub.files("ada/unread")["README.md"] == b"# My card\n"


@pytest.fixture(params=["model", "pipeline", "trainer"])
def push(request, families, tmp_path):
    """A function that pushes to a repository with a token."""
    model, processor, *_ = families["vae"]
    if request.param == "model":
        return lambda name, token=None: model.push_to_hub(name, token=token)
    if request.param == "pipeline":
        return lambda name, token=None: LatentGenPipeline(model, processor).push_to_hub(name, token=token)
    return lambda name, token=None: make_trainer(
        families, tmp_path / "run", push_to_hub=True, hub_model_id=name, hub_token=token
    )


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("ada/b/c", None, "Repo id .*'ada/b/c'"),
        ("ada/", None, "Repo id .*'ada/'"),
        ("ada/refused", "hf_secret\n", "the token is malformed: .*HF_TOKEN"),
        ("ada/refused", "hf_secret", r"ada/refused was not published \(HTTP 401\): the Hub does not know the token"),
        ("bob/refused", None, r"bob/refused was not published \(HTTP 403\): the token may not write there"),
    ],
)
def test_bad_names_and_tokens_are_told_alike(hub, push, name, token, message):
    with pytest.raises((OSError, ValueError), match=f"^{message}") as caught:
        push(name, token)
    assert "secret" not in str(caught.value)
    assert ("models", name) not in hub.repositories


@pytest.mark.parametrize("is_mute", [True, False], ids=["mute", "refused"])
def test_without_network_a_push_says_so_soon(push, monkeypatch, is_mute):
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    if not is_mute:
        server.close()
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:\d+ does not answer \(.+\): check the network"):
        push("ada/never")
    assert time.perf_counter() - start < SECONDS
    server.close()


def test_a_public_repository_is_not_published_to_as_a_private_one(hub, families, row, tmp_path):
    commit = hub.put("ada/public", {"notes.md": b"x"})
    trainer = make_trainer(families, tmp_path / "run", hub_model_id="ada/public")
    attempts = (
        lambda: publish(prepare_upload(row, "ada/public"), private=True),
        lambda: families["vae"].model.push_to_hub("ada/public", private=True),
        lambda: trainer.push_to_hub(private=True),
        lambda: make_trainer(
            families, tmp_path / "run", push_to_hub=True, hub_model_id="ada/public", hub_private_repo=True
        ),
    )
    for attempt in attempts:
        with pytest.raises(ValueError, match="ada/public is public already: make it private in its settings"):
            attempt()
    assert hub.commits("ada/public")[-1] == commit


@pytest.mark.parametrize("revision", ["", "two words", "a^b"])
def test_a_malformed_revision_makes_nothing(hub, row, revision):
    with pytest.raises(ValueError, match=re.escape("revision must be the name of a branch")):
        publish(prepare_upload(row, "ada/revision"), revision=revision)
    assert ("models", "ada/revision") not in hub.repositories


def test_a_missing_tag_is_told_apart_from_a_missing_commit(hub, row, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    upload = prepare_upload(row, "ada/label", with_code=True)
    hub.server.faults = [Fault("POST", "/tag/", "drop", 6)]
    with pytest.raises(
        OSError, match=rf"^ada/label is published, but without its tag {upload.tag}, which pub"
    ) as caught:
        publish(upload)
    assert ".." not in str(caught.value)
    assert "model.safetensors" in hub.files("ada/label")
    hub.server.faults = []
    publish(replace(upload))
    assert f"refs/tags/{upload.tag}" in hub.repositories["models", "ada/label"].refs


def test_a_failing_upload_does_not_end_a_training(hub, families, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    place = {"hub_model_id": "ada/breaks", "hub_strategy": "every_save", "save_steps": 1}
    trainer = make_trainer(families, tmp_path / "run", push_to_hub=True, **place)
    warnings = []
    monkeypatch.setattr("hf_latentgen.training.trainer.logger.warning", warnings.append)
    hub.server.faults = [Fault("POST", "ada/breaks/commit", "drop", 99)]
    trainer.train()
    assert trainer.state.global_step == 2
    assert [text.split(":")[0] for text in warnings] == [f"step {n} was not pushed, training goes on" for n in (1, 2)]
    with pytest.raises(OSError, match="ada/breaks was not published"):
        trainer.push_to_hub()
    hub.server.faults = []
    # As the examples of transformers call it.
    assert trainer.push_to_hub("Mine", False, finetuned_from="x", tasks="y").oid == hub.commits("ada/breaks")[-1].oid
    assert "ignores blocking=False, finetuned_from, tasks" in warnings[-1]
    with pytest.raises(TypeError, match=r"must be those of transformers\.Trainer, got privat"):
        trainer.push_to_hub(privat=True)


def test_a_pipeline_is_pushed_as_safetensors_only(hub, families):
    pipe = LatentGenPipeline(*families["vae"][:2])
    for options, got in (({"safe_serialization": False}, "False and None"), ({"variant": "fp16"}, "True and 'fp16'")):
        with pytest.raises(ValueError, match=f"safe_serialization must be True and variant None, got {got}"):
            pipe.push_to_hub("ada/pickled", **options)
    assert ("models", "ada/pickled") not in hub.repositories
    pipe.push_to_hub("ada/unpickled", "Mine", None, None, False, True, None)
    assert "model/model.safetensors" in HfApi().list_repo_files("ada/unpickled")


def test_an_evaluation_tells_which_weights_it_measured(families, tmp_path):
    trainer = make_trainer(families, tmp_path / "run")
    trainer.save_model()
    families["vae"].processor.save_pretrained(tmp_path / "run")
    run = {"row": "small", "config": "configs/vae_digits.yaml", "overrides": [], "seed": 0}
    run |= {
        "dataset": {"name": "digits"},
        "reference": [],
        "training": {},
        "history": [],
        "train_command": "train",
        "train_seconds": 1.0,
    }
    run |= {"hardware": "cpu", "versions": {}, "git_commit": "0"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    evaluation = evaluate(load(tmp_path / "run"), options=Options(num_importance_samples=1))
    row = write_evaluation(evaluation, tmp_path / "run", tmp_path / "row")
    prepare_upload(row, "ada/measured")
    families["vae"].model.save_pretrained(row)
    with pytest.raises(ValueError, match="its weights_sha256 is"):
        prepare_upload(row, "ada/measured")
