# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The denoiser of a latent diffusion prior: a residual MLP over latent vectors."""

import math
from dataclasses import dataclass

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class LatentDenoiserOutput(BaseOutput):
    """What [`LatentDenoiser`] returns.

    Args:
        sample: the predicted velocity. [B, latent_dim].
    """

    sample: Tensor


class DenoiserBlock(nn.Module):
    """Adds two linear layers of the normalised input and the time; starts as the identity, its last layer zero."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.first = nn.Linear(hidden_size, hidden_size)
        self.last = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.activation = nn.SiLU()

    def forward(self, hidden_states: Tensor, time: Tensor) -> Tensor:
        """[B, hidden_size] twice -> [B, hidden_size]."""
        return hidden_states + self.last(self.activation(self.first(self.norm(hidden_states)) + time))


class LatentDenoiser(ModelMixin, ConfigMixin):
    """Predicts the velocity of noisy standardised latents, given the step of the diffusion.

    The velocity is `sqrt(a) * noise - sqrt(1 - a) * latents`, where `a` is the share of the latents in the variance:
    noise where there is little of it, latents where there is little else. A scheduler of diffusers calls it
    "v_prediction".

    Args:
        latent_dim: size of a latent vector.
        latents_mean: mean of each latent over the training images; [latent_dim], or None for zeros.
        latents_std: standard deviation of each latent over the training images; [latent_dim], or None for ones.
        hidden_size: width of the network, even.
        num_blocks: residual blocks.

    Raises:
        ValueError: an argument is out of range, or of the wrong length.

    Source: Ho et al. (2020), Denoising Diffusion Probabilistic Models; Salimans & Ho (2022), appendix D, for the
    velocity; Rombach et al. (2022) for the diffusion of latents.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        hidden_size: int = 256,
        num_blocks: int = 4,
    ):
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("num_blocks", num_blocks)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if hidden_size < 4 or hidden_size % 2:
            raise ValueError(f"hidden_size must be an even number of at least 4, got {hidden_size}")
        for name, values in (("latents_mean", latents_mean), ("latents_std", latents_std)):
            if values is not None and len(values) != latent_dim:
                raise ValueError(f"{name} must hold latent_dim={latent_dim} numbers, got {len(values)}")
            if values is not None and not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must hold finite numbers, got {values}")
        if latents_std is not None and min(latents_std) <= 0:
            raise ValueError(f"latents_std must be above 0, got {min(latents_std)}")
        self.time = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.first = nn.Linear(latent_dim, hidden_size)
        self.blocks = nn.ModuleList(DenoiserBlock(hidden_size) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.last = nn.Linear(hidden_size, latent_dim)

    def forward(self, sample: Tensor, timestep: Tensor) -> LatentDenoiserOutput:
        """The velocity of `sample`. [B, latent_dim].

        Shape: `sample` [B, latent_dim], standardised; `timestep` [B] or a scalar, the step that made it noisy.
        """
        time = self.time(timestep.to(sample.device).expand(len(sample))).to(sample.dtype)
        time = self.time_embedding(time)
        hidden_states = self.first(sample)
        for block in self.blocks:
            hidden_states = block(hidden_states, time)
        return LatentDenoiserOutput(self.last(self.norm(hidden_states)))

    def standardise(self, latents: Tensor) -> Tensor:
        """Latents with mean 0 and standard deviation 1 over the training images. [B, latent_dim]."""
        return (latents - self._moment("latents_mean", latents)) / self._moment("latents_std", latents)

    def restore(self, sample: Tensor) -> Tensor:
        """Latents of the autoencoder from standardised ones: the inverse of `standardise`. [B, latent_dim]."""
        return sample * self._moment("latents_std", sample) + self._moment("latents_mean", sample)

    def _moment(self, name: str, like: Tensor) -> Tensor:
        values = self.config[name]
        if values is None:
            return like.new_full((), 0.0 if name == "latents_mean" else 1.0)
        return like.new_tensor(values)
