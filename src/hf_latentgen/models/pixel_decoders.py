# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Decoders that read, besides the latents, the image itself: the pixels just before each, in raster order.

A decoder is made of layers. In each a pixel reads those before it, at most `decoder_radius` rows above and columns to a
side, then a pointwise network follows. What is read is the image and never the states of other pixels, so that no
layer sees further than the first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_vlae import VLAEConfig
from .local_attention import local_attention
from .networks import Block, ZeroConv2d


class MaskedConvolution(nn.Module):
    """A weighted sum of the pixels before each one, those of the neighbourhood.

    Source: van den Oord et al. (2016), Pixel Recurrent Neural Networks, mask A.
    """

    def __init__(self, config: VLAEConfig):
        super().__init__()
        channels, radius = config.decoder_channels, config.decoder_radius
        self.radius = radius
        # The rows above the pixel, and its own up to the pixel before it.
        self.above = nn.Conv2d(channels, channels, (radius, 2 * radius + 1))
        self.left = nn.Conv2d(channels, channels, (1, radius), bias=False)

    def forward(self, hidden_states: Tensor, pixels: Tensor, inside: Tensor) -> Tensor:
        """What each pixel reads. Shapes as in [`PixelLayer`]."""
        left = pixels[:, :, self.radius :, : hidden_states.shape[3] + self.radius - 1]
        return _repeated(self.above(pixels[:, :, :-1]) + self.left(left), hidden_states)


class NeighborhoodAttention(nn.Module):
    """Attention to the pixels before each one, those of the neighbourhood, and to nothing where none is to be read.

    Source: Hassani et al. (2023), Neighborhood Attention Transformer, here causal and with a learned place embedding.
    """

    def __init__(self, config: VLAEConfig):
        super().__init__()
        self.heads, self.radius = config.decoder_heads, config.decoder_radius
        # Where the pixels before stand among all of the rows' pixels.
        radius = self.radius
        self.seen = [(radius - up) * (2 * radius + 1) + radius + right for up, right in config.neighbors]
        channels = config.decoder_channels
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.places = nn.Parameter(torch.zeros(self.heads, channels // self.heads, len(self.seen)))
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor, pixels: Tensor, inside: Tensor) -> Tensor:
        """What each pixel reads. Shapes as in [`PixelLayer`]."""
        states = _repeated(self.key_value(pixels), hidden_states)
        key, value = (self._neighbors(part) for part in states.chunk(2, 1))
        inside = self._neighbors(inside.expand(-1, self.heads, -1, -1))  # [1, heads, 1, places, H * W]
        query = self.query(hidden_states).flatten(2).unflatten(1, (self.heads, -1))  # [B, heads, D, H * W]
        keys = key + self.places.unsqueeze(-1)
        scores = (query.unsqueeze(3) * keys).sum(2) * query.shape[2] ** -0.5  # [B, heads, places, H * W]
        # One more place, which reads nothing: the first pixel has no other.
        scores = F.pad(scores.masked_fill(inside[:, :, 0] == 0, -torch.inf), (0, 0, 0, 1))
        weights = scores.softmax(2)[:, :, :-1]
        read = (weights.unsqueeze(2) * value).sum(3)
        return self.output(read.flatten(1, 2).unflatten(2, hidden_states.shape[2:]))

    def _neighbors(self, states: Tensor) -> Tensor:
        """States of the neighbours of each pixel. [B, heads, D, places, H * W]."""
        shape = (self.radius + 1, 2 * self.radius + 1)
        windows = F.unfold(states, shape).unflatten(1, (self.heads, -1, shape[0] * shape[1]))
        return windows[:, :, :, self.seen]


class RasterAttention(nn.Module):
    """Attention to the last pixels in raster order, as many as the rows of the neighbourhood hold.

    Its pixels are whole rows without a margin.

    Source: Parmar et al. (2018), Image Transformer.
    """

    def __init__(self, config: VLAEConfig):
        super().__init__()
        self.heads = config.decoder_heads
        self.window = config.decoder_radius * config.image_size + config.decoder_radius
        channels = config.decoder_channels
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.places = nn.Parameter(torch.zeros(self.heads, self.window))
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor, pixels: Tensor, inside: Tensor) -> Tensor:
        """What each pixel reads. Shapes as in [`PixelLayer`], but for the margin."""
        # The key at a pixel is that of the one before it, and of nothing at the first.
        query = self._sequence(self.query(hidden_states))
        states = map(self._sequence, _repeated(self.key_value(pixels), hidden_states).chunk(2, 1))
        key, value = (F.pad(state[:, :, :-1], (0, 0, 1, 0)) for state in states)
        read = local_attention(query, key, value, self.window, bias=self.places).mT.flatten(1, 2)
        return self.output(read.unflatten(2, pixels.shape[2:]))

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
        width = 2 * self.radius + 1
        self.seen = [(self.radius - up) * width + self.radius + right for up, right in config.neighbors]
        # Where the pixels above and to the left stand among those.
        self.nearest = [config.neighbors.index(place) for place in ((1, 0), (0, -1))]
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
        # Autocast would round to fewer digits than a level has.
        with torch.autocast(values.device.type, enabled=False):
            predicted = F.conv2d(values.to(kernel.dtype), kernel.unflatten(2, (radius + 1, -1))).unsqueeze(1)
        predicted = _repeated(predicted, outputs)
        weights, means, log_scales, *shares = outputs.split(self.num_parts, 1)
        scales = self.log_scales[:, None, None, None]
        return torch.cat([weights, means + predicted, log_scales + scales, *shares], 1)


READERS = {"convolution": MaskedConvolution, "neighborhood": NeighborhoodAttention, "raster": RasterAttention}


class PixelLayer(Block):
    """Adds what each pixel reads of those before it, then a pointwise network, both conditional on the latents."""

    def __init__(self, config: VLAEConfig):
        super().__init__()
        channels = config.decoder_channels
        self.read = READERS[config.pixel_decoder](config)
        self.first = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.last = ZeroConv2d(2 * channels, channels, 1)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor, features: Tensor, pixels: Tensor, inside: Tensor) -> Tensor:
        """States of each pixel [B, channels, H, W], from states and features of that shape.

        Shape: `pixels` [B, channels, radius + H, W + 2 * radius], with a margin above and to both sides of those whose
        states are given, or those of fewer images, each of which is then that of several states in a row; `inside`
        [1, 1, radius + H, W + 2 * radius], 1 where they are pixels and 0 beyond the image.
        """
        hidden_states = hidden_states + self.read(hidden_states, pixels, inside)
        inputs = self.activation(torch.cat([hidden_states, features], 1))
        return hidden_states + self.last(self.activation(self.first(inputs)))


class PixelDecoder(nn.Module):
    """From the features of the latents and the image, the outputs of every pixel given those before it."""

    def __init__(self, config: VLAEConfig):
        super().__init__()
        channels = config.decoder_channels
        self.radius, self.num_channels = config.decoder_radius, config.num_channels
        self.last_level = config.num_levels - 1
        self.is_raster = config.pixel_decoder == "raster"
        # A function of the value of a pixel that need not be linear.
        self.embed = nn.Sequential(
            nn.Conv2d(config.num_channels, channels, 1),
            ACT2FN[config.hidden_act],
            nn.Conv2d(channels, channels, 1),
        )
        self.layers = nn.ModuleList(PixelLayer(config) for _ in range(config.decoder_layers if self.radius else 0))
        self.activation = ACT2FN[config.hidden_act]
        self.head = nn.Conv2d(channels, config.outputs_per_dim * config.num_channels, 1)
        is_mixture = config.pixel_likelihood == "logistic_mixture"
        self.prediction = LinearPrediction(config) if is_mixture and self.radius else None

    def forward(self, levels: Tensor, features: Tensor) -> Tensor:
        """The outputs of every pixel and channel. [B, outputs_per_dim, C, H, W].

        Shape: `features` [B, decoder_channels, H, W], `levels` [B, C, H, W], or of fewer images, each with several
        features in a row: what they show is read once.
        """
        return self._outputs(levels, features, (self.radius, self.radius, self.radius, 0))

    def at(self, levels: Tensor, features: Tensor, row: int, column: int) -> Tensor:
        """The outputs of one pixel. [B, outputs_per_dim, C, 1, 1]. Shapes as in `forward`.

        Only what the pixel can see is read.
        """
        radius, width = self.radius, levels.shape[3]
        if self.is_raster:
            # All rows that the window touches.
            top = max(row - radius - 1, 0)
            part = (..., slice(top, row + 1), slice(None))
            return self(levels[part], features[part])[..., -1:, column : column + 1]
        top, left, right = max(row - radius, 0), max(column - radius, 0), min(column + radius + 1, width)
        margin = (radius - (column - left), radius - (right - 1 - column), radius - (row - top), 0)
        here = (..., slice(row, row + 1), slice(column, column + 1))
        return self._outputs(levels[..., top : row + 1, left:right], features[here], margin)

    def _outputs(self, levels: Tensor, features: Tensor, margin: tuple[int, int, int, int]) -> Tensor:
        """The outputs where features are given, from levels to which so wide a margin of zeros is added."""
        hidden_states = features
        # Scaled to [-1, 1], as the encoder reads them.
        values = levels * (2 / self.last_level) - 1
        if self.radius:
            pixels = self.embed(values.to(features.dtype))
            inside = pixels.new_ones(1, 1, *pixels.shape[2:])
            if not self.is_raster:
                pixels, inside = F.pad(pixels, margin), F.pad(inside, margin)
            for layer in self.layers:
                hidden_states = layer(hidden_states, features, pixels, inside)
        outputs = self.head(self.activation(hidden_states)).unflatten(1, (-1, self.num_channels))
        return outputs if self.prediction is None else self.prediction(outputs, F.pad(values, margin))


def _repeated(states: Tensor, others: Tensor) -> Tensor:
    """Each of the states several times in a row, as many as there are others."""
    # `len` of a batch of any size would fix it in an exported model.
    given, wanted = states.shape[0], others.shape[0]
    return states if given == wanted else states.repeat_interleave(wanted // given, 0)
