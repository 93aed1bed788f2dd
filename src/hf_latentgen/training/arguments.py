"""Training arguments shared by every family."""

from dataclasses import dataclass, field, fields
from math import inf
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames


@dataclass
class LatentTrainingArguments(TrainingArguments):
    """Arguments of [`LatentTrainer`] and its subclasses: those of `transformers.TrainingArguments`, and a few more.

    Defaults that differ from transformers': batches keep all their columns, evaluation computes the loss without
    labels, non-finite losses are never filtered out of the logs, `use_cpu` is set and memory is not pinned where there
    is no accelerator, and the best checkpoint has the lowest bits per dimension.

    Raises:
        ValueError: a field is out of range.
    """

    kl_warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Optimizer steps over which the weight of the rate grows linearly to beta; below 1, their share of "
            "the run."
        },
    )
    kl_warmup_start: float = field(
        default=0.0,
        metadata={
            "help": "The share of beta that the rate weighs as the warm-up begins. At 0 the rate may grow without "
            "bound in the first steps."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of the averaged weights that are evaluated and saved; 0 means no averaging."},
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate at which Muon trains the weights of convolutions and linear layers; AdamW trains "
            "the rest at learning_rate. None: `optim` trains all."
        },
    )
    sample_epochs: list[int] = field(
        default_factory=list,
        metadata={"help": "Epochs after which sample and reconstruction grids are drawn; 0 is before training."},
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Keep convolution weights channels-last, which is faster under bf16."}
    )

    remove_unused_columns: bool = field(default=False, metadata={"help": "See transformers.TrainingArguments."})
    label_names: list[str] | None = field(
        default_factory=list, metadata={"help": "See transformers.TrainingArguments; none of the models needs labels."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "See transformers.TrainingArguments."})
    metric_for_best_model: str | None = field(
        default="bits_per_dim", metadata={"help": "See transformers.TrainingArguments."}
    )
    greater_is_better: bool | None = field(default=False, metadata={"help": "See transformers.TrainingArguments."})
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(), metadata={"help": "See transformers.TrainingArguments."}
    )
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "See transformers.TrainingArguments."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "See transformers.TrainingArguments."}
    )

    def __post_init__(self):
        self._check_types()
        for name in ("kl_warmup_steps", "learning_rate", "weight_decay"):
            # Not a number is not at least 0, either.
            if not 0 <= (value := getattr(self, name)) < inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if self.kl_warmup_steps >= 1 and self.kl_warmup_steps % 1:
            raise ValueError(f"kl_warmup_steps must be whole, or a share below 1, got {self.kl_warmup_steps}")
        if not 0 <= self.kl_warmup_start <= 1:
            raise ValueError(f"kl_warmup_start must be in [0, 1], got {self.kl_warmup_start}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), 0 meaning no averaging, got {self.ema_decay}")
        if self.muon_learning_rate is not None:
            if not 0 <= self.muon_learning_rate < inf:
                rate = self.muon_learning_rate
                raise ValueError(f"muon_learning_rate must be at least 0 and finite, or None, got {rate}")
            if (name := OptimizerNames(self.optim).value) not in ("adamw_torch", "adamw_torch_fused"):
                raise ValueError(f"optim must be 'adamw_torch' beside muon_learning_rate, got {name!r}")
            if self.optim_args:
                raise ValueError(f"optim_args must be None beside muon_learning_rate, got {self.optim_args!r}")
        if not isinstance(self.sample_epochs, list):
            raise ValueError(f"sample_epochs must be a list of epochs, got {self.sample_epochs!r}")
        if any(not isinstance(epoch, Integral) or isinstance(epoch, bool) or epoch < 0 for epoch in self.sample_epochs):
            raise ValueError(f"sample_epochs must be whole numbers of at least 0, got {self.sample_epochs}")
        if self.label_smoothing_factor:
            told = "label_smoothing_factor must be 0: these losses take no smoothed labels"
            raise ValueError(f"{told}, got {self.label_smoothing_factor}")
        super().__post_init__()
        installed = get_available_reporting_integrations()
        if missing := [name for name in self.report_to or [] if name not in installed]:
            allowed = ", ".join(["none", *installed])
            raise ValueError(f"report_to must be among {allowed}, which are installed, got {', '.join(missing)}")
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            told = "hub_strategy must be 'end' or 'every_save', as checkpoints hold pickles, which are never published"
            raise ValueError(f"{told}, got {str(HubStrategy(self.hub_strategy).value)!r}")

    def _check_types(self) -> None:
        """Raises `ValueError` unless each field that takes only numbers or truth values has one."""
        hints = get_type_hints(type(self))
        for name in (declared.name for declared in fields(self)):
            hint, value = hints[name], getattr(self, name)
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            is_number = isinstance(value, Real if float in kinds else Integral) and not isinstance(value, bool)
            is_valid = {bool: isinstance(value, bool), NoneType: value is None, int: is_number, float: is_number}
            if is_valid.keys() >= set(kinds) and not any(is_valid[kind] for kind in kinds):
                allowed = " or ".join(kind.__name__.removesuffix("Type") for kind in kinds)
                raise ValueError(f"{name} must be {allowed}, got {value!r}")


@dataclass
class AdversarialTrainingArguments(LatentTrainingArguments):
    """Arguments of [`AdversarialTrainer`]: the learning rate and momentum of the discriminators are their own.

    Further defaults: the first momentum of the autoencoder is 0.5, gradients are not clipped (their joint norm would
    couple the players), and the best checkpoint has the lowest reconstruction loss.

    Raises:
        ValueError: a field is out of range.
    """

    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the discriminators; learning_rate when None."}
    )
    discriminator_beta1: float = field(default=0.5, metadata={"help": "First momentum of the discriminators' Adam."})
    adam_beta1: float = field(default=0.5, metadata={"help": "First momentum of the autoencoder's Adam."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "See transformers.TrainingArguments."})
    metric_for_best_model: str | None = field(
        default="reconstruction_loss", metadata={"help": "See transformers.TrainingArguments."}
    )

    def __post_init__(self):
        self._check_types()
        rate = self.discriminator_learning_rate
        if rate is not None and not 0 <= rate < inf:
            raise ValueError(f"discriminator_learning_rate must be at least 0 and finite, or None, got {rate}")
        if not 0 <= self.discriminator_beta1 < 1:
            raise ValueError(f"discriminator_beta1 must be in [0, 1), got {self.discriminator_beta1}")
        super().__post_init__()
        for name, allowed in {"muon_learning_rate": None, "kl_warmup_steps": 0, "kl_warmup_start": 0}.items():
            if (value := getattr(self, name)) != allowed:
                raise ValueError(f"{name} must be {allowed} where players train against each other, got {value}")
