import json
import math

import pytest
import torch
from transformers import HfArgumentParser

from hf_latentgen import AdversarialTrainingArguments, LatentTrainingArguments
from hf_latentgen.training import arguments


def test_defaults_that_differ_from_those_of_transformers(tmp_path):
    defaults = LatentTrainingArguments(output_dir=str(tmp_path))
    assert defaults.remove_unused_columns is False
    assert defaults.label_names == []
    assert defaults.logging_nan_inf_filter is False
    assert defaults.metric_for_best_model == "bits_per_dim"
    assert defaults.greater_is_better is False
    assert defaults.use_cpu is not torch.accelerator.is_available()
    assert defaults.ema_decay == defaults.kl_warmup_steps == 0
    assert defaults.sample_epochs == []


def test_lists_of_two_arguments_are_their_own(tmp_path):
    first, second = (LatentTrainingArguments(output_dir=str(tmp_path)) for _ in range(2))
    first.sample_epochs.append(1)
    assert second.sample_epochs == []


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("kl_warmup_steps", -1, "at least 0"),
        ("kl_warmup_steps", 1.5, "whole, or a share below 1"),
        ("kl_warmup_start", 1.5, r"in \[0, 1\]"),
        ("ema_decay", -0.1, r"in \[0, 1\)"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("ema_decay", math.nan, r"in \[0, 1\)"),
        ("muon_learning_rate", -1e-3, "at least 0 and finite, or None"),
        ("muon_learning_rate", math.nan, "at least 0 and finite, or None"),
        ("muon_learning_rate", math.inf, "at least 0 and finite, or None"),
        ("muon_learning_rate", "abc", "float or None"),
        ("muon_learning_rate", 1e-3, "None where players"),
        ("sample_epochs", [0, -1], "whole numbers of at least 0"),
        ("sample_epochs", [1.5], "whole numbers of at least 0"),
        ("sample_epochs", ["1"], "whole numbers of at least 0"),
        ("kl_warmup_steps", 100, "0 where players"),
        ("kl_warmup_start", 0.1, "0 where players"),
        ("discriminator_learning_rate", math.nan, "at least 0 and finite, or None"),
        ("learning_rate", math.inf, "at least 0 and finite"),
        ("sample_epochs", 3, "a list of epochs"),
        ("learning_rate", "abc", "float"),
        ("learning_rate", -1e-3, "at least 0"),
        ("learning_rate", math.nan, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("learning_rate", True, "float"),
        ("max_steps", 2.5, "int"),
        ("bf16", 1, "bool"),
        ("discriminator_learning_rate", "abc", "float or None"),
        ("label_smoothing_factor", 0.1, "0: "),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} must be {allowed}.*, got") as refusal:
        AdversarialTrainingArguments(output_dir=str(tmp_path), **{field: value})
    assert str(refusal.value).endswith(f"got {value!r}")


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_8bit"])
def test_muon_takes_the_place_of_no_other_optimizer_than_adamw(tmp_path, optim):
    with pytest.raises(ValueError, match=f"optim must be 'adamw_torch' beside muon_learning_rate, got '{optim}'"):
        LatentTrainingArguments(output_dir=str(tmp_path), muon_learning_rate=1e-3, optim=optim)
    with pytest.raises(ValueError, match="optim_args must be None beside muon_learning_rate, got 'a=1'"):
        LatentTrainingArguments(output_dir=str(tmp_path), muon_learning_rate=1e-3, optim_args="a=1")


def test_a_reporter_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    for name in ("wandb", "nonsense"):
        with pytest.raises(ValueError, match=f"report_to must be among none, tensorboard, .* got {name}"):
            LatentTrainingArguments(output_dir=str(tmp_path), report_to=name)
    for name in ("none", "tensorboard", ["tensorboard"]):
        LatentTrainingArguments(output_dir=str(tmp_path), report_to=name)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_whole_checkpoints_are_not_pushed(tmp_path, strategy):
    with pytest.raises(ValueError, match=f"hub_strategy must be 'end' or 'every_save', as .*, got '{strategy}'"):
        LatentTrainingArguments(output_dir=str(tmp_path), hub_strategy=strategy)


def test_limits_are_accepted(tmp_path):
    LatentTrainingArguments(output_dir=str(tmp_path), kl_warmup_steps=0, ema_decay=0.9999, sample_epochs=[0])


def test_parsed_from_words_and_written_as_json(tmp_path):
    words = [
        "--output-dir",
        str(tmp_path),
        "--ema_decay",
        "0.9",
        "--sample_epochs",
        "0",
        "10",
        "--kl_warmup_steps",
        "7",
    ]
    (parsed,) = HfArgumentParser(LatentTrainingArguments).parse_args_into_dataclasses(words)
    fields = json.loads(parsed.to_json_string())
    assert (fields["ema_decay"], fields["sample_epochs"], fields["kl_warmup_steps"]) == (0.9, [0, 10], 7)
