"""A family from outside of the package goes all the way of a row: nothing in src knows of it."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hf_latentgen import LatentGenPipeline, load
from hf_latentgen.evaluation.files import score_files
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES
from hf_latentgen.hub.publishing import publish
from hf_latentgen.rows.cards import Choices, card_text
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from hf_latentgen.rows.publishing import prepare_upload
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.rows.tables import best_rows, cards_index, results_tables
from hf_latentgen.rows.verification import verify_row
from hub_common import client_of
from hub_server import Hub
from outside_family import HISTOGRAM

KNOWN = (*FAMILIES, HISTOGRAM)
RECIPE = Path(__file__).with_name("outside_family.yaml")


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """The folder of a trained and evaluated model."""
    folder = train_recipe(load_recipe(RECIPE, families=KNOWN), tmp_path_factory.mktemp("runs") / "outside_family")
    evaluation = evaluate(load(folder), families=KNOWN, command="evaluate it")
    return write_evaluation(evaluation, folder, folder)


@pytest.fixture
def hub(tmp_path):
    """A Hub that the client of this process talks to, with an empty cache."""
    hub = Hub({"hf_ada": ["ada"]})
    hub.server.start()
    with client_of(hub.url, "hf_ada", tmp_path / "cache"):
        yield hub
    hub.server.stop()


def test_it_trains_and_is_scored(row):
    results = Results.read(row)
    assert results.model_type == "histogram"
    assert results.num_parameters == 16 * 64
    scores = [entry["eval_bits_per_dim"] for entry in results.history]
    assert scores == sorted(scores, reverse=True)
    assert results.metrics["exact_bits_per_dim"] < 3.5
    # No weights do better than counting, but for smoothing.
    assert results.metrics["exact_bits_per_dim"] == pytest.approx(results.baseline["per_pixel_bits_per_dim"], abs=0.5)
    assert {path.name for path in (row / "images").iterdir()} == {"samples.png", "history.png"}


def test_it_has_a_card_and_tables(row):
    text = card_text(row, "ada/histogram", families=KNOWN)
    assert "A histogram of every pixel of scikit-learn digits" in text
    assert "1,024 parameters" in text
    assert ModelCard(text).data.tags[:2] == ["hf_latentgen", "histogram"]
    results = Results.read(row)
    score = f"{results.metrics['exact_bits_per_dim']:.4f}"
    for table in (results_tables, best_rows):
        assert score in table([results], "model_cards", KNOWN)
    assert "## Histograms" in cards_index([results], KNOWN)


def test_it_is_verified(row):
    found = verify_row(row, families=KNOWN)
    assert found.is_fine
    assert set(found.scores) == {"exact_bits_per_dim", "nll_nats"}


# The client itself raises it, of the library beneath.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_it_is_published_loaded_sampled_and_scores_files(row, hub, tmp_path):
    publish(prepare_upload(row, "ada/histogram", families=KNOWN, choices=Choices(license="mit")))
    assert {"README.md", "model.safetensors", "images/samples.png"} <= hub.files("ada/histogram").keys()
    loaded, local = load("ada/histogram"), load(row)
    assert tmp_path in loaded.folder.parents
    assert torch.equal(loaded.model.logits, local.model.logits)
    pipe = LatentGenPipeline(*loaded.parts)
    images = pipe(3, torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(8, 8)] * 3
    images[0].save(tmp_path / "image.png")
    (value,) = score_files(loaded.model, loaded.processor, tmp_path / "image.png").values()
    assert 0 < value < 8


def test_without_it_the_package_does_not_know_the_family(row):
    with pytest.raises(ValueError, match="model_type must be one of .*, got 'histogram'"):
        evaluate(load(row))
    with pytest.raises(ValueError, match="model_type must be one of .*, got 'histogram'"):
        load_recipe(RECIPE)
    assert json.loads((row / "config.json").read_text())["model_type"] == "histogram"
