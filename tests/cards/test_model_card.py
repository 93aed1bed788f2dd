import copy
import json
import re
import runpy

import pytest
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

import hf_latentgen
from hf_latentgen.cards import model_card
from hf_latentgen.cards.model_card import (
    REQUIRED_KEYS,
    data_source,
    describe_metric,
    duration,
    list_pictures,
    read_results,
    render_card,
)
from hf_latentgen.cards.tables import cards_index, results_table

REPO_ID = "hf-latentgen/vae_digits"
MARKERS = "<!-- results: rendered by make cards -->\n<!-- /results -->"
CONFIG = {"architecture": "course", "image_size": 8, "latent_dim": 2, "hidden_channels": [4, 4, 4]}


@pytest.fixture
def results():
    return {
        "row": "vae_digits",
        "config": "configs/vae_digits.yaml",
        "seed": 1042,
        "dataset": "digits",
        "split": "test",
        "num_images": 1300,
        "metrics": {
            "bits_per_dim": 1.23456,
            "bits_per_dim_standard_error": 0.0123,
            "negative_elbo_nats": 54.321,
            "distortion_nats": 48.123,
            "rate_nats": 6.198,
            "nll_nats_iw500": 53.456,
            "active_units": 2,
            "linear_probe_accuracy": 0.8765,
            "reconstruction_mse": 0.034567,
        },
        "reference": [
            {"name": "a paper", "metric": "bits_per_dim", "value": 1.111, "source": "table 7"},
            {"name": "a log", "metric": "nll_nats_iw5000", "value": 52.22, "source": "https://example.org/log"},
        ],
        "floor": {"order0_bits_per_dim": 3.0303, "counting_4_bits_per_dim": 1.4141},
        "num_parameters": 12345,
        "train_command": "python scripts/train.py configs/vae_digits.yaml",
        "evaluate_command": "python scripts/evaluate.py runs/vae_digits",
        "train_seconds": 127.4,
        "hardware": {"device": "cpu", "cpu_count": 2},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git_commit": "0123abcd",
        "model": hf_latentgen.VAEConfig(**CONFIG).to_dict(),
        "training": {"learning_rate": 0.00123, "num_train_epochs": 37, "seed": 1042},
        "diagnostics": {"untrained_bits_per_dim": 4.0123},
        "evaluation": {"seed": 2042, "seconds": 61.2},
        "history": [{"epoch": 1, "eval_bits_per_dim": 2.5}, {"epoch": 2.0, "eval_bits_per_dim": 1.3}],
    }


def change(results, path, value):
    """A copy of `results` with the entry at `path` replaced."""
    changed = copy.deepcopy(results)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


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
    del results["reference"][1]["source"], results["model"]["model_type"]
    with pytest.raises(ValueError, match=r"lacks model\.model_type, reference\[1\]\.source"):
        render_card(results, REPO_ID)


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
    for name in ("zebra.png", "history.png", "samples.png", "notes.txt"):
        (tmp_path / "images" / name).touch()
    assert list_pictures(tmp_path) == ["samples.png", "history.png", "zebra.png"]
    assert list_pictures(tmp_path / "nowhere") == []


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


@pytest.fixture
def adversarial(results):
    """The results of an adversarial autoencoder."""
    config = hf_latentgen.AAEConfig(**CONFIG).to_dict()
    fields = ("architecture", "image_size", "latent_dim", "hidden_channels", "reconstruction_weight", "num_levels")
    other = change(results, ("row",), "aae_digits")
    other["model"] = {"model_type": "latentgen_aae", "architectures": None, **{key: config[key] for key in fields}}
    other["metrics"] = {"reconstruction_mse_minus1_1": 0.0432, "code_min_std": 0.91, "code_max_std": 1.02}
    other["reference"], other["floor"] = [], {}
    other["history"] = [{"epoch": 1, "eval_reconstruction_loss": 0.2}, {"epoch": 2, "eval_reconstruction_loss": 0.1}]
    return other


@pytest.fixture
def classifier(adversarial):
    """The results of a classifier of few labels."""
    other = change(adversarial, ("model", "architectures"), ["AAEForImageClassification"])
    other["metrics"] |= {"test_error": 0.031, "test_error_mean": 0.033, "test_error_std": 0.002}
    return other | {"row": "aae_semi", "num_labelled": 100, "test_errors_of_draws": [0.031, 0.035]}


def test_card_of_an_adversarial_autoencoder(adversarial):
    card = render_card(adversarial, REPO_ID)
    assert card.data.pipeline_tag == "unconditional-image-generation"
    for text in (
        "An adversarial autoencoder of 8x8 images of scikit-learn digits: **reconstruction, mean squared error",
        "| lambda | 0.995: loss = lambda * reconstruction + (1 - lambda) * generator |",
        "| Reconstruction, mean squared error (values on [-1, 1]) | measurement | 0.0432 |",
        "0.2000 (epoch 1) at the first evaluation, 0.1000 (epoch 2) at the best",
        "arxiv.org/abs/1511.05644",
        "One training run with seed 1042",
    ):
        assert text in str(card)
    assert "bits/dim" not in str(card)
    assert "\n\n\n" not in str(card)


@pytest.mark.parametrize(
    ("weight", "text"), [(1, "An autoencoder without adversary"), (0, "the decoder gets no gradient at all")]
)
def test_card_says_what_the_ends_of_lambda_mean(adversarial, weight, text):
    assert text in str(render_card(change(adversarial, ("model", "reconstruction_weight"), weight), REPO_ID))


def test_card_of_a_classifier(classifier):
    card = render_card(classifier, REPO_ID)
    assert card.data.pipeline_tag == "image-classification"
    for text in (
        "a classifier of 100 labels, the other images unlabelled: **classification error, mean over draws",
        "Error over 2 draws of the labelled images: 0.0310, 0.0350.",
        "AAEForImageClassification.from_pretrained",
    ):
        assert text in str(card)
    assert "One training run" not in str(card)
    classifier["model"]["num_clusters"] = 30
    assert "30 clusters found without labels" in str(render_card(classifier, REPO_ID))


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LOCAL_MODELS = {
    "pixels": hf_latentgen.LocalTransformerImageConfig(image_size=8, **SIZES),
    "classes": hf_latentgen.LocalTransformerImageConfig(
        image_size=8, is_class_conditional=True, num_labels=10, **SIZES
    ),
    "bytes": hf_latentgen.LocalTransformerConfig(window=8, **SIZES),
}


@pytest.fixture(params=LOCAL_MODELS)
def local(request, results, tmp_path):
    """The results of a local-attention transformer, and its saved model."""
    config = LOCAL_MODELS[request.param]
    fields = {
        name: value
        for name, value in config.to_dict().items()
        if name in (*SIZES, "window", "image_size", "num_levels")
    }
    model = {"model_type": config.model_type, "architectures": None, **fields}
    other = results | {"row": "local_row", "model": model, "reference": []}
    if request.param == "bytes":
        other |= {"dataset": "tinyshakespeare", "sample_text": "To be"}
        other |= {"metrics": {"bits_per_byte": 2.0432}, "floor": {"bz2_bits_per_byte": 2.4644}}
        other |= {"diagnostics": {"context": 8, "num_bytes": 55770}, "history": []}
        hf_latentgen.LocalTransformerForCausalLM(config).save_pretrained(tmp_path / "model")
        hf_latentgen.ByteTokenizer(errors="replace").save_pretrained(tmp_path / "model")
        return other
    if config.is_class_conditional:
        model |= {"is_class_conditional": True, "num_labels": 10}
    other["metrics"] = {"exact_bits_per_dim": 1.8432, "nll_nats": 81.77}
    hf_latentgen.LocalTransformerForImageGeneration(config).save_pretrained(tmp_path / "model")
    hf_latentgen.LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    return other


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_card_of_a_local_transformer(local, tmp_path, monkeypatch, capsys):
    card = render_card(local, REPO_ID, [])
    reads_text = "sample_text" in local
    score = "2.0432 bits/byte" if reads_text else "1.8432 bits/dim"
    task = "text-generation" if reads_text else "unconditional-image-generation"
    assert card.data.pipeline_tag == task
    for text in ("A local-attention transformer over the", f"**{score}** on the test split", "| exact | "):
        assert text in str(card)
    assert "\n\n\n" not in str(card)
    assert ("To be" in str(card)) == reads_text
    assert "upper bound |" not in str(card)
    assert f"| {score.split()[0]} |" in results_table([local])
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", str(card), re.DOTALL)
    code = snippet.replace(REPO_ID, str(tmp_path / "model")).replace("max_new_tokens=200", "max_new_tokens=9")
    exec(compile(code, "snippet", "exec"), {})
    printed = capsys.readouterr().out
    assert "ROMEO:" in printed if reads_text else "bits per dimension, exact" in printed


def test_tables_have_a_part_for_each_family(results, adversarial, classifier):
    table = results_table([results, adversarial, classifier])
    assert table.index("Variational autoencoders") < table.index("Adversarial autoencoders")
    assert "| 0.995 | 0.0432 | - | 0.910 to 1.020 | - | - | - | - | 2 min 07 s |" in table
    assert "| 0.0330 ± 0.0020 |" in table


@pytest.mark.parametrize("name", ["AAEModel", "AAEForImageClassification"])
def test_snippets_of_adversarial_cards_run_offline(name, adversarial, classifier, tmp_path, monkeypatch):
    chosen = adversarial if name == "AAEModel" else classifier
    model_class = getattr(hf_latentgen, name)
    model_class(hf_latentgen.AAEConfig(**CONFIG, num_labels=10)).save_pretrained(tmp_path / "model")
    processor = hf_latentgen.LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=256)
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", str(render_card(chosen, REPO_ID)), re.DOTALL)
    exec(compile(snippet.replace(REPO_ID, str(tmp_path / "model")), "snippet", "exec"), {})
    assert (tmp_path / "styles.png").exists() == (name == "AAEForImageClassification")


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
    (folder / "images" / "samples.png").touch()
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
    for text in (*model_card.CAPTIONS.values(), *model_card.FLOORS.values()):
        assert "|" not in text
        assert "\n" not in text
