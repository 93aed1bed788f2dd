# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Exact sliding-window attention in O(n * window).

One definition of the window everywhere: query i sees the keys j with `i - window < j <= i`, its own included, and when
it is not causal also those with `i < j < i + window`.

Queries are taken in blocks. A block sees its own keys and those that its first row can still reach, through overlapping
strided views of the keys: nothing is copied for a block, and one call of `scaled_dot_product_attention` does all. On a
CPU, where no key is hidden by anything but the window, its kernels are called directly, with fewer masked scores and a
faster backward pass; see `local_attention_cpu.py`. A GPU always takes the first way, without kernels that have a window
of their own, such as that of `torch.nn.attention.varlen`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from .local_attention_cpu import can_fuse, fused_attention

INFERENCE_BLOCK = 64


def local_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    *,
    is_causal: bool = True,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """What `local_attention` returns, from the whole matrix of scores: its truth. [B, H, N, D]. Arguments as there."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    num_queries, num_keys = query.shape[2], key.shape[2]
    rows = torch.arange(num_keys - num_queries, num_keys, device=query.device).unsqueeze(1)
    columns = torch.arange(num_keys, device=query.device)
    visible = (columns <= rows if is_causal else columns < rows + window) & (columns > rows - window)
    visible = visible.expand(len(query), 1, -1, -1)
    if attention_mask is not None:
        visible = visible & attention_mask.bool()[:, None, None]
    if document_ids is not None:
        visible = visible & (document_ids[:, None, -num_queries:, None] == document_ids[:, None, None])
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        bias = bias[:, (rows - columns).clamp(0, window - 1)]
        visible, scores = visible & (bias > -torch.inf), scores + bias
    # A row that sees nothing, such as padding, gives zeros.
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num()
    return weights @ value


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    *,
    is_causal: bool = True,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of each query to the keys of its window, exact, in time and memory O(N * window). [B, H, N, D].

    Shape: `query` [B, H, N, D]; `key` and `value` [B, G, K, D] with K at least N, the queries being those of the last
    N keys, and H a multiple of G.

    Args:
        query: queries.
        key: keys, those of a cache first.
        value: values.
        window: number of keys that a query sees, its own included; if not causal, on either side.
        is_causal: no query sees a later key.
        attention_mask: false or 0 where a key is padding, on whichever side. [B, K].
        document_ids: of packed sequences: a query sees the keys of its own document only. Integers [B, K].
        dropout: share of the attention weights that is dropped; above 0 it takes a slower kernel.
        scale: of the scores; `1 / sqrt(D)` when None.
        bias: of each head, added to the scores of keys by their distance, `-inf` where it sees none; if causal only,
            and in a slower kernel where it requires a gradient. [H, window].

    Raises:
        ValueError: an argument is out of range or has another shape; the message names it.

    Source: Parmar et al. (2018), Image Transformer, section 3.2; Beltagy et al. (2020), Longformer, section 3.
    """
    _check(query, key, value, window, attention_mask, document_ids, dropout)
    if bias is not None and (not is_causal or tuple(bias.shape) != (query.shape[1], window)):
        allowed = f"[{query.shape[1]}, {window}] and is_causal true"
        raise ValueError(f"bias must have shape {allowed}, got {list(bias.shape)} and {is_causal}")
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    num_queries, num_keys = query.shape[2], key.shape[2]
    window = min(window, num_keys)
    is_plain = attention_mask is None and document_ids is None
    if is_plain and bias is None and can_fuse(query, key, value, dropout):
        return fused_attention(query, key, value, window, is_causal, scale, block_size(window, is_training=True))
    if num_queries == 1 and is_plain and is_causal and bias is None:
        key, value = key[:, :, num_keys - window :], value[:, :, num_keys - window :]
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)
    # No query reaches further back than this.
    used = min(num_keys, num_queries + window - 1)
    key, value = key[:, :, num_keys - used :], value[:, :, num_keys - used :]
    masks = [None if mask is None else mask[:, num_keys - used :] for mask in (attention_mask, document_ids)]
    block = block_size(window, query.requires_grad or key.requires_grad or value.requires_grad)
    if bias is not None:
        bias = bias[:, :window]
        if is_plain:
            return biased_attention(query, key, value, bias, block, dropout, scale)
    visible = band_visibility(num_queries, used, window, block, is_causal, *masks, device=query.device)
    band = None if bias is None else bias_by_distance(bias, block, visible.shape[-1], visible.shape[-1] - block)
    return banded_attention(query, key, value, visible, is_causal, dropout, scale, band)


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, block: int, dropout: float, scale: float | None
) -> Tensor:
    """Causal attention where nothing but `bias` [H, window] hides a key. [B, H, N, D].

    Beyond the first rows, whose views would begin before the first key, one small mask serves all blocks.
    """
    num_queries, past = query.shape[2], key.shape[2] - query.shape[2]
    reach = whole_blocks(bias.shape[1] - 1, block)
    first = min(max(reach - past, 0), num_queries) if num_queries > block else num_queries
    outputs = []
    if first > 0:
        mask = bias_by_distance(bias, first, past + first, past).to(query.dtype).unsqueeze(0)
        states = query[:, :, :first], key[:, :, : past + first], value[:, :, : past + first]
        outputs.append(F.scaled_dot_product_attention(*states, attn_mask=mask, dropout_p=dropout, scale=scale))
    if first < num_queries:
        band = bias_by_distance(bias, block, reach + block, reach)
        visible = torch.ones(1, 1, *band.shape[1:], dtype=torch.bool, device=query.device)
        states = query[:, :, first:], key[:, :, past + first - reach :], value[:, :, past + first - reach :]
        outputs.append(banded_attention(*states, visible, True, dropout, scale, band))
    return torch.cat(outputs, 2)


def block_size(window: int, is_training: bool) -> int:
    """Rows of a block: small ones waste the fewest scores, larger ones are faster in a backward pass."""
    return min(max(window // 2 // 32 * 32, 64), 192) if is_training else INFERENCE_BLOCK


def band_visibility(
    num_queries: int,
    num_keys: int,
    window: int,
    block: int,
    is_causal: bool,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which keys of its view each query of a block sees. Booleans [1 or B, blocks, block, view].

    The view of a block begins `reach` keys before its first row, and ends with its last row or, if not causal, `reach`
    keys after it; `reach` is `window - 1` rounded up to whole blocks.
    """
    rows, columns = band_positions(num_queries, num_keys, window, block, is_causal, device)
    distance = rows - columns
    visible = (distance < window) & (distance >= (0 if is_causal else 1 - window))
    visible = (visible & (columns >= 0) & (columns < num_keys) & (rows < num_keys)).unsqueeze(0)
    columns, rows = columns.clamp(0, num_keys - 1), rows.clamp(max=num_keys - 1)
    if attention_mask is not None:
        visible = visible & attention_mask.bool()[:, columns]
    if document_ids is not None:
        visible = visible & (document_ids[:, rows] == document_ids[:, columns])
    return visible


def band_positions(
    num_queries: int, num_keys: int, window: int, block: int, is_causal: bool, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Position of each query [blocks, block, 1], and of each key of its block's view [blocks, 1, view]."""
    reach = whole_blocks(window - 1, block)
    view = reach + block + (0 if is_causal else reach)
    blocks = whole_blocks(num_queries, block) // block
    first = num_keys - num_queries + block * torch.arange(blocks, device=device).view(-1, 1, 1)
    rows = first + torch.arange(block, device=device).view(1, -1, 1)
    return rows, first - reach + torch.arange(view, device=device)


def whole_blocks(length: int, block: int) -> int:
    """The length rounded up to whole blocks."""
    return (length + block - 1) // block * block


def bias_by_distance(bias: Tensor, rows: int, columns: int, offset: int) -> Tensor:
    """`bias[:, offset + row - column]`, and `-inf` where it has no such distance. [H, W] -> [H, rows, columns]."""
    farthest = offset + rows - 1
    descending = F.pad(bias.flip(-1), (farthest + 1 - bias.shape[-1], columns - 1 - offset), value=-torch.inf)
    return descending.unfold(-1, columns, 1).flip(-2)


def banded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    is_causal: bool,
    dropout: float,
    scale: float | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention within the views that `visible` [1 or B, 1 or blocks, block, view] describes. [B, H, N, D].

    The optional `bias` [H, block, view] is added to the scores.
    """
    batch, heads, num_queries, _ = query.shape
    block, view = visible.shape[2:]
    blocks = whole_blocks(num_queries, block) // block
    past = key.shape[2] - num_queries
    reach = (view - block) if is_causal else (view - block) // 2
    tail = blocks * block - num_queries
    queries = F.pad(query, (0, 0, 0, tail)).flatten(0, 1).unflatten(1, (blocks, block))
    ends = (0, 0, reach - past, tail + (0 if is_causal else reach))
    keys, values = (F.pad(states, ends).flatten(0, 1).unfold(1, view, block).mT for states in (key, value))
    # A mask that all examples share serves as it is. The fused kernel of a CPU takes masks of two or four axes.
    if bias is None and visible.shape[0] == 1:
        mask = visible
    else:
        mask = visible.unsqueeze(1)
        if bias is not None:
            mask = torch.where(mask, bias.unsqueeze(1).to(query.dtype), -torch.inf)
        mask = mask.expand(batch, heads, -1, -1, -1).flatten(0, 1)
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    return output.flatten(1, 2).unflatten(0, (batch, heads))[:, :, :num_queries]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    dropout: float,
) -> None:
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window must be an integer of at least 1, got {window!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    for name, states in (("query", query), ("key", key), ("value", value)):
        if states.dim() != 4 or states.shape[2] == 0:
            raise ValueError(f"{name} must have shape [B, heads, 1 or more, D], got {list(states.shape)}")
    batch, heads, num_queries, dim = query.shape
    if key.shape[0] != batch or key.shape[-1] != dim or key.shape[2] < num_queries or heads % key.shape[1]:
        allowed = f"[{batch}, a divisor of {heads}, {num_queries} or more, {dim}]"
        raise ValueError(f"key must have shape {allowed}, got {list(key.shape)}")
    if value.shape[:3] != key.shape[:3]:
        expected = f"the first three sizes of key, {list(key.shape[:3])}"
        raise ValueError(f"value must have {expected}, got {list(value.shape)}")
    for name, mask in (("attention_mask", attention_mask), ("document_ids", document_ids)):
        if mask is not None and tuple(mask.shape) != (batch, key.shape[2]):
            raise ValueError(f"{name} must have shape [{batch}, {key.shape[2]}], got {list(mask.shape)}")
