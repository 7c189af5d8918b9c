"""The keys and values of prefixes, for all the continuations that they serve."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


def select_rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache with these rows of another one, which stays as it is; differentiable.

    By `index_select`, as everywhere where a row may be taken several times: on a processor, the
    gradient of plain indexing adds up in whatever order its threads come, and two equal trainings
    would end in different weights.
    """
    selected = copy.copy(cache)
    selected.layers = [_SelectedRows(layer, rows) for layer in cache.layers]
    return selected


class _SelectedRows(DynamicLayer):
    """Rows of another layer's keys and values, kept in the dtype in which attention takes them.

    Rotary embeddings leave keys in fp32 under autocast, and transformers keeps values in the dtype
    of the keys. Attention rounds both in any case: rounded here, they are the same, half as large.
    Selected before they are rounded, since gradients of a row that serves several times add up in
    the dtype that it has then.
    """

    def __init__(self, layer: Any, rows: Tensor) -> None:
        super().__init__()
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else layer.keys.dtype
        self.keys, self.values = (
            states.index_select(0, rows).to(self.dtype) for states in (layer.keys, layer.values)
        )
        self.device, self.is_initialized = rows.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
        rounded = key_states.to(self.dtype), value_states.to(self.dtype)
        return super().update(*rounded, *args, **options)
