"""Callbacks: the picture grids drawn during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_latentgen.evaluation.pictures import image_grid, reconstruction_grid

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
        """Draws the grids of the epoch that has ended; one that `max_steps` cuts short is none."""
        if state.epoch == round(state.epoch):
            self._draw(round(state.epoch), args, state, model)

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
                kind, answers = "reconstructions", model.reconstruct(images)
        model.train(training)
        num_levels = model.config.num_levels
        image_grid(samples, num_levels).save(folder / f"samples_epoch_{epoch:03d}.png")
        reconstruction_grid(self.images, answers, num_levels).save(folder / f"{kind}_epoch_{epoch:03d}.png")
