# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Sliding-window attention on a CPU, forward and backward, with the fused kernels of `scaled_dot_product_attention`.

The kernels are called directly because a forward pass is fastest in small blocks of rows and a backward pass in larger
ones, which automatic differentiation of one call cannot have. The kernels need of the forward pass one output and one
log-sum-exp for each row, so the two passes may group the rows as they like.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils.import_utils import is_tracing

FORWARD_BLOCK = 32
# Rows of all heads that one call of a kernel takes. It bounds what the calls need besides their results, and keeps it
# below the size from which memory is given back to the system after each call: touching it anew takes long.
ROWS_AT_ONCE = 2**15

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def can_fuse(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether `fused_attention` takes these states [B, H, N, D]; what it refuses, torch's own function takes.

    A traced graph shall hold public operators only. The kernels drop nothing, do not look at the last stride, and are
    not cast by autocast. Inside `torch.nn.attention.sdpa_kernel` without flash attention they are not used.
    """
    return (
        query.device.type == "cpu"
        and not is_tracing(query)
        and not torch._C._are_functorch_transforms_active()
        and torch.backends.cuda.flash_sdp_enabled()
        and dropout == 0
        and query.shape == key.shape == value.shape
        and query.numel() > 0
        and query.dtype == key.dtype == value.dtype
        and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        and (not torch.is_autocast_enabled("cpu") or query.dtype == torch.get_autocast_dtype("cpu"))
    )


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, is_causal: bool, scale: float | None, training_block: int
) -> Tensor:
    """Attention of each query to the keys of its window, all [B, H, N, D].

    Args:
        query: queries, as many as keys; `can_fuse` says which states are taken.
        key: keys.
        value: values.
        window: number of keys that a query sees, at most N.
        is_causal: no query sees a later key.
        scale: of the scores; `1 / sqrt(D)` when None.
        training_block: rows of a block in the backward pass.

    Raises:
        RuntimeError: its gradient is taken with `create_graph=True`; the kernels can be differentiated once.
    """
    folded = (states.flatten(0, 1) for states in (query, key, value))
    output = _WindowedAttention.apply(*folded, window, is_causal, scale, training_block)
    return output.unflatten(0, query.shape[:2])


class Part(NamedTuple):
    """Consecutive rows in blocks of one size; a block sees keys from `before` its first row to `after` its last."""

    first: int
    stop: int
    block: int
    before: int
    after: int

    def rows(self, states: Tensor) -> Tensor:
        """A view of states [B, N, ...]: [B, blocks, block, ...]."""
        return states[:, self.first : self.stop].unflatten(1, (-1, self.block))

    def keys(self, states: Tensor) -> Tensor:
        """Overlapping views of states [B, N, D]: [B, blocks, before + block + after, D]."""
        view = self.before + self.block + self.after
        return states[:, self.first - self.before : self.stop + self.after].unfold(1, view, self.block).mT

    def add_to_keys(self, states: Tensor, gradients: Tensor) -> None:
        """Adds gradients of the overlapping views to states [B, N, D]: the transpose of `keys`."""
        blocks, view = gradients.shape[1:3]
        # Views of one slice of this width do not overlap, so each slice is added at once.
        width = self.block if blocks > 1 else view
        for start in range(0, view, width):
            first = self.first - self.before + start
            stop = first + (blocks - 1) * self.block + width
            states[:, first:stop].unfold(1, width, self.block).mT.add_(gradients[:, :, start : start + width])

    def bias(self, window: int, is_causal: bool, like: Tensor) -> Tensor | None:
        """What is added to the scores of a block, 0 or -inf. [1, 1, block, view], or None where causality is enough."""
        if is_causal and self.before == 0 and self.block <= window:
            return None
        rows = torch.arange(self.before, self.before + self.block, device=like.device).unsqueeze(1)
        distance = rows - torch.arange(self.before + self.block + self.after, device=like.device)
        visible = (distance < window) & (distance >= (0 if is_causal else 1 - window))
        return like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)[None, None]


def split_rows(num_rows: int, window: int, block: int, is_causal: bool) -> list[Part]:
    """The rows in parts: the first as one block that sees all keys before it, whole blocks, the last if not causal.

    No part of whole blocks has more rows than `ROWS_AT_ONCE`, but for one block.
    """
    before = (window - 1 + block - 1) // block * block
    after = 0 if is_causal else before
    blocks = (num_rows - before - after) // block
    if blocks <= 0:
        return [Part(0, num_rows, num_rows, 0, 0)]
    last = num_rows - after
    first = last - blocks * block
    step = max(ROWS_AT_ONCE // block, 1) * block
    parts = [Part(0, first, first, 0, after)]
    parts += [Part(start, min(start + step, last), block, before, after) for start in range(first, last, step)]
    parts += [Part(last, num_rows, after, before, 0)]
    return [part for part in parts if part.first < part.stop]


class _WindowedAttention(torch.autograd.Function):
    # Queries, keys, values, outputs and their gradients are [B, N, D].

    @staticmethod
    def forward(ctx, query, key, value, window, is_causal, scale, training_block):
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for part in split_rows(query.shape[1], window, FORWARD_BLOCK, is_causal):
            rows, keys, bias = part.rows, part.keys, part.bias(window, is_causal, query)
            for q, k, v, o, s in _some_heads(query, key, value, output, sums):
                found = _attend(rows(q), keys(k), keys(v), 0.0, bias is None, attn_mask=bias, scale=scale)
                rows(o).copy_(found[0])
                rows(s).copy_(found[1])
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.options = (window, is_causal, scale, training_block)
        return output

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            twice = "inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH) it can be differentiated twice"
            raise RuntimeError(f"local attention on a CPU can be differentiated once, got create_graph=True; {twice}")
        *states, sums = ctx.saved_tensors
        # In float32 this kernel is exacter, and with small blocks twice as fast as in bfloat16.
        query, key, value, output, gradient = (tensor.to(sums.dtype) for tensor in (*states, gradient.contiguous()))
        window, is_causal, scale, block = ctx.options
        gradients = [torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)]
        tensors = (gradient, query, key, value, output, sums, *gradients)
        for part in split_rows(query.shape[1], window, block, is_causal):
            rows, keys, bias = part.rows, part.keys, part.bias(window, is_causal, query)
            for g, q, k, v, o, s, of_q, of_k, of_v in _some_heads(*tensors):
                views = rows(g), rows(q), keys(k), keys(v), rows(o), rows(s)
                found = _attend_backward(*views, 0.0, bias is None, attn_mask=bias, scale=scale)
                rows(of_q).copy_(found[0])
                part.add_to_keys(of_k, found[1])
                part.add_to_keys(of_v, found[2])
        return (*(tensor.to(states[0].dtype) for tensor in gradients), None, None, None, None)


def _some_heads(*tensors: Tensor) -> zip:
    size = max(1, ROWS_AT_ONCE // tensors[0].shape[1])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
