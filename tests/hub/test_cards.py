"""Every row is published, and the examples on its card run from the Hub."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, hf_hub_download
from transformers import AutoConfig

from hf_latentgen.evaluation.results import Results
from hf_latentgen.hub.files import has_weights
from hf_latentgen.hub.loading import new_model
from hf_latentgen.rows.command import publish_command

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = sorted(path.parent.name for path in REPOSITORY.glob("model_cards/*/results.json"))
DATA = Path(os.environ.get("HF_LATENTGEN_DATA", REPOSITORY.parent / "shared" / "data"))
# Ships with scikit-learn; the examples of other rows read their data from the folder above.
EMBEDDED = "digits"
pytestmark = [
    pytest.mark.timeout(300),
    # The client itself raises it, of the library beneath.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def dataset(row):
    return Results.read(REPOSITORY / "model_cards" / row).dataset


def test_there_are_rows():
    assert {"vae_digits", "aae_digits", "local_digits"} <= {row for row in ROWS if dataset(row) == EMBEDDED}
    # A pipeline, and a row whose weights are not in the clone.
    assert {"prior_vae_mnist", "vae_binarized_mnist"} <= set(ROWS)


# Those that draw hundreds of pixels or bytes, one after the other.
SLOW = {row for row in ROWS if row.startswith("local_") and dataset(row) != EMBEDDED}


@pytest.fixture(params=[pytest.param(row, marks=[pytest.mark.slow] * (row in SLOW)) for row in ROWS])
def row(request, tmp_path):
    """The name of a row that has been published under the name on its card."""
    folder = REPOSITORY / "model_cards" / request.param
    if not has_weights(folder):
        # Random weights stand for those that are not in the clone; only those that were measured have their hash.
        folder = shutil.copytree(folder, tmp_path / request.param)
        new_model(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        replace(Results.read(folder), weights_sha256=None).write(folder)
    publish_command(str(folder), f"hf-latentgen/{request.param}")
    return request.param


def test_the_card_in_the_clone_is_the_card_on_the_hub_and_its_examples_run(hub, row, tmp_path, monkeypatch):
    text = (REPOSITORY / "model_cards" / row / "README.md").read_bytes()
    files = hub.files(f"hf-latentgen/{row}")
    assert files["README.md"] == text
    pictures = {path for path in files if path.startswith("images/")}
    assert set(re.findall(r"!\[[^\]]*\]\((images/[^)]+)\)", text.decode())) == pictures
    assert {entry["output"]["url"] for entry in ModelCard(text.decode()).data.widget} == pictures
    if dataset(row) != EMBEDDED and not (DATA / dataset(row)).is_dir():
        pytest.skip(f"no {dataset(row)} in {DATA}; set HF_LATENTGEN_DATA to the folder that holds it")
    card = Path(hf_hub_download(f"hf-latentgen/{row}", "README.md")).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.setenv("HF_LATENTGEN_DATA", str(DATA))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for block in blocks:
        exec(block, {"__name__": "__main__"})
    drawn = {path.name for path in tmp_path.iterdir()} & {"sample.png", "samples.png"}
    assert drawn or "text-generation" in card
