"""Trainers: what every family shares, and the one that optimises an evidence lower bound."""

import contextlib
import inspect
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from diffusers.training_utils import EMAModel
from huggingface_hub import CommitInfo
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from hf_latentgen.data import collate_levels
from hf_latentgen.hub.files import model_files
from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.hub.publishing import Upload, full_repo_id, publish
from hf_latentgen.hub.training_card import training_card
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.hub import checked_client, open_repo
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.callbacks import ImageGridCallback

logger = logging.get_logger(__name__)

NUM_RECONSTRUCTIONS = 32
# With averaging, `model.safetensors` of a checkpoint holds the averaged weights: they are what `from_pretrained` loads.
# The weights that training goes on from lie beside it.
TRAINING_WEIGHTS = "training_weights.safetensors"
# Arguments that a pushed card tells.
TOLD_ARGUMENTS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "kl_warmup_steps", "ema_decay", "seed"),
)


def undisturbed_generator() -> contextlib.AbstractContextManager:
    """Context after which torch's global generator is as before: iterating over a DataLoader draws a seed from it."""
    return torch.random.fork_rng(devices=[])


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the newest first.

    `trainer_state.json` is the last file of a checkpoint that is written: where it is missing or cut off, so is more.
    """
    states = [state for state in output_dir.glob("checkpoint-*/trainer_state.json") if _is_json(state)]
    return sorted((state.parent for state in states), key=lambda folder: int(folder.name.split("-")[1]), reverse=True)


def last_good_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint whose weights are all finite, or None."""
    for folder in complete_checkpoints(output_dir):
        if all(weight.isfinite().all() for weight in load_file(folder / SAFE_WEIGHTS_NAME).values()):
            return folder
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


class LatentTrainer(Trainer):
    """`transformers.Trainer` with averaged weights, parts of the loss in the logs, and a stop at the first NaN.

    A subclass defines `compute_loss`, in which it calls `record` with the parts of the loss, `prediction_step` and the
    metrics computed from its results.

    Every log while training has `elapsed_seconds`: the wall time of training so far, resumed runs included.
    """

    args: LatentTrainingArguments
    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, args: LatentTrainingArguments, **kwargs):
        kwargs.setdefault("data_collator", collate_levels)
        super().__init__(model, args, **kwargs)
        if args.channels_last:
            nn.Module.to(self.model, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if args.ema_decay and self.is_fsdp_enabled:
            raise ValueError(f"ema_decay must be 0 under FSDP, whose weights are sharded, got {args.ema_decay}")
        self._ema = EMAModel(self.model.parameters(), decay=args.ema_decay, foreach=True) if args.ema_decay else None
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        self._evaluation_generator: torch.Generator | None = None
        self._elapsed_before = 0.0
        self._started = time.monotonic()
        self.add_callback(_TrainerEvents(self))
        if args.sample_epochs and self.is_fsdp_enabled:
            # One process draws them, and would wait for the weights of the others for ever.
            raise ValueError(
                f"sample_epochs must be empty under FSDP, whose weights are sharded, got {args.sample_epochs}"
            )
        if args.sample_epochs and self.eval_dataset is not None:
            with undisturbed_generator():
                images = next(iter(self.get_eval_dataloader()))["pixel_values"][:NUM_RECONSTRUCTIONS]
            self.add_callback(ImageGridCallback(args.sample_epochs, images, self.evaluated_weights))

    @property
    def elapsed_seconds(self) -> float:
        """Wall time spent training so far, in seconds, resumed runs included."""
        return round(self._elapsed_before + time.monotonic() - self._started, 1)

    def record(self, **parts: Tensor) -> None:
        """Adds detached scalars, which the next training log shows as their mean."""
        for name, value in parts.items():
            self._parts[name].append(value.detach())

    @property
    def trained(self) -> PreTrainedModel | LatentGenPipeline:
        """What the training makes, as a card describes it."""
        return self.model

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Context in which the model holds the weights that are evaluated and saved: averaged ones where there are."""
        if self._ema is None:
            yield
            return
        parameters = list(self.model.parameters())
        self._ema.store(parameters)
        self._ema.copy_to(parameters)
        try:
            yield
        finally:
            self._ema.restore(parameters)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """The loss of one batch, its gradients added.

        Raises:
            FloatingPointError: the loss is not finite; names the step and the last good checkpoint.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            checkpoint = last_good_checkpoint(Path(str(self.args.output_dir)))
            raise FloatingPointError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}; the last good checkpoint is "
                f"{checkpoint or 'none: no checkpoint with finite weights had been saved'}"
            )
        return loss

    def evaluation_loop(self, *args, **kwargs):
        """Evaluates the averaged weights where there are, with a generator seeded anew each time."""
        self._evaluation_generator = torch.Generator().manual_seed(self.args.seed + self.args.process_index)
        with undisturbed_generator(), self.evaluated_weights():
            return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the recorded parts, averaged over steps and processes, and the elapsed time."""
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            means = torch.stack([torch.stack(self._parts[name]).float().mean() for name in names])
            means = cast(Tensor, self.accelerator.gather(means.to(self.args.device).unsqueeze(0))).mean(0)
            logs |= dict(zip(names, means.tolist(), strict=True))
            self._parts.clear()
        if self.is_in_train:
            logs["elapsed_seconds"] = self.elapsed_seconds
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model that is evaluated, its config and processor; a checkpoint also keeps what is trained."""
        with self.evaluated_weights():
            super().save_model(output_dir, _internal_call)
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        # A pickle that nothing reads: run.json records the arguments.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        # Only a checkpoint names its folder and is saved by the trainer itself.
        if self._ema is not None and _internal_call and output_dir is not None:
            save_model(self.model, str(folder / TRAINING_WEIGHTS))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """None; the repository is there then. Arguments as in `transformers.Trainer`, errors as in `push_to_hub`."""
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
        upload = Upload(repo_id, contents, left_out=[])
        return publish(upload, private, revision or args.hub_revision, token=token, message=message)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._ema is None:
            return
        weights = Path(resume_from_checkpoint, TRAINING_WEIGHTS)
        if not weights.is_file():
            raise ValueError(
                f"ema_decay is {self.args.ema_decay}, but {resume_from_checkpoint} has no {TRAINING_WEIGHTS}"
            )
        self._copy_average_from_model(self._ema)
        load_model(self.model, weights)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._ema is not None:
            self._copy_average_from_model(self._ema)

    def _copy_average_from_model(self, ema: EMAModel) -> None:
        """Makes the averaged weights those that the model holds, which were loaded from a `model.safetensors`."""
        for average, parameter in zip(ema.shadow_params, self.model.parameters(), strict=True):
            average.copy_(parameter.detach())


class _TrainerEvents(TrainerCallback):
    """The moments of the training loop at which a [`LatentTrainer`] acts."""

    def __init__(self, trainer: LatentTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        trainer._started = time.monotonic()
        trainer._elapsed_before = max((entry.get("elapsed_seconds", 0.0) for entry in state.log_history), default=0.0)
        if trainer._ema is not None:
            trainer._ema.to(args.device)
            trainer._ema.optimization_step = state.global_step
        if args.world_size > 1:
            # All processes start from one seed; without this they would draw the same posterior noise.
            torch.manual_seed(args.seed + args.process_index)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer._ema is not None:
            self.trainer._ema.step(self.trainer.model.parameters())
        if args.world_size > 1:
            # Running statistics follow the images of a process; those of the first are evaluated and saved.
            for buffer in self.trainer.model.buffers():
                torch.distributed.broadcast(buffer, 0)


class ELBOTrainer(LatentTrainer):
    """Trains a model whose output has a `distortion` and a `rate` per image by its evidence lower bound.

    The weight of the rate grows linearly over `kl_warmup_steps`. Evaluation always takes posterior samples from a
    seeded generator and the full weight. Logged beside `loss`: `distortion` and `rate` in nats, `bits_per_dim` (both
    parts with weight 1: the negative ELBO) and `beta`, for train, and with the prefix `eval_` for evaluation.
    """

    def __init__(self, model: PreTrainedModel, args: LatentTrainingArguments, **kwargs):
        super().__init__(model, args, compute_metrics=self._evidence_metrics, **kwargs)
        self._config = model.config

    @property
    def beta(self) -> float:
        """The weight of the rate at the current step."""
        warmup = self.args.kl_warmup_steps
        share = min(1.0, (self.state.global_step + 1) / warmup) if warmup else 1.0
        return share * self._config.beta

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective in bits per dimension, and the model's output when asked for. Scalar."""
        # A tensor, because a compiled model would be compiled anew for each value of a number.
        beta = torch.tensor(self.beta, device=self.args.device)
        outputs = model(**inputs, beta=beta, sample_posterior=True)
        distortion, rate = outputs.distortion.mean(), outputs.rate.mean()
        bits_per_dim = nats_to_bits_per_dim(distortion + rate, self._config.num_dims)
        self.record(distortion=distortion, rate=rate, bits_per_dim=bits_per_dim, beta=beta)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, distortion and rate [B] in nats, and no labels, for one batch of an evaluation."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, sample_posterior=True, generator=self._evaluation_generator)
        # Empty labels rather than none: without any, the metrics would not be computed.
        return outputs.loss, (outputs.distortion, outputs.rate), ()

    def _evidence_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        distortion, rate = (part.astype("float64").mean() for part in prediction.predictions)
        bits_per_dim = nats_to_bits_per_dim(distortion + rate, self._config.num_dims)
        return {"distortion": distortion, "rate": rate, "bits_per_dim": bits_per_dim, "beta": self._config.beta}
