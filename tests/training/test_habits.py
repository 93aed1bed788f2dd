"""What users of `transformers.Trainer` do: model_init, several validation sets, accumulation, columns, bars."""

import copy
import functools
import math
import sys
import types

import pytest
import torch
import transformers.trainer
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import BestRun, HPSearchBackend

from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    AdversarialTrainer,
    AdversarialTrainingArguments,
    ByteTokenizer,
    ELBOTrainer,
    LatentTrainingArguments,
    LikelihoodTrainer,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    TokenBlocksDataset,
    VAEConfig,
    VAEModel,
)
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.training import adversarial
from hf_latentgen.training.latent_prior import PriorTrainer, encoded
from training_common import AtStep, assert_equal_weights, fill, weights_of

IMAGES = {"image_size": 8, "num_levels": 16}
AUTOENCODER = IMAGES | {"architecture": "mlp", "latent_dim": 2, "hidden_channels": [8]}
LAYERS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
ADVERSARIAL = AUTOENCODER | {"discriminator_channels": [8], "num_labels": 10}
MODELS = {
    "vae": lambda: VAEModel(VAEConfig(**AUTOENCODER)),
    "classifier": lambda: AAEForImageClassification(AAEConfig(**ADVERSARIAL)),
    "pixels": lambda: LocalTransformerForImageGeneration(LocalTransformerImageConfig(**IMAGES, **LAYERS)),
    "bytes": lambda: LocalTransformerForCausalLM(LocalTransformerConfig(window=8, **LAYERS)),
    "prior": lambda: LatentDenoiser(2, hidden_size=8, num_blocks=1),
}
FAMILIES = list(MODELS)


@pytest.fixture(scope="session")
def blocks():
    """Blocks of bytes to train on, the last of which is nearly all padding, and to evaluate on."""
    text = "".join(f"{number} bottles of beer on the wall, " for number in range(40))[: 31 * 30 + 4]
    return [TokenBlocksDataset(Dataset.from_dict({"text": [part]}), 32) for part in (text, text[300:600])]


@pytest.fixture
def make_family(tmp_path, digits, labelled_digits, blocks, processor):
    """A trainer of a family of models; keyword arguments are training arguments, or those of a trainer."""

    def make(family, folder="run", model=None, model_init=None, data=None, callbacks=None, **arguments):
        torch.manual_seed(0)
        own, options = {}, {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16, "learning_rate": 1e-2}
        options |= {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "output_dir": tmp_path / folder}
        options = {key: str(value) if key == "output_dir" else value for key, value in (options | arguments).items()}
        trainer_class = {"vae": ELBOTrainer, "classifier": AdversarialTrainer, "prior": PriorTrainer}
        sets = {"bytes": blocks, "classifier": labelled_digits}.get(family, digits)
        if family == "prior":
            own = {"autoencoder": MODELS["vae"]()}
            sets = [encoded(own["autoencoder"], images) for images in digits]
        sets = data or sets
        arguments_class = AdversarialTrainingArguments if family == "classifier" else LatentTrainingArguments
        return trainer_class.get(family, LikelihoodTrainer)(
            model if model or model_init else MODELS[family](),
            arguments_class(**options),
            model_init=model_init,
            train_dataset=sets[0],
            eval_dataset=sets[1],
            processing_class=ByteTokenizer() if family == "bytes" else processor,
            callbacks=callbacks,
            **own,
        )

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_can_be_made_for_each_training(make_family, family, monkeypatch):
    trainer = make_family(family, model_init=MODELS[family], ema_decay=0.5, max_steps=2)
    trainer.train()
    first, score = weights_of(trainer.model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert_equal_weights(weights_of(trainer.model), first)
    assert trainer.evaluate()["eval_loss"] == score
    # A trial of a search, as a backend starts it.
    monkeypatch.setattr("transformers.integrations.hp_params", vars)
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, str
    trainer.hp_space = lambda trial: trial.params
    trainer.train(trial=types.SimpleNamespace(number=0, params={"learning_rate": 0.1, "ema_decay": 0.9}))
    assert trainer.args.learning_rate == 0.1
    assert trainer._average.decay == 0.9
    assert any(not torch.equal(weight, first[name]) for name, weight in weights_of(trainer.model).items())


class Search:
    """A search over given settings, which runs its trials as that of optuna does."""

    def __init__(self, trials):
        self.trials = trials

    def ensure_available(self):
        pass

    def run(self, trainer, n_trials, direction):
        found = []
        for number, settings in enumerate(self.trials[:n_trials]):
            trainer.objective = None
            trainer.train(trial=types.SimpleNamespace(number=number, params=settings))
            if trainer.objective is None:
                trainer.objective = trainer.compute_objective(trainer.evaluate())
            trainer.model = trainer.model_wrapped = None
            found.append(BestRun(str(number), trainer.objective, settings))
        assert direction == "minimize"
        return min(found, key=lambda run: run.objective)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_finds_the_best_score(make_family, family, monkeypatch):
    trials = [
        {"learning_rate": 1e-4, "per_device_train_batch_size": 16, "ema_decay": 0.0},
        {"learning_rate": 3e-2, "per_device_train_batch_size": 8, "ema_decay": 0.5},
    ]
    monkeypatch.setitem(sys.modules, "optuna", types.ModuleType("optuna"))
    search = functools.partial(Search, trials)
    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, search)
    monkeypatch.setattr("transformers.integrations.hp_params", vars)
    options = {"max_steps": 4, "model_init": MODELS[family], "eval_strategy": "epoch"}
    trainer = make_family(family, **options)
    best = trainer.hyperparameter_search(lambda trial: trial.params, n_trials=2, backend="optuna", hp_name=str)
    scores = []
    for settings in trials:
        alone = make_family(family, **options | settings)
        alone.train()
        scores.append(alone.evaluate()[f"eval_{alone.score}"])
    assert best.objective == min(scores)
    assert best.hyperparameters == trials[scores.index(min(scores))]


def test_a_search_may_have_an_objective_of_its_own(make_family, monkeypatch):
    trials = [{"kl_warmup_steps": 0}, {"kl_warmup_steps": 3}]
    backend = {HPSearchBackend.OPTUNA: functools.partial(Search, trials)}
    monkeypatch.setattr(transformers.trainer, "ALL_HYPERPARAMETER_SEARCH_BACKENDS", backend)
    trainer = make_family("vae", model_init=MODELS["vae"], max_steps=1)
    monkeypatch.setattr("transformers.integrations.hp_params", vars)
    objective = {"compute_objective": lambda _: -trainer.args.kl_warmup_steps}
    best = trainer.hyperparameter_search(lambda trial: trial.params, n_trials=2, backend="optuna", **objective)
    assert best.hyperparameters == {"kl_warmup_steps": 3}


def test_a_diverged_trial_names_its_own_checkpoint(make_family, monkeypatch):
    spoil = AtStep(lambda model: fill(model, math.nan), before=3)
    options = {"model_init": MODELS["vae"], "save_strategy": "steps", "save_steps": 1, "callbacks": [spoil]}
    trainer = make_family("vae", **options)
    monkeypatch.setattr("transformers.integrations.hp_params", vars)
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    with pytest.raises(FloatingPointError, match=r"at step 3;.*run/run-7/checkpoint-2$"):
        trainer.train(trial=types.SimpleNamespace(number=7, params={}))


def test_a_new_training_begins_a_new_game(make_family, monkeypatch, caplog):
    monkeypatch.setattr(adversarial, "FIRST_STEPS", 10)
    trainer = make_family("classifier", learning_rate=0.0, max_steps=3)
    trainer.train()
    fill(trainer.model.decoder, 0.0)
    # In another training, this is a decoder that begins.
    trainer.train()
    assert "has collapsed" not in caplog.text
    monkeypatch.setattr(adversarial, "FIRST_STEPS", 1)
    for count in (1, 2):
        trainer.train()
        assert caplog.text.count("has collapsed") == count


def test_players_of_a_made_model_are_held_still(make_family):
    config = AAEConfig(**ADVERSARIAL, reconstruction_weight=1)
    trainer = make_family("classifier", model_init=lambda: AAEForImageClassification(config), max_steps=1)
    trainer.train()
    assert not any(parameter.requires_grad for parameter in trainer.model.discriminator.parameters())


def test_other_arguments_are_refused(make_family, tmp_path):
    plain = TrainingArguments(output_dir=str(tmp_path))
    for trainer_class, expected in ((ELBOTrainer, "Latent"), (AdversarialTrainer, "Adversarial")):
        with pytest.raises(TypeError, match=f"args must be {expected}TrainingArguments, got TrainingArguments"):
            trainer_class(MODELS["vae"](), plain)


def test_several_validation_sets(make_family, digits, tmp_path):
    data = digits[0], {"small": digits[1], "large": digits[0]}
    trainer = make_family("vae", data=data, num_train_epochs=1, sample_epochs=[1], eval_strategy="epoch")
    trainer.args.metric_for_best_model = "small_bits_per_dim"
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_small_bits_per_dim", "eval_large_bits_per_dim"} <= logged
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_results_need_not_be_concatenated(make_family, family):
    expected, found = (make_family(family, eval_do_concat_batches=value).evaluate() for value in (True, False))
    times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
    assert expected.keys() == found.keys()
    assert all(found[name] == pytest.approx(value, rel=1e-6) for name, value in expected.items() if name not in times)


class WithNames(torch.utils.data.Dataset):
    """Examples with one column that no model takes."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return {**self.dataset[index], "name": f"number {index}"}


@pytest.mark.parametrize("family", FAMILIES)
def test_unused_columns_are_removed(make_family, family):
    plain = make_family(family, max_steps=2)
    plain.train()
    data = [WithNames(dataset) for dataset in (plain.train_dataset, plain.eval_dataset)]
    for sets in (None, data):
        trainer = make_family(family, max_steps=2, remove_unused_columns=True, data=sets)
        trainer.train()
        assert_equal_weights(weights_of(plain.model), weights_of(trainer.model))
        assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def constant_sample(width, count, *_):
    return torch.eye(width)[:1].expand(count, width)


@pytest.mark.parametrize("family", ["vae", "classifier", "pixels", "bytes"])
def test_an_incomplete_last_batch_of_a_step_counts_by_its_examples(make_family, family, without_noise):
    whole = make_family(family)
    data = copy.copy(whole.train_dataset)
    if family == "bytes":
        # The last block, which is padded, is a batch of its own.
        data.input_ids = data.input_ids[-5:]
        size, steps = 4, 2
    else:
        data.levels = data.levels[:33]
        data.labels = None if data.labels is None else data.labels[:33]
        size, steps = 8, 5
    common = {"optim": "sgd", "learning_rate": 0.5, "num_train_epochs": 2, "train_sampling_strategy": "sequential"}
    runs = []
    for batch, accumulated in ((40, 1), (size, steps)):
        trainer = make_family(
            family,
            model=copy.deepcopy(whole.model),
            data=(data, None),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            **common,
        )
        if family == "classifier":
            # What does not depend on who draws it.
            for prior, width in ((trainer.model.prior, 2), (trainer.model.class_prior, 10)):
                prior.sample = functools.partial(constant_sample, width)
        trainer.train()
        runs.append(trainer)
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in runs]
    assert [len(entries) for entries in logs] == [2, 2]
    for expected, found in zip(*logs, strict=True):
        for name in expected.keys() - {"elapsed_seconds", "decoded_spread", "discriminator_accuracy"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    expected = weights_of(runs[0].model)
    for name, weight in weights_of(runs[1].model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def test_logged_bits_per_byte_are_all_nats_over_all_bytes(make_family):
    # Each batch one block; the last one is nearly all padding.
    options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", "learning_rate": 0.5}
    trainer = make_family("bytes", num_train_epochs=1, **options)
    steps = len(trainer.train_dataset)
    trainer.args.logging_steps = steps
    counted = []
    measure = trainer._nats_and_sizes
    trainer._nats_and_sizes = lambda *arguments: counted.append(measure(*arguments)) or counted[-1]
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    nats, sizes = (torch.cat([pair[part] for pair in counted]).double() for part in (0, 1))
    assert len(nats) == steps
    assert entry["bits_per_byte"] == pytest.approx((nats.sum() / sizes.sum()).item() / math.log(2), rel=1e-5)
    assert abs(entry["bits_per_byte"] - (nats / sizes).mean().item() / math.log(2)) > 1e-3


def test_a_batch_that_is_larger_than_the_data_is_refused_when_the_last_is_dropped(make_family):
    trainer = make_family("vae", per_device_train_batch_size=65, dataloader_drop_last=True, max_steps=1)
    with pytest.raises(ValueError, match=r"per_device_train_batch_size must be at most 64, .* got 65"):
        trainer.train()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_in_training_come_back(make_family, family):
    steps = []
    follow = AtStep(lambda model: steps.append(weights_of(model)))
    trainer = make_family(family, max_steps=2, ema_decay=0.9, callbacks=[follow])
    trainer.train()
    with trainer.evaluated_weights():
        averaged = weights_of(trainer.model)
        with trainer.evaluated_weights():
            assert_equal_weights(weights_of(trainer.model), averaged)
        assert_equal_weights(weights_of(trainer.model), averaged)
    assert_equal_weights(weights_of(trainer.model), steps[-1])
    assert any(not torch.equal(weight, averaged[name]) for name, weight in steps[-1].items())


@pytest.mark.parametrize(
    ("family", "has_bar"), [("vae", True), ("classifier", True), ("bytes", True), ("prior", True), ("vae", False)]
)
def test_a_terminal_shows_one_bar_and_a_line_for_each_evaluation(make_family, family, has_bar, capfd):
    options = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch", "ema_decay": 0.5}
    trainer = make_family(family, disable_tqdm=not has_bar, **options)
    shown = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert [name for name in shown if "Progress" in name or "Print" in name] == ["ScoreProgressCallback"]
    trainer.train()
    trainer.save_model()
    out, err = capfd.readouterr()
    scores = [entry[f"eval_{trainer.score}"] for entry in trainer.state.log_history if "eval_loss" in entry]
    last = [entry[trainer.score] for entry in trainer.state.log_history if "loss" in entry][-1]
    lines = [line for line in out.replace("\r", "\n").splitlines() if line.strip()]
    name = trainer.score.replace("_", " ")
    assert [line.split(":")[0].split(",")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert [line.rpartition("validation ")[2] for line in lines] == [f"{score:.4g} {name}" for score in scores]
    assert "{" not in out + err
    assert "Writing" not in err
    # What a line says of the training stands in the bar, too.
    assert (f"train {last:.4g}, validation {scores[-1]:.4g} {name}" in err) == has_bar
    trainer.evaluate()
    assert ("it/s" in "".join(capfd.readouterr())) == has_bar


def test_the_table_in_a_notebook_shows_the_parts(make_family, monkeypatch):
    display = types.ModuleType("IPython.display")
    shown = []
    display.HTML = str
    display.display = lambda *_, **__: types.SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    sys.modules["IPython"].display = display
    notebook = pytest.importorskip("transformers.utils.notebook")
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", notebook.NotebookProgressCallback)
    tables = {}
    write = notebook.NotebookTrainingTracker.write_line

    def write_and_keep(tracker, values):
        write(tracker, values)
        tables["last"] = tracker.inner_table

    monkeypatch.setattr(notebook.NotebookTrainingTracker, "write_line", write_and_keep)
    usual = ["Epoch", "Training Loss", "Validation Loss"]
    for family, parts in {
        "vae": {"Distortion", "Rate", "Bits Per Dim", "Beta"},
        "classifier": {
            *("Reconstruction Loss", "Generator Loss", "Real Loss", "Fake Loss", "Discriminator Loss"),
            *("Discriminator Accuracy", "Supervised Loss", "Decoded Spread", "Error"),
        },
        "bytes": {"Bits Per Byte"},
    }.items():
        trainer = make_family(family, num_train_epochs=2, eval_strategy="epoch", disable_tqdm=False)
        trainer.train()
        columns, *rows = tables["last"]
        assert columns[:3] == usual
        assert set(columns[3:]) == parts
        assert [row[0] for row in rows] == [1, 2]
        scores = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert [row[2] for row in rows] == scores
    assert shown


def test_one_set_of_arguments_serves_two_families(make_family, tmp_path):
    args = LatentTrainingArguments(output_dir=str(tmp_path / "run"), disable_tqdm=True)
    for family, score in (("bytes", "bits_per_byte"), ("vae", "bits_per_dim")):
        made = make_family(family)
        trainer = type(made)(made.model, args, train_dataset=made.train_dataset)
        assert trainer.args.metric_for_best_model == score
