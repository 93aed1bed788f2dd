# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The local-attention transformer as a function of one position after the other, with as little work as there can be.

A layer's keys and values lie in a ring of as many places as its window has: attention does not ask for their order, so
that nothing ever moves. What does not depend on the input is done once: matrices that read the same states are one,
which holds the scales of the norm before it, and the pairs of numbers that rotary positions turn lie side by side, as
complex numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .local_attention import local_attention


class Ring:
    """Keys and values of the last `window` positions, in a ring of as many places.

    Args:
        pair: key and value of a position, whose shape and dtype are those of all. [B, 2, G, D].
        window: the number of places.
        bounds: what no number of a query passes, then those of keys and of values; here unused. [H + G + G].
    """

    def __init__(self, pair: Tensor, window: int, bounds: Tensor):
        self.places = pair.new_empty(2, len(pair), pair.shape[2], window, pair.shape[3])

    def write(self, place: int, pair: Tensor) -> None:
        """Keep key and value of a position. [B, 2, G, D]."""
        self.places[:, :, :, place] = pair.transpose(0, 1)

    def attend(self, query: Tensor, filled: int, bias: Tensor | None) -> Tensor:
        """Softmax attention to the first `filled` places.

        Args:
            query: scaled queries, those with the same keys together. [B, G, Q, D].
            filled: the number of places.
            bias: added to the scores, or None. [G, Q, filled].

        Returns:
            [B, G, Q, D].
        """
        keys, values = self.places.flatten(1, 2)[:, :, :filled]
        scores = torch.bmm(query.flatten(0, 1), keys.mT)
        if bias is not None:
            scores.unflatten(0, query.shape[:2]).add_(bias)
        return torch.bmm(scores.softmax(-1), values).view(query.shape)


class LayerSteps:
    """One layer, see `PositionSteps`."""

    def __init__(self, layer: Any, window: int, new_ring: Callable[[Tensor, int, Tensor], Ring]):
        self.layer = layer
        self.window = window
        self.new_ring = new_ring
        self.heads = layer.self_attn.q_proj.out_features // layer.self_attn.head_dim
        self.groups = layer.self_attn.num_key_value_groups
        self.ring: Any = None
        self.known = 0
        self.read_weights()

    @torch.no_grad()
    def read_weights(self) -> None:
        """Make the matrices of the layer's present weights, from what each linear layer makes of unit vectors."""
        attention, mlp, scale = self.layer.self_attn, self.layer.mlp, self.layer.input_layernorm.weight
        dtype = torch.promote_types(scale.dtype, torch.float32)
        units, inner = (torch.eye(size).to(scale) for size in (len(scale), mlp.down_proj.in_features))
        query, key, value = (linear(units) for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
        # A number of a head's first half is turned with one of the second: real and imaginary part.
        pairs = torch.arange(attention.head_dim).view(2, -1).T.flatten()
        query, key = (part.unflatten(1, (-1, len(pairs)))[..., pairs].flatten(1) for part in (query, key))
        read = torch.cat([query * attention.scaling, key, value], 1)
        self.query_key_value = (scale.unsqueeze(1) * read).to(dtype)
        # A normalised state is no longer than this, and a turned pair of numbers as long as before.
        length = len(scale) ** 0.5
        by_head = self.query_key_value.unflatten(1, (-1, len(pairs) // 2, 2))
        self.bounds = by_head.square().sum((0, 3)).amax(1).sqrt() * length
        read = torch.cat([mlp.gate_proj(units), mlp.up_proj(units)], 1)
        self.gate_up = (self.layer.post_attention_layernorm.weight.unsqueeze(1) * read).to(dtype)
        # Of squares, the mean and what is added to it.
        self.mean = torch.full((len(scale), 1), 1 / len(scale)).to(self.gate_up)
        self.eps = torch.full((1, 1), self.layer.input_layernorm.eps).to(self.gate_up)
        self.output, self.down = attention.o_proj(units).to(dtype), mlp.down_proj(inner).to(dtype)
        bias = None if attention.span is None else attention.span.bias(self.window)
        self.bias = None if bias is None else bias.to(self.query_key_value)
        # By the places of a ring, wherever it begins.
        self.bias_of_places = None if self.bias is None else self.bias.flip(1).repeat(1, 2)

    def __call__(self, states: Tensor, turns: Tensor) -> Tensor:
        """The residual stream after the layer. [B * N, hidden_size], and complex [N, 1, head_dim / 2]."""
        states = torch.addmm(states, self._attended(states, turns), self.output)
        gate, up = (self._normalised(states) @ self.gate_up).chunk(2, 1)
        return torch.addmm(states, F.silu(gate).mul_(up), self.down)

    def _normalised(self, states: Tensor) -> Tensor:
        """States divided by their root mean square, whose products one call sums and divides. [B * N, hidden_size]."""
        return states * torch.addmm(self.eps, states.square(), self.mean).rsqrt_()

    def _attended(self, states: Tensor, turns: Tensor) -> Tensor:
        count, (heads, shared) = len(turns), (self.heads, self.heads // self.groups)
        projected = self._normalised(states) @ self.query_key_value
        projected = projected.view(len(states) // count, count, heads + 2 * shared, -1)
        torch.view_as_complex(projected[:, :, : heads + shared].unflatten(-1, (-1, 2))).mul_(turns)
        query, pair = projected[:, :, :heads], projected[:, :, heads:].unflatten(2, (2, shared))
        if self.known == 0:
            self.ring = self.new_ring(pair[:, 0], self.window, self.bounds)
        past, self.known = self.known, self.known + count
        if count > 1:
            return self._several(query, pair.permute(2, 0, 3, 1, 4), past)
        self.ring.write(past % self.window, pair[:, 0])
        filled, bias = min(self.known, self.window), self.bias_of_places
        if bias is not None:
            start = (-self.known) % self.window
            bias = bias[:, start : start + filled].unflatten(0, (shared, self.groups))
        return self.ring.attend(query[:, 0].unflatten(1, (shared, self.groups)), filled, bias).reshape(len(states), -1)

    def _several(self, query: Tensor, pair: Tensor, past: int) -> Tensor:
        """Attention of several positions at once. [B, N, H, D], [2, B, G, N, D] -> [B * N, H * D]."""
        count = query.shape[1]
        places = torch.arange(max(past - self.window + 1, 0), past + count, device=query.device) % self.window
        before = len(places) - count
        keys, values = torch.cat([self.ring.places[:, :, :, places[:before]], pair], 3)
        kept = min(count, self.window)
        self.ring.places[:, :, :, places[len(places) - kept :]] = pair[:, :, :, count - kept :]
        output = local_attention(query.transpose(1, 2), keys, values, self.window, scale=1.0, bias=self.bias)
        return output.transpose(1, 2).reshape(len(query) * count, -1)


class PositionSteps:
    """States of positions that are given one after the other; nothing is masked, and nothing checked.

    The arithmetic is that of the weights, or float32 where theirs is shorter.

    Args:
        model: the decoder, whose weights are copied.
        turns: the angles of all positions, as `rotary_angles` gives them. Two tensors [1, 1, length, head_dim].
        new_ring: makes the ring of each layer. One that does not keep keys and values as they are takes one position
            at a time.
    """

    def __init__(
        self, model: Any, turns: tuple[Tensor, Tensor], new_ring: Callable[[Tensor, int, Tensor], Ring] = Ring
    ):
        self.model = model
        cosine, sine = (angle[0, 0, :, : angle.shape[-1] // 2] for angle in turns)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.turns = torch.complex(cosine.to(dtype), sine.to(dtype)).unsqueeze(1)
        length = len(cosine)
        windows = [min(max(own, default=length), length) for own in model.config.head_windows]
        self.layers = [LayerSteps(layer, window, new_ring) for layer, window in zip(model.layers, windows, strict=True)]
        self.known = 0

    def read_weights(self) -> None:
        """Go on with the model's present weights."""
        for layer in self.layers:
            layer.read_weights()

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """The state of the last of the next positions, whose embeddings are given. [B, N, size] -> [B, size]."""
        turns = self.turns[self.known : self.known + inputs.shape[1]]
        self.known += inputs.shape[1]
        states = inputs.to(self.layers[0].output.dtype).flatten(0, 1)
        for layer in self.layers:
            states = layer(states, turns)
        last = states.unflatten(0, inputs.shape[:2])[:, -1]
        return self.model.norm(last.to(inputs.dtype))
