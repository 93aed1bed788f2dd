"""What the trainers of all families share."""

import contextlib
import copy
import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import find_batch_size, recursively_apply
from diffusers.training_utils import EMAModel
from huggingface_hub import CommitInfo
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import BestRun, EvalLoopOutput, HubStrategy, has_length
from transformers.utils import logging

from hf_latentgen.data import collate_levels
from hf_latentgen.data.batches import collate_known
from hf_latentgen.hub.files import model_files
from hf_latentgen.hub.loading import without_bars
from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.hub.publishing import full_repo_id
from hf_latentgen.hub.training_card import training_card
from hf_latentgen.models.configuration_latentgen import check_processor
from hf_latentgen.models.hub import checked_client, commit_files, open_repo
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.callbacks import ImageGridCallback, ScoreProgressCallback, TrainerEvents
from hf_latentgen.training.optimizers import muon
from hf_latentgen.training.resume import (
    TRAINING_WEIGHTS,
    check_checkpoint_files,
    check_resumed_settings,
    last_good_checkpoint,
    read_position,
    write_settings,
)

logger = logging.get_logger(__name__)

NUM_RECONSTRUCTIONS = 32
# Arguments that a pushed card tells.
TOLD_ARGUMENTS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay", "warmup_steps"),
    *("muon_learning_rate", "lr_scheduler_type", "kl_warmup_steps", "kl_warmup_start", "ema_decay", "seed"),
)


def undisturbed_generator() -> contextlib.AbstractContextManager:
    """Context after which torch's global generator is as before: iterating over a DataLoader draws a seed from it."""
    return torch.random.fork_rng(devices=[])


class LatentTrainer(Trainer):
    """`transformers.Trainer` with averaged weights, parts of the loss in the logs, and a stop at the first NaN.

    A subclass defines `compute_loss`, in which it calls `record` with the parts of the loss, `evaluate_batch`, and
    `metrics` of what that returned for all batches. Its `score` is the metric that is shown, and lowest for the best
    checkpoint.

    Every log while training has `elapsed_seconds`: the wall time of training so far, resumed runs included.

    Resuming is exact: settings that differ from those of the checkpoint are refused, see `resume.py`. A stream must
    give the same examples whenever it is read with the same epoch set, as those of [`load_images`] do. Of each pass
    over a stream, batches that are too few for a step of accumulated gradients are left out.

    Args:
        model: what is trained; None with `model_init`.
        args: training arguments, of the class that `arguments_class` names.
        kwargs: as of `transformers.Trainer`, but for `compute_metrics`.

    Raises:
        TypeError: `args` is of another class.
        ValueError: arguments that do not fit the model, the data or the devices.
    """

    args: LatentTrainingArguments
    model: PreTrainedModel
    arguments_class: type[LatentTrainingArguments] = LatentTrainingArguments
    score: str = "bits_per_dim"
    # What it trains, where no pictures can be drawn of it.
    without_pictures: str | None = None

    def __init__(self, model: PreTrainedModel | None = None, args: LatentTrainingArguments | None = None, **kwargs):
        if not isinstance(args, self.arguments_class):
            raise TypeError(f"args must be {self.arguments_class.__name__}, got {type(args).__name__}")
        kwargs.setdefault("data_collator", collate_levels)
        super().__init__(model, args, compute_metrics=self._all_metrics, **kwargs)
        if model is not None:
            self.set_up(model)
        if isinstance(self.processing_class, LevelsImageProcessor):
            check_processor(self.drawing_model.config, self.processing_class)
        # Losses are means over the examples of a batch, whatever else a model could do.
        self.model_accepts_loss_kwargs = False
        if args.metric_for_best_model == "bits_per_dim":
            # A trainer of another family may be given the same.
            self.args = args = copy.copy(args)
            args.metric_for_best_model = self.score
        for name, allowed in {"ema_decay": 0, "muon_learning_rate": None}.items():
            if (value := getattr(args, name)) and self.is_fsdp_enabled:
                raise ValueError(f"{name} must be {allowed} under FSDP, whose weights are sharded, got {value}")
        if args.muon_learning_rate is not None and (self.optimizer or self.optimizer_cls_and_kwargs):
            raise ValueError(f"muon_learning_rate must be None beside another optimizer, got {args.muon_learning_rate}")
        self._average: EMAModel | None = None
        self._holds_average = False
        # What the loss of each batch of the next step is divided by, and the share in it of the current batch.
        self._divisors: list = []
        self._share: float | Tensor = 1.0
        # Passes over a stream that have ended, and batches of the next.
        self._is_stream = False
        self._position = (0, 0)
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        self._evaluation_generator: torch.Generator | None = None
        self._elapsed_before = 0.0
        self._started = time.monotonic()
        self.add_callback(TrainerEvents(self))
        # In a notebook there is another one, with a table; a printer would print dictionaries.
        if self.pop_callback(PrinterCallback if args.disable_tqdm else ProgressCallback) is not None:
            self.add_callback(ScoreProgressCallback(self.score))
        if args.sample_epochs:
            self._draw_pictures(args.sample_epochs)

    @property
    def drawing_model(self) -> PreTrainedModel:
        """The model that reads what the processor gives."""
        return self.model

    def set_up(self, model: PreTrainedModel) -> None:
        """Prepares a model that will be trained: the given one, or each that `model_init` makes."""
        if self.args.channels_last:
            nn.Module.to(model, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def call_model_init(self, trial=None) -> PreTrainedModel:
        """A new model, prepared for training. Arguments and errors as in `transformers.Trainer`."""
        model = cast(PreTrainedModel, super().call_model_init(trial))
        self.set_up(model)
        return model

    def hyperparameter_search(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hp_space=None, compute_objective=None, *args, **kwargs
    ) -> BestRun | list[BestRun]:
        """The best of several trainings, unless told otherwise by the metric that chooses the best checkpoint.

        transformers would add up all metrics. Arguments as there.
        """
        name = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        objective = compute_objective or (lambda metrics: metrics[name])
        return super().hyperparameter_search(hp_space, objective, *args, **kwargs)

    def _draw_pictures(self, epochs: list[int]) -> None:
        if self.without_pictures:
            raise ValueError(f"sample_epochs must be empty for {self.without_pictures}, got {epochs}")
        if self.is_fsdp_enabled:
            # One process draws them, and would wait for the weights of the others for ever.
            raise ValueError(f"sample_epochs must be empty under FSDP, whose weights are sharded, got {epochs}")
        if self.eval_dataset is not None:
            name = next(iter(self.eval_dataset)) if isinstance(self.eval_dataset, dict) else None
            with undisturbed_generator():
                images = next(iter(self.get_eval_dataloader(name)))["pixel_values"][:NUM_RECONSTRUCTIONS]
            self.add_callback(ImageGridCallback(epochs, images, self.evaluated_weights))

    @property
    def elapsed_seconds(self) -> float:
        """Wall time spent training so far, in seconds, resumed runs included."""
        return round(self._elapsed_before + time.monotonic() - self._started, 1)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer that the training arguments name. Arguments as in `transformers.Trainer`."""
        if self.optimizer is None and self.args.muon_learning_rate is not None:
            self.optimizer = muon(self.model, self.args)
        return super().create_optimizer(model)

    def num_terms(self, inputs: dict[str, Tensor]) -> int | Tensor:
        """The number of terms of which the loss of a batch is the mean: its examples."""
        return cast(int, find_batch_size(inputs))

    def record(self, weight: Tensor | float | None = None, **parts: Tensor) -> None:
        """Adds detached scalars, which the next training log shows as their weighted mean.

        The weight is by default the share of a batch in its step, so that each step counts as much as another.
        """
        weight = self._share if weight is None else weight
        # Without logs they would never be cleared.
        parts = {} if self.args.logging_strategy == "no" else parts
        for name, value in parts.items():
            value = value.detach().float()
            self._parts[name].append(torch.stack([value * weight, torch.ones_like(value) * weight]))

    @property
    def trained(self) -> PreTrainedModel | LatentGenPipeline:
        """What the training makes, as a card describes it."""
        return self.model

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Context in which the model holds the weights that are evaluated and saved: averaged ones where there are.

        It may be entered again within itself.
        """
        if self._average is None or self._holds_average:
            yield
            return
        parameters = list(self.model.parameters())
        self._average.store(parameters)
        self._average.copy_to(parameters)
        self._holds_average = True
        try:
            yield
        finally:
            self._holds_average = False
            self._average.restore(parameters)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches of training data. Raises: ValueError where `dataloader_drop_last` leaves none."""
        loader = super().get_train_dataloader()
        self._is_stream = not has_length(loader)
        if not self._is_stream and len(loader) == 0:
            told = f"per_device_train_batch_size must be at most {self.num_examples(loader)}, the number of training"
            raise ValueError(f"{told} examples, with dataloader_drop_last, got {self.args.per_device_train_batch_size}")
        if self.args.dataloader_persistent_workers:
            # Workers draw a seed when they start: in the first epoch, or in the first after resuming. The noise that
            # is trained with must not depend on when.
            cast(DataLoaderShard, loader).base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_collator_with_removed_columns(self, data_collator, description=None) -> Callable:
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return functools.partial(collate_known, data_collator, cast(list, self._signature_columns))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one step, none when a stream has too few of them left. Arguments as in transformers."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._is_stream:
            passes, done = self._position
            is_over = len(batches) < num_batches
            # Asked again after the end of a pass, a stream has nothing to give.
            self._position = (passes + (done > 0), 0) if is_over else (passes, done + len(batches))
            batches = [] if is_over else batches
        sizes = [self.num_terms(batch) for batch in batches] if len(batches) > 1 else [1] * len(batches)
        self._divisors = [sum(sizes) / size for size in sizes]
        return batches, num_items

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """The loss of one batch, its gradients added.

        Raises:
            FloatingPointError: the loss is not finite; names the step and the last good checkpoint.
        """
        # An incomplete batch of a step counts by its examples.
        self.current_gradient_accumulation_steps = self._divisors.pop(0) if self._divisors else 1.0
        self._share = 1 / self.current_gradient_accumulation_steps
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            checkpoint = last_good_checkpoint(Path(self._get_output_dir(self._trial)))
            raise FloatingPointError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}; the last good checkpoint is "
                f"{checkpoint or 'none: no checkpoint with finite weights had been saved'}"
            )
        return loss

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Evaluates the averaged weights where there are, with a generator seeded anew each time."""
        self._evaluation_generator = torch.Generator().manual_seed(self.args.seed + self.args.process_index)
        with undisturbed_generator(), self.evaluated_weights():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        # The table in a notebook takes the last name that ends so for that of the loss.
        loss = f"{metric_key_prefix}_loss"
        cast(dict, output.metrics)[loss] = cast(dict, output.metrics).pop(loss)
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, what `evaluate_batch` returned, and no labels, for one batch of an evaluation.

        Examples that fill up the last batch of a process are left out of the loss. In the other results their place is
        kept, because processes gather equally many; transformers drops them then.
        """
        inputs = self._prepare_inputs(inputs)
        size = cast(int, find_batch_size(inputs))
        state, num_kept = self.accelerator.gradient_state, size
        if state.end_of_dataloader and state.remainder > 0:
            # A process without any evaluates all: its loss has no weight.
            num_kept = min(size, max(0, state.remainder - self.args.process_index * size)) or size
        if num_kept < size:
            inputs = {name: values[:num_kept] for name, values in inputs.items()}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, parts = self.evaluate_batch(model, inputs)
        filled = recursively_apply(lambda part: nn.functional.pad(part, (0, size - num_kept)), parts)
        # Empty labels rather than none: without any, the metrics would not be computed.
        return loss, filled, ()

    def evaluate_batch(self, model, inputs: dict[str, Tensor]) -> tuple[Tensor, dict | tuple | Tensor]:
        """The loss of a batch of an evaluation, and numbers for each of its examples, each [B]."""
        raise NotImplementedError

    def metrics(self, parts) -> dict[str, float]:
        """The metrics of an evaluation, from what `evaluate_batch` returned for all examples, as arrays."""
        raise NotImplementedError

    def validation_metrics(self, model: PreTrainedModel) -> dict[str, float]:
        """The metrics of any model of this configuration on the validation examples, measured as while training.

        In the process of the call alone.
        """
        self._evaluation_generator = torch.Generator().manual_seed(self.args.seed + self.args.process_index)
        was_training = model.training
        with undisturbed_generator(), torch.no_grad(), self.compute_loss_context_manager():
            batches = map(self._prepare_inputs, self.get_eval_dataloader())
            parts = [nested_numpify(self.evaluate_batch(model.eval(), batch)[1]) for batch in batches]
        model.train(was_training)
        return self.metrics(functools.reduce(nested_concat, parts))

    def _all_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        parts = prediction.predictions
        # A list of batches where they are not to be concatenated.
        return self.metrics(functools.reduce(nested_concat, parts) if isinstance(parts, list) else parts)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the recorded parts, averaged over steps and processes, and the elapsed time."""
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            # Of each part, the weighted sum and the sum of the weights.
            sums = torch.stack([torch.stack(self._parts[name]).sum(0) for name in names])
            sums = cast(Tensor, self.accelerator.gather(sums.to(self.args.device).unsqueeze(0))).sum(0)
            logs |= dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
            self._parts.clear()
        super().log(logs, start_time)
        if self.is_in_train:
            # Not in `logs`, from which the table in a notebook takes its columns.
            self.state.log_history[-1]["elapsed_seconds"] = self.elapsed_seconds

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model that is evaluated, its config and processor; a checkpoint also keeps what is trained."""
        with self.evaluated_weights(), without_bars():
            super().save_model(output_dir, _internal_call)
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        # A pickle that nothing reads: run.json records the arguments.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        # Only a checkpoint names its folder and is saved by the trainer itself.
        if _internal_call and output_dir is not None:
            write_settings(folder, self.args, self._position if self._is_stream else None)
            if self._average is not None:
                save_model(self.model, str(folder / TRAINING_WEIGHTS))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository if it is missing. Arguments as in `transformers.Trainer`, errors as in `push_to_hub`."""
        if self.is_world_process_zero():
            args, name = self.args, self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            private = args.hub_private_repo if private is None else private
            self.hub_model_id = open_repo(checked_client(name, token or args.hub_token), name, private).id
            self.push_in_progress = None

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | None:
        """The one commit with weights, configuration, processor, card and sample grids, and nothing else of the folder.

        Once it is there; None on all processes but the first. Arguments as in `transformers.Trainer`, but it waits
        whatever `blocking` is, and ignores what `create_model_card` takes: the card tells what was trained.

        Errors as in `hub.commit_files`, and a TypeError for an argument that is none of `transformers.Trainer`.
        """
        hints = inspect.signature(Trainer.create_model_card).parameters
        if unknown := sorted(kwargs.keys() - hints.keys()):
            raise TypeError(f"arguments of push_to_hub must be those of transformers.Trainer, got {', '.join(unknown)}")
        if ignored := ", ".join(["blocking=False"] * (not blocking) + sorted(kwargs)):
            logger.warning(f"push_to_hub waits and writes the card from what was trained, and ignores {ignored}")
        self.save_model(_internal_call=True)
        folder, message = Path(str(self.args.output_dir)), commit_message or "End of training"
        return self._publish(folder, message, token, revision, private) if self.args.should_save else None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        step = self.state.global_step
        if self.args.should_save and self.args.hub_strategy != HubStrategy.END:
            try:
                self._publish(Path(checkpoint_folder), f"Training in progress, step {step}")
            except (OSError, ValueError) as error:
                # The checkpoint is on the disk, and a training is worth more than its upload.
                logger.warning(f"step {step} was not pushed, training goes on: {error}")

    def _publish(
        self,
        folder: Path,
        message: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo:
        """The commit of the model files in a folder, with a card and the grids that were drawn."""
        args, token = self.args, token or self.args.hub_token
        output_dir = Path(str(args.output_dir))
        repo_id = full_repo_id(args.hub_model_id or output_dir.absolute().name, token)
        training = {name: getattr(args, name) for name in TOLD_ARGUMENTS}
        card = training_card(self.trained, repo_id, training, self.state.log_history)
        contents: dict[str, Path | bytes] = {name: folder / name for name in model_files(folder)}
        contents["README.md"] = card.encode()
        contents |= {f"images/{path.name}": path for path in sorted((output_dir / "samples").glob("*.png"))}
        private = args.hub_private_repo if private is None else private
        place = {"private": private, "revision": revision or args.hub_revision, "token": token}
        return commit_files(repo_id, contents, message, **place)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        check_resumed_settings(self.args, checkpoint)
        if not self.is_fsdp_enabled:
            check_checkpoint_files(checkpoint, bool(self.args.ema_decay))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.ema_decay:
            self._average = self._new_average()
            load_model(self.model, checkpoint / TRAINING_WEIGHTS)

    def _init_training_state(self, *arguments) -> tuple[int, int]:
        place, checkpoint = super()._init_training_state(*arguments), arguments[3]
        is_resumed = checkpoint is not None and not self.args.ignore_data_skip
        position = read_position(Path(str(checkpoint)), self._is_stream) if is_resumed else None
        # To transformers a stream is one epoch without an end, whatever passes were made over it.
        self._position = position or (0, 0)
        # Where no step is left, transformers would take one more.
        return (arguments[2], 0) if self.state.global_step >= arguments[0] else position or place

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:
            self._average = self._new_average()

    def _new_average(self) -> EMAModel:
        """An average that starts from the weights that the model holds."""
        return EMAModel(self.model.parameters(), decay=self.args.ema_decay, foreach=True)
