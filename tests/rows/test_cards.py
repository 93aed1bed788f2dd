import copy
import re

import pytest
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

import hf_latentgen
from cards_common import CONFIG, REPO_ID, change, render
from hf_latentgen.data.descriptions import describe_data
from hf_latentgen.evaluation.metrics import BASELINES, describe_metric
from hf_latentgen.rows.cards import CAPTIONS, Choices, duration, list_pictures


def test_rendering_is_deterministic_and_leaves_results_alone(results):
    before = copy.deepcopy(results)
    assert str(render(results)) == str(render(results))
    assert results == before


def test_metadata(results):
    data = render(results, ["samples.png", "manifold.png"]).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.license == "apache-2.0"
    assert data.datasets == ["sklearn-docs/digits"]
    assert {"hf_latentgen", "vae", "digits"} <= set(data.tags)
    assert [entry["output"]["url"] for entry in data.widget] == ["images/samples.png", "images/manifold.png"]
    assert data.get("base_model") is None


def test_metadata_survives_a_round_trip(results):
    card = render(results)
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


@pytest.fixture
def own(results):
    """The results of a run that overrides a recipe with a folder of images somewhere on this machine."""
    words = "dataset.name=photos model.num_channels=3"
    return results | {
        "row": "mine",
        "dataset": "/data/of/mine/photos",
        "overrides": ["dataset.name=/data/of/mine/photos", "model.num_channels=3"],
        "train_command": f"hf-latentgen train configs/vae_digits.yaml {words}",
        "evaluate_command": "hf-latentgen evaluate runs/mine",
        "reference": [],
    }


def test_a_model_of_ones_own_has_its_own_title_and_no_licence_that_nobody_chose(own):
    card = render(own, repo_id="ada/lichens")
    assert card.data.license is None
    assert card.data.model_name == "lichens"
    assert card.text.strip().startswith("# lichens\n")
    assert "No licence of the weights was chosen" in card.text
    assert "vae_digits" not in card.text.split("## Training")[0]
    assert "/data" not in str(card)
    assert 'load_images("photos", split="test")' in card.text
    assert {entry.dataset_type for entry in card.data.eval_results} == {"photos"}
    assert "Values to compare with" not in card.text


def test_what_somebody_chose_is_on_the_page(own):
    address = "https://example.org/hf-latentgen"
    choices = Choices("cc-by-4.0", "Lichens of the Alps", "Photos of lichens", address)
    card = render(own, repo_id="ada/lichens", choices=choices)
    assert card.data.license == "cc-by-4.0"
    assert card.data.model_name == "Lichens of the Alps"
    assert {entry.dataset_name for entry in card.data.eval_results} == {"Photos of lichens, 16 levels"}
    assert f"[hf-latentgen repository]({address})" in card.text
    assert "Weights: cc-by-4.0. Code: Apache-2.0." in card.text
    assert "images of Photos of lichens" in card.text


@pytest.mark.parametrize(
    ("start", "base"),
    [
        ("vae_mnist_4bit", "hf-latentgen/vae_mnist_4bit"),
        ("ada/vae", "ada/vae"),
        ("./runs/first", None),
        ("first", None),
    ],
)
def test_a_model_that_went_on_from_another_names_it(results, start, base):
    card = render(results | {"train_command": f"hf-latentgen train configs/vae_digits.yaml --from {start}"})
    assert card.data.get("base_model") == base
    assert f"It went on from `{start}`." in card.text
    assert card.data.license is None


def test_words_that_change_nothing_leave_a_row_a_row(results):
    assert render(results | {"overrides": ["training.disable_tqdm=true"]}).data.license == "apache-2.0"
    assert render(results | {"overrides": ["training.seed=1"]}).data.license is None


NUMBERS = [
    *(
        [("metrics", key), 0.777]
        for key in ("bits_per_dim", "bits_per_dim_standard_error", "rate_nats", "distortion_nats")
    ),
    *([("metrics", key), 0.777] for key in ("negative_elbo_nats", "nll_nats_iw500", "linear_probe_accuracy")),
    [("metrics", "reconstruction_mse"), 0.777],
    [("metrics", "active_units"), 1],
    [("baseline", "order0_bits_per_dim"), 3.7],
    [("baseline", "counting_4_bits_per_dim"), 1.7],
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
    [("hardware",), "777"],
    [("git_commit",), "777"],
]


def test_every_number_comes_from_the_results(results):
    card = str(render(results))
    assert [path for path, value in NUMBERS if str(render(change(results, path, value))) == card] == []


def test_every_decimal_in_the_body_is_one_of_the_results(results):
    body = render(results).text
    for fixed in ("1312.6114", "Apache-2.0", "arXiv"):
        body = body.replace(fixed, "")
    shown = {float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", body)}
    measured = [
        *results["metrics"].values(),
        *results["baseline"].values(),
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
    body = render(results).text
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


def test_a_model_that_does_not_beat_the_baselines_says_so(results):
    assert "does not beat" not in str(render(results))
    assert "does not beat" in str(render(change(results, ("metrics", "bits_per_dim"), 2.0)))


def test_a_score_that_a_file_proves_stands_beside_what_was_reported(results):
    assert "on disk" not in str(render(results))
    text = str(render(change(results, ("metrics", "bits_per_dim_on_disk"), 0.52345)))
    assert "reported, 0.5234 on disk on the test split" in text or "reported, 0.5235 on disk on the test split" in text
    assert "| Bits per dimension of a file of all images (bits/dim) | on disk, decoded | 0.523" in text


def test_a_metric_that_was_not_measured_has_no_line(results):
    del results["metrics"]["nll_nats_iw500"]
    card = str(render(results))
    assert "K = 500 importance samples" not in card
    assert "K = 5000 importance samples" in card


def test_an_unknown_metric_is_shown_under_its_own_name(results):
    results["metrics"]["pixel_joy"] = 0.5
    assert "| pixel joy | measurement | 0.5000 |" in str(render(results))


def test_empty_sections_leave_no_trace(results):
    results |= {"metrics": {}, "reference": [], "baseline": {}, "history": [], "diagnostics": {}, "evaluation": {}}
    card = str(render(results, []))
    for text in (
        "Values to compare with",
        "Codes without",
        "Diagnostic",
        "Circumstances",
        "## Pictures",
        "images/",
        "validation bits/dim",
        "****",
    ):
        assert text not in card


def test_unknown_family_is_named(results):
    with pytest.raises(ValueError, match=r"model_type must be one of \['latentgen_vae'.*, got 'latentgen_gan'"):
        render(change(results, ("model", "model_type"), "latentgen_gan"))


def test_card_without_a_record_of_the_training(results):
    unknown = {"train_command": None, "config": None, "seed": None, "train_seconds": None, "hardware": None}
    unknown |= {"versions": {}, "git_commit": None, "training": {}, "history": [], "reference": []}
    card = str(render(results | unknown))
    assert "How it was trained was not recorded" in card
    assert "None" not in card
    assert "One training run" not in card


def test_descriptions_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe_data("mnist").hub_id == "ylecun/mnist"
    assert describe_data("binarized_mnist").hub_id is None
    assert describe_data("someone/flowers").hub_id == "someone/flowers"
    (tmp_path / "photos" / "flowers").mkdir(parents=True)
    for folder in ("photos/flowers", "./flowers", str(tmp_path / "photos" / "flowers")):
        assert (describe_data(folder).title, describe_data(folder).hub_id) == ("flowers", None)


def test_metadata_does_not_tell_where_a_local_data_set_lies(results, tmp_path):
    data = render(results | {"dataset": str(tmp_path / "my_flowers")}).data
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


def test_a_card_leads_with_the_picture_that_is_easiest_to_read(results):
    assert re.findall(r"images/(\w+\.png)", render(results, list(CAPTIONS)).text)[0] == "samples_mean.png"
    text = render(results, ["history.png"]).text
    assert text.index("images/") > text.index("## Pictures")


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


def test_snippet_runs_offline(results, tmp_path, monkeypatch):
    config = hf_latentgen.VAEConfig(**CONFIG)
    hf_latentgen.VAEModel(config).save_pretrained(tmp_path / "model")
    hf_latentgen.LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", str(render(results)), re.DOTALL)
    assert snippet.count(REPO_ID) == 2
    exec(compile(snippet.replace(REPO_ID, str(tmp_path / "model")), "snippet", "exec"), {})
    for name in ("samples.png", "reconstructions.png", "interpolation.png"):
        with Image.open(name) as picture:
            assert picture.width > 4 * 4 * 8


def test_every_caption_and_baseline_is_one_line():
    for text in (*CAPTIONS.values(), *BASELINES.values()):
        assert "|" not in text
        assert "\n" not in text
