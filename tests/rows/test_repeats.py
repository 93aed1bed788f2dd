"""Several trainings of one recipe in the results of one of them."""

from dataclasses import replace

import pytest

from hf_latentgen.evaluation.results import Results
from hf_latentgen.rows.evaluation import check_repeats, with_repeats


@pytest.fixture
def trainings(results):
    """Results of three trainings that differ in their seeds."""
    known = Results.from_dict({"diagnostics": {}, "evaluation": {}} | results)
    shorter = {"bits_per_dim": 1.2, "negative_elbo_nats": 53.0}
    changes = [
        {"seed": seed, "overrides": [f"training.seed={seed}"], "train_command": f"train {seed}"} for seed in (1, 2)
    ]
    return [known, replace(known, **changes[0]), replace(known, metrics=shorter, **changes[1])]


def record(results):
    return {key: getattr(results, key) for key in ("config", "train_command", "seed", "overrides")}


def test_scores_that_all_trainings_have_get_a_mean_and_a_deviation(trainings):
    first, *others = trainings
    check_repeats(record(first), "digits", "test", others)
    found = with_repeats(first, others)
    assert found.metrics == first.metrics
    assert set(found.spread) == {"bits_per_dim", "negative_elbo_nats"}
    assert found.spread["bits_per_dim"] == pytest.approx({"mean": 1.22304, "std": 0.0199532}, rel=1e-5)
    assert found.repeats[1] == {
        "seed": 2,
        "command": "train 2",
        "metrics": {"bits_per_dim": 1.2, "negative_elbo_nats": 53.0},
    }
    assert Results.from_dict(vars(found)) == found


def test_one_training_has_no_spread(trainings):
    alone = with_repeats(trainings[0], [])
    assert alone.repeats == []
    assert alone.spread == {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"config": "configs/vae_mnist_4bit.yaml"}, "repeats must have config 'configs/vae_digits.yaml', got"),
        ({"dataset": "mnist"}, "repeats must have dataset 'digits', got"),
        ({"split": "validation"}, "repeats must have split 'test', got"),
        ({"overrides": ["training.max_steps=1"]}, "repeats must have overrides but for training.seed=.* [], got"),
        ({"train_command": "train --from runs/x"}, "repeats must have --from None, got"),
        ({"seed": 1}, "repeats must be trainings with another seed, got 'train 2' twice"),
        ({"seed": 1042, "overrides": ["training.sample_epochs=[]"]}, "with another seed, got 'train 2' twice"),
        ({"train_command": None}, "repeats must have a record of their training"),
    ],
)
def test_trainings_that_are_no_repeats_are_refused(trainings, change, complaint):
    first, second, third = trainings
    with pytest.raises(ValueError, match=complaint.replace("[]", r"\[\]")):
        check_repeats(record(first), "digits", "test", [second, replace(third, **change)])


def test_trainings_may_share_what_they_override_and_differ_in_the_seed_of_labels(trainings):
    first, *others = [
        replace(training, seed=42, overrides=["model.latent_dim=3", f"dataset.label_seed={seed}"])
        for seed, training in enumerate(trainings)
    ]
    check_repeats(record(first), "digits", "test", others)
    with pytest.raises(ValueError, match=r"repeats must have overrides .* \[\], got .*'model.latent_dim=3'"):
        check_repeats(record(trainings[0]), "digits", "test", others)


def test_a_checkpoint_without_a_record_has_no_repeats(trainings):
    with pytest.raises(ValueError, match="repeats are of no use for a checkpoint without a record"):
        check_repeats({}, "digits", "test", trainings[1:])
