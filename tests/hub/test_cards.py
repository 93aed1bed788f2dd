"""Every row is published, and the examples on its card run from the Hub."""

import json
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = sorted(path.parent.name for path in REPOSITORY.glob("model_cards/*/results.json"))
DATA = Path(os.environ.get("HF_LATENTGEN_DATA", REPOSITORY.parent / "shared" / "data"))
# Ships with scikit-learn; the examples of other rows read their data from the folder above.
EMBEDDED = "digits"
pytestmark = pytest.mark.timeout(600)


def dataset(row: str) -> str:
    return json.loads((REPOSITORY / "model_cards" / row / "results.json").read_text())["dataset"]


RUNNABLE = [row for row in ROWS if dataset(row) == EMBEDDED or (DATA / dataset(row)).is_dir()]


@pytest.fixture(scope="module")
def published(hub, run_client, repository):
    return run_client("publish_rows", repository, *ROWS)


@pytest.fixture(scope="module")
def results(run_client, published):
    output = run_client("run_cards", *(f"hf-latentgen/{row}" for row in RUNNABLE), HF_LATENTGEN_DATA=str(DATA))
    return json.loads(output.splitlines()[-1])


def test_there_are_rows():
    assert {"vae_digits", "aae_digits", "local_digits"} <= set(RUNNABLE)
    # A pipeline, and a row whose weights are not in the clone.
    assert {"prior_vae_mnist", "local_shakespeare"} <= set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_the_card_in_the_clone_is_the_card_on_the_hub(hub, published, row):
    text = (REPOSITORY / "model_cards" / row / "README.md").read_bytes()
    files = hub.files(f"hf-latentgen/{row}")
    assert files["README.md"] == text
    pictures = {path for path in files if path.startswith("images/")}
    assert set(re.findall(r"!\[[^\]]*\]\((images/[^)]+)\)", text.decode())) == pictures
    assert {entry["output"]["url"] for entry in ModelCard(text.decode()).data.widget} == pictures


@pytest.mark.parametrize("row", ROWS)
def test_the_examples_of_the_card_run(results, row):
    if row not in RUNNABLE:
        pytest.skip(f"no {dataset(row)} in {DATA}; set HF_LATENTGEN_DATA to the folder that holds it")
    result = results[f"hf-latentgen/{row}"]
    assert result["error"] == ""
    assert result["blocks"] >= 1
    assert {"sample.png", "samples.png"} & set(result["files"]) or "text-generation" in (
        REPOSITORY / "model_cards" / row / "README.md"
    ).read_text(encoding="utf-8")
