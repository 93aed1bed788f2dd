"""What a training came to, beside what it has to get below."""

import json
import math

import pytest

from hf_latentgen import LevelsDataset, load_images
from hf_latentgen.evaluation.baselines import baseline_scores
from hf_latentgen.hub.loading import load
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.rows.verdict import likely_reasons
from rows_common import write_text_recipe

RECIPE = """
dataset: {name: digits}
model: {architecture: mlp, image_size: 8, latent_dim: 2, hidden_channels: [16]}
training: {max_steps: 4, eval_strategy: steps, eval_steps: 2, save_strategy: "no", disable_tqdm: true, seed: 3}
"""


@pytest.fixture
def train(tmp_path):
    """Trains the recipe with overrides. Returns the folder and the verdict."""
    (tmp_path / "small.yaml").write_text(RECIPE)

    def run(*overrides):
        folder = train_recipe(load_recipe(tmp_path / "small.yaml", list(overrides)), tmp_path / "run")
        return folder, json.loads((folder / "run.json").read_text())["verdict"]

    return run


def test_a_short_training_is_told_whom_it_lost_to(train):
    folder, verdict = train("training.ema_decay=0.5", "training.learning_rate=0.01")
    run = json.loads((folder / "run.json").read_text())
    own, untrained, uniform, code = verdict["scores"].values()
    assert verdict["num_examples"] == 200
    # The averaged weights, which were evaluated and saved.
    assert own == pytest.approx(run["history"][-1]["eval_bits_per_dim"], rel=1e-6)
    assert untrained == pytest.approx(4, abs=0.2)
    assert uniform == 4
    processor = load(folder).processor
    parts = (LevelsDataset(load_images("digits", split), processor) for split in ("train", "validation"))
    levels = [part.levels.numpy() for part in parts]
    assert code == min(baseline_scores(*levels, 16).values())
    assert verdict["sentence"].startswith("It lost to the best code without a network (")
    assert "too few steps: 4" in verdict["sentence"]
    assert "latent_dim=2" in verdict["sentence"]


def test_a_diverged_training_lost_to_all(train):
    _, verdict = train("training.learning_rate=1.0")
    for rival in ("the untrained model", "the uniform code", "the best code without a network"):
        assert rival in verdict["sentence"]


def test_a_model_without_a_likelihood_is_compared_with_the_untrained_one(train):
    _, verdict = train("model.model_type=latentgen_aae", "model.discriminator_channels=[8]")
    assert verdict["unit"] == "reconstruction loss"
    assert list(verdict["scores"]) == ["this model", "the untrained model"]


@pytest.mark.parametrize(
    ("warmup", "steps", "history", "model", "words"),
    [
        (2000, 2500, [], {}, "kl_warmup_steps"),
        (0.9, 5000, [], {}, "kl_warmup_steps"),
        (0, 300, [], {}, "too few steps: 300"),
        (0, 5000, [3.0, 2.0], {}, "still falling"),
        (0, 5000, [2.0, 3.0], {}, "by heart"),
        (0, 5000, [], {"latent_dim": 2}, "latent_dim=2"),
        (0, 5000, [], {"num_levels": 256}, "num_levels=256"),
        (0, 5000, [2.0, 2.0], {"latent_dim": 20, "num_levels": 16}, "too small"),
        (0.1, 5000, [2.0, 2.0], {"latent_dim": 2, "ladder_channels": [4], "num_levels": 16}, "too small"),
        (0, 5000, [2.0, 2.0], {"num_levels": 256, "pixel_likelihood": "logistic_mixture"}, "too small"),
    ],
)
def test_reasons(warmup, steps, history, model, words):
    (reason,) = likely_reasons(warmup, steps, history, model)
    assert words in reason


def test_bits_of_texts_are_compared_with_eight(tmp_path):
    folder = train_recipe(load_recipe(write_text_recipe(tmp_path)), tmp_path / "run")
    scores = json.loads((folder / "run.json").read_text())["verdict"]["scores"]
    own, untrained, uniform, code = scores.values()
    assert uniform == 8
    assert own == pytest.approx(math.log2(259), abs=0.6)
    assert untrained == pytest.approx(math.log2(259), abs=0.6)
    # The validation text is the training text.
    assert code < 1
