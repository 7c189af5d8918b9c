"""A key/value cache with room to grow.

transformers' own cache copies all keys and values for every new token, which takes more than half
of decoding by a small model on a processor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 32  # tokens for which memory is taken at a time; a matter of speed only


class GrowingLayer(DynamicLayer):
    """A layer's keys and values, `[R, heads, T, D]`: views of memory with room for more tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[Tensor] = []
        self._first = 0  # tokens of the prefix, which beams share

    @classmethod
    def of_zeros(cls, like: Any, rows: int, tokens: int, dtype: torch.dtype) -> GrowingLayer:
        """A layer of `rows` rows and `tokens` tokens, with another layer's heads."""
        layer = cls()
        layer.lazy_initialization(like.keys, like.values)
        layer._memory = [
            states.new_zeros(rows, states.shape[1], tokens + ROOM, states.shape[-1], dtype=dtype)
            for states in (like.keys, like.values)
        ]
        layer._show(tokens)
        layer._first = tokens
        return layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, start = (key_states, value_states), self.get_seq_length()
        end = start + key_states.shape[-2]
        if not start:
            self._first = end
            self._memory = [states.new_empty(*_room(states, end)) for states in new]
        elif end > self._memory[0].shape[-2]:
            held = self._memory
            self._memory = [states.new_empty(*_room(states, end)) for states in held]
            for memory, states in zip(self._memory, held, strict=True):
                memory[..., :start, :] = states[..., :start, :]
        for memory, states in zip(self._memory, new, strict=True):
            memory[..., start:end, :] = states
        return self._show(end)

    def reset(self) -> None:
        self._memory, self._first = [], 0
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self._first = min(self._first, self.get_seq_length())

    def batch_select_indices(self, indices: Tensor) -> None:
        self._memory = [memory.index_select(0, indices) for memory in self._memory]
        self._show(self.get_seq_length())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams take over one another's tokens; the prefix is the same for all beams of a
        prompt."""
        for memory in self._memory:
            own = memory[..., self._first : self.get_seq_length(), :]
            own.copy_(own.index_select(0, beam_idx.to(own.device)))

    def _show(self, tokens: int) -> tuple[Tensor, Tensor]:
        keys, values = (memory[..., :tokens, :] for memory in self._memory)
        self.keys, self.values = keys, values
        return keys, values


def _room(states: Tensor, tokens: int) -> tuple[int, ...]:
    """The shape of memory for `tokens` tokens of such states, and some more."""
    return *states.shape[:-2], tokens + ROOM, states.shape[-1]
