"""Callbacks: the picture grids drawn during training, its progress bar, and what a trainer does by itself."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import has_length

from hf_latentgen.evaluation.pictures import image_grid, reconstruction_grid

if TYPE_CHECKING:
    from hf_latentgen.training.trainer import LatentTrainer

NUM_SAMPLES = 64
SEED = 0


class ImageGridCallback(TrainerCallback):
    """Draws 64 samples, and what a model makes of given images, into `output_dir/samples` after chosen epochs.

    An autoencoder reconstructs the images, an autoregressive model completes their lower halves.

    It has its own generator, so that a training is bit-identical with and without it; one seed for all epochs, so that
    the grids of different epochs show the same latents.

    Args:
        epochs: epochs after which to draw; 0 is before training.
        images: levels to reconstruct or complete, [N, C, H, W].
        evaluated_weights: context in which the model holds the weights that are evaluated and saved.
    """

    def __init__(
        self, epochs: list[int], images: torch.Tensor, evaluated_weights: Callable[[], AbstractContextManager]
    ):
        self.epochs = set(epochs)
        self.images = images
        self.evaluated_weights = evaluated_weights

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Draws the grids of epoch 0, unless the training is resumed."""
        if state.global_step == 0:
            self._draw(0, args, state, model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        """Draws the grids of the epoch that has ended; one that `max_steps` cuts short is none.

        But for a stream, of which nobody knows the length: each pass is an epoch.
        """
        epoch = state.epoch if has_length(kwargs["train_dataloader"]) else math.ceil(state.epoch)
        if epoch == round(epoch):
            self._draw(round(epoch), args, state, model)

    def _draw(self, epoch, args, state, model):
        if epoch not in self.epochs or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir, "samples")
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(SEED)
        training = model.training
        model.eval()
        with self.evaluated_weights():
            samples = model.sample(NUM_SAMPLES, generator=generator)
            images = self.images.to(model.device)
            if model.can_complete:
                kind, answers = "completions", model.complete(images, images.shape[2] // 2, generator)
            else:
                kind, answers = "reconstructions", model.reconstruct(images, generator=generator)
        model.train(training)
        num_levels = model.config.num_levels
        image_grid(samples, num_levels).save(folder / f"samples_epoch_{epoch:03d}.png")
        grid = reconstruction_grid(self.images, answers, num_levels, labels=("original", kind.removesuffix("s")))
        grid.save(folder / f"{kind}_epoch_{epoch:03d}.png")


class ScoreProgressCallback(ProgressCallback):
    """Shows a training as one bar with the current scores, and writes one line for each evaluation.

    Everything else that is logged is in `trainer_state.json`, and where `report_to` sends it. With `disable_tqdm` there
    are the lines alone.

    Args:
        score: name of the metric to show.
    """

    def __init__(self, score: str):
        super().__init__()
        self.score = score
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Begins a bar without scores."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=args.disable_tqdm)
        self.current_step, self._shown = 0, {}

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Moves the bar of an evaluation, which has one of its own only outside of a training."""
        if self.training_bar is None and not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Shows the score of the last steps."""
        if self.training_bar is not None and logs is not None and self.score in logs:
            self._show(self.training_bar, {"train": logs[self.score]})

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Shows the score of an evaluation, and writes its line."""
        super().on_evaluate(args, state, control, **kwargs)
        if self.training_bar is None:
            return
        for key, value in (metrics or {}).items():
            # The name of one of several data sets stands before that of the score.
            name, separator, rest = key.removeprefix("eval_").rpartition(self.score)
            if separator and not rest:
                self._show(self.training_bar, {name.rstrip("_") or "validation": value})
        self.training_bar.write(f"epoch {state.epoch:.4g}, step {state.global_step}: {self._scores()}")

    def _show(self, bar: tqdm, scores: dict[str, float]) -> None:
        self._shown |= {name: f"{value:.4g}" for name, value in scores.items()}
        bar.set_postfix_str(self._scores())

    def _scores(self) -> str:
        scores = ", ".join(f"{name} {value}" for name, value in self._shown.items())
        return f"{scores} {self.score.replace('_', ' ')}" if scores else "no score"


class TrainerEvents(TrainerCallback):
    """The moments of the training loop at which a [`LatentTrainer`] acts."""

    def __init__(self, trainer: "LatentTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock and the average of the weights, and lets each process draw its own noise."""
        trainer = self.trainer
        trainer._started = time.monotonic()
        trainer._parts.clear()
        trainer._elapsed_before = max((entry.get("elapsed_seconds", 0.0) for entry in state.log_history), default=0.0)
        if state.global_step == 0:
            trainer._average = trainer._new_average() if trainer.args.ema_decay else None
        if trainer._average is not None:
            trainer._average.optimization_step = state.global_step
        if args.world_size > 1:
            # All processes start from one seed; without this they would draw the same posterior noise.
            torch.manual_seed(args.seed + args.process_index)

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Adds the new weights to the average."""
        if self.trainer._average is not None:
            self.trainer._average.step(self.trainer.model.parameters())
        if args.world_size > 1:
            # Running statistics follow the images of a process; those of the first are evaluated and saved.
            for buffer in self.trainer.model.buffers():
                torch.distributed.broadcast(buffer, 0)
