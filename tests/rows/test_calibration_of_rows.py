"""What validation images score is measured with a checkpoint, and kept with its weights."""

from dataclasses import replace

import pytest
import torch

from hf_latentgen import load, load_images
from hf_latentgen.evaluation.anomaly import Calibration
from hf_latentgen.families import inputs
from hf_latentgen.families.family import Options
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from rows_common import write_run

FEW = Options(num_importance_samples=1)


def test_what_validation_images_score_is_kept_with_the_weights(evaluation, trained, checkpoint, tmp_path):
    found = evaluation.calibration
    assert (found.dataset, found.num_images) == ("digits", 200)
    assert Calibration.read(write_evaluation(evaluation, trained, tmp_path / "row")) == found
    # Of a checkpoint that is evaluated in place, an older one is replaced.
    replace(found, mean_bits_per_dim=1.0).write(checkpoint)
    assert Calibration.read(write_evaluation(evaluation, checkpoint, checkpoint)) == found


def test_too_few_validation_images_are_no_calibration(trained, monkeypatch):
    def load_few(name, split, **where):
        return load_images(name, split, **where).select(range(49))

    monkeypatch.setattr(inputs, "load_images", load_few)
    assert evaluate(load(trained), options=FEW).calibration is None


def test_too_few_images_of_the_classes_that_were_trained_on_are_no_calibration(checkpoint):
    write_run(checkpoint, dataset={"name": "digits", "leave_out_classes": list(range(8))})
    assert evaluate(load(checkpoint), options=FEW).calibration is None


def test_classes_that_the_training_left_out_are_not_usual(checkpoint):
    write_run(checkpoint, dataset={"name": "digits", "leave_out_classes": [0, 7]})
    labels = torch.tensor(load_images("digits", "validation")["label"])
    evaluation = evaluate(load(checkpoint), options=FEW)
    assert evaluation.calibration.num_images == int(((labels != 0) & (labels != 7)).sum()) < 200
    assert evaluation.results.dataset_options == {"leave_out_classes": [0, 7]}


def test_a_fuller_calibration_of_the_same_weights_is_kept(evaluation, checkpoint):
    write_evaluation(evaluation, checkpoint, checkpoint)
    kept = Calibration.read(checkpoint)
    fuller = replace(kept, quantiles=kept.quantiles | {"likelihood_regret": [0.0] * len(kept.shares)})
    for other in (fuller, replace(kept, dataset="photos")):
        other.write(checkpoint)
        write_evaluation(evaluation, checkpoint, checkpoint)
        assert Calibration.read(checkpoint) == other
    replace(fuller, weights_sha256="0" * 64).write(checkpoint)
    write_evaluation(evaluation, checkpoint, checkpoint)
    assert Calibration.read(checkpoint) == kept


@pytest.mark.parametrize("places", [("row",), ("run",), ("run", "row")])
def test_a_fuller_calibration_is_kept_wherever_it_lies(evaluation, checkpoint, tmp_path, places):
    row = write_evaluation(evaluation, checkpoint, tmp_path / "row")
    kept = Calibration.read(row)
    fuller = replace(kept, quantiles=kept.quantiles | {"likelihood_regret": [0.0] * len(kept.shares)})
    for place in ("run", "row"):
        (fuller if place in places else kept).write({"run": checkpoint, "row": row}[place])
    write_evaluation(evaluation, checkpoint, row)
    assert Calibration.read(row) == fuller
