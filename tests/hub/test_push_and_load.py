"""Models of every family go to a Hub and come back, by the unmodified client over HTTP."""

import json
import logging
import re
import time

import pytest
import torch
from huggingface_hub import ModelCard, constants, hf_hub_download
from huggingface_hub.utils import close_session
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, pipeline

from hf_latentgen import VAEModel, load
from hf_latentgen.hub.publishing import publish
from hf_latentgen.rows.command import publish_command
from hf_latentgen.rows.publishing import prepare_upload
from hub_common import assert_same_weights, write_row

FAMILIES = ("vae", "vlae", "aae", "aae-classifier", "local-text", "local-image")
# Text models have a tokenizer, and are generated from.
TEXT_FILES = {"tokenizer_config.json", "generation_config.json"}
# A tenth of it on an idle machine.
SECONDS = 5
pytestmark = [
    pytest.mark.timeout(300),
    # The client itself raises it, of the library beneath.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pushed(hub, families, rows):
    """Seconds that the push of each family took. Rows are published, with their code, too."""
    hub.put("bob/vae", {})
    hub.put("ada/hidden", {"config.json": b"{}"}, private=True)
    # What the first push of a process imports and compiles is not the push.
    families["vae"].model.push_to_hub("ada/warm")
    seconds = {}
    for name, (model, processor, *_) in families.items():
        start = time.perf_counter()
        model.push_to_hub(f"ada/{name}")
        processor.push_to_hub(f"ada/{name}")
        seconds[name] = time.perf_counter() - start
        # The name is made whole with that of the user.
        publish_command(str(rows / name), f"{name}-code", private=True, with_code=True)
    write_row(rows / "sharded", families["vae"], max_shard_size=20_000)
    publish_command(str(rows / "sharded"), "ada/sharded")
    publish_command(str(rows / "vae"), "ada/vae", revision="measured")
    publish_command(str(rows / "vae"), "bob/vae", create_pr=True)
    return seconds


def model_files(name: str) -> set[str]:
    """Names of the files that belong to a model of a family on the Hub."""
    processor = TEXT_FILES if name == "local-text" else {"preprocessor_config.json"}
    return {".gitattributes", "config.json", "model.safetensors", "README.md"} | processor


@pytest.mark.parametrize("name", FAMILIES)
def test_models_and_processors_push_what_they_are_and_a_short_card(hub, pushed, name):
    files = hub.files(f"ada/{name}")
    assert set(files) == model_files(name)
    text = files["README.md"].decode()
    assert "[More Information Needed]" not in text
    assert f'.from_pretrained("ada/{name}")' in text
    card = ModelCard(text)
    task = {"local-text": "text-generation", "aae-classifier": "image-classification"}.get(name)
    assert card.data.pipeline_tag == (task or "unconditional-image-generation")
    assert card.data.tags == ["hf_latentgen"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_published_in_one_commit_with_what_the_list_allows(hub, pushed, name):
    files = set(hub.files(f"ada/{name}-code"))
    code = {path for path in files if path.endswith(".py")}
    assert files - code == model_files(name) | {"images/samples.png"}
    assert {path for path in code if path.startswith("modeling")}
    # The Hub made the first one itself, when the repository was created.
    assert len(hub.commits(f"ada/{name}-code")) == 2
    assert hub.repositories["models", f"ada/{name}-code"].private


@pytest.mark.parametrize("name", FAMILIES)
def test_code_is_flat_and_needs_no_package(hub, pushed, name):
    files = hub.files(f"ada/{name}-code")
    sources = {path: text.decode() for path, text in files.items() if path.endswith(".py")}
    for text in sources.values():
        assert not re.search(r"^\s*(from|import) hf_latentgen", text, re.MULTILINE)
        assert {f"{module}.py" for module in re.findall(r"^from \.(\w+) import", text, re.MULTILINE)} <= set(sources)
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert {f"{value.split('.')[0]}.py" for value in auto_map.values()} <= set(sources)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_card_of_a_row_is_valid_and_pins_the_code_by_a_tag_of_the_commit(hub, pushed, name):
    repository = hub.repositories["models", f"ada/{name}-code"]
    ((tag, oid),) = [(ref, oid) for ref, oid in repository.refs.items() if ref.startswith("refs/tags/")]
    assert oid == repository.refs["refs/heads/main"]
    text = hub.files(f"ada/{name}-code")["README.md"].decode()
    assert f'repo_id, revision = "ada/{name}-code", "{tag.removeprefix("refs/tags/")}"\n' in text
    assert text.count("from_pretrained(repo_id, revision=revision, trust_remote_code=True)") == 2
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.eval_results[0].metric_value == 1.5


def test_publishing_the_same_again_makes_no_commit(hub, pushed, rows):
    again = publish(prepare_upload(rows / "vae", "ada/vae-code", with_code=True))
    assert again.oid == hub.commits("ada/vae-code")[-1].oid
    assert len(hub.commits("ada/vae-code")) == 2


def test_branches_and_pull_requests_leave_main_alone(hub, pushed):
    for name, revision in (("ada/vae", "measured"), ("bob/vae", "refs/pr/1")):
        assert "images/samples.png" in hub.files(name, revision)
        assert "images/samples.png" not in hub.files(name)


def test_shards_are_published_with_their_index(hub, pushed):
    files = hub.files("ada/sharded")
    shards = set(json.loads(files["model.safetensors.index.json"])["weight_map"].values())
    assert len(shards) > 1
    assert {path for path in files if path.endswith(".safetensors")} == shards


def test_nothing_that_can_run_code_when_loaded_has_reached_the_server(hub, pushed):
    names = {path for repository in hub.repositories.values() for c in repository.commits.values() for path in c.files}
    assert len(names) > 20
    allowed = r"\.gitattributes|.*\.(safetensors|json|md|png|py)"
    assert {name for name in names if not re.fullmatch(allowed, name)} == set()
    # Zip files are what torch.save writes; older pickles begin with the number of their protocol.
    assert {content[:2] for content in hub.blobs.values()}.isdisjoint({b"PK", *(b"\x80%c" % n for n in range(2, 6))})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_loads_by_its_class_by_an_auto_class_and_by_the_loader(pushed, families, rows, name, record_property):
    model, processor, auto, _ = families[name]
    start = time.perf_counter()
    loaded = type(model).from_pretrained(f"ada/{name}")
    loaded_processor = type(processor).from_pretrained(f"ada/{name}")
    seconds = pushed[name] + time.perf_counter() - start
    record_property("seconds", seconds)
    assert seconds < SECONDS
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert loaded_processor.to_dict() == processor.to_dict() if name != "local-text" else len(loaded_processor) == 259
    auto_loaded = auto.from_pretrained(f"ada/{name}")
    assert type(auto_loaded) is type(model)
    assert_same_weights(auto_loaded, model)
    assert type(AutoConfig.from_pretrained(f"ada/{name}")) is type(model.config)
    auto_processor = AutoTokenizer if name == "local-text" else AutoImageProcessor
    assert type(auto_processor.from_pretrained(f"ada/{name}")) is type(processor)
    for place in (f"ada/{name}-code", rows / name):
        found = load(place)
        assert found.name == str(place)
        assert_same_weights(found.model, model)


def test_shards_branches_pull_requests_and_options_of_transformers_load(pushed, families, rows):
    expected = families["vae"].model
    assert_same_weights(VAEModel.from_pretrained("ada/sharded"), expected)
    assert_same_weights(load(rows / "sharded").model, expected)
    assert_same_weights(AutoModel.from_pretrained("ada/vae", revision="measured"), expected)
    assert_same_weights(load("ada/vae", "measured").model, expected)
    assert_same_weights(AutoModel.from_pretrained("bob/vae", revision="refs/pr/1"), expected)
    assert_same_weights(VAEModel.from_pretrained("ada/vae", device_map="auto").cpu(), expected)
    half = VAEModel.from_pretrained("ada/vae", dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in load("ada/vae", dtype=torch.float64).model.parameters()} == {torch.float64}
    assert pipeline("text-generation", model="ada/local-text")("A", max_new_tokens=3, do_sample=False)
    found, report = VAEModel.from_pretrained("ada/vae", output_loading_info=True)
    assert_same_weights(found, expected)
    assert not report["missing_keys"]


@pytest.mark.parametrize("loader", [VAEModel.from_pretrained, AutoModel.from_pretrained, load])
@pytest.mark.parametrize(
    ("name", "options"), [("ada/hidden", {"token": False}), ("ada/none", {}), ("ada/vae", {"revision": "none"})]
)
def test_what_is_not_there_is_named(pushed, loader, name, options):
    with pytest.raises(OSError, match=options.get("revision") or name):
        loader(name, **options)


def test_tokens_are_sent_to_the_hub_and_never_with_the_bytes_of_large_files(hub, pushed):
    VAEModel.from_pretrained("ada/warm")
    blobs = [call for call in hub.server.requests if call.port == "blobs"]
    assert {call.method for call in blobs} >= {"PUT", "GET"}
    assert {call.headers.get("authorization") for call in blobs} == {None}
    commits = [call for call in hub.server.requests if "/commit/" in call.path and call.method == "POST"]
    assert {call.headers.get("authorization") for call in commits} == {"Bearer hf_ada"}


@pytest.mark.parametrize("way", ["unreachable", "offline"])
def test_what_was_loaded_once_loads_without_a_network(pushed, families, monkeypatch, way):
    """Told so by the environment, or found out soon."""
    expected = families["vae"].model
    VAEModel.from_pretrained("ada/vae")
    load("ada/vae-code")
    logged, handler = [], logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger("hf_latentgen")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", way == "offline")
    close_session()
    start = time.perf_counter()
    assert_same_weights(VAEModel.from_pretrained("ada/vae"), expected)
    assert_same_weights(load("ada/vae-code").model, expected)
    assert time.perf_counter() - start < 5
    told = [name for name in ("ada/vae", "ada/vae-code") if any(f"Loading {name} from the" in text for text in logged)]
    assert told == (["ada/vae", "ada/vae-code"] if way == "unreachable" else [])
    with pytest.raises(ConnectionError):
        load("ada/never")
    close_session()


@pytest.mark.slow
def test_what_was_loaded_once_loads_where_the_environment_says_offline(run_client, pushed, cache, rows):
    for name in FAMILIES:
        load(f"ada/{name}")
        hf_hub_download(f"ada/{name}", "README.md")
    run_client("load_offline", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
