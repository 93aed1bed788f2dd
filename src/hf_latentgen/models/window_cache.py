# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""A cache for decoding one position after the other, whose keys and values are not copied at every step."""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

from .configuration_local_transformer import LocalTransformerConfig


class WindowLayer(DynamicSlidingWindowLayer):
    """What transformers' sliding layer keeps, in a buffer twice as long as the window, of which a step gets a view.

    Once in a window's length the last keys move to the front of a new buffer; in between nothing is copied.
    """

    buffer: Tensor | None = None
    stop = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keys and values of the window before the new positions, and theirs. Two views [B, heads, kept + N, D]."""
        count = key_states.shape[2]
        kept = min(self.cumulative_length, self.sliding_window - 1)
        if self.buffer is None or self.stop + count > self.buffer.shape[3]:
            batch, heads, _, size = key_states.shape
            buffer = key_states.new_empty(2, batch, heads, max(2 * self.sliding_window, kept + count), size)
            if self.buffer is not None:
                buffer[:, :, :, :kept] = self.buffer[:, :, :, self.stop - kept : self.stop]
            self.buffer, self.stop = buffer, kept
        self.buffer[0, :, :, self.stop : self.stop + count] = key_states
        self.buffer[1, :, :, self.stop : self.stop + count] = value_states
        self.stop += count
        self.cumulative_length += count
        self.keys, self.values = self.buffer[:, :, :, self.stop - kept - count : self.stop]
        self.is_initialized = True
        return self.keys, self.values


def window_cache(config: LocalTransformerConfig, length: int) -> Cache:
    """An empty cache for at most `length` positions, each layer with the largest window of its heads."""
    windows = [min(max(own, default=length), length) for own in config.head_windows]
    # With no key at all transformers' layer keeps everything.
    return Cache(layers=[WindowLayer(max(window, 2)) for window in windows])
