"""Models of every family go to a Hub and come back, by the unmodified client over HTTP."""

import json
import re

import pytest
from huggingface_hub import ModelCard

FAMILIES = ("vae", "aae", "aae-classifier", "local-text", "local-image")
# Text models have a tokenizer, and are generated from.
TEXT_FILES = {"tokenizer_config.json", "generation_config.json"}
SECONDS = 2
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def pushed(hub, run_client, repository, tmp_path_factory):
    """The folder of the published rows, and what the client printed."""
    folder = tmp_path_factory.mktemp("rows")
    hub.put("bob/vae", {})
    hub.put("ada/hidden", {"config.json": b"{}"}, private=True)
    return folder, run_client("push", repository, folder)


@pytest.fixture(scope="module")
def loaded(run_client, pushed, tmp_path_factory):
    """The cache of the client that has loaded them, and what it printed."""
    home = tmp_path_factory.mktemp("loaded")
    return home, run_client("load", pushed[0], home=home)


def model_files(name: str) -> set[str]:
    """Names of the files that belong to a model of a family on the Hub."""
    processor = TEXT_FILES if name == "local-text" else {"preprocessor_config.json"}
    return {".gitattributes", "config.json", "model.safetensors", "README.md"} | processor


@pytest.mark.parametrize("name", FAMILIES)
def test_models_and_processors_push_what_they_are_and_nothing_else(hub, pushed, name):
    assert set(hub.files(f"ada/{name}")) == model_files(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_published_in_one_commit_with_what_the_list_allows(hub, pushed, name):
    files = set(hub.files(f"ada/{name}-code"))
    code = {path for path in files if path.endswith(".py")}
    assert files - code == model_files(name) | {"images/samples.png"}
    assert {path for path in code if path.startswith("modeling")}
    # The Hub made the first one itself, when the repository was created.
    assert len(hub.commits(f"ada/{name}-code")) == 2
    assert hub.repositories["models", f"ada/{name}-code"].private


def test_code_is_flat_and_needs_no_package(hub, pushed):
    for name in FAMILIES:
        files = hub.files(f"ada/{name}-code")
        sources = {path: text.decode() for path, text in files.items() if path.endswith(".py")}
        for text in sources.values():
            assert "hf_latentgen" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
            assert {f"{module}.py" for module in re.findall(r"^from \.(\w+) import", text, re.MULTILINE)} <= set(
                sources
            )
        auto_map = json.loads(files["config.json"])["auto_map"]
        assert {f"{value.split('.')[0]}.py" for value in auto_map.values()} <= set(sources)


def test_the_card_pins_the_code_by_a_tag_of_the_commit(hub, pushed):
    for name in FAMILIES:
        repository = hub.repositories["models", f"ada/{name}-code"]
        ((tag, oid),) = [(ref, oid) for ref, oid in repository.refs.items() if ref.startswith("refs/tags/")]
        assert oid == repository.refs["refs/heads/main"]
        card = hub.files(f"ada/{name}-code")["README.md"].decode()
        assert f'repo_id, revision = "ada/{name}-code", "{tag.removeprefix("refs/tags/")}"\n' in card
        assert card.count("from_pretrained(repo_id, revision=revision, trust_remote_code=True)") == 2


def test_publishing_the_same_again_makes_no_commit(hub, pushed):
    again = re.search(r"^again (\w+)$", pushed[1], re.MULTILINE)[1]
    assert again == hub.commits("ada/vae-code")[-1].oid


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


def test_tokens_are_sent_to_the_hub_and_never_with_the_bytes_of_large_files(hub, loaded):
    blobs = [call for call in hub.server.requests if call.port == "blobs"]
    assert {call.method for call in blobs} >= {"PUT", "GET"}
    assert {call.headers.get("authorization") for call in blobs} == {None}
    commits = [call for call in hub.server.requests if "/commit/" in call.path and call.method == "POST"]
    assert {call.headers.get("authorization") for call in commits} == {"Bearer hf_ada"}


def test_a_pushed_model_has_a_short_card_of_its_own(hub, pushed):
    for name in FAMILIES:
        text = hub.files(f"ada/{name}")["README.md"].decode()
        assert "[More Information Needed]" not in text
        assert f'.from_pretrained("ada/{name}")' in text
        card = ModelCard(text)
        task = {"local-text": "text-generation", "aae-classifier": "image-classification"}.get(name)
        assert card.data.pipeline_tag == (task or "unconditional-image-generation")
        assert card.data.tags == ["hf_latentgen"]


def test_cards_are_valid(hub, pushed):
    for name in FAMILIES:
        card = ModelCard(hub.files(f"ada/{name}-code")["README.md"].decode())
        assert card.data.library_name == "transformers"
        assert card.data.eval_results[0].metric_value == 1.5


def test_models_load_from_everywhere_in_every_way(loaded):
    assert "without network" in loaded[1]


def test_push_and_load_of_each_family_take_less_than_two_seconds(pushed, loaded, record_property):
    for name in FAMILIES:
        times = [
            float(re.search(rf"^{verb} {name} ([\d.]+) s$", text, re.MULTILINE)[1])
            for verb, text in (("push", pushed[1]), ("load", loaded[1]))
        ]
        record_property(name, times)
        assert sum(times) < SECONDS, (name, times)


def test_what_was_loaded_once_loads_offline(run_client, loaded):
    run_client("load_offline", home=loaded[0], HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")


def test_published_code_runs_where_the_package_is_not_installed(run_client, pushed):
    output = run_client("load_with_code", *FAMILIES)
    assert output.count("loaded") == len(FAMILIES)
