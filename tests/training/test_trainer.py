import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_latentgen import (
    ELBOTrainer,
    LatentTrainingArguments,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    VAEModel,
)
from hf_latentgen.models.networks import matrix_layers
from hf_latentgen.training.optimizers import muon
from hf_latentgen.training.resume import TRAINING_WEIGHTS
from training_common import AtStep, assert_equal_weights, fill, weights_of

NATS_PER_BIT_PER_DIM = 64 * math.log(2)
PARTS = ("distortion", "rate", "bits_per_dim", "beta")


def multiply(model, factor):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)


def test_parts_are_logged_beside_the_loss(make_trainer, training_logs):
    trainer = make_trainer(config={"beta": 0.5}, num_train_epochs=1, eval_strategy="epoch")
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 4
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    for entry in [*logs, {name.removeprefix("eval_"): value for name, value in evaluation.items()}]:
        distortion, rate, bits_per_dim, beta = (entry[part] for part in PARTS)
        assert distortion > 0
        assert rate > 0
        assert beta == 0.5
        assert bits_per_dim == pytest.approx((distortion + rate) / NATS_PER_BIT_PER_DIM, rel=1e-6)
        assert entry["loss"] == pytest.approx((distortion + beta * rate) / NATS_PER_BIT_PER_DIM, rel=1e-6)


def test_training_loss_and_evaluation_loss_are_one_quantity(make_trainer, training_logs, digits, without_noise):
    trainer = make_trainer(config={"free_bits": 0.3}, learning_rate=0.0, max_steps=1, per_device_train_batch_size=64)
    trainer.train()
    evaluated = trainer.evaluate(digits[0])
    (logged,) = training_logs(trainer)
    for name in ("loss", *PARTS):
        assert logged[name] == pytest.approx(evaluated[f"eval_{name}"], rel=1e-6), name


def test_logged_parts_are_means_over_the_steps_since_the_last_log(make_trainer, training_logs):
    every_step = make_trainer(max_steps=4)
    every_step.train()
    every_other = make_trainer(max_steps=4, logging_steps=2)
    every_other.train()
    single, double = training_logs(every_step), training_logs(every_other)
    for name in ("loss", *PARTS):
        means = [(single[i][name] + single[i + 1][name]) / 2 for i in (0, 2)]
        assert [entry[name] for entry in double] == pytest.approx(means, rel=1e-5), name


def test_weight_of_the_rate_grows_by_steps_and_is_full_in_evaluation(make_trainer, training_logs):
    trainer = make_trainer(config={"beta": 0.5}, kl_warmup_steps=4, max_steps=6, eval_strategy="steps", eval_steps=1)
    trainer.train()
    logs = training_logs(trainer)
    assert [entry["beta"] for entry in logs] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    for entry in logs:
        expected = (entry["distortion"] + entry["beta"] * entry["rate"]) / NATS_PER_BIT_PER_DIM
        assert entry["loss"] == pytest.approx(expected, rel=1e-6)
    assert {entry["eval_beta"] for entry in trainer.state.log_history if "eval_beta" in entry} == {0.5}


def test_a_warm_up_can_be_a_share_of_the_run(make_trainer, training_logs):
    trainer = make_trainer(kl_warmup_steps=0.5, max_steps=8)
    trainer.train()
    betas = [entry["beta"] for entry in training_logs(trainer)]
    assert betas == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_a_warm_up_can_start_above_nothing(make_trainer, training_logs):
    trainer = make_trainer(kl_warmup_steps=4, kl_warmup_start=0.2, max_steps=5)
    trainer.train()
    betas = [entry["beta"] for entry in training_logs(trainer)]
    assert betas == pytest.approx([0.4, 0.6, 0.8, 1, 1])


def test_free_bits_are_in_the_loss_and_not_in_the_rate(make_trainer, training_logs):
    trainer = make_trainer(config={"free_bits": 5.0}, max_steps=1)
    trainer.train()
    (entry,) = training_logs(trainer)
    assert entry["rate"] < 5
    assert entry["loss"] * NATS_PER_BIT_PER_DIM - entry["distortion"] == pytest.approx(2 * 5.0, rel=1e-4)
    assert entry["bits_per_dim"] < entry["loss"]


def test_evaluation_takes_posterior_samples_from_a_seeded_generator(make_trainer, digits):
    trainer = make_trainer(config={"hidden_channels": [32]}, max_steps=120, logging_steps=120)
    trainer.train()
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_bits_per_dim"] == second["eval_bits_per_dim"]
    assert first["eval_loss"] == second["eval_loss"]
    model, generator = trainer.model.eval(), torch.Generator().manual_seed(trainer.args.seed)
    batches = digits[1].levels.split(16)
    sampled = torch.cat([model.bits_per_dim(batch, generator=generator) for batch in batches])
    assert first["eval_bits_per_dim"] == pytest.approx(sampled.mean().item(), rel=1e-5)
    with torch.no_grad():
        at_the_mean = model(digits[1].levels, sample_posterior=False).loss.item()
    assert first["eval_bits_per_dim"] > at_the_mean + 0.01
    trainer.args.seed += 1
    assert trainer.evaluate()["eval_bits_per_dim"] != first["eval_bits_per_dim"]


@pytest.mark.parametrize(
    "extra",
    [
        {"eval_strategy": "steps", "eval_steps": 1},
        {"sample_epochs": [0, 1, 2]},
        {"save_strategy": "steps", "save_steps": 1},
        {"ema_decay": 0.9, "eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=["evaluation", "grids", "checkpoints", "averaging"],
)
def test_training_is_bit_identical_with_and_without(make_trainer, training_logs, extra):
    plain = make_trainer(num_train_epochs=2)
    plain.train()
    plain_state = torch.get_rng_state()
    other = make_trainer("other", num_train_epochs=2, **extra)
    other.train()
    assert training_logs(plain) == training_logs(other)
    assert_equal_weights(weights_of(plain.model), weights_of(other.model))
    assert torch.equal(plain_state, torch.get_rng_state())


def test_averaged_weights_are_evaluated_and_saved(make_trainer, tmp_path):
    trained = []
    trainer = make_trainer(
        callbacks=[AtStep(lambda model: trained.append(weights_of(model)))],
        ema_decay=0.3,
        max_steps=6,
        save_strategy="steps",
        save_steps=6,
    )
    average = weights_of(trainer.model)
    trainer.train()
    for step, weights in enumerate(trained):
        # The decay of diffusers grows from 0, so that the random initial weights are soon forgotten.
        decay = min(0.3, (1 + step) / (10 + step)) if step > 0 else 0.0
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    trainer.save_model()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    for name, expected in average.items():
        torch.testing.assert_close(saved[name], expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(saved[name], trained[-1][name], atol=1e-4) for name in saved)
    assert_equal_weights(weights_of(trainer.model), trained[-1])
    checkpoint = tmp_path / "run" / "checkpoint-6"
    assert_equal_weights(load_file(checkpoint / "model.safetensors"), saved)
    assert_equal_weights(load_file(checkpoint / TRAINING_WEIGHTS), trained[-1])
    assert not (tmp_path / "run" / TRAINING_WEIGHTS).exists()
    score = trainer.evaluate()["eval_bits_per_dim"]
    trainer.model.load_state_dict(saved)
    trainer._average = None
    assert trainer.evaluate()["eval_bits_per_dim"] == score
    trainer.model.load_state_dict(trained[-1])
    assert trainer.evaluate()["eval_bits_per_dim"] != score


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_final_folder_holds_the_checkpoint_of_the_lowest_bits_per_dim(make_trainer, tmp_path, ema_decay):
    trainer = make_trainer(
        callbacks=[AtStep(lambda model: multiply(model, 5), before=4)],
        ema_decay=ema_decay,
        max_steps=5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    trainer.save_model()
    scores = {
        entry["step"]: entry["eval_bits_per_dim"] for entry in trainer.state.log_history if "eval_bits_per_dim" in entry
    }
    assert len(scores) == 5
    best = min(scores, key=scores.__getitem__)
    assert best < 4
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert_equal_weights(final, load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors"))
    assert trainer.evaluate()["eval_bits_per_dim"] == scores[best]
    assert_equal_weights(weights_of(VAEModel.from_pretrained(tmp_path / "run")), final)


def test_checkpoints_hold_no_pickled_arguments(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert list(tmp_path.rglob("*.bin")) == []
    published = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert published == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_accumulated_gradients_are_those_of_the_large_batch(make_trainer, training_logs, without_noise):
    # Plain SGD, because Adam divides the rounding error of a tiny gradient by its size. Steps of 24, 24 and 16 images,
    # the last of which has two small batches instead of three.
    common = {"optim": "sgd", "learning_rate": 0.5, "num_train_epochs": 2, "max_grad_norm": 0.1}
    large = make_trainer(per_device_train_batch_size=24, **common)
    large.train()
    small = make_trainer(per_device_train_batch_size=8, gradient_accumulation_steps=3, **common)
    small.train()
    expected, found = training_logs(large), training_logs(small)
    assert len(expected) == len(found) == 6
    for name in ("loss", "grad_norm"):
        assert [entry[name] for entry in found] == pytest.approx([entry[name] for entry in expected], rel=1e-5)
    expected = weights_of(large.model)
    for name, weight in weights_of(small.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_non_finite_loss_stops_and_names_the_step_and_the_last_good_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(
        callbacks=[AtStep(lambda model: fill(model, math.nan), before=3)],
        max_steps=9,
        save_strategy="steps",
        save_steps=1,
    )
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step 3;.*run/checkpoint-2$"):
        trainer.train()


def test_checkpoints_that_were_cut_off_or_hold_nan_are_not_called_good(make_trainer, tmp_path):
    run = tmp_path / "run"

    def spoil(model):
        weights = load_file(run / "checkpoint-2" / "model.safetensors")
        save_file(
            {name: weight * math.nan for name, weight in weights.items()}, run / "checkpoint-2" / "model.safetensors"
        )
        (run / "checkpoint-3" / "trainer_state.json").unlink()
        fill(model, math.nan)

    trainer = make_trainer(callbacks=[AtStep(spoil, before=4)], max_steps=9, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=r"at step 4;.*run/checkpoint-1$"):
        trainer.train()


def test_non_finite_loss_before_any_checkpoint(make_trainer):
    trainer = make_trainer(callbacks=[AtStep(lambda model: fill(model, math.nan), before=1)], max_steps=2)
    with pytest.raises(
        FloatingPointError, match="at step 1; the last good checkpoint is none: no checkpoint with finite"
    ):
        trainer.train()


def test_non_finite_scores_are_not_filtered_out_of_the_logs(make_trainer):
    trainer = make_trainer()
    fill(trainer.model, math.nan)
    trainer.evaluate()
    (entry,) = trainer.state.log_history
    assert math.isnan(entry["eval_loss"])
    assert math.isnan(entry["eval_bits_per_dim"])


def test_elapsed_seconds_are_logged_while_training(make_trainer, training_logs):
    trainer = make_trainer(max_steps=3)
    trainer.train()
    times = [entry["elapsed_seconds"] for entry in trainer.state.log_history]
    assert len(times) == 4
    assert times == sorted(times)
    assert 0 <= times[-1] < 60


@pytest.mark.parametrize(
    ("field", "value"), [("ema_decay", 0.9), ("sample_epochs", [0, 1]), ("muon_learning_rate", 0.01)]
)
def test_what_needs_whole_weights_is_refused_under_fsdp(make_trainer, monkeypatch, field, value):
    create = ELBOTrainer.create_accelerator_and_postprocess

    def create_with_fsdp(self):
        create(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(ELBOTrainer, "create_accelerator_and_postprocess", create_with_fsdp)
    with pytest.raises(ValueError, match=rf"{field} must be .* under FSDP.*got {re.escape(str(value))}"):
        make_trainer(**{field: value})


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_of_muon_is_orthogonal_and_of_the_size_of_one_of_adamw(make_trainer, channels_last):
    common = {"config": {"architecture": "course", "hidden_channels": [4, 6, 4]}, "channels_last": channels_last}
    common |= {"max_steps": 1, "max_grad_norm": 0.0, "learning_rate": 0.01, "lr_scheduler_type": "constant"}
    steps, gradients = [], {}
    for rate in (None, 0.02):
        trainer = make_trainer(**common, muon_learning_rate=rate)
        before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
        for name, parameter in trainer.model.named_parameters():
            parameter.register_hook(lambda gradient, name=name: gradients.update({name: gradient.clone()}))
        trainer.train()
        steps.append({name: parameter - before[name] for name, parameter in trainer.model.named_parameters()})
    adamw, muon = steps
    for name, step in muon.items():
        module = trainer.model.get_submodule(name.rpartition(".")[0])
        if step.ndim == 1 or not isinstance(module, nn.Conv2d | nn.Linear):
            torch.testing.assert_close(step, adamw[name])
            continue
        # A row for each output.
        left, values, right = torch.linalg.svd(gradients[name].flatten(1), full_matrices=False)
        size = max(step.flatten(1).shape)
        # Of singular values near nothing the iteration makes less than one, and noise of the half precision.
        is_large = values > 0.05 * values[0]
        found = (-step.flatten(1) / (0.02 * 0.2 * size**0.5)).double()
        along = (left.double().T @ found @ right.double().T).diagonal()[is_large]
        assert ((along > 0.6) & (along < 1.3)).all(), name


def test_muon_leaves_an_embedding_to_adamw_also_where_the_last_layer_shares_it(tmp_path):
    config = LocalTransformerConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LocalTransformerForCausalLM(config)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    rest, matrices = muon(model, LatentTrainingArguments(str(tmp_path), muon_learning_rate=0.01)).param_groups
    assert any(parameter is model.lm_head.weight for parameter in rest["params"])
    assert len(matrices["params"]) == len(matrix_layers(model)) - 1


@pytest.mark.parametrize("where", ["optimizers", "optimizer_cls_and_kwargs"])
def test_muon_beside_another_optimizer_is_refused(make_trainer, tmp_path, where):
    model = make_trainer().model
    other = {
        "optimizers": (torch.optim.SGD(model.parameters(), 0.1), None),
        "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1}),
    }[where]
    arguments = LatentTrainingArguments(str(tmp_path), muon_learning_rate=0.01)
    with pytest.raises(ValueError, match="muon_learning_rate must be None beside another optimizer, got 0.01"):
        ELBOTrainer(model, arguments, **{where: other})


def test_channels_last_changes_the_layout_and_not_the_scores(make_trainer):
    config = {"architecture": "course", "hidden_channels": [4, 4, 4]}
    plain = make_trainer(config=config)
    other = make_trainer(config=config, channels_last=True)
    weight = other.model.encoder.layers[1].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    expected = plain.evaluate()["eval_bits_per_dim"]
    assert other.evaluate()["eval_bits_per_dim"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_parts_of_the_loss_are_kept_for_the_next_log_alone(make_trainer, strategy):
    trainer = make_trainer(max_steps=5, logging_strategy=strategy, logging_steps=2)
    trainer.train()
    # Of the last step, after two logs.
    kept = {len(values) for values in trainer._parts.values()}
    assert kept == ({1} if strategy == "steps" else set())
