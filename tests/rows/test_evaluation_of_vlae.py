"""Variational lossy autoencoders on a few real digits, from a checkpoint to its results and pictures."""

import math
from dataclasses import replace

import pytest
import torch

from hf_latentgen import VLAEConfig, VLAEModel, load
from hf_latentgen.evaluation.anomaly import Calibration
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import inputs
from hf_latentgen.families.family import Options
from hf_latentgen.families.vlae import VLAE
from hf_latentgen.hub.files import WEIGHTS, weights_sha256
from hf_latentgen.rows.cards import card_text
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from rows_common import load_few, save_checkpoint, write_run


@pytest.fixture
def checkpoint(tmp_path):
    """A new model of two groups of latents, as a training leaves it."""
    torch.manual_seed(0)
    config = VLAEConfig(
        image_size=8,
        num_levels=16,
        latent_dim=3,
        hidden_channels=(6, 8),
        ladder_channels=(1,),
        decoder_channels=8,
        decoder_layers=1,
        decoder_radius=1,
    )
    folder = save_checkpoint(VLAEModel(config), tmp_path / "vlae_small")
    write_run(folder, history=[{"epoch": 1.0, "eval_bits_per_dim": 3.0}])
    return folder


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(inputs, "load_images", load_few)


def test_code_and_pixels_are_measured_and_drawn(checkpoint, tmp_path):
    loaded, said = load(checkpoint), []
    evaluation = evaluate(loaded, options=Options(num_importance_samples=2), say=said.append)
    results = evaluation.results
    assert results.metrics["bits_per_dim"] == pytest.approx(results.metrics["negative_elbo_nats"] / (64 * math.log(2)))
    assert results.metrics["rate_nats"] == pytest.approx(
        sum(results.diagnostics[f"rate_of_group_{group}_nats"] for group in (1, 2)), rel=1e-5
    )
    # Pixels that are drawn one after the other have no mean.
    assert "reconstruction_mse" not in results.metrics
    assert not {"samples_mean", "samples_mode"} & set(evaluation.pictures)
    shown = {"samples", "reconstructions", "interpolations", "completions", "same_code", "same_code_groups_1"}
    assert shown <= set(evaluation.pictures)
    # The regret takes minutes, and is left to a command of its own.
    assert evaluation.calibration is not None
    assert {"bits_per_dim", "typicality"} <= set(evaluation.calibration.quantiles)
    assert "likelihood_regret" not in evaluation.calibration.quantiles
    assert evaluation.calibration.best_method == "complexity_png"
    assert said[0].startswith("K = 2 importance samples an image: about ")
    folder = write_evaluation(evaluation, checkpoint, tmp_path / "row")
    assert "Images are drawn." in card_text(folder, "org/name")
    assert set(VLAE.verify(loaded, VLAE.load_data(loaded, "digits", "test", None), Options())) <= set(results.metrics)


def test_scores_in_bf16_are_close(checkpoint):
    exact, half = (
        evaluate(load(checkpoint), options=Options(num_importance_samples=2, bf16=bf16)) for bf16 in (None, True)
    )
    for name in ("bits_per_dim", "nll_nats_iw2"):
        assert half.results.metrics[name] != exact.results.metrics[name]
        assert half.results.metrics[name] == pytest.approx(exact.results.metrics[name], rel=2e-3)


def test_weights_that_were_read_in_bf16_are_kept_so_and_score_the_same(checkpoint, tmp_path):
    options = Options(num_importance_samples=2, bf16=True)
    evaluation = evaluate(load(checkpoint), options=options)
    row = write_evaluation(evaluation, checkpoint, tmp_path / "row")
    size = (row / WEIGHTS).stat().st_size
    assert size < 0.6 * (checkpoint / WEIGHTS).stat().st_size
    again = load(row)
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.float32}
    assert Results.read(row).weights_sha256 == weights_sha256(row) != evaluation.results.weights_sha256
    assert Calibration.read(row).weights_sha256 == weights_sha256(row)
    repeated = evaluate(again, options=options)
    assert repeated.results.metrics == evaluation.results.metrics
    assert repeated.results.weights_sha256 == weights_sha256(row)
    # Written over itself, as `evaluate ROW --row` does, it stays as it is.
    write_evaluation(repeated, row, row)
    assert (row / WEIGHTS).stat().st_size == size
    # Without it nothing is rounded.
    exact = write_evaluation(
        evaluate(load(checkpoint), options=Options(num_importance_samples=0)), checkpoint, tmp_path / "exact"
    )
    assert weights_sha256(exact) == weights_sha256(checkpoint)


def test_it_is_said_how_long_pictures_take(checkpoint, monkeypatch):
    loaded = load(checkpoint)
    assert 0 < VLAE.seconds_of_pictures(loaded) < 60
    monkeypatch.setattr("hf_latentgen.families.vae.sample_seconds", lambda *_: 1.0)
    said = []
    for pictures in (0.0, 40.0):
        family = replace(VLAE, seconds_of_pictures=lambda _, seconds=pictures: seconds)
        evaluate(loaded, options=Options(budget=60.0), say=said.append, families=(family,))
    assert said[0] == "K = 50 importance samples an image: about 56 s; K = 500 would take 8 min 20 s"
    assert said[1] == f"{said[0]}; pictures, which no budget bounds: about 40 s"
