import copy
import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from hf_latentgen import AAEForImageClassification
from hf_latentgen.evaluation.clusters import classification_error, name_clusters
from hf_latentgen.training.few_labels import FewLabelsDataset
from training_common import assert_equal_weights, logs_of_training, messages, weights_of

COMMON_PARTS = {"reconstruction_loss", "decoded_spread"}
ADVERSARIAL_PARTS = {"generator_loss", "real_loss", "fake_loss", "discriminator_loss", "discriminator_accuracy"}
# What the log has beside the parts.
OTHERS = {"loss", "grad_norm", "learning_rate", "epoch", "step", "elapsed_seconds"}
# Adam divides the rounding error of a tiny gradient by its size; a larger epsilon than the default limits that.
EPSILON = 1e-6


class Recorder:
    """Keeps the inputs of each step of a trainer and the samples of the prior drawn in it."""

    def __init__(self, trainer):
        self.initial = copy.deepcopy(trainer.model)
        self.inputs = []
        self.samples = []
        model = trainer.model
        model.register_forward_pre_hook(lambda *arguments: self.inputs.append(arguments[2]), with_kwargs=True)
        priors = [model.prior, *([model.class_prior] if isinstance(model, AAEForImageClassification) else [])]
        for prior in priors:
            prior.sample = self._keeping(prior.sample)

    def _keeping(self, sample):
        def kept(*arguments):
            self.samples.append(sample(*arguments))
            return self.samples[-1]

        return kept


def train_with_two_optimizers_reference(recorder, weight, rates, betas):
    """The model after the recorded steps: the autoencoder first, then the discriminators on the codes it had made."""
    model = recorder.initial.train()
    is_classifier = isinstance(model, AAEForImageClassification)
    discriminators = [model.discriminator, *([model.class_discriminator] if is_classifier else [])]
    players = (
        [*model.encoder.parameters(), *model.decoder.parameters()],
        [parameter for discriminator in discriminators for parameter in discriminator.parameters()],
    )
    autoencoder_optimizer, discriminator_optimizer = (
        torch.optim.Adam(parameters, lr=rate, betas=(beta, 0.999), eps=EPSILON)
        for parameters, rate, beta in zip(players, rates, betas, strict=True)
    )
    samples = iter(recorder.samples)
    for inputs in recorder.inputs:
        images = inputs["pixel_values"] / 7.5 - 1
        (features,) = model.encoder(images)
        outputs = model.encoder.to_posterior(features)
        class_logits, styles = outputs.split([outputs.shape[1] - 2, 2], 1)
        codes = [styles, *([class_logits.softmax(1)] if is_classifier else [])]
        decoded = model.decode(torch.cat(codes[::-1], 1)).values
        ones, zeros = torch.ones(len(images)), torch.zeros(len(images))

        loss = weight * F.mse_loss(decoded, images)
        for discriminator, code in zip(discriminators, codes, strict=True):
            loss = loss + (1 - weight) * F.binary_cross_entropy_with_logits(discriminator(code), ones)
        if is_classifier:
            loss = loss + F.cross_entropy(class_logits, inputs["labels"], reduction="sum") / len(images)
        autoencoder_optimizer.zero_grad()
        loss.backward()
        autoencoder_optimizer.step()

        loss = 0
        for discriminator, code in zip(discriminators, codes, strict=True):
            real, fake = discriminator(next(samples)), discriminator(code.detach())
            loss = loss + F.binary_cross_entropy_with_logits(real, ones) / 2
            loss = loss + F.binary_cross_entropy_with_logits(fake, zeros) / 2
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
    return model


@pytest.fixture
def few_labels(labelled_digits):
    return FewLabelsDataset(labelled_digits[0], 20, 4, seed=0), labelled_digits[1]


@pytest.mark.parametrize("is_classifier", [False, True], ids=["plain", "classifier"])
def test_ten_steps_are_those_of_two_optimizers(make_adversary, few_labels, is_classifier):
    options = {"model_class": AAEForImageClassification, "data": few_labels} if is_classifier else {}
    trainer = make_adversary(
        learning_rate=2e-3,
        discriminator_learning_rate=5e-4,
        discriminator_beta1=0.2,
        adam_epsilon=EPSILON,
        lr_scheduler_type="constant",
        max_steps=10,
        **options,
    )
    recorder = Recorder(trainer)
    start = weights_of(trainer.model)
    trainer.train()
    assert len(recorder.inputs) == 10
    # The last batch of an epoch brings its companions, too.
    assert {len(inputs["pixel_values"]) for inputs in recorder.inputs} == ({20} if is_classifier else {16})
    expected = train_with_two_optimizers_reference(recorder, 0.9, (2e-3, 5e-4), (0.5, 0.2)).state_dict()
    for name, weight in weights_of(trainer.model).items():
        torch.testing.assert_close(
            weight, expected[name], atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert (weight - start[name]).abs().max() > 1e-4


def test_each_player_has_its_own_learning_rate_and_momentum(make_adversary):
    trainer = make_adversary(discriminator_learning_rate=3e-4, discriminator_beta1=0.1, adam_beta2=0.9, max_steps=4)
    autoencoder, discriminator = trainer.create_optimizer().param_groups
    assert autoencoder["params"] == [*trainer.model.encoder.parameters(), *trainer.model.decoder.parameters()]
    assert discriminator["params"] == list(trainer.model.discriminator.parameters())
    assert [group["lr"] for group in (autoencoder, discriminator)] == [1e-2, 3e-4]
    assert [group["betas"] for group in (autoencoder, discriminator)] == [(0.5, 0.9), (0.1, 0.9)]
    # One schedule for both.
    trainer.train()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0, 0]
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [1e-2, 3e-4]


def test_learning_rate_of_the_discriminator_is_that_of_the_autoencoder_by_default(make_adversary):
    trainer = make_adversary(model_class=AAEForImageClassification)
    groups = trainer.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-2, 1e-2]
    model = trainer.model
    expected = [*model.discriminator.parameters(), *model.class_discriminator.parameters()]
    assert groups[1]["params"] == expected


def test_rates_of_zero_hold_a_player_still(make_adversary):
    trainer = make_adversary(learning_rate=0.0, discriminator_learning_rate=1e-2, max_steps=2)
    before = weights_of(trainer.model)
    trainer.train()
    moved = {name.split(".")[0] for name, weight in weights_of(trainer.model).items() if (weight != before[name]).any()}
    assert moved == {"discriminator"}


def test_accumulated_gradients_are_those_of_the_large_batch(make_adversary, without_noise):
    # Plain SGD, because Adam divides the rounding error of a tiny gradient by its size.
    common = {"optim": "sgd", "learning_rate": 0.5, "discriminator_learning_rate": 0.1, "num_train_epochs": 2}
    large = make_adversary(per_device_train_batch_size=24, **common)
    large.train()
    small = make_adversary(per_device_train_batch_size=8, gradient_accumulation_steps=3, **common)
    small.train()
    expected, found = logs_of_training(large), logs_of_training(small)
    assert len(expected) == len(found) == 6
    for name in ("loss", "grad_norm", "autoencoder_grad_norm", "discriminator_grad_norm"):
        assert [entry[name] for entry in found] == pytest.approx([entry[name] for entry in expected], rel=1e-4), name
    expected = weights_of(large.model)
    for name, weight in weights_of(small.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_bf16_training_is_finite_and_close(make_adversary, few_labels):
    runs = {}
    for bf16 in (False, True):
        trainer = make_adversary(
            model_class=AAEForImageClassification, data=few_labels, bf16=bf16, max_steps=8, eval_strategy="epoch"
        )
        trainer.train()
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
        assert all(weight.isfinite().all() for weight in weights_of(trainer.model).values())
        runs[bf16] = [entry["loss"] for entry in logs_of_training(trainer)]
    assert all(math.isfinite(loss) for loss in runs[True])
    assert runs[True] != runs[False]
    assert runs[True] == pytest.approx(runs[False], rel=0.05)


def test_without_an_adversary_the_discriminator_is_left_alone(make_adversary):
    trainer = make_adversary(config={"reconstruction_weight": 1}, max_steps=4, eval_strategy="epoch")
    before = weights_of(trainer.model.discriminator)
    trainer.train()
    assert_equal_weights(weights_of(trainer.model.discriminator), before)
    (group,) = trainer.optimizer.param_groups
    assert group["params"] == [*trainer.model.encoder.parameters(), *trainer.model.decoder.parameters()]
    for entry in logs_of_training(trainer):
        assert entry.keys() == OTHERS | COMMON_PARTS | {"autoencoder_grad_norm"}
        assert entry["loss"] == pytest.approx(entry["reconstruction_loss"], rel=1e-6)


def test_adversarial_limit_leaves_the_decoder_alone(make_adversary):
    trainer = make_adversary(config={"reconstruction_weight": 0}, max_steps=4)
    before, encoder = weights_of(trainer.model.decoder), weights_of(trainer.model.encoder)
    trainer.train()
    assert_equal_weights(weights_of(trainer.model.decoder), before)
    assert all((weight != encoder[name]).any() for name, weight in weights_of(trainer.model.encoder).items())
    assert trainer.optimizer.param_groups[0]["params"] == list(trainer.model.encoder.parameters())
    for entry in logs_of_training(trainer):
        assert entry["reconstruction_loss"] > 0
        expected = entry["generator_loss"] + entry["discriminator_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reconstruction", ["mse", "categorical"])
def test_parts_are_logged_for_training_and_evaluation(make_adversary, few_labels, reconstruction):
    trainer = make_adversary(
        config={"reconstruction": reconstruction},
        model_class=AAEForImageClassification,
        data=few_labels,
        num_train_epochs=1,
        eval_strategy="epoch",
    )
    trainer.train()
    parts = COMMON_PARTS | ADVERSARIAL_PARTS | {"supervised_loss"}
    parts |= {"distortion"} if reconstruction == "categorical" else set()
    logs = logs_of_training(trainer)
    assert len(logs) == 4
    (evaluation,) = (entry for entry in trainer.state.log_history if "eval_loss" in entry)
    evaluation = {name.removeprefix("eval_"): value for name, value in evaluation.items()}
    speed = {"runtime", "samples_per_second", "steps_per_second", "epoch", "step", "elapsed_seconds"}
    assert evaluation.keys() == parts | speed | {"loss", "error"}
    for entry in logs:
        assert entry.keys() == OTHERS | parts | {"autoencoder_grad_norm", "discriminator_grad_norm"}
    for entry in [*logs, evaluation]:
        assert entry["discriminator_loss"] == pytest.approx((entry["real_loss"] + entry["fake_loss"]) / 2, rel=1e-5)
        game = 0.1 * entry["generator_loss"] + entry["discriminator_loss"] + entry["supervised_loss"]
        assert entry["loss"] == pytest.approx(0.9 * entry["reconstruction_loss"] + game, rel=1e-5)
        assert 0 <= entry["discriminator_accuracy"] <= 1
        assert entry["decoded_spread"] > 0
        if reconstruction == "categorical":
            assert entry["distortion"] == pytest.approx(entry["reconstruction_loss"] * 64 * math.log(2), rel=1e-5)


def test_evaluation_is_seeded_and_takes_samples_of_prior_and_posterior(make_adversary):
    trainer = make_adversary(config={"posterior": "gaussian"})
    first, second = trainer.evaluate(), trainer.evaluate()
    names = [f"eval_{name}" for name in COMMON_PARTS | ADVERSARIAL_PARTS]
    assert [first[name] for name in names] == [second[name] for name in names]
    model, generator = trainer.model.eval(), torch.Generator().manual_seed(trainer.args.seed)
    with torch.no_grad():
        outputs = [
            model(levels, sample_posterior=True, sample_prior=True, generator=generator)
            for levels in trainer.eval_dataset.levels.split(16)
        ]
    for name in ("reconstruction_loss", "generator_loss", "real_loss", "fake_loss", "discriminator_accuracy"):
        expected = torch.cat([output[name] for output in outputs]).mean().item()
        assert first[f"eval_{name}"] == pytest.approx(expected, rel=1e-5), name
    trainer.args.seed += 1
    assert trainer.evaluate()["eval_real_loss"] != first["eval_real_loss"]


class Gradients(TrainerCallback):
    """Keeps the norms of the gradients of the players before each step."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norms = {}
        for name, prefixes in (("autoencoder", ("encoder", "decoder")), ("discriminator", ("discriminator",))):
            players = [parameter for key, parameter in model.named_parameters() if key.startswith(prefixes)]
            norms[name] = math.sqrt(sum(player.grad.square().sum().item() for player in players))
        self.norms.append(norms)


def test_gradient_norms_are_those_of_the_players(make_adversary):
    gradients = Gradients()
    trainer = make_adversary(callbacks=[gradients], max_steps=4, logging_steps=2)
    trainer.train()
    logs = logs_of_training(trainer)
    assert len(logs) == 2
    for entry, norms in zip(logs, gradients.norms[1::2], strict=True):
        for name, norm in norms.items():
            assert entry[f"{name}_grad_norm"] == pytest.approx(norm, rel=1e-5)
        # Gradients are not clipped: the joint norm would couple the players.
        assert entry["grad_norm"] == pytest.approx(math.hypot(*norms.values()), rel=1e-5)


def test_gradient_norms_of_epochs_are_means_over_their_steps(make_adversary):
    gradients = Gradients()
    trainer = make_adversary(callbacks=[gradients], num_train_epochs=2, logging_strategy="epoch")
    trainer.train()
    logs = logs_of_training(trainer)
    steps = len(gradients.norms) // 2
    assert len(logs) == 2
    assert steps > 1
    for number, entry in enumerate(logs):
        of_epoch = gradients.norms[number * steps : (number + 1) * steps]
        for name in of_epoch[0]:
            assert entry[f"{name}_grad_norm"] == pytest.approx(
                statistics.mean([norms[name] for norms in of_epoch]), rel=1e-5
            )


def test_non_finite_scores_are_not_filtered_out_of_the_logs(make_adversary, labelled_digits):
    trainer = make_adversary(model_class=AAEForImageClassification, data=labelled_digits)
    forward = trainer.model.forward

    def one_nan(**inputs):
        output = forward(**inputs)
        output.reconstruction_loss[0] = math.nan
        return output

    trainer.model.forward = one_nan
    assert math.isnan(trainer.evaluate()["eval_reconstruction_loss"])


def test_error_of_the_evaluation_is_the_classification_error(make_adversary, few_labels, labelled_digits):
    trainer = make_adversary(model_class=AAEForImageClassification, data=few_labels, max_steps=30)
    trainer.train()
    found = trainer.evaluate()["eval_error"]
    assert 0 < found < 0.9
    assert found == pytest.approx(classification_error(trainer.model, labelled_digits[1]), abs=1e-6)
    # Images without a label do not count.
    images = copy.copy(labelled_digits[1])
    images.labels = images.labels.clone()
    images.labels[5:] = -100
    few = copy.copy(images)
    few.levels, few.labels = images.levels[:5], images.labels[:5]
    assert trainer.evaluate(images)["eval_error"] == pytest.approx(classification_error(trainer.model, few), abs=1e-6)
    images.labels[:] = -100
    assert "eval_error" not in trainer.evaluate(images)


def test_agreement_and_balance_are_logged_for_training(make_adversary):
    config = {"num_clusters": 6, "consistency_weight": 0.5, "balance_weight": 0.5, "input_affine_std": 0.2}
    trainer = make_adversary(config=config, model_class=AAEForImageClassification, max_steps=2, logging_steps=1)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "consistency_loss" in entry]
    assert len(logged) == 2
    assert all(0 < entry["consistency_loss"] < 10 for entry in logged)
    assert all(-math.log(6) <= entry["balance_loss"] < 0 for entry in logged)
    assert not {"eval_consistency_loss", "eval_balance_loss"} & trainer.evaluate().keys()


def test_error_of_clusters_is_measured_when_they_have_names(make_adversary, digits, labelled_digits):
    # As many clusters as classes: their numbers must not be taken for each other.
    config = {"num_clusters": 10, "posterior": "gaussian"}
    data = digits[0], labelled_digits[1]
    trainer = make_adversary(config=config, model_class=AAEForImageClassification, data=data, max_steps=2)
    assert "eval_error" not in trainer.evaluate()
    trainer.model.config.cluster_labels = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    expected = classification_error(trainer.model, labelled_digits[1])
    assert trainer.evaluate()["eval_error"] == pytest.approx(expected, abs=1e-6)


def test_clusters_are_named_at_the_end(make_adversary, digits, labelled_digits, tmp_path, caplog):
    options = {"config": {"num_clusters": 12}, "model_class": AAEForImageClassification, "max_steps": 2}
    trainer = make_adversary(data=(digits[0], labelled_digits[1]), ema_decay=0.5, **options)
    trainer.train()
    with trainer.evaluated_weights():
        expected = name_clusters(trainer.model, labelled_digits[1])
    assert trainer.model.config.cluster_labels == expected
    trainer.save_model()
    assert AAEForImageClassification.from_pretrained(tmp_path / "run").config.cluster_labels == expected
    assert messages(caplog) == []
    nameless = make_adversary(**options)
    nameless.train()
    assert nameless.model.config.cluster_labels is None
    (message,) = messages(caplog)
    assert "eval_dataset must be a LevelsDataset with labels" in message


@pytest.mark.parametrize(
    "extra",
    [{"eval_strategy": "steps", "eval_steps": 1}, {"sample_epochs": [0, 1]}, {"save_strategy": "epoch"}],
    ids=["evaluation", "grids", "checkpoints"],
)
def test_training_is_bit_identical_with_and_without(make_adversary, extra):
    noisy = {"posterior": "gaussian", "input_noise_std": 0.1, "discriminator_noise_std": 0.1}
    plain = make_adversary(config=noisy, num_train_epochs=1)
    plain.train()
    other = make_adversary("other", config=noisy, num_train_epochs=1, **extra)
    other.train()
    assert_equal_weights(weights_of(plain.model), weights_of(other.model))


def test_another_optimizer_serves_both_players(make_adversary):
    trainer = make_adversary(discriminator_learning_rate=0.5)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5})
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.1, 0.5), (0.5, 0.5)]
