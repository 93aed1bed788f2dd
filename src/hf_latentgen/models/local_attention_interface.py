# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Sliding-window attention as an attention implementation of transformers: its masks, and what a model may ask of it.

A model gets what it gets from `sdpa`, or an error that names what differs. Its masks are objects that only this
attention reads as bands; whatever else a model does to one, it does to the matrix of `sdpa`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import and_masks, causal_mask_function, sdpa_mask
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

from .local_attention import INFERENCE_BLOCK, band_positions, band_visibility, banded_attention, local_attention

logger = logging.get_logger(__name__)

NAME = "local_attention"
# Name of the functions that transformers makes of several masks, all of which must allow a key.
NARROWER_MASK = and_masks(causal_mask_function).__name__
# What models pass to every attention, and what changes nothing here: the mask says all about positions.
KNOWN_ARGUMENTS = {
    "is_causal",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "sliding_window",
    "use_cache",
}
# Other names of a window than those with "sliding_window".
WINDOWS = {"attention_chunk_size", "local_attention", "window"}
# Those of tensors that models use on masks; Python looks them up on the class.
OPERATORS = ("add", "and", "eq", "invert", "mul", "ne", "or", "radd", "rand", "rmul", "ror", "rsub", "sub")


class BandedMask:
    """transformers' mask [B, 1, N, K] of a sliding window, of which only the band is made.

    What a model does to it, it does to the matrix, which is made then, or to those rows of it that a slice takes.

    Args:
        band: what each query of a block sees of its view, as in `band_visibility`; None where nothing but the window
            hides a key. Booleans [1 or B, blocks, block, view].
        window: number of keys that a query sees, its own included; if not causal, on either side.
        is_causal: no query sees a later key.
        arguments: those of `sdpa_mask`, which makes the matrix.
    """

    dtype = torch.bool
    ndim = 4

    def __init__(self, band: Tensor | None, window: int, is_causal: bool, arguments: dict[str, Any]):
        self.band = band
        self.window = window
        self.is_causal = is_causal
        self.arguments = arguments

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return torch.Size((self.arguments["batch_size"], 1, self.arguments["q_length"], self.arguments["kv_length"]))

    @property
    def device(self) -> torch.device:
        """Of the matrix."""
        return torch.device(self.arguments["device"])

    def matrix(self) -> Tensor:
        """True where a query sees a key. Booleans [B, 1, N, K]."""
        # transformers leaves no mask out that is longer than its window.
        return cast(Tensor, sdpa_mask(**self.arguments))

    def dim(self) -> int:
        """Number of axes of the matrix."""
        return self.ndim

    def to(self, *arguments: Any, **options: Any) -> "BandedMask | Tensor":
        """Itself if it is there already, else the matrix as another tensor."""
        moved = torch.empty(0, dtype=self.dtype, device=self.device).to(*arguments, **options)
        is_there = moved.dtype == self.dtype and moved.device == self.device
        return self if is_there else self.matrix().to(*arguments, **options)

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, tuple) and len(index) == self.ndim and isinstance(index[2], slice):
            start, stop, step = index[2].indices(self.arguments["q_length"])
            if step == 1 and start < stop:
                rows = {"q_length": stop - start, "q_offset": self.arguments["q_offset"] + start}
                return cast(Tensor, sdpa_mask(**(self.arguments | rows)))[index[0], index[1], :, index[3]]
        return self.matrix()[index]

    def __getattr__(self, name: str) -> Any:
        # Python asks for methods of its own, such as those of copies, which a mask need not have.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.matrix(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        arguments, options = tree_map_only(cls, cls.matrix, (arguments, options or {}))
        return function(*arguments, **options)


def _of_matrix(name: str):
    return lambda mask, *others: getattr(mask.matrix(), name)(*others)


for _name in OPERATORS:
    setattr(BandedMask, f"__{_name}__", _of_matrix(f"__{_name}__"))


def local_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Tensor | BandedMask | None = None,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **kwargs,
) -> Tensor | BandedMask | None:
    """What transformers' mask function allows, as a band where its window is shorter than the input.

    On a CPU, where looking at it does not wait for a device, a mask that hides what is outside of the window and
    nothing else, no padding and no other document of a packed sequence, has no band at all. Layers without a window,
    short inputs, decoding steps, static caches, an exported program of any length, and masks that show more than the
    window, such as all of an image in a text, get transformers' own mask.
    """
    if isinstance(attention_mask, BandedMask):
        return attention_mask
    arguments = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "local_size": local_size,
        "device": device,
        **kwargs,
    }
    past = kv_length - q_length
    # An encoder's window of transformers is the reach on either side, without the query itself.
    is_causal = "allow_is_bidirectional_skip" not in kwargs
    window = None if local_size is None else local_size + (0 if is_causal else 1)
    # An export for any length cannot hold the number of blocks.
    is_known = not isinstance(q_length, torch.SymInt)
    is_banded = is_known and window is not None and q_length > window > past >= 0
    aligned = not isinstance(q_offset, Tensor) and q_offset + q_length == kv_offset + kv_length
    # What transformers adds to a window, such as `block_sequence_ids`, it adds by a function of another name.
    is_narrower = mask_function.__name__ == NARROWER_MASK
    if window is None or not is_banded or not aligned or not is_narrower or kwargs.get("use_vmap"):
        if is_causal and is_known and past != 0:
            # Without a mask a model that drops queries would look like one whose cache has room left.
            arguments["allow_is_causal_skip"] = False
        return sdpa_mask(**arguments)
    rows, columns = band_positions(q_length, kv_length, window, INFERENCE_BLOCK, is_causal, device)
    inside = (columns >= 0) & (columns < kv_length) & (rows < kv_length)
    rows, columns = rows.clamp(max=kv_length - 1) + kv_offset, columns.clamp(0, kv_length - 1) + kv_offset
    batch = torch.arange(batch_size, device=device).view(-1, 1, 1, 1)
    # Four axes also where the function does not look at the batch.
    visible = mask_function(batch, torch.zeros_like(batch[:1]), rows, columns) & inside.unsqueeze(0)
    if attention_mask is not None:
        missing = kv_length + kv_offset - attention_mask.shape[-1]
        padding = F.pad(attention_mask, (0, max(missing, 0))).bool()
        visible = visible & padding[:, columns]
    band = visible
    if past == 0 and visible.device.type == "cpu" and not is_tracing(visible):
        plain = band_visibility(q_length, kv_length, window, INFERENCE_BLOCK, is_causal, None, None, visible.device)
        band = None if (visible == plain).all() else visible
    return BandedMask(band, window, is_causal, arguments)


def local_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BandedMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention for transformers' interface: [B, N, H, D], and no weights.

    Raises:
        ValueError: the model asks for what the kernels do not know, such as attention sinks, a bias or chosen keys, or
            drops queries where it has no mask.
    """
    check_arguments(module, kwargs)
    if isinstance(attention_mask, BandedMask):
        if attention_mask.shape == (query.shape[0], 1, query.shape[2], key.shape[2]):
            output = _within_band(query, key, value, attention_mask, dropout, scaling)
            return output.transpose(1, 2).contiguous(), None
        attention_mask = attention_mask.matrix()
    elif not is_tracing(query):
        _warn_without_window(module)
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and is_causal and 1 < query.shape[2] < key.shape[2]:
        given = f"{query.shape[2]} queries and {key.shape[2]} keys without one"
        raise ValueError(f"attention_mask of {type(module).__name__} must tell which keys a query sees, got {given}")
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def check_arguments(module: torch.nn.Module, arguments: dict[str, Any]) -> None:
    """Raises `ValueError` where a model gives its attention an argument that this one does not know."""
    given = (name for name, value in arguments.items() if value is not None and value is not False)
    unknown = [name for name in given if name not in KNOWN_ARGUMENTS]
    if unknown:
        allowed = "None for the attention of this name; load the model with attn_implementation='eager'"
        raise ValueError(f"{', '.join(unknown)} of {type(module).__name__} must be {allowed}")


def _within_band(
    query: Tensor, key: Tensor, value: Tensor, mask: BandedMask, dropout: float, scale: float | None
) -> Tensor:
    if mask.band is None:
        options = {"is_causal": mask.is_causal, "dropout": dropout, "scale": scale}
        return local_attention(query, key, value, mask.window, **options)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return banded_attention(query, key, value, mask.band, mask.is_causal, dropout, scale)


def _warn_without_window(module: torch.nn.Module) -> None:
    # A configuration may refuse to be asked for what differs between its layers.
    fields = vars(module.config) if isinstance(getattr(module, "config", None), PreTrainedConfig) else {}
    if not any(value for name, value in fields.items() if "sliding_window" in name or name in WINDOWS):
        logger.warning_once(
            f"{type(module).__name__} has no sliding window: {NAME} computes full attention, like 'sdpa'"
        )


AttentionInterface.register(NAME, local_attention_forward)
AttentionMaskInterface.register(NAME, local_attention_mask)
