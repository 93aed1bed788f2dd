"""The trainer of exact likelihoods, over pixels and over bytes."""

import math

import pytest
import torch
from datasets import Dataset

from hf_latentgen import (
    ByteTokenizer,
    LatentTrainingArguments,
    LikelihoodTrainer,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    TokenBlocksDataset,
)
from hf_latentgen.evaluation.text import count_bytes, token_nats
from training_common import assert_resumed_is_straight

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = "".join(f"{number} bottles of beer on the wall, " for number in range(40))


@pytest.fixture
def blocks():
    """Blocks of three documents to train on, and of two to evaluate on: of the last one a part is padding."""
    parts = ([TEXT[:700], "short", TEXT[700:]], [TEXT[300:600], TEXT[:99]])
    return [TokenBlocksDataset(Dataset.from_dict({"text": part}), 32) for part in parts]


@pytest.fixture(params=["pixels", "bytes"])
def make_likelihood(request, tmp_path, digits, processor, blocks):
    """A trainer of a new model; keyword arguments are training arguments."""

    def make(folder="run", **arguments):
        torch.manual_seed(0)
        if request.param == "pixels":
            model = LocalTransformerForImageGeneration(LocalTransformerImageConfig(image_size=8, **SIZES))
            data, preparation = digits, processor
        else:
            model = LocalTransformerForCausalLM(LocalTransformerConfig(window=8, **SIZES))
            data, preparation = blocks, ByteTokenizer()
        defaults = {
            "per_device_train_batch_size": 16 if request.param == "pixels" else 12,
            "per_device_eval_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return LikelihoodTrainer(
            model,
            LatentTrainingArguments(output_dir=str(tmp_path / folder), **(defaults | arguments)),
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=preparation,
        )

    return make


def test_training_lowers_the_score_and_logs_it(make_likelihood):
    trainer = make_likelihood(num_train_epochs=4, eval_strategy="epoch")
    trainer.train()
    scores = [entry[trainer.score] for entry in trainer.state.log_history if "loss" in entry]
    evaluations = [entry[f"eval_{trainer.score}"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 4
    assert scores[-1] < scores[0] - 0.5
    assert evaluations[-1] < evaluations[0]
    # The loss and the score are one quantity: in bits per dimension, or in nats per id.
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    factor = 1 if trainer.score == "bits_per_dim" else 1 / math.log(2)
    assert first["loss"] * factor == pytest.approx(scores[0], rel=0.03)


def test_a_batch_that_predicts_no_byte_leaves_a_score(tmp_path):
    torch.manual_seed(0)
    data = TokenBlocksDataset(Dataset.from_dict({"text": ["abcdefg"]}), 8)
    assert count_bytes(data.gather([1])["labels"]).sum() == 0
    trainer = LikelihoodTrainer(
        LocalTransformerForCausalLM(LocalTransformerConfig(window=8, **SIZES)),
        LatentTrainingArguments(
            str(tmp_path), per_device_train_batch_size=1, max_steps=4, logging_steps=2, save_strategy="no"
        ),
        train_dataset=data,
        processing_class=ByteTokenizer(),
    )
    trainer.train()
    scores = [entry["bits_per_byte"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(scores) == 2
    assert all(map(math.isfinite, scores))


@torch.no_grad()
def test_evaluation_is_all_nats_over_all_dimensions_or_bytes(make_likelihood):
    trainer = make_likelihood()
    found = trainer.evaluate()[f"eval_{trainer.score}"]
    data, model = trainer.eval_dataset, trainer.model.eval()
    if trainer.score == "bits_per_dim":
        expected = model.bits_per_dim(data.levels).mean().item()
    else:
        batch = data.gather(range(len(data)))
        nats = token_nats(model(**batch, use_cache=False).logits, batch["labels"]).sum()
        # Of both documents every byte is scored once; only the beginnings are not.
        assert count_bytes(batch["labels"]).sum() == 300 + 99
        expected = nats.item() / (300 + 99) / math.log(2)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("step", [4, 6])
def test_resumed_training_is_bit_identical(make_likelihood, tmp_path, step):
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    options |= {"lr_scheduler_type": "cosine", "ema_decay": 0.9, "seed": 7}
    assert_resumed_is_straight(make_likelihood, tmp_path, step, options)


def test_the_best_checkpoint_is_that_of_the_lowest_score(make_likelihood):
    trainer = make_likelihood(max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    scores = [entry[f"eval_{trainer.score}"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == min(scores)


def test_pictures_of_an_epoch(make_likelihood, tmp_path):
    arguments = {"num_train_epochs": 1, "sample_epochs": [0, 1]}
    if make_likelihood().score == "bits_per_byte":
        with pytest.raises(ValueError, match=r"sample_epochs must be empty for a model of texts, got \[0, 1\]"):
            make_likelihood(**arguments)
        return
    make_likelihood(**arguments).train()
    names = [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())]
    assert names == [f"{kind}_epoch_{epoch}.png" for kind in ("completions", "samples") for epoch in ("000", "001")]


def test_learned_spans_are_trained_and_do_not_decay(blocks, tmp_path):
    torch.manual_seed(0)
    config = LocalTransformerConfig(window=8, attention_span="adaptive", span_ramp=2, span_weight=0.5, **SIZES)
    model = LocalTransformerForCausalLM(config)
    arguments = LatentTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=60,
        learning_rate=2e-2,
        weight_decay=0.1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = LikelihoodTrainer(model, arguments, train_dataset=blocks[0], processing_class=ByteTokenizer())
    spans = [name for name, _ in model.named_parameters() if name.endswith(".share")]
    assert len(spans) == 1
    assert not set(spans) & set(trainer.get_decay_parameter_names(model))
    trainer.train()
    assert all((parameter < 1).all() for name, parameter in model.named_parameters() if name in spans)
