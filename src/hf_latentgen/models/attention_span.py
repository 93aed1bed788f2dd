# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Heads that look back by different distances: windows of their own, and spans that they learn.

A learned span `z` weighs a key at distance `x` by

    m(x) = clamp((z + R - x) / R, 0, 1)

before the weights of attention are normalised: in full up to `z`, and not at all from `z + R` on. Its logarithm is
added to the scores, so that the windowed kernel serves it, and keys from `z + R` on need not be computed.

Source: Sukhbaatar et al. (2019), Adaptive Attention Span in Transformers, section 2.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv

from .configuration_local_transformer import LocalTransformerConfig
from .local_attention import INFERENCE_BLOCK, banded_attention, bias_by_distance, local_attention, whole_blocks
from .local_attention_interface import BandedMask

# Smaller weights above 0 count as this one, because the slope of the logarithm has no bound.
LEAST_WEIGHT = 1e-6


def log_soft_mask(spans: Tensor, ramp: float, window: int) -> Tensor:
    """`log m(x)` at the distances 0 to `window - 1`, `-inf` where m is 0. Spans in tokens [H] -> [H, window]."""
    distance = torch.arange(window, device=spans.device, dtype=spans.dtype)
    weight = ((spans.unsqueeze(1) + ramp - distance) / ramp).clamp(max=1)
    return weight.clamp(min=LEAST_WEIGHT).log().masked_fill(weight <= 0, -torch.inf)


def trimmed_window(span: float, ramp: float, window: int) -> int:
    """The window that holds every key of a span, in tokens, and all that its blocks of keys hold; at most `window`."""
    # Of the keys at distance 0 to `farthest`, the last has no weight, but a rounding error could give it one.
    farthest = int(span + ramp) + 1
    return min(whole_blocks(farthest, INFERENCE_BLOCK) + 1, window)


def dense_to_band(mask: Tensor, block: int, reach: int) -> Tensor:
    """The part of a mask [B, N, K] that blocks of queries view. Booleans [B, blocks, block, reach + block]."""
    num_queries, num_keys = mask.shape[1:]
    tail = whole_blocks(num_queries, block) - num_queries
    padded = F.pad(mask, (reach - (num_keys - num_queries), tail, 0, tail))
    views = padded.unflatten(1, (-1, block)).unfold(-1, reach + block, block)  # [B, blocks, block, views, view]
    return views.diagonal(dim1=1, dim2=3).movedim(-1, 1)


class AttentionSpan(nn.Module):
    """How far back each head of a layer looks, and attention within that, heads of equal windows together.

    `share` [H] holds the learned spans as shares of `config.window`: a parameter while they are learned, a buffer in a
    trimmed model, None where the windows are all there is. All of the window is seen in the beginning.
    """

    def __init__(self, config: LocalTransformerConfig, windows: list[int]):
        super().__init__()
        self.window = config.window
        self.ramp = config.span_ramp
        # Which heads have each window.
        self.heads = {size: [head for head, own in enumerate(windows) if own == size] for size in sorted(set(windows))}
        if config.attention_span == "adaptive":
            self.share = nn.Parameter(torch.ones(len(windows)))
        else:
            self.register_buffer("share", torch.ones(len(windows)) if config.attention_span == "trimmed" else None)

    def spans(self) -> Tensor:
        """The learned span of each head, in tokens, float32. [H]."""
        return self.share.float().clamp(0, 1) * self.window

    def bias(self, window: int) -> Tensor | None:
        """What is added to the scores at the distances 0 to `window - 1`, None if nothing is. [H, window]."""
        if self.share is None and len(self.heads) == 1:
            return None
        sizes = torch.tensor(
            [
                [own]
                for head in range(sum(map(len, self.heads.values())))
                for own, of in self.heads.items()
                if head in of
            ]
        )
        hidden = torch.arange(window) >= sizes
        if self.share is None:
            return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        soft = log_soft_mask(self.spans(), self.ramp, self.window)[:, :window]
        return soft.masked_fill(hidden.to(soft.device), -torch.inf)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | BandedMask | None,
        dropout: float,
        scale: float,
    ) -> Tensor:
        """Causal attention [B, H, N, D] of the last N keys' queries, each head within its span.

        `attention_mask` is what transformers makes: None if nothing but the window hides a key, a matrix
        [1 or B, 1, N, K or more], or banded.
        """
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        bias = None if self.share is None else log_soft_mask(self.spans(), self.ramp, self.window)
        if len(self.heads) == 1:
            return attend(query, key, value, attention_mask, next(iter(self.heads)), bias, dropout, scale)
        outputs = []
        for window, heads in self.heads.items():
            own = None if bias is None else bias[heads]
            states = query[:, heads], key[:, heads], value[:, heads]
            outputs.append(attend(*states, attention_mask, window, own, dropout, scale))
        order = [head for heads in self.heads.values() for head in heads]
        return torch.cat(outputs, 1)[:, [order.index(head) for head in range(len(order))]]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BandedMask | None,
    window: int,
    bias: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """Causal attention of heads with one window, `bias` [H, window or more] added to the scores. [B, H, N, D]."""
    bias = None if bias is None else bias[:, :window]
    given = attention_mask.band if isinstance(attention_mask, BandedMask) else attention_mask
    if given is None:
        return local_attention(query, key, value, window, dropout=dropout, scale=scale, bias=bias)
    is_banded = given is not attention_mask
    block = given.shape[-2] if is_banded else min(INFERENCE_BLOCK, query.shape[2])
    reach = whole_blocks(min(window, key.shape[2]) - 1, block)
    view = reach + block
    visible = given[..., -view:] if is_banded else dense_to_band(given[:, 0, :, : key.shape[2]], block, reach)
    distance = reach + torch.arange(block, device=query.device).unsqueeze(1) - torch.arange(view, device=query.device)
    visible = visible & (distance < window)
    band = None if bias is None else bias_by_distance(bias, block, view, reach)
    return banded_attention(query, key, value, visible, True, dropout, scale, band)
