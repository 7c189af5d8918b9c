"""From a model and groups of continuations to log-probabilities `[B, K]`: the one scoring path.

Reference and policy are scored by the same module, path, precision and shapes, so that the first
training step starts at ln K exactly. `GroupScorer` is the module that a trainer wraps: groups in,
`[B, K]` out.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache, DynamicLayer

from cpo.vocabulary_head import token_logps

# Rows that are run together: their tokens with padding, and how short the shortest may be, as a
# share of the longest. Sizes change speed, not values.
PART_TOKENS = 8192
PART_SPREAD = 0.7

# Up to this many tokens, plain matrix products in bf16 beat a processor's fused attention: measured
# 1.6 times as fast forward and backward at 64 tokens, as fast at 256, and slower beyond.
SHORT_SEQUENCE = 192


@dataclass(frozen=True)
class Group:
    """One prefix and its continuations, as token ids; an unusable continuation is empty."""

    prefix_ids: Sequence[int]
    continuations: Sequence[Sequence[int]]


def order_by_length(groups: Sequence[Group], batch: int) -> list[int]:
    """The rows, reordered within each global batch of `batch` so that alike lengths are neighbours.

    Micro-batches cut from it waste little on padding, and hold the same rows for training as for
    its reference values.
    """

    def width(row: int) -> int:
        return len(groups[row].prefix_ids) + max(map(len, groups[row].continuations))

    starts = range(0, len(groups), batch)
    return [
        row
        for start in starts
        for row in sorted(range(len(groups))[start : start + batch], key=width)
    ]


def collate_groups(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Pad B groups of K continuations into tensors for `GroupScorer`.

    Returns:
        `prefix_ids` `[B, P]` padded on the left and `continuation_ids` `[B, K, L]` padded on the
        right, int64, so that a prefix ends where its continuations begin; `prefix_mask` and
        `continuation_mask`, bool, True on tokens. Padding is id 0 and never attended to.

    Raises:
        ValueError: groups of different K, or an empty prefix.
    """
    sizes = {len(group.continuations) for group in groups}
    if len(sizes) != 1:
        raise ValueError(
            f"all groups of a batch need the same K, not {sorted(sizes)}; mask the rest"
        )
    if not all(len(group.prefix_ids) for group in groups):
        raise ValueError(
            "an empty prefix cannot be scored: the first token would have no condition"
        )
    (k,) = sizes
    prefix_width = max(len(group.prefix_ids) for group in groups)
    width = max(1, max(len(one) for group in groups for one in group.continuations))
    prefix_ids = torch.zeros(len(groups), prefix_width, dtype=torch.long)
    continuation_ids = torch.zeros(len(groups), k, width, dtype=torch.long)
    prefix_mask = torch.zeros_like(prefix_ids, dtype=torch.bool)
    continuation_mask = torch.zeros_like(continuation_ids, dtype=torch.bool)
    for row, group in enumerate(groups):
        start = prefix_width - len(group.prefix_ids)
        prefix_ids[row, start:] = torch.tensor(group.prefix_ids)
        prefix_mask[row, start:] = True
        for column, one in enumerate(group.continuations):
            continuation_ids[row, column, : len(one)] = torch.tensor(one, dtype=torch.long)
            continuation_mask[row, column, : len(one)] = True
    return {
        "prefix_ids": prefix_ids,
        "prefix_mask": prefix_mask,
        "continuation_ids": continuation_ids,
        "continuation_mask": continuation_mask,
    }


class GroupScorer(nn.Module):
    """Scores groups of continuations with a causal language model.

    A group's prefix is computed once and its keys and values serve all K continuations; a
    continuation that is the first one cut short, plus a token, needs no forward pass of its own.
    Groups of one, and models that cannot continue from a cache, repeat the prefix instead.

    Args:
        model: a transformers causal language model with fp32 weights.
        precision: "bf16" runs the transformer, and the backward pass of the vocabulary head, under
            autocast; log-probabilities come from fp32 logits either way, unless `fp32_head` is
            False.
        fp32_head: False computes logits in bf16 too: several times faster on a processor, good
            enough for pretraining, too coarse for log-ratios.
        share_prefix: False repeats the prefix always.
        tokens_at_once: of a larger batch, the columns are scored in parts of about so many tokens
            that keep nothing for the backward pass, which scores each part again. None: no bound.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str = "fp32",
        fp32_head: bool = True,
        share_prefix: bool = True,
        tokens_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.precision = precision
        self.fp32_head = fp32_head
        self.share_prefix = share_prefix
        self.tokens_at_once = tokens_at_once
        disable_dropout(model)

    def forward(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
    ) -> Tensor:
        """Sum of log pi(token | prefix, tokens before it) per continuation, `[B, K]`, fp32.

        Takes what `collate_groups` returns. An empty continuation scores 0.
        """
        prefix = prefix_ids, prefix_mask

        def logps(ids: Tensor, mask: Tensor) -> Tensor:
            return self.token_logps(*prefix, ids, mask).sum(-1)

        parts = self._parts(prefix_mask, continuation_ids, continuation_mask)
        if len(parts) == 1:
            return logps(continuation_ids, continuation_mask)
        # The loss's softmax couples the columns, so a group cannot be split into micro-batches.
        scored = [
            checkpoint(
                logps,
                continuation_ids.index_select(1, columns),
                continuation_mask.index_select(1, columns),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for columns in parts
        ]
        return torch.cat(scored, -1).index_select(-1, torch.cat(parts).argsort())

    def token_logps(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Log-probability of every continuation token, `[B, K, L]`, fp32, 0 on padding.

        `prefix_ids` may be padded on either side, `continuation_ids` on the right. `inputs`, of the
        shape of `continuation_ids`, are tokens to condition on in place of the continuation's own.
        """
        truncated = _truncations(continuation_ids, continuation_mask) & self.share_prefix
        if inputs is not None:
            truncated = torch.zeros_like(truncated)
        own = continuation_mask & ~truncated[..., None]
        states = self._states_before_tokens(
            prefix_ids, prefix_mask, continuation_ids if inputs is None else inputs, own
        )
        # A truncation ends in a token of its own, expected by the state in which column 0 goes on.
        end = (continuation_mask.sum(-1, keepdim=True) - 1).clamp_(min=0)
        state_number = (own.flatten().cumsum(0) - 1).view_as(own)
        cut_state = state_number[:, :1].expand_as(own).gather(-1, end)[..., 0][truncated]
        cut_token = continuation_ids.gather(-1, end)[..., 0][truncated]
        logps = self._head_logps(
            torch.cat([states, states.index_select(0, cut_state)]),
            torch.cat([continuation_ids[own], cut_token]),
        )
        at_own, at_cuts = logps.split([len(states), len(cut_state)])
        spread = at_own.new_zeros(own.shape).masked_scatter(own, at_own)
        if len(at_cuts) == 0:
            return spread
        # Its other tokens are those of column 0, and so are their log-probabilities.
        position = torch.arange(own.shape[-1], device=own.device)
        copied = truncated[..., None] & (position < end)
        spread = torch.where(copied, spread[:, :1], spread)
        return spread.masked_scatter(truncated[..., None] & (position == end), at_cuts)

    def _parts(self, prefix_mask: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """All columns, in parts whose tokens with their prefixes are at most `tokens_at_once`, or
        of one column."""
        columns = torch.arange(mask.shape[1], device=mask.device)
        if self.tokens_at_once is None or prefix_mask.numel() + mask.numel() <= self.tokens_at_once:
            return [columns]
        # Truncations of column 0 stay with it, where they cost nothing.
        free = _truncations(ids, mask).all(0) & self.share_prefix
        tokens = mask.sum((0, 2)).masked_fill(free, 0)
        columns = torch.cat([columns[:1], columns[free], columns[1:][~free[1:]]])
        room = self.tokens_at_once - int(prefix_mask.sum())
        sizes, filled = [0], 0
        for count in tokens[columns].tolist():
            if count and sizes[-1] and filled + count > room:
                sizes.append(0)
                filled = 0
            sizes[-1] += 1
            filled += count
        return list(columns.split(sizes))

    def next_token_logits(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
    ) -> Tensor:
        """Teacher-forced logits for every continuation token, `[N, V]`, fp32, N the tokens in the
        mask.

        Row n is the distribution of token n of `continuation_ids[continuation_mask]` given what
        stands before it. For samplers; scoring never holds this tensor whole.
        """
        states = self._states_before_tokens(
            prefix_ids, prefix_mask, continuation_ids, continuation_mask
        )
        head = self.model.get_output_embeddings()
        return head(states.to(head.weight.dtype))

    def _states_before_tokens(
        self, prefix_ids: Tensor, prefix_mask: Tensor, continuation_ids: Tensor, mask: Tensor
    ) -> Tensor:
        """Last hidden state at the position before each continuation token in `mask`, `[N, H]`."""
        prefix_ids, prefix_mask = _left_aligned(prefix_ids, prefix_mask)
        shared = self.share_prefix and mask.shape[1] > 1 and continues_from_cache(self.model)
        states = self._shared_prefix if shared else self._repeated_prefix
        bf16 = self.precision == "bf16"
        short = prefix_ids.shape[-1] + mask.shape[-1] <= SHORT_SEQUENCE
        plain_products = prefix_ids.device.type == "cpu" and bf16 and short
        with (
            torch.autocast(prefix_ids.device.type, torch.bfloat16, enabled=bf16),
            sdpa_kernel(SDPBackend.MATH) if plain_products else nullcontext(),
        ):
            return states(prefix_ids, prefix_mask, continuation_ids, mask)

    def _repeated_prefix(
        self, prefix_ids: Tensor, prefix_mask: Tensor, continuation_ids: Tensor, mask: Tensor
    ) -> Tensor:
        """Every continuation carries its own copy of the prefix."""
        k = mask.shape[1]
        none = torch.zeros_like(prefix_mask)
        ids = torch.cat([prefix_ids.repeat_interleave(k, 0), continuation_ids.flatten(0, 1)], -1)
        given = torch.cat([prefix_mask.repeat_interleave(k, 0), mask.flatten(0, 1)], -1)
        asked = torch.cat([none.repeat_interleave(k, 0), mask.flatten(0, 1)], -1)
        # Padding goes to the right end. A causal model never looks right, so no attention mask and
        # no position ids are needed, for any architecture.
        ids, given, asked = _left_aligned(ids, given, asked)
        asked = asked[:, 1:]  # the state at t predicts token t + 1; a prefix is never empty
        pool, found, filled = [], torch.zeros_like(asked, dtype=torch.long), 0
        for rows, longest in _of_like_length(given.sum(-1) * asked.any(-1)):
            states = self.model.base_model(input_ids=ids[rows, :longest], use_cache=False)
            here = asked[rows, : longest - 1]
            pool.append(states.last_hidden_state[:, :-1][here])
            found[rows, : longest - 1] = filled + here.flatten().cumsum(0).view_as(here) - 1
            filled += len(pool[-1])
        if not pool:  # every continuation is empty
            return self.model.get_input_embeddings().weight[:0]
        return torch.cat(pool).index_select(0, found[asked])

    def _shared_prefix(
        self, prefix_ids: Tensor, prefix_mask: Tensor, continuation_ids: Tensor, mask: Tensor
    ) -> Tensor:
        """The prefix once; its keys and values, selected by row, serve all its continuations."""
        batch, k, width = mask.shape
        prefix = self.model.base_model(input_ids=prefix_ids, use_cache=True)
        lengths = prefix_mask.sum(-1)
        ids, asked = continuation_ids.flatten(0, 1), mask.flatten(0, 1)
        group = torch.arange(batch, device=ids.device).repeat_interleave(k)
        # Where to find the state before each token: before the first, the prefix's last.
        pool = [prefix.last_hidden_state[torch.arange(batch, device=ids.device), lengths - 1]]
        found = group[:, None].expand(-1, width).clone()
        filled = batch
        for rows, longest in _of_like_length(asked.sum(-1) - 1):  # nothing follows a last token
            fed = asked[rows, 1 : 1 + longest]
            owner = group[rows]
            states = self.model.base_model(
                input_ids=ids[rows, :longest],
                attention_mask=torch.cat([prefix_mask[owner], fed], -1).long(),
                position_ids=lengths[owner, None] + torch.arange(longest, device=ids.device),
                past_key_values=select_rows(prefix.past_key_values, owner),
                use_cache=True,
            ).last_hidden_state[fed]
            pool.append(states)
            found[rows, 1 : 1 + longest] = filled + fed.flatten().cumsum(0).view_as(fed) - 1
            filled += len(states)
        return torch.cat(pool).index_select(0, found[asked])

    def _head_logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """log-softmax of the logits at `targets` `[N]`, fp32."""
        head = self.model.get_output_embeddings()
        bf16 = self.precision == "bf16"
        return token_logps(
            states,
            head.weight,
            head.bias,
            targets,
            bf16_logits=bf16 and not self.fp32_head,
            bf16_gradients=bf16,
        )


def continues_from_cache(model: Any) -> bool:
    """Whether a transformers model takes a plain key/value cache and positions; warns if it does
    not.

    Gradient checkpointing drops the cache in transformers without a word.
    """
    base = model.base_model
    checkpointed = any(getattr(one, "gradient_checkpointing", False) for one in base.modules())
    reason = ""
    if base.training and checkpointed:
        reason = "gradient checkpointing drops the key/value cache"
    elif "position_ids" not in inspect.signature(base.forward).parameters:
        reason = f"{type(base).__name__} takes no position ids"
    elif any(type(one) is not DynamicLayer for one in DynamicCache(config=base.config).layers):
        reason = f"{type(base).__name__} keeps more than keys and values in its cache"
    if reason:
        warnings.warn(f"{reason}: the prefix is repeated for every continuation", stacklevel=2)
    return not reason


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
            one.index_select(0, rows).to(self.dtype) for one in (layer.keys, layer.values)
        )
        self.device, self.is_initialized = rows.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        rounded = key_states.to(self.dtype), value_states.to(self.dtype)
        return super().update(*rounded, *args, **kwargs)


def _truncations(continuation_ids: Tensor, continuation_mask: Tensor) -> Tensor:
    """Which columns are column 0 cut short, or as long, with any one token at the end, `[B, K]`."""
    lengths = continuation_mask.sum(-1)
    position = torch.arange(continuation_ids.shape[-1], device=continuation_ids.device)
    same = (continuation_ids == continuation_ids[:, :1]) | (position >= lengths[..., None] - 1)
    found = same.all(-1) & (lengths > 0) & (lengths <= lengths[:, :1])
    found[:, 0] = False
    return found


def _left_aligned(ids: Tensor, mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The rows with their padding moved to the right end; order within a row is kept."""
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return tuple(one.gather(-1, order) for one in (ids, mask, *others))


def _of_like_length(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows of a like length together, longest first, with the longest length; without empty ones.

    A part holds at most `PART_TOKENS` tokens and no row shorter than `PART_SPREAD` of its longest.
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    start = 0
    while start < len(sizes) and sizes[start] > 0:
        end = start + 1
        while (
            end < len(sizes)
            and sizes[end] >= max(1, PART_SPREAD * sizes[start])
            and (end + 1 - start) * sizes[start] <= PART_TOKENS
        ):
            end += 1
        yield order[start:end], sizes[start]
        start = end


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0: it would make policy and reference differ at step 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention implementations read their rate from the module, not from an nn.Dropout.
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
