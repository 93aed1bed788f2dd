"""What the adversarial trainer warns of, once, and what stops it."""

import math

import pytest
import torch

from hf_latentgen import AAEForImageClassification
from hf_latentgen.training import adversarial
from training_common import AtStep, fill, logs_of_training, messages


def test_discriminator_that_has_won_is_warned_of_once(make_adversary, monkeypatch, caplog):
    monkeypatch.setattr(adversarial, "WINNING_STEPS", 4)
    trainer = make_adversary(learning_rate=0.0, discriminator_learning_rate=0.05, max_steps=40)
    with torch.no_grad():
        # Codes that no sample of the prior comes near to.
        trainer.model.encoder.to_posterior.bias.fill_(20)
    trainer.train()
    accuracies = [entry["discriminator_accuracy"] for entry in logs_of_training(trainer)]
    since = max(step for step, accuracy in enumerate(accuracies[:30], 1) if accuracy <= 0.99)
    assert since < 30
    (message,) = messages(caplog)
    assert f"right in 100.0% of its decisions since step {since}: it has won" in message
    assert "Lower discriminator_learning_rate, or give it noise (discriminator_noise_std)" in message


def test_interrupted_win_does_not_count(make_adversary, monkeypatch, caplog):
    monkeypatch.setattr(adversarial, "WINNING_STEPS", 4)
    trainer = make_adversary()
    trainer.state.logging_steps = 1
    for step, accuracy in enumerate([1.0, 1.0, 1.0, 0.98, 1.0, 1.0, 1.0, 0.99, 1.0], start=1):
        trainer.state.global_step = step
        trainer.log({"discriminator_accuracy": accuracy})
        trainer.log({"eval_discriminator_accuracy": 1.0})
    assert messages(caplog) == []
    for step in (10, 11, 12, 13):
        trainer.state.global_step = step
        trainer.log({"discriminator_accuracy": 0.995})
    (message,) = messages(caplog)
    assert "right in 99.5% of its decisions since step 8" in message


def test_constant_decoder_is_warned_of_once(make_adversary, monkeypatch, caplog):
    monkeypatch.setattr(adversarial, "FIRST_STEPS", 3)
    trainer = make_adversary(learning_rate=0.0, max_steps=5)
    fill(trainer.model.decoder, 0.0)
    trainer.train()
    (message,) = messages(caplog)
    assert "the same image for every code (standard deviation 0.0e+00 at step 3)" in message
    assert "it has collapsed. Lower learning_rate" in message


def test_decoder_that_becomes_constant_is_warned_of_at_once(make_adversary, caplog):
    trainer = make_adversary(
        learning_rate=0.0, max_steps=5, callbacks=[AtStep(lambda model: fill(model.decoder, 0.0), before=3)]
    )
    trainer.train()
    (message,) = messages(caplog)
    assert "the same image for every code (standard deviation 0.0e+00 at step 3)" in message


def test_new_decoders_and_those_never_trained_are_no_collapse(make_adversary, monkeypatch, caplog):
    trainer = make_adversary(learning_rate=0.0, max_steps=4)
    fill(trainer.model.decoder, 0.0)
    trainer.train()
    assert [entry["decoded_spread"] for entry in logs_of_training(trainer)] == [0.0] * 4
    monkeypatch.setattr(adversarial, "FIRST_STEPS", 1)
    trainer = make_adversary(max_steps=4, config={"reconstruction_weight": 0})
    fill(trainer.model.decoder, 0.0)
    trainer.train()
    assert messages(caplog) == []


def test_healthy_training_warns_of_nothing(make_adversary, monkeypatch, caplog):
    monkeypatch.setattr(adversarial, "WINNING_STEPS", 4)
    trainer = make_adversary(max_steps=20, discriminator_learning_rate=1e-4, eval_strategy="epoch")
    trainer.train()
    assert messages(caplog) == []


def test_batch_of_one_image_has_no_spread_and_is_no_collapse(make_adversary, caplog):
    trainer = make_adversary(per_device_train_batch_size=1, max_steps=2)
    trainer.train()
    assert [entry["decoded_spread"] for entry in logs_of_training(trainer)] == [1.0, 1.0]
    assert messages(caplog) == []


@pytest.mark.parametrize("weight", [0, 0.9, 1])
def test_codes_turned_nan_stop_with_step_and_last_good_checkpoint(make_adversary, weight):
    trainer = make_adversary(
        config={"reconstruction_weight": weight},
        callbacks=[AtStep(lambda model: fill(model.encoder, math.nan), before=3)],
        max_steps=9,
        save_strategy="steps",
        save_steps=1,
    )
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step 3;.*run/checkpoint-2$"):
        trainer.train()


def test_each_kind_of_warning_is_given_once(make_adversary, caplog):
    trainer = make_adversary()
    for kind, message in (("one", "the same word"), ("two", "the same word"), ("one", "another text")):
        trainer._warn(kind, message)
    assert messages(caplog) == ["the same word"] * 2


def test_a_classifier_without_labels_is_told_of_them_once(make_adversary, labelled_digits, digits, caplog):
    for data, expected in ((digits, 1), (labelled_digits, 0)):
        caplog.clear()
        make_adversary(model_class=AAEForImageClassification, data=data, max_steps=2).train()
        assert sum("no labels" in message for message in messages(caplog)) == expected
