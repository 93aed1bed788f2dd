# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Encoders and decoders between images and latents, and the discriminator of codes.

Latents come in groups, coarse to fine (`config.latent_shapes`); every network but the ladder has exactly one. An
encoder turns an image into the features of each group, and the features of a group, with the decoder's state so far,
into the parameters of its posterior. A decoder takes the code of one group after the other, then finishes with the
logits:

    features = encoder(images)
    for group in range(len(features)):
        parameters = encoder.posterior(group, features[group], state)
        state = decoder.advance(group, code, state)
    outputs = decoder.finish(state)

An encoder is made with the number of parameters of its (first) posterior; a decoder with the size of its (first) code
and the number of outputs for each pixel and channel.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_image_autoencoder import ImageAutoencoderConfig


class Block(GradientCheckpointingLayer):
    """A layer that can be computed again instead of stored, also where it reads what has no gradient, as images."""

    def __call__(self, *states: Tensor) -> Tensor:
        """The outputs of `forward`."""
        # Reentrant checkpointing gives gradients only to layers one of whose inputs has one.
        if self.gradient_checkpointing and self.training and not any(tensor.requires_grad for tensor in states):
            states = (states[0].detach().requires_grad_(), *states[1:])
        return super().__call__(*states)


class ConvBlock(Block):
    """A 3x3 convolution and an activation; with `stride=2` it halves the resolution, rounding up."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, hidden_act: str = "gelu"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.activation = ACT2FN[hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        return self.activation(self.conv(hidden_states))


class ZeroConv2d(nn.Conv2d):
    """A convolution whose weight and bias start at zero."""


class ResidualBlock(Block):
    """Adds two 3x3 convolutions of activated input; starts as the identity, the last convolution being zero.

    With `extra_channels` the block also reads a second tensor of that many channels.
    """

    def __init__(self, channels: int, extra_channels: int = 0, hidden_act: str = "gelu"):
        super().__init__()
        self.first = nn.Conv2d(channels + extra_channels, channels, 3, padding=1)
        self.last = ZeroConv2d(channels, channels, 3, padding=1)
        self.activation = ACT2FN[hidden_act]

    def forward(self, hidden_states: Tensor, extra: Tensor | None = None) -> Tensor:
        """[B, channels, H, W] (and [B, extra_channels, H, W]) -> [B, channels, H, W]."""
        inputs = self.activation(hidden_states)
        inputs = inputs if extra is None else torch.cat([inputs, extra], 1)
        return hidden_states + self.last(self.activation(self.first(inputs)))


class DenseBlock(Block):
    """A fully connected layer and an activation."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str = "gelu"):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.activation = ACT2FN[hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, in_features] -> [B, out_features]."""
        return self.activation(self.linear(hidden_states))


def matrix_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weight is a matrix with a row for each output, by name: convolutions and linear layers.

    Their weights are also those that autocast reads in half precision, whatever the device. Transposed convolutions are
    neither, see [`TransposedConvolution`].
    """
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution that autocast leaves in fp32 on a CPU, where bf16 takes up to 2.6 times as long."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, in_channels, H, W] -> [B, out_channels, H', W']."""
        if hidden_states.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(hidden_states.to(self.weight.dtype))
        return super().forward(hidden_states)


def upsampling(in_channels: int, out_channels: int, in_size: int, out_size: int) -> nn.ConvTranspose2d:
    """A stride-2 transposed convolution from `in_size` to `out_size`, which is `2 * in_size` or one less."""
    return TransposedConvolution(
        in_channels, out_channels, 3, stride=2, padding=1, output_padding=out_size - 2 * in_size + 1
    )


class FlatEncoder(nn.Module):
    """Common part of the encoders with one latent vector: `layers`, flattened, then a linear map to the posterior."""

    def __init__(self, layers: nn.Sequential, num_features: int, num_outputs: int):
        super().__init__()
        self.layers = layers
        self.to_posterior = nn.Linear(num_features, num_outputs)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of the single latent group. Shape: `images` [B, C, H, W] in [-1, 1] -> [[B, F]]."""
        return [self.layers(images).flatten(1)]

    def posterior(self, group: int, features: Tensor, state: Tensor | None) -> Tensor:
        """Parameters of the posterior. [B, num_outputs]."""
        return self.to_posterior(features)


class FlatDecoder(nn.Module):
    """Common part of the decoders with one latent vector: a dense layer, reshaped to `start_shape`, then `layers`."""

    def __init__(
        self,
        config: ImageAutoencoderConfig,
        num_inputs: int,
        outputs_per_dim: int,
        layers: nn.Sequential,
        start_shape: tuple[int, ...],
    ):
        super().__init__()
        self.start_shape = start_shape
        self.output_shape = (outputs_per_dim, config.num_channels, config.image_size, config.image_size)
        self.from_latents = DenseBlock(num_inputs, torch.Size(start_shape).numel(), config.hidden_act)
        self.layers = layers

    def advance(self, group: int, code: Tensor, state: Tensor | None) -> Tensor:
        """The state after the single latent group. Shape: `code` [B, num_inputs] -> [B, *start_shape]."""
        return self.from_latents(code).unflatten(1, self.start_shape)

    def finish(self, state: Tensor) -> Tensor:
        """The outputs of every pixel and channel. [B, outputs_per_dim, C, H, W]."""
        return self.layers(state).reshape(-1, *self.output_shape)


class CourseEncoder(FlatEncoder):
    """Three stride-2 stages of 3x3 convolutions. Source: UvA Deep Learning 1 (2023), tutorial 9."""

    def __init__(self, config: ImageAutoencoderConfig, num_outputs: int):
        blocks = []
        channels = config.num_channels
        for stage, width in enumerate(config.hidden_channels, start=1):
            blocks.append(ConvBlock(channels, width, 2, config.hidden_act))
            if stage < len(config.hidden_channels):
                blocks.append(ConvBlock(width, width, 1, config.hidden_act))
            channels = width
        super().__init__(nn.Sequential(*blocks), channels * config.stage_sizes[-1] ** 2, num_outputs)


class UpsamplingBlock(Block):
    """A stride-2 transposed convolution and a 3x3 convolution, an activation after each."""

    def __init__(self, in_channels: int, out_channels: int, in_size: int, out_size: int, hidden_act: str):
        super().__init__()
        self.upsample = upsampling(in_channels, out_channels, in_size, out_size)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.activation = ACT2FN[hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, in_channels, in_size, in_size] -> [B, out_channels, out_size, out_size]."""
        return self.activation(self.conv(self.activation(self.upsample(hidden_states))))


class CourseDecoder(FlatDecoder):
    """The mirror image of the encoder; no activation on the outputs. Source: UvA Deep Learning 1 (2023), tutorial 9."""

    def __init__(self, config: ImageAutoencoderConfig, num_inputs: int, outputs_per_dim: int):
        widths, sizes = config.hidden_channels, config.stage_sizes
        layers: list[nn.Module] = [
            UpsamplingBlock(widths[stage], widths[stage - 1], sizes[stage + 1], sizes[stage], config.hidden_act)
            for stage in range(len(widths) - 1, 0, -1)
        ]
        layers.append(upsampling(widths[0], outputs_per_dim * config.num_channels, sizes[1], sizes[0]))
        start_shape = (widths[-1], sizes[-1], sizes[-1])
        super().__init__(config, num_inputs, outputs_per_dim, nn.Sequential(*layers), start_shape)


class MLPEncoder(FlatEncoder):
    """Fully connected layers of widths `hidden_channels`."""

    def __init__(self, config: ImageAutoencoderConfig, num_outputs: int):
        widths = [config.num_dims, *config.hidden_channels]
        blocks = [DenseBlock(*pair, config.hidden_act) for pair in pairwise(widths)]
        super().__init__(nn.Sequential(nn.Flatten(), *blocks), widths[-1], num_outputs)


class MLPDecoder(FlatDecoder):
    """Fully connected layers of widths `hidden_channels`, coarse to fine; the last one is linear."""

    def __init__(self, config: ImageAutoencoderConfig, num_inputs: int, outputs_per_dim: int):
        widths = list(config.hidden_channels[::-1])
        blocks = [DenseBlock(*pair, config.hidden_act) for pair in pairwise(widths)]
        last = nn.Linear(widths[-1], outputs_per_dim * config.num_dims)
        super().__init__(config, num_inputs, outputs_per_dim, nn.Sequential(*blocks, last), (widths[0],))


class ResNetEncoder(nn.Module):
    """Residual stages whose outputs inform the posterior of the latents at the same resolution."""

    def __init__(self, config: ImageAutoencoderConfig, num_outputs: int):
        super().__init__()
        self.shapes = config.latent_shapes
        self.activation = ACT2FN[config.hidden_act]
        widths, size = config.hidden_channels, config.stage_sizes[-1]
        self.stages = nn.ModuleList()
        channels = config.num_channels
        for stage, width in enumerate(widths):
            kernel = 5 if stage == 0 else 3
            blocks = [ResidualBlock(width, 0, config.hidden_act) for _ in range(config.blocks_per_stage)]
            down = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2)
            self.stages.append(nn.Sequential(down, *blocks))
            channels = width
        self.to_posterior = nn.ModuleList([nn.Linear(channels * size**2, num_outputs)])
        for (latent_channels, *_), width in zip(self.shapes[1:], widths[::-1], strict=False):
            self.to_posterior.append(LadderPosterior(width, latent_channels, config.hidden_act))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of each latent group, coarse to fine. Shape: `images` [B, C, H, W] in [-1, 1]."""
        outputs = []
        for stage in self.stages:
            images = stage(images)
            outputs.append(images)
        coarse_to_fine = outputs[::-1]
        return [self.activation(coarse_to_fine[0]).flatten(1), *coarse_to_fine[: len(self.shapes) - 1]]

    def posterior(self, group: int, features: Tensor, state: Tensor | None) -> Tensor:
        """Parameters of the posterior of a group given the coarser ones. [B, num_outputs] or [B, 2 * latents]."""
        return self.to_posterior[group](features) if group == 0 else self.to_posterior[group](features, state)


class LadderPosterior(Block):
    """Posterior parameters of spatial latents from the encoder's features and the decoder's state.

    The last convolution starts at zero, so that the posterior starts at the prior.
    """

    def __init__(self, channels: int, latent_channels: int, hidden_act: str = "gelu"):
        super().__init__()
        self.first = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.last = ZeroConv2d(channels, 2 * latent_channels, 1)
        self.activation = ACT2FN[hidden_act]

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """[B, channels, S, S] twice -> [B, 2 * latent_channels * S * S]."""
        inputs = self.activation(torch.cat([features, state], 1))
        return self.last(self.activation(self.first(inputs))).flatten(1)


class ResNetDecoder(nn.Module):
    """Residual stages, coarse to fine, each preceded by the spatial latents of its resolution where there are any.

    Every latent has a standard normal prior: what a ladder VAE writes as a learned prior of the finer latents is here
    the network that merges them with the state. Source: Sonderby et al. (2016), Ladder VAE; Child (2021), VDVAE.
    """

    def __init__(self, config: ImageAutoencoderConfig, num_inputs: int, outputs_per_dim: int):
        super().__init__()
        self.shapes = config.latent_shapes
        self.output_shape = (outputs_per_dim, config.num_channels, config.image_size, config.image_size)
        widths, sizes = config.hidden_channels, config.stage_sizes
        self.start_shape = (widths[-1], sizes[-1], sizes[-1])
        self.from_latents = nn.Linear(num_inputs, torch.Size(self.start_shape).numel())
        coarse_to_fine = range(len(widths) - 1, -1, -1)
        self.merges = nn.ModuleList(
            ResidualBlock(widths[stage], channels, config.hidden_act)
            for stage, (channels, *_) in zip(coarse_to_fine, self.shapes[1:], strict=False)
        )
        self.stages = nn.ModuleList()
        for stage in coarse_to_fine:
            blocks = [ResidualBlock(widths[stage], 0, config.hidden_act) for _ in range(config.blocks_per_stage)]
            up = upsampling(widths[stage], widths[max(stage - 1, 0)], sizes[stage + 1], sizes[stage])
            self.stages.append(nn.Sequential(*blocks, ACT2FN[config.hidden_act], up))
        last = nn.Conv2d(widths[0], outputs_per_dim * config.num_channels, 3, padding=1)
        self.head = nn.Sequential(ACT2FN[config.hidden_act], last)

    def advance(self, group: int, code: Tensor, state: Tensor | None) -> Tensor:
        """The state after a latent group, at the resolution of the next. Shape: `code` [B, latents of the group]."""
        if state is None:
            return self.from_latents(code).unflatten(1, self.start_shape)
        merged = self.merges[group - 1](state, code.unflatten(1, self.shapes[group]))
        return self.stages[group - 1](merged)

    def finish(self, state: Tensor) -> Tensor:
        """The outputs of every pixel and channel, after the stages without latents. [B, outputs_per_dim, C, H, W]."""
        for stage in self.stages[len(self.merges) :]:
            state = stage(state)
        return self.head(state).reshape(-1, *self.output_shape)


class Discriminator(nn.Module):
    """Fully connected layers with LeakyReLU (slope 0.2), from a code to the logit that it was drawn from the prior."""

    def __init__(self, num_inputs: int, widths: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise([num_inputs, *widths, 1]))

    def forward(self, codes: Tensor, frozen: bool = False) -> Tensor:
        """Logits, positive for codes taken to be drawn from the prior. Shape: `codes` [B, num_inputs] -> [B].

        With `frozen` the weights count as constants: gradients reach the codes only.
        """
        hidden_states = codes
        for index, layer in enumerate(cast(Sequence[nn.Linear], self.layers)):
            weight, bias = (layer.weight.detach(), layer.bias.detach()) if frozen else (layer.weight, layer.bias)
            if index > 0:
                hidden_states = F.leaky_relu(hidden_states, 0.2)
            hidden_states = F.linear(hidden_states, weight, bias)
        return hidden_states.squeeze(1)


ENCODERS = {"course": CourseEncoder, "resnet": ResNetEncoder, "mlp": MLPEncoder}
DECODERS = {"course": CourseDecoder, "resnet": ResNetDecoder, "mlp": MLPDecoder}
