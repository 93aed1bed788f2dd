"""The trainer of a latent diffusion prior: a denoiser of the latents that a trained autoencoder gives to images."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from huggingface_hub import CommitInfo
from torch import Tensor

from hf_latentgen.data import LevelsDataset
from hf_latentgen.data.batches import GatheredDataset
from hf_latentgen.evaluation.latents import posterior_moments
from hf_latentgen.hub.loading import without_bars
from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.models.distributions import standard_normal
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.trainer import LatentTrainer


class LatentsDataset(GatheredDataset):
    """Mean and standard deviation of the posterior of each image, held in memory. Shape: both [N, L]."""

    def __init__(self, means: Tensor, stds: Tensor):
        self.means, self.stds = means, stds

    def __len__(self) -> int:
        """Number of images."""
        return len(self.means)

    def gather(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`mean` and `std` of several posteriors, [B, L]."""
        rows = torch.as_tensor(indices)
        return {"mean": self.means[rows], "std": self.stds[rows]}


class PriorTrainer(LatentTrainer):
    """Trains a [`LatentDenoiser`] on posterior samples, drawn anew each time; the autoencoder stays as it is.

    The loss is the mean squared error of the velocity, over latents and over steps drawn at random. `save_model` writes
    a [`LatentGenPipeline`] of the autoencoder, the denoiser and a DDIM scheduler, checkpoints hold the denoiser alone.
    Logged beside `loss`: `velocity_mse`, for an evaluation with the prefix `eval_`.

    Args, besides those of [`LatentTrainer`]:
        autoencoder: the model whose latents are learned; its image processor is the `processing_class`.

    Raises: ValueError when they and the denoiser do not fit each other.

    Source: Ho et al. (2020), algorithm 1; Salimans & Ho (2022), appendix D.
    """

    model: LatentDenoiser

    score = "velocity_mse"
    without_pictures = "a latent prior"

    def __init__(
        self,
        model: LatentDenoiser | None = None,
        args: LatentTrainingArguments | None = None,
        *,
        autoencoder: LatentGenModel,
        **kwargs,
    ):
        self.autoencoder = autoencoder
        super().__init__(model, args, **kwargs)  # pyright: ignore[reportArgumentType]
        # What `remove_unused_columns` keeps: the trainer, not the denoiser, reads a batch.
        self._signature_columns = ["mean", "std"]
        self.scheduler = DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
        )
        if not isinstance(self.processing_class, LevelsImageProcessor):
            given = type(self.processing_class).__name__
            raise ValueError(f"processing_class must be the image processor of the autoencoder, got {given}")
        # Parts that do not fit are found now, not when they are saved.
        self.pipeline()

    @property
    def drawing_model(self) -> LatentGenModel:
        """The autoencoder, which reads what the processor gives."""
        return self.autoencoder

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean squared error of the velocity, and that of each image [B] when asked for. Scalar."""
        errors = self._errors(model, inputs, None)
        self.record(velocity_mse=errors.mean())
        return (errors.mean(), errors) if return_outputs else errors.mean()

    def evaluate_batch(self, model, inputs):
        """The loss, and the error of each image, for one batch of an evaluation."""
        errors = self._errors(model, inputs, self._evaluation_generator)
        return errors.mean(), errors

    def metrics(self, parts) -> dict[str, float]:
        """The mean error of the velocity."""
        return {self.score: float(parts.astype("float64").mean())}

    def pipeline(self) -> LatentGenPipeline:
        """The pipeline of the autoencoder, the denoiser and the scheduler that samples with few steps."""
        # Steps that end where training ends: at pure noise. Source: Lin et al. (2024), section 3.3.
        scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing="trailing")
        processor = cast(LevelsImageProcessor, self.processing_class)
        return LatentGenPipeline(self.autoencoder, processor, self.model, cast(DDIMScheduler, scheduler))

    @property
    def trained(self) -> LatentGenPipeline:
        """The pipeline: the denoiser alone draws nothing that can be looked at."""
        return self.pipeline()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the pipeline with the averaged weights, or in a checkpoint what the training needs to go on."""
        # Only a checkpoint names its folder and is saved by the trainer itself.
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            self._save_pipeline(output_dir or str(self.args.output_dir))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub()

    def _save_pipeline(self, folder: str) -> None:
        with self.evaluated_weights(), without_bars():
            self.pipeline().save_pretrained(folder)

    def _publish(self, folder: Path, *args, **kwargs) -> CommitInfo:
        # A checkpoint holds the denoiser alone.
        with tempfile.TemporaryDirectory() as saved:
            self._save_pipeline(saved)
            return super()._publish(Path(saved), *args, **kwargs)

    def _errors(self, model, inputs: dict[str, Tensor], generator: torch.Generator | None) -> Tensor:
        """Squared error of the velocity of each image, mean over the latents. [B]."""
        mean, std = inputs["mean"], inputs["std"]
        latents = self.model.standardise(mean + std * standard_normal(mean.shape, mean, generator))
        noise = standard_normal(latents.shape, latents, generator)
        device = latents.device if generator is None else generator.device
        steps = torch.randint(
            self.scheduler.config["num_train_timesteps"], latents.shape[:1], generator=generator, device=device
        ).to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, steps)  # pyright: ignore[reportArgumentType]
        velocity = self.scheduler.get_velocity(latents, noise, steps)  # pyright: ignore[reportArgumentType]
        return F.mse_loss(model(noisy, steps).sample.float(), velocity, reduction="none").mean(1)


def make_denoiser(autoencoder: LatentGenModel, train: LevelsDataset, validation: LevelsDataset, **fields: int) -> dict:
    """Arguments of a [`PriorTrainer`] by name: a new denoiser, and the latents that it learns from.

    Args:
        autoencoder: gives the latents.
        train: images whose latents are learned.
        validation: images whose latents measure.
        fields: `hidden_size` and `num_blocks` of the denoiser.

    Raises:
        ValueError: the model has no latents, or several groups of them.
    """
    if autoencoder.num_latents == 0:
        raise ValueError(f"model.autoencoder must be an autoencoder of images, got a {autoencoder.kind}")
    if len(autoencoder.latent_sizes) > 1:
        sizes = autoencoder.latent_sizes
        raise ValueError(f"model.autoencoder must have a single group of latents, got groups of {sizes}")
    training, held_out = encoded(autoencoder, train), encoded(autoencoder, validation)
    std = (training.means.var(0) + training.stds.square().mean(0)).sqrt()
    denoiser = LatentDenoiser(autoencoder.num_latents, training.means.mean(0).tolist(), std.tolist(), **fields)
    return {"model": denoiser, "autoencoder": autoencoder, "train_dataset": training, "eval_dataset": held_out}


def encoded(autoencoder: LatentGenModel, images: LevelsDataset) -> LatentsDataset:
    """The posteriors of images."""
    means, stds = posterior_moments(autoencoder, images.levels)
    return LatentsDataset(torch.from_numpy(means), torch.from_numpy(stds))
