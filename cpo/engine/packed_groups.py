"""A prefix and all its continuations in one row, under an attention mask that keeps them apart.

The row is `[prefix | y_1 | ... | y_K]`; each token sees the prefix and its own continuation, at the
positions that it would have alone. One forward pass without a cache, and without padding between
the parts: what gradient checkpointing needs, which drops a cache, and a model that is divided among
processes, which must make equally many passes in each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PADDING = -1  # the part that a padded position belongs to; the prefix is part 0, y_k part k


def pack(
    prefix_ids: Tensor, prefix_mask: Tensor, continuation_ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups as rows of tokens, without each continuation's last token, which predicts nothing.

    Args:
        prefix_ids, prefix_mask: `[B, P]` int64 and bool, none empty.
        continuation_ids, mask: `[B, K, L]` int64 and bool, padded on the right.

    Returns:
        `ids`, `parts` and `positions`, `[B, T]` int64, padded on the right; and `before`, `[N]`
        int64: for each token in `mask`, in order, the index of the one before it in the flattened
        `ids`.
    """
    batch, k, length = mask.shape
    lengths = mask.sum(-1)  # [B, K]
    prefix_length = prefix_mask.sum(-1, keepdim=True)  # [B, 1]
    steps = torch.arange(length, device=mask.device)
    enters = mask & (steps < lengths[..., None] - 1)
    starts = enters.sum(-1).cumsum(-1) - enters.sum(-1) + prefix_length  # [B, K]
    slots = starts[..., None] + steps  # [B, K, L]: where a token stands in its row
    width = int((prefix_length[:, 0] + enters.sum((1, 2))).max())

    row = torch.arange(batch, device=mask.device)[:, None]
    place = torch.cat([(prefix_mask.cumsum(-1) - 1)[prefix_mask], slots[enters]])
    place = place + width * torch.cat(
        [row.expand_as(prefix_mask)[prefix_mask], row[..., None].expand_as(mask)[enters]]
    )

    def laid_out(of_prefix: Tensor, of_continuations: Tensor, padding: int) -> Tensor:
        values = torch.cat([of_prefix[prefix_mask], of_continuations[enters]])
        flat = values.new_full((batch * width,), padding)
        return flat.scatter(0, place, values).view(batch, width)

    part = torch.arange(1, k + 1, device=mask.device)[:, None].expand_as(mask)
    positions = (prefix_length[..., None] + steps).expand_as(mask)
    # The first token follows the prefix, the others their predecessor.
    before = torch.where(steps == 0, prefix_length[..., None] - 1, slots - 1)
    return (
        laid_out(prefix_ids, continuation_ids, 0),
        laid_out(torch.zeros_like(prefix_ids), part, PADDING),
        laid_out(prefix_mask.cumsum(-1) - 1, positions, 0),
        (before + width * row[..., None])[mask],
    )


def attention_mask(parts: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What each token sees: earlier ones of the prefix and of its own part, `[B, 1, T, T]`.

    Args:
        parts: `[B, T]` int64, as `pack` returns it.
        dtype: of a mask to be added to attention's logits; None: bool, True where it sees.
    """
    width = parts.shape[-1]
    causal = torch.ones(width, width, dtype=torch.bool, device=parts.device).tril()
    query, key = parts[:, :, None], parts[:, None, :]
    sees = causal & ((key == query) | ((key == 0) & (query != PADDING)))
    if dtype is None:
        return sees[:, None]
    added = torch.zeros(sees.shape, dtype=dtype, device=parts.device)
    return added.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def packed_states(
    model: Any, prefix_ids: Tensor, prefix_mask: Tensor, continuation_ids: Tensor, mask: Tensor
) -> Tensor:
    """The last hidden state before each continuation token in `mask`, `[N, H]`; arguments as for
    `pack`."""
    ids, parts, positions, before = pack(prefix_ids, prefix_mask, continuation_ids, mask)
    # Only SDPA takes a mask of booleans; plain attention adds one.
    added = None if model.config._attn_implementation == "sdpa" else model.dtype
    states: Tensor = model.base_model(
        input_ids=ids,
        attention_mask=attention_mask(parts, added),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    return states.flatten(0, 1).index_select(0, before)
