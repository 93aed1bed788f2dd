import copy
import json
import re
import runpy

import pytest
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

import hf_latentgen
from cards_common import CONFIG, REPO_ID, change
from hf_latentgen.cards import metrics, model_card
from hf_latentgen.cards.metrics import describe_metric
from hf_latentgen.cards.model_card import (
    REQUIRED_KEYS,
    data_source,
    duration,
    list_pictures,
    read_results,
    render_card,
)
from hf_latentgen.cards.tables import cards_index, results_table

MARKERS = "<!-- results: rendered by make cards -->\n<!-- /results -->"


def test_rendering_is_deterministic_and_leaves_results_alone(results):
    before = copy.deepcopy(results)
    assert str(render_card(results, REPO_ID)) == str(render_card(results, REPO_ID))
    assert results == before


def test_metadata(results):
    data = render_card(results, REPO_ID, ["samples.png", "manifold.png"]).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.license == "apache-2.0"
    assert data.datasets == ["sklearn-docs/digits"]
    assert {"hf_latentgen", "vae", "digits"} <= set(data.tags)
    assert [entry["output"]["url"] for entry in data.widget] == ["images/samples.png", "images/manifold.png"]
    assert data.get("base_model") is None


def test_metadata_survives_a_round_trip(results):
    card = render_card(results, REPO_ID)
    parsed = ModelCard(str(card)).data
    assert parsed.to_dict() == ModelCardData(**card.data.to_dict()).to_dict()
    scores = {entry.metric_type: entry for entry in parsed.eval_results}
    assert set(scores) == {key for key in results["metrics"] if not key.endswith("_standard_error")}
    for key, entry in scores.items():
        assert entry.metric_value == pytest.approx(
            results["metrics"][key], abs=0.5 * 10 ** -describe_metric(key).decimals
        )
        assert entry.task_type == "unconditional-image-generation"
        assert (entry.dataset_type, entry.dataset_split) == ("sklearn-docs/digits", "test")
        assert entry.dataset_name == "scikit-learn digits, 16 levels"
    assert scores["bits_per_dim"].metric_name == "Bits per dimension, one posterior sample (upper bound)"


NUMBERS = [
    *(
        [("metrics", key), 0.777]
        for key in ("bits_per_dim", "bits_per_dim_standard_error", "rate_nats", "distortion_nats")
    ),
    *([("metrics", key), 0.777] for key in ("negative_elbo_nats", "nll_nats_iw500", "linear_probe_accuracy")),
    [("metrics", "reconstruction_mse"), 0.777],
    [("metrics", "active_units"), 1],
    [("floor", "order0_bits_per_dim"), 3.7],
    [("floor", "counting_4_bits_per_dim"), 1.7],
    [("reference", 0, "value"), 0.777],
    [("reference", 1, "value"), 0.777],
    [("diagnostics", "untrained_bits_per_dim"), 0.777],
    [("evaluation", "seed"), 777],
    [("evaluation", "seconds"), 777],
    [("num_images",), 777],
    [("num_parameters",), 777],
    [("train_seconds",), 777],
    [("seed",), 777],
    [("training", "learning_rate"), 0.777],
    [("history", 0, "eval_bits_per_dim"), 7.77],
    [("history", 1, "eval_bits_per_dim"), 0.777],
    [("model", "latent_dim"), 7],
    [("model", "num_levels"), 7],
    [("model", "beta"), 0.777],
    [("versions", "torch"), "7.7.7"],
    [("hardware", "cpu_count"), 777],
    [("git_commit",), "777"],
]


@pytest.mark.parametrize(("path", "value"), NUMBERS, ids=[".".join(map(str, path)) for path, _ in NUMBERS])
def test_every_number_comes_from_the_results(results, path, value):
    assert str(render_card(change(results, path, value), REPO_ID)) != str(render_card(results, REPO_ID))


def test_every_decimal_in_the_body_is_one_of_the_results(results):
    body = render_card(results, REPO_ID).text
    for fixed in ("1312.6114", "Apache-2.0", "arXiv"):
        body = body.replace(fixed, "")
    shown = {float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", body)}
    measured = [
        *results["metrics"].values(),
        *results["floor"].values(),
        *results["diagnostics"].values(),
        1.111,
        52.22,
        0.00123,
        2.5,
        1.3,
    ]
    # beta and free_bits of the configuration.
    measured += [1.0, 0.0]
    assert [number for number in shown if all(abs(number - value) > 0.005 for value in measured)] == []


def test_body_holds_the_whole_story_in_order(results):
    body = render_card(results, REPO_ID).text
    titles = re.findall(r"^## (.*)$", body, re.MULTILINE)
    assert titles == [
        *("Description", "How to use", "Data and preprocessing", "Training", "Evaluation", "Pictures"),
        *("Limitations", "Reproducibility", "Citation", "Licence"),
    ]
    for text in (
        "**1.2346 bits/dim** on the test split (1,300 images)",
        "| Bits per dimension, one posterior sample (bits/dim) | upper bound | 1.2346 ± 0.0123 | 1.111 |",
        "| 1.4141 (counts of 4 neighbours: W, N, NW, NE) |",
        "| `learning_rate` | 0.00123 |",
        "K = 500 importance samples (nats) | tighter upper bound | 53.46 |",
        "1 x 8 x 8 = 64, no padding",
        "| untrained bits per dim | 4.0123 |",
        "Circumstances of the evaluation: seed 2042; wall time 1 min 01 s.",
        "| wall time | 2 min 07 s |",
        "2.5000 (epoch 1) at the first evaluation, 1.3000 (epoch 2) at the best",
        "python scripts/train.py configs/vae_digits.yaml",
        "arxiv.org/abs/1312.6114",
        'VAEModel.from_pretrained("hf-latentgen/vae_digits")',
    ):
        assert text in body
    assert "\n\n\n" not in body


def test_a_model_below_the_floor_says_so(results):
    assert "does not beat" not in str(render_card(results, REPO_ID))
    assert "does not beat" in str(render_card(change(results, ("metrics", "bits_per_dim"), 2.0), REPO_ID))


def test_a_metric_that_was_not_measured_has_no_line(results):
    del results["metrics"]["nll_nats_iw500"]
    card = str(render_card(results, REPO_ID))
    assert "K = 500 importance samples" not in card
    assert "K = 5000 importance samples" in card


def test_an_unknown_metric_is_shown_under_its_own_name(results):
    results["metrics"]["pixel_joy"] = 0.5
    assert "| pixel joy | measurement | 0.5000 |" in str(render_card(results, REPO_ID))


def test_empty_sections_leave_no_trace(results):
    results |= {"metrics": {}, "reference": [], "floor": {}, "history": []}
    del results["diagnostics"], results["evaluation"]
    card = str(render_card(results, REPO_ID, []))
    for text in (
        "Published values",
        "Codes without",
        "Diagnostic",
        "Circumstances",
        "## Pictures",
        "images/",
        "validation bits/dim",
        "****",
    ):
        assert text not in card


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_missing_keys_are_named(results, key, tmp_path):
    del results[key]
    with pytest.raises(ValueError, match=rf"lacks {key};"):
        render_card(results, REPO_ID)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} lacks {key};"):
        read_results(tmp_path)


def test_bad_results_files(results, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json does not exist; scripts/evaluate\.py"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not valid JSON"):
        read_results(tmp_path)
    for part, place in ((results["reference"][1], r"reference\[1\]\.source"), (results["model"], r"model\.model_type")):
        del part[place.split(".")[-1]]
        with pytest.raises(ValueError, match=f"lacks {place}; scripts/evaluate"):
            render_card(results, REPO_ID)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("dataset",), None, "dataset must be a text, got None"),
        (("row",), 5, "row must be a text, got 5"),
        (("split",), None, "split must be a text, got None"),
        (("num_images",), None, "num_images must be a whole number, got None"),
        (("num_images",), True, "num_images must be a whole number, got True"),
        (("num_parameters",), "208564", "num_parameters must be a whole number, got '208564'"),
        (("train_seconds",), "1", "train_seconds must be a finite number, got '1'"),
        (("metrics",), [1], r"metrics must be an object, got \[1\]"),
        (("floor",), None, "floor must be an object, got None"),
        (("floor", "order0_bits_per_dim"), "x", "floor.order0_bits_per_dim must be a finite number, got 'x'"),
        (("versions",), None, "versions must be an object, got None"),
        (("reference", 0, "value"), "x", r"reference\[0\].value must be a finite number, got 'x'"),
        (("reference",), "x", "reference must be a list, got 'x'"),
        (("reference", 0), "x", r"reference\[0\] must be an object, got 'x'"),
        (("history", 1), "a", r"history\[1\] must be an object, got 'a'"),
        (("model",), [], r"model must be an object, got \[\]"),
    ],
)
def test_fields_of_another_kind_are_named(results, tmp_path, path, value, message):
    (tmp_path / "results.json").write_text(json.dumps(change(results, path, value)))
    with pytest.raises(ValueError, match=rf"results\.json: {message}$"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"[]", "it must be an object, got"), (b"\xff\xfe", "is not valid JSON")]
)
def test_results_that_are_no_object_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.json:? {message}"):
        read_results(tmp_path)


def test_unknown_family_names_the_templates(results):
    with pytest.raises(ValueError, match=r"'latentgen_gan' has no template, there are \[.*'vae\.md\.jinja'"):
        render_card(change(results, ("model", "model_type"), "latentgen_gan"), REPO_ID)


def test_data_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_source("mnist").hub_id == "ylecun/mnist"
    assert data_source("binarized_mnist").hub_id is None
    assert data_source("someone/flowers").hub_id == "someone/flowers"
    (tmp_path / "photos" / "flowers").mkdir(parents=True)
    for folder in ("photos/flowers", "./flowers", str(tmp_path / "photos" / "flowers")):
        assert (data_source(folder).title, data_source(folder).hub_id) == ("flowers", None)


def test_metadata_does_not_tell_where_a_local_data_set_lies(results, tmp_path):
    data = render_card(results | {"dataset": str(tmp_path / "my_flowers")}, REPO_ID).data
    assert data.datasets is None
    assert data.eval_results[0].dataset_type == "my_flowers"
    assert "my-flowers" in data.tags
    assert str(tmp_path) not in data.to_yaml()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.4, "59 min 59 s"), (3900, "1 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_pictures_are_listed_in_the_order_of_the_card(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    for name in ("zebra.png", "history.png", "samples.png"):
        Image.new("L", (8, 8)).save(tmp_path / "images" / name)
    assert list_pictures(tmp_path) == ["samples.png", "history.png", "zebra.png"]
    assert list_pictures(tmp_path / "nowhere") == []


def test_links_and_files_that_are_no_pictures_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "samples.png"
    Image.new("L", (8, 8)).save(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(ValueError, match=r"images/samples\.png must be a PNG file: it is a link"):
        list_pictures(tmp_path)
    path.unlink()
    for content in (b"no picture", (tmp_path / "elsewhere.png").read_bytes()[:40], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"images/samples\.png must be a PNG file: "):
            list_pictures(tmp_path)


def test_results_table_and_index(results):
    other = change(results, ("row",), "vae_other")
    other["metrics"] = {"nll_nats_iw500": 84.5, "nll_nats_iw500_standard_error": 0.1}
    other["reference"] = [{"name": "IWAE", "metric": "nll_nats_iw5000", "value": 84.78, "source": "table 1"}]
    title, _, *lines = results_table([results, other]).splitlines()
    assert title == "Variational autoencoders"
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| [vae_digits](model_cards/vae_digits/README.md) | scikit-learn digits, 16 levels | 12,345 | 1.2346 ± 0.0123 "
        "| 54.32 | 53.46 (K = 500) | 1.111 bits/dim (a paper) | 1.4141 | 2 min 07 s |"
    )
    assert "| - | - | 84.50 ± 0.10 (K = 500) | 84.78 nats (IWAE) |" in lines[3]
    index = cards_index([results, other])
    assert index.count("## Variational autoencoders") == 1
    assert '<img src="vae_digits/images/samples.png"' in index
    assert "1.2346 bits/dim" in index


def test_snippet_runs_offline(results, tmp_path, monkeypatch):
    config = hf_latentgen.VAEConfig(**CONFIG)
    hf_latentgen.VAEModel(config).save_pretrained(tmp_path / "model")
    hf_latentgen.LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", str(render_card(results, REPO_ID)), re.DOTALL)
    assert snippet.count(REPO_ID) == 2
    exec(compile(snippet.replace(REPO_ID, str(tmp_path / "model")), "snippet", "exec"), {})
    with Image.open("samples.png") as samples, Image.open("reconstruction.png") as reconstruction:
        assert samples.width > 4 * 8
        assert reconstruction.size == (8, 8)


@pytest.fixture
def cards_main(repository):
    return runpy.run_path(str(repository / "scripts" / "cards.py"))["main"]


@pytest.fixture
def root(results, tmp_path):
    folder = tmp_path / "model_cards" / "vae_digits"
    (folder / "images").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "images" / "samples.png")
    (folder / "results.json").write_text(json.dumps(results))
    (tmp_path / "README.md").write_text(f"# Title\n\n{MARKERS}\n\nThe rest.\n")
    return tmp_path


def test_script_is_idempotent_and_check_only_looks(cards_main, root, capsys):
    arguments = ["--root", str(root)]
    assert cards_main([*arguments, "--check"]) == 1
    assert not (root / "model_cards" / "README.md").exists()
    assert cards_main(arguments) == 0
    capsys.readouterr()
    assert cards_main(arguments) == 0
    assert cards_main([*arguments, "--check"]) == 0
    assert capsys.readouterr().out == ""
    readme = (root / "README.md").read_text()
    assert readme.startswith("# Title\n\n<!-- results")
    assert readme.endswith("<!-- /results -->\n\nThe rest.\n")
    assert "| [vae_digits](model_cards/vae_digits/README.md) |" in readme
    card = (root / "model_cards" / "vae_digits" / "README.md").read_text()
    assert "images/samples.png" in card
    assert "images/history.png" not in card
    ModelCard(card)


def test_script_errors(cards_main, root, results):
    (root / "README.md").write_text("no markers")
    with pytest.raises(SystemExit, match=r"README\.md must hold one pair of the lines .* got 0"):
        cards_main(["--root", str(root)])
    path = root / "model_cards" / "vae_digits" / "results.json"
    path.write_text(json.dumps(results | {"row": "vae_other"}))
    with pytest.raises(SystemExit, match="has row 'vae_other', it must be 'vae_digits'"):
        cards_main(["--root", str(root)])


def test_every_caption_and_floor_is_one_line():
    for text in (*model_card.CAPTIONS.values(), *metrics.FLOORS.values()):
        assert "|" not in text
        assert "\n" not in text
