"""The trainer of adversarial autoencoders."""

from typing import cast

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.clusters import name_clusters
from hf_latentgen.models.modeling_aae import UNLABELLED, AAEModel, AAEOutput
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification
from hf_latentgen.training.arguments import AdversarialTrainingArguments
from hf_latentgen.training.trainer import LatentTrainer

logger = logging.get_logger(__name__)

# A discriminator that is right this often, for this many steps, gives the encoder no gradient to follow.
WINNING_ACCURACY = 0.99
WINNING_STEPS = 1000
# Standard deviation over a batch of the decoder output, averaged over pixels, below which all images are one.
CONSTANT_SPREAD = 1e-3
# A new decoder begins so, and has these steps to leave it.
FIRST_STEPS = 500
# Parts of an output that are logged, one number for each image.
PER_IMAGE = (
    *("reconstruction_loss", "distortion", "generator_loss", "real_loss", "fake_loss", "discriminator_accuracy"),
    *("supervised_loss", "consistency_loss", "balance_loss"),
)


def is_discriminator(name: str) -> bool:
    """Whether a parameter of this name belongs to a discriminator."""
    return name.split(".")[0].endswith("discriminator")


class AdversarialTrainer(LatentTrainer):
    """Trains an [`AAEModel`] and its discriminators with one backward pass and one optimizer step.

    The order of the course and the paper is: a step of the autoencoder, then one of the discriminator on the codes that
    the autoencoder had computed before its step. The gradients of the two are disjoint and belong to the same weights,
    so that taking both steps at once is the same. The optimizer has a group of parameters for each player.

    Logged for train, and with the prefix `eval_` for evaluation: `reconstruction_loss`, `generator_loss`, `real_loss`,
    `fake_loss`, `discriminator_loss`, `discriminator_accuracy`, `decoded_spread`, and where there are any `distortion`,
    `supervised_loss` and `error`. Train logs also have `consistency_loss` and `balance_loss`, where they are in the
    objective, and the norm of the gradient of each player at the logged step, or its mean over the steps with
    `logging_strategy="epoch"`.

    Clusters found without labels are named at the end, where the validation images have labels.

    It warns once when the discriminator has won, and when a decoder that is trained gives the same image for every code
    after 500 steps, or again.
    """

    args: AdversarialTrainingArguments
    model: AAEModel
    arguments_class = AdversarialTrainingArguments
    score = "reconstruction_loss"

    def __init__(self, model: AAEModel | None = None, args: AdversarialTrainingArguments | None = None, **kwargs):
        super().__init__(model, args, **kwargs)
        self.add_callback(_AdversarialEvents(self))
        self.begin_game()

    def begin_game(self) -> None:
        """Forgets how an earlier training went."""
        self._winning_since: int | None = None
        self._logged_step = self.state.global_step
        self._had_spread = False
        self._warned: set[str] = set()

    def set_up(self, model: AAEModel) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prepares a model that will be trained: players without a share in the objective are held still."""
        super().set_up(model)
        weight = model.config.reconstruction_weight
        # Parameters without a gradient must not wait for one on other processes.
        for name, parameter in model.named_parameters():
            if (weight == 1 and is_discriminator(name)) or (weight == 0 and name.startswith("decoder.")):
                parameter.requires_grad_(False)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer of the training arguments, with a group of parameters for each player."""
        if self.optimizer is None:
            args = self.args
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                args, self.model
            )
            rate = args.discriminator_learning_rate
            rate = options.get("lr", args.learning_rate) if rate is None else rate
            discriminator: dict = {"lr": rate}
            if "betas" in options:
                discriminator["betas"] = (args.discriminator_beta1, options["betas"][1])
            groups = []
            for players, own in ((self.players(False), {}), (self.players(True), discriminator)):
                if players:
                    groups.append({"params": players, "weight_decay": args.weight_decay, **own})
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def players(self, discriminators: bool) -> list[torch.nn.Parameter]:
        """The trained parameters of the discriminators, or those of the autoencoder."""
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and is_discriminator(name) == discriminators
        ]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of both players, and the model's output when asked for. Scalar."""
        is_classifier = isinstance(self.model, AAEForImageClassification) and self.model.config.num_clusters is None
        if is_classifier and "labels" not in inputs:
            self._warn(
                "unlabelled", "a batch has no labels, so no class is learned from it: LevelsDataset(with_labels=True)"
            )
        outputs = model(**inputs, sample_posterior=True, sample_prior=True, return_loss=True)
        parts = {name: outputs[name].mean() for name in PER_IMAGE if outputs.get(name) is not None}
        if outputs.real_loss is not None:
            parts["discriminator_loss"] = (parts["real_loss"] + parts["fake_loss"]) / 2
        self.record(**parts, decoded_spread=decoded_spread(outputs))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate_batch(self, model, inputs):
        """The loss, and the parts of it for each image, for one batch of an evaluation."""
        labels, config = inputs.get("labels"), self.model.config
        if config.num_clusters is not None:
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        noise = {"sample_posterior": True, "sample_prior": True, "generator": self._evaluation_generator}
        outputs = model(**inputs, **noise, return_loss=True)
        parts = {name: outputs[name] for name in PER_IMAGE if outputs.get(name) is not None}
        # One number a batch, repeated for its images.
        parts["decoded_spread"] = decoded_spread(outputs).expand(len(outputs.latents))
        # Clusters without names are no classes, even where there are as many.
        predicts_classes = config.num_clusters is None or config.cluster_labels is not None
        if labels is not None and outputs.logits is not None and predicts_classes:
            wrong = (outputs.logits.argmax(1) != labels).float()
            parts["error"] = torch.where(labels == UNLABELLED, torch.nan, wrong)
        return outputs.loss, parts

    def metrics(self, parts) -> dict[str, float]:
        """The mean of each part; of the error over the images that have a label."""
        parts = {name: values.astype("float64") for name, values in parts.items()}
        if "error" in parts:
            # Not a number for images without a label; that of any other part must show.
            known = parts.pop("error")
            known = known[known == known]
            parts |= {"error": known} if len(known) else {}
        metrics = {name: float(values.mean()) for name, values in parts.items()}
        if "real_loss" in metrics:
            metrics["discriminator_loss"] = (metrics["real_loss"] + metrics["fake_loss"]) / 2
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and warns when the game is over."""
        super().log(logs, start_time)
        if "discriminator_accuracy" in logs:
            step = self.state.global_step
            if logs["discriminator_accuracy"] <= WINNING_ACCURACY:
                self._winning_since = None
            elif self._winning_since is None:
                self._winning_since = self._logged_step
            if self._winning_since is not None and step - self._winning_since >= WINNING_STEPS:
                self._warn(
                    "won",
                    f"the discriminator has been right in {logs['discriminator_accuracy']:.1%} of its decisions since "
                    f"step {self._winning_since}: it has won, and the codes no longer move towards the prior. "
                    "Lower discriminator_learning_rate, or give it noise (discriminator_noise_std)",
                )
            self._logged_step = step
        if "decoded_spread" in logs and self.model.config.reconstruction_weight > 0:
            is_constant = logs["decoded_spread"] < CONSTANT_SPREAD
            if is_constant and (self._had_spread or self.state.global_step >= FIRST_STEPS):
                self._warn(
                    "collapsed",
                    "the decoder gives the same image for every code (standard deviation "
                    f"{logs['decoded_spread']:.1e} at step {self.state.global_step}): it has collapsed. Lower "
                    "learning_rate",
                )
            self._had_spread |= not is_constant

    def name_clusters(self) -> None:
        """Names the clusters of a trained classifier by the validation images, where these have labels."""
        model, validation = self.model, self.eval_dataset
        if not isinstance(model, AAEForImageClassification) or model.config.num_clusters is None:
            return
        if isinstance(validation, LevelsDataset) and validation.labels is not None:
            with self.evaluated_weights():
                model.config.cluster_labels = name_clusters(model, validation)
        else:
            self._warn("nameless", "clusters have no names: eval_dataset must be a LevelsDataset with labels")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned and self.is_world_process_zero():
            self._warned.add(kind)
            logger.warning(message)


def decoded_spread(outputs: AAEOutput) -> Tensor:
    """Standard deviation over the batch of the decoder's output, averaged over its elements. Scalar."""
    decoded = cast(Tensor, outputs.decoded).detach()
    return torch.ones((), device=decoded.device) if len(decoded) == 1 else decoded.std(0).mean()


class _AdversarialEvents(TrainerCallback):
    """Records the norm of the gradient of each player before a step that will be logged, and names clusters at last."""

    def __init__(self, trainer: AdversarialTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_game()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        by_epoch = args.logging_strategy == IntervalStrategy.EPOCH
        if by_epoch or (state.global_step + 1) % max(state.logging_steps, 1) == 0:
            for discriminators, name in ((False, "autoencoder"), (True, "discriminator")):
                gradients = [player.grad for player in self.trainer.players(discriminators) if player.grad is not None]
                if gradients:
                    self.trainer.record(**{f"{name}_grad_norm": torch.nn.utils.get_total_norm(gradients)})

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.name_clusters()
