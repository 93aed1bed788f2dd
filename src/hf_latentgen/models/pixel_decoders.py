# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Decoders that read, besides the latents, the image itself: the pixels just before each, in raster order.

A decoder is made of a context, which is linear in the levels of the pixels around, and of layers, which divide its
radius among them. In each layer a pixel reads those before it, at most the layer's radius above and to the sides, then
a pointwise network follows. What is read is a pixel's value and its state, which has itself read what is before it, so
that the last layer sees as far as all radii together.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_vlae import VLAEConfig
from .distributions import scaled
from .local_attention import local_attention
from .networks import Block, ZeroConv2d

# Ranges of levels that the context of a pixel tells apart.
MOST_BINS = 16


def neighbors(radius: int) -> list[tuple[int, int]]:
    """Rows up and columns to the right of the pixels that a pixel reads, the nearest last in raster order."""
    above = [(up, right) for up in range(radius, 0, -1) for right in range(-radius, radius + 1)]
    return above + [(0, -left) for left in range(radius, 0, -1)]


def places(radius: int) -> list[int]:
    """Where the neighbours stand among all pixels of as many rows and columns, in raster order."""
    return [(radius - up) * (2 * radius + 1) + radius + right for up, right in neighbors(radius)]


class MaskedConvolution(nn.Module):
    """A weighted sum of the pixels before each one, those of the neighbourhood.

    Source: van den Oord et al. (2016), Pixel Recurrent Neural Networks, mask A.
    """

    def __init__(self, config: VLAEConfig, radius: int, num_inputs: int | None = None):
        super().__init__()
        num_inputs, channels = num_inputs or config.decoder_channels, config.decoder_channels
        self.radius = self.margin = radius
        # The rows above the pixel, and its own up to the pixel before it.
        self.above = nn.Conv2d(num_inputs, channels, (radius, 2 * radius + 1))
        self.left = nn.Conv2d(num_inputs, channels, (1, radius), bias=False)

    def forward(self, hidden_states: Tensor | None, pixels: Tensor) -> Tensor:
        """What each pixel reads, whatever its own state. Shapes as in [`PixelLayer`]."""
        # One convolution, with zeros for the pixel itself and those to its right: two would copy what they read.
        own_row = F.pad(self.left.weight, (0, self.radius + 1))
        return F.conv2d(pixels, torch.cat([self.above.weight, own_row], 2), self.above.bias)

    def at(self, hidden_states: Tensor | None, pixels: Tensor, row: int, column: int) -> Tensor:
        """What one pixel reads. Shapes as in [`PixelLayer`]."""
        return self(hidden_states, _window(pixels, self.radius, row, column))


class NeighborhoodAttention(nn.Module):
    """Attention to the pixels before each one, those of the neighbourhood, and to zeros beyond the image.

    Source: Hassani et al. (2023), Neighborhood Attention Transformer, here causal and with a learned place embedding.
    """

    def __init__(self, config: VLAEConfig, radius: int):
        super().__init__()
        self.heads, self.radius, self.margin = config.decoder_heads, radius, radius
        self.neighbors = neighbors(radius)
        channels = config.decoder_channels
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.places = nn.Parameter(torch.zeros(self.heads, channels // self.heads, len(self.neighbors)))
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor, pixels: Tensor) -> Tensor:
        """What each pixel reads. Shapes as in [`PixelLayer`]."""
        shape = hidden_states.shape[2:]
        query = self.query(hidden_states).unflatten(1, (self.heads, -1))  # [B, heads, D, H, W]
        key, value = self.key_value(pixels).unflatten(1, (2 * self.heads, -1)).chunk(2, 1)
        # One neighbour of all pixels at a time: all neighbours of each pixel side by side would be many copies.
        scores = torch.stack([(query * near).sum(2) for near in self._neighbors(key, shape)], 2)
        scores = scores + torch.einsum("bndhw,ndp->bnphw", query, self.places)
        weights = (scores * query.shape[2] ** -0.5).softmax(2).to(value.dtype).unbind(2)
        near = self._neighbors(value, shape)
        read = torch.stack([weight.unsqueeze(2) * other for weight, other in zip(weights, near, strict=True)]).sum(0)
        return self.output(read.flatten(1, 2))

    def at(self, hidden_states: Tensor, pixels: Tensor, row: int, column: int) -> Tensor:
        """What one pixel reads. Shapes as in [`PixelLayer`]."""
        return self(hidden_states, _window(pixels, self.radius, row, column))

    def _neighbors(self, states: Tensor, shape: torch.Size) -> list[Tensor]:
        """States of each neighbour, of all pixels. [B, heads, D, H, W] for each place."""
        (height, width), radius = shape, self.radius
        places = [(radius - up, radius + right) for up, right in self.neighbors]
        return [states[..., row : row + height, column : column + width] for row, column in places]


class RasterAttention(nn.Module):
    """Attention to the last pixels in raster order, as many as the rows of the neighbourhood hold.

    Its pixels are whole rows without a margin, and the first of all reads zeros.

    Source: Parmar et al. (2018), Image Transformer.
    """

    margin = 0

    def __init__(self, config: VLAEConfig, radius: int):
        super().__init__()
        self.heads, self.radius = config.decoder_heads, radius
        self.window = radius * config.image_size + radius
        channels = config.decoder_channels
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.places = nn.Parameter(torch.zeros(self.heads, self.window))
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor, pixels: Tensor) -> Tensor:
        """What each pixel reads. Shapes as in [`PixelLayer`], but for the margin."""
        # The key at a pixel is that of the one before it, and of nothing at the first.
        query = self._sequence(self.query(hidden_states))
        states = map(self._sequence, self.key_value(pixels).chunk(2, 1))
        key, value = (F.pad(state[:, :, :-1], (0, 0, 1, 0)) for state in states)
        read = local_attention(query, key, value, self.window, bias=self.places).mT.flatten(1, 2)
        return self.output(read.unflatten(2, pixels.shape[2:]))

    def at(self, hidden_states: Tensor, pixels: Tensor, row: int, column: int) -> Tensor:
        """What one pixel reads. Shapes as in [`PixelLayer`], but for the margin."""
        # All rows that the window touches.
        rows = pixels[:, :, max(row - self.radius - 1, 0) : row + 1]
        states = torch.zeros_like(rows)
        states[:, :, -1:, column : column + 1] = hidden_states
        return self(states, rows)[:, :, -1:, column : column + 1]

    def _sequence(self, states: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, heads, H * W, D]."""
        return states.flatten(2).unflatten(1, (self.heads, -1)).mT.contiguous()


class LinearPrediction(nn.Module):
    """A weighted sum of the values before each pixel, from which the parts of a mixture deviate.

    It starts as the mean of the pixel above and the one to the left, and the parts of the mixture with different
    widths: the neighbours of a pixel of a photo tell most of it, which a network needs long to find out.
    """

    def __init__(self, config: VLAEConfig):
        super().__init__()
        self.radius, self.num_parts = config.decoder_radius, config.num_mixtures
        self.seen = places(self.radius)
        # Where the pixels above and to the left stand among those.
        self.nearest = [neighbors(self.radius).index(place) for place in ((1, 0), (0, -1))]
        self.weight = nn.Parameter(torch.zeros(config.num_channels, config.num_channels, len(self.seen)))
        self.log_scales = nn.Parameter(torch.zeros(self.num_parts))

    def forward(self, outputs: Tensor, values: Tensor) -> Tensor:
        """The outputs with their means and log scales shifted. [B, outputs_per_dim, C, H, W].

        Shape: `outputs` [B, outputs_per_dim, C, H, W], `values` with their margin [B, C, radius + H, W + 2 * radius],
        from -1 to 1.
        """
        radius = self.radius
        kernel = self.weight.new_zeros(*self.weight.shape[:2], (radius + 1) * (2 * radius + 1))
        kernel[..., self.seen] = self.weight
        # Half precision would round to fewer digits than a level has.
        with torch.autocast(values.device.type, enabled=False):
            predicted = F.conv2d(values.float(), kernel.float().unflatten(2, (radius + 1, -1))).unsqueeze(1)
        weights, means, log_scales, *shares = outputs.split(self.num_parts, 1)
        scales = self.log_scales[:, None, None, None]
        return torch.cat([weights, means + predicted, log_scales + scales, *shares], 1)


READERS = {"convolution": MaskedConvolution, "neighborhood": NeighborhoodAttention, "raster": RasterAttention}


class PixelLayer(Block):
    """Adds what each pixel reads of those before it, then a gated pointwise network, which reads the latents again.

    Source: van den Oord et al. (2016), Conditional Image Generation with PixelCNN Decoders, eq. 2, for the gate.
    """

    def __init__(self, config: VLAEConfig, radius: int):
        super().__init__()
        channels = config.decoder_channels
        # With more layers than the radius has rows, the last ones read nothing.
        self.read = READERS[config.pixel_decoder](config, radius) if radius else None
        self.margin = self.read.margin if self.read else 0
        self.first = nn.Conv2d(2 * channels, 4 * channels, 1)
        self.last = ZeroConv2d(2 * channels, channels, 1)

    def forward(self, hidden_states: Tensor, features: Tensor, pixels: Tensor) -> Tensor:
        """States of each pixel [B, channels, H, W], from states and features of that shape.

        Shape: `pixels` [B, channels, margin + H, W + 2 * margin], see `around`.
        """
        if self.read:
            hidden_states = hidden_states + self.read(hidden_states, pixels)
        return self._pointwise(hidden_states, features)

    def at(self, hidden_states: Tensor, features: Tensor, pixels: Tensor, row: int, column: int) -> Tensor:
        """States of one pixel [B, channels, 1, 1], from states and features of that shape, and `pixels` of all."""
        if self.read:
            hidden_states = hidden_states + self.read.at(hidden_states, pixels, row, column)
        return self._pointwise(hidden_states, features)

    def around(self, values: Tensor, hidden_states: Tensor) -> Tensor:
        """What is read: of each pixel its value and state together, and zeros above the image and to both sides of it.

        Shape: [B, channels, H, W] twice -> [B, channels, margin + H, W + 2 * margin].
        """
        return with_margin(values + hidden_states, self.margin)

    def _pointwise(self, hidden_states: Tensor, features: Tensor) -> Tensor:
        states, gate = self.first(torch.cat([hidden_states, features], 1)).chunk(2, 1)
        # Bounded: a product of the two would grow without limits where one image has latents far out.
        return hidden_states + self.last(torch.tanh(states) * torch.sigmoid(gate))


class PixelDecoder(nn.Module):
    """From the features of the latents and the image, the outputs of every pixel given those before it."""

    def __init__(self, config: VLAEConfig):
        super().__init__()
        channels = config.decoder_channels
        self.radius, self.num_channels = config.decoder_radius, config.num_channels
        self.num_levels, self.num_bins = config.num_levels, min(config.num_levels, MOST_BINS)
        num_inputs = config.num_channels * (1 + self.num_bins)
        self.context_radius, *radii = config.decoder_radii
        embed = (nn.Conv2d(num_inputs, channels, 1), ACT2FN[config.hidden_act], nn.Conv2d(channels, channels, 1))
        # Where no layer reads, nothing would train it.
        self.embed = nn.Sequential(*embed) if any(radii) else None
        self.context = MaskedConvolution(config, self.context_radius, num_inputs) if self.radius else None
        self.layers = nn.ModuleList(PixelLayer(config, radius) for radius in radii)
        self.activation = ACT2FN[config.hidden_act]
        self.head = nn.Conv2d(channels, config.outputs_per_dim * config.num_channels, 1)
        is_mixture = config.pixel_likelihood == "logistic_mixture"
        self.prediction = LinearPrediction(config) if is_mixture and self.radius else None

    def forward(self, levels: Tensor, features: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """The outputs of every pixel and channel. [B, outputs_per_dim, C, H, W]. What each layer reads goes to `kept`.

        Shape: `levels` [B, C, H, W], `features` [B, decoder_channels, H, W].
        """
        values = self.values(levels)
        inputs, hidden_states = self.inputs(levels, values, features.dtype), features
        if self.context is not None:
            hidden_states = hidden_states + self.context(None, with_margin(inputs, self.context_radius))
        pixels = self.embed(inputs) if self.embed else torch.zeros_like(features)
        for layer in cast(Sequence[PixelLayer], self.layers):
            around = layer.around(pixels, hidden_states)
            if kept is not None:
                kept.append(around)
            hidden_states = layer(hidden_states, features, around)
        return self.outputs(hidden_states, with_margin(values, self.radius))

    def values(self, levels: Tensor) -> Tensor:
        """Levels scaled to [-1, 1], as the encoder reads them."""
        return scaled(levels, self.num_levels)

    def inputs(self, levels: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Each value, and a 1 in the place of its level, or of a range of levels where there are many.

        Shape: [B, C, H, W] twice -> [B, C * (1 + num_bins), H, W] of the type.
        """
        bins = F.one_hot(levels.long() * self.num_bins // self.num_levels, self.num_bins)
        return torch.cat([values.to(dtype), bins.to(dtype).movedim(-1, 2).flatten(1, 2)], 1)

    def outputs(self, hidden_states: Tensor, values: Tensor) -> Tensor:
        """The outputs of pixels from their last states [B, channels, H, W] and the values around them."""
        outputs = self.head(self.activation(hidden_states)).unflatten(1, (-1, self.num_channels))
        # A log probability has more digits than half precision.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs if self.prediction is None else self.prediction(outputs, values)


class PixelsSoFar:
    """What is read of an image whose pixels become known one after the other: each is computed once.

    Shape: `levels` [B, C, H, W], of which nothing is read from the first pixel on that is asked for; `features` as in
    [`PixelDecoder`].
    """

    @torch.no_grad()
    def __init__(self, decoder: PixelDecoder, levels: Tensor, features: Tensor):
        self.decoder, self.features = decoder, features
        self.layers = cast(Sequence[PixelLayer], decoder.layers)
        values = decoder.values(levels)
        self.values = with_margin(values, decoder.radius)
        self.inputs = with_margin(decoder.inputs(levels, values, features.dtype), decoder.context_radius)
        self.around: list[Tensor] = []
        decoder(levels, features, self.around)

    @torch.no_grad()
    def outputs(self, row: int, column: int) -> Tensor:
        """The outputs of a pixel, all before it being known. [B, outputs_per_dim, C, 1, 1]."""
        decoder = self.decoder
        hidden_states = features = self.features[..., row : row + 1, column : column + 1]
        if decoder.context is not None:
            hidden_states = hidden_states + decoder.context.at(None, self.inputs, row, column)
        for layer, around in zip(self.layers, self.around, strict=True):
            around[..., layer.margin + row, layer.margin + column] = hidden_states[..., 0, 0]
            hidden_states = layer.at(hidden_states, features, around, row, column)
        return decoder.outputs(hidden_states, _window(self.values, decoder.radius, row, column))

    @torch.no_grad()
    def add(self, levels: Tensor, row: int, column: int):
        """Makes a pixel known. Shape: `levels` [B, C, 1, 1]."""
        decoder, values = self.decoder, self.decoder.values(levels)
        inputs = decoder.inputs(levels, values, self.features.dtype)
        self.values[..., decoder.radius + row, decoder.radius + column] = values[..., 0, 0]
        margin = decoder.context_radius
        self.inputs[..., margin + row, margin + column] = inputs[..., 0, 0]
        if decoder.embed:
            pixels = decoder.embed(inputs)
            for layer, around in zip(self.layers, self.around, strict=True):
                around[..., layer.margin + row, layer.margin + column] += pixels[..., 0, 0]


def with_margin(states: Tensor, width: int) -> Tensor:
    """States with so many zeros above and to both sides. [B, C, H, W] -> [B, C, width + H, W + 2 * width]."""
    return F.pad(states, (width, width, width, 0))


def _window(states: Tensor, radius: int, row: int, column: int) -> Tensor:
    """The part of states with a margin of the radius that one pixel sees. [B, C, radius + 1, 2 * radius + 1]."""
    return states[..., row : row + radius + 1, column : column + 2 * radius + 1]
