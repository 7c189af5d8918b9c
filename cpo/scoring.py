"""From a model and groups of continuations to log-probabilities `[B, K]`.

`sequence_logps` defines the values, `GroupScorer` computes them fast. Reference and policy share
module, precision and shapes, so the first training loss is exactly ln K.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from cpo.engine.forward_pass import (
    Sharing,
    forward_pass_of,
    is_checkpointed,
    left_aligned,
    score_in_one_pass,
    states_before_tokens,
)
from cpo.engine.processes import process_count, shared_out
from cpo.engine.progress import progress_bar
from cpo.engine.vocabulary_head import token_logps

# Up to this many tokens, plain bf16 matrix products beat a CPU's fused attention. Measured forward
# and backward: 1.6 times as fast at 64 tokens, equal at 256, slower beyond.
SHORT_SEQUENCE = 192


@dataclass(frozen=True)
class Group:
    """One prefix and its continuations, as token ids; an unusable continuation is empty."""

    prefix_ids: Sequence[int]
    continuations: Sequence[Sequence[int]]


def sequence_logps(
    model: Any, prefix_ids: Sequence[int], continuations: Sequence[Sequence[int]]
) -> Tensor:
    """log pi(y | x) of every continuation y of one prefix x, `[K]`, fp32: the plain version.

    Repeats the prefix for each continuation and computes all logits, without padding. `GroupScorer`
    gives the same values faster.

    Args:
        model: a causal language model in evaluation mode.
        prefix_ids: the prefix as token ids, not empty.
        continuations: K lists of token ids; an empty one scores 0.
    """
    sums = []
    for continuation in continuations:
        ids = torch.tensor([*prefix_ids, *continuation], device=model.device)
        logps = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)  # [P + L, V]
        before = logps[len(prefix_ids) - 1 : -1]  # row t predicts token t + 1
        tokens = ids[len(prefix_ids) :, None]
        sums.append(before.gather(-1, tokens).sum())  # sum_t log pi(y_t | x, y_<t)
    return torch.stack(sums)


def order_by_length(groups: Sequence[Group], batch: int) -> list[int]:
    """Row indices, sorted by length within each global batch of `batch`.

    Micro-batches cut from this order need little padding, and hold the same rows in training as for
    the reference values.
    """

    def width(row: int) -> int:
        return len(groups[row].prefix_ids) + max(map(len, groups[row].continuations))

    rows = range(len(groups))
    batches = (rows[start : start + batch] for start in range(0, len(rows), batch))
    return [row for rows_of_batch in batches for row in sorted(rows_of_batch, key=width)]


def longest(groups: Iterable[Group]) -> int:
    """Tokens of the longest group, its prefix counted once."""
    return max(len(group.prefix_ids) + sum(map(len, group.continuations)) for group in groups)


def collate_groups(
    groups: Sequence[Group], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
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
        raise ValueError(f"groups of a batch need the same K, not {sorted(sizes)}: mask the rest")
    if not all(len(group.prefix_ids) for group in groups):
        raise ValueError("an empty prefix cannot be scored: its first token has no context")
    prefix_ids, prefix_mask = padded([group.prefix_ids for group in groups], on_the_left=True)
    ids, mask = padded([row for group in groups for row in group.continuations])
    shape = len(groups), *sizes, ids.shape[-1]
    return {
        "prefix_ids": prefix_ids.to(device),
        "prefix_mask": prefix_mask.to(device),
        "continuation_ids": ids.view(shape).to(device),
        "continuation_mask": mask.view(shape).to(device),
    }


def padded(rows: Sequence[Sequence[int]], on_the_left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids `[N, width]`, 0 on padding, and the mask of tokens; the width is at least 1."""
    width = max(1, *map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if on_the_left else slice(len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = True
    return ids, mask


class GroupScorer(nn.Module):
    """Scores groups of continuations with a causal language model.

    A prefix is computed once, and its keys and values serve all K continuations. A truncation of
    the first continuation, plus one token, needs no forward pass of its own. Groups of one, and
    models whose logits would change (`forward_pass`), repeat the prefix.

    Args:
        model: a transformers causal language model with fp32 weights.
        precision: "bf16" runs the transformer, and the backward pass of the vocabulary head, under
            autocast; log-probabilities come from fp32 logits either way, unless `fp32_head` is
            False.
        fp32_head: False computes logits in bf16 too: several times faster on a processor, good
            enough for pretraining, too coarse for log-ratios.
        share_prefix: False always repeats the prefix.
        tokens_at_once: larger batches are scored in parts of columns of about this many tokens,
            each recomputed in the backward pass. None: no bound.
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
        disable_randomness(model)
        self.forward_pass = forward_pass_of(model)
        self.train()

    def train(self, mode: bool = True) -> GroupScorer:
        """Set training mode, except for the model itself: dropout, router jitter or skipped layers
        would make policy and reference differ. Only gradient checkpointing needs the mode there."""
        super().train(mode)
        self.model.train(mode and is_checkpointed(self.model))
        return self

    def score(
        self, prefixes: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> Tensor:
        """`forward` on lists of token ids, B prefixes with K continuations each; `[B, K]`."""
        groups = [Group(*pair) for pair in zip(prefixes, candidates, strict=True)]
        return self(**collate_groups(groups, self.model.device))

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

        def logps(ids: Tensor, mask: Tensor) -> Tensor:
            return self.token_logps(prefix_ids, prefix_mask, ids, mask).sum(-1)

        parts = self._parts(prefix_mask, continuation_ids, continuation_mask)
        if len(parts) == 1:
            return logps(continuation_ids, continuation_mask)
        # The loss's softmax couples the columns, so a group cannot be split into micro-batches.
        scored = []
        for columns in parts:
            part = continuation_ids[:, columns], continuation_mask[:, columns]
            scored.append(checkpoint(logps, *part, use_reentrant=False, preserve_rng_state=False))
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
        truncated = self._truncations(continuation_ids, continuation_mask) & (inputs is None)
        own = continuation_mask & ~truncated[..., None]
        inputs = continuation_ids if inputs is None else inputs
        states = self._states_before_tokens(prefix_ids, prefix_mask, inputs, own)
        # A truncation's own last token is predicted by the state from which column 0 continues.
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
        # Its other tokens and their log-probabilities are those of column 0.
        position = torch.arange(own.shape[-1], device=own.device)
        copied = truncated[..., None] & (position < end)
        spread = torch.where(copied, spread[:, :1], spread)
        return spread.masked_scatter(truncated[..., None] & (position == end), at_cuts)

    def _parts(self, prefix_mask: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The columns, in parts of at most `tokens_at_once` tokens with prefixes, or of one
        column."""
        columns = torch.arange(mask.shape[1], device=mask.device)
        if self.tokens_at_once is None or prefix_mask.numel() + mask.numel() <= self.tokens_at_once:
            return [columns]
        # Truncations of column 0 stay with it, where they cost nothing.
        free = self._truncations(ids, mask).all(0)
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

    def _truncations(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Which columns need no pass of their own, `[B, K]`: column 0 or a truncation of it, with
        any last token. None if the prefix is repeated."""
        lengths = mask.sum(-1)
        position = torch.arange(ids.shape[-1], device=ids.device)
        same = (ids == ids[:, :1]) | (position >= lengths[..., None] - 1)
        truncated = same.all(-1) & (lengths > 0) & (lengths <= lengths[:, :1])
        truncated[:, 0] = False
        return truncated & self.share_prefix

    def next_token_logits(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
    ) -> Tensor:
        """Teacher-forced logits of the N continuation tokens in the mask, `[N, V]`, fp32.

        Row n is the distribution of token n of `continuation_ids[continuation_mask]` given its
        context. For samplers; scoring never holds this whole tensor.
        """
        states = self._states_before_tokens(
            prefix_ids, prefix_mask, continuation_ids, continuation_mask
        )
        return self.forward_pass.logits(self.model, states)

    def _states_before_tokens(
        self, prefix_ids: Tensor, prefix_mask: Tensor, continuation_ids: Tensor, mask: Tensor
    ) -> Tensor:
        """`forward_pass.states_before_tokens` in this scorer's precision."""
        prefix_ids, prefix_mask = left_aligned(prefix_ids, prefix_mask)
        width = prefix_ids.shape[-1] + mask.shape[-1]
        sharing: Sharing = "repeated"
        if self.share_prefix and mask.shape[1] > 1:
            # The ways differ in bf16 by some .1 nats a response. Policy and reference must go the
            # same, whatever batches they come in: the choice by length is for fp32.
            by_length = self.precision == "fp32"
            sharing = self.forward_pass.sharing_in(self.model, prefix_mask, mask, by_length)
        # A model's own logits come out of autocast in bf16, too coarse for log-ratios.
        rounded = self.forward_pass.base_and_head or not self.fp32_head
        bf16 = self.precision == "bf16" and rounded
        # A checkpointed layer, run again in the backward pass, would use another kernel there.
        short = sharing != "packed" and width <= SHORT_SEQUENCE and not self.model.training
        plain_products = prefix_ids.device.type == "cpu" and bf16 and short
        with (
            torch.autocast(prefix_ids.device.type, torch.bfloat16, enabled=bf16),
            sdpa_kernel(SDPBackend.MATH) if plain_products else nullcontext(),
        ):
            inputs = prefix_ids, prefix_mask, continuation_ids, mask
            return states_before_tokens(self.model, self.forward_pass, *inputs, sharing)

    def _head_logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """log-softmax of the logits at `targets` `[N]`, fp32."""
        if not self.forward_pass.base_and_head:
            return states.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        head = self.model.get_output_embeddings()
        bf16 = self.precision == "bf16"
        return token_logps(
            states,
            head.weight,
            head.bias,
            targets,
            scale=self.forward_pass.scale,
            cap=self.forward_pass.cap,
            bf16_logits=bf16 and not self.fp32_head,
            bf16_gradients=bf16,
        )


def disable_randomness(model: nn.Module) -> None:
    """Set every dropout, layer-drop and router-jitter rate of the model to 0; any would make policy
    and reference differ at step 0.

    Modules that do not use `nn.Dropout` keep such a rate as an attribute.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and re.search("drop|jitter", name):
                setattr(module, name, 0.0)


def score_groups(
    model: Any,
    groups: Sequence[Group],
    precision: str,
    batch: int,
    description: str,
    tokens_at_once: int | None = None,
    in_one_pass: bool = False,
) -> Tensor:
    """Log-probabilities of groups of K continuations, `[N, K]`, fp32, on the CPU, without
    gradient; `in_one_pass` as the scorer of a divided policy takes them, whose reference they
    are."""
    scorer = GroupScorer(model, precision, tokens_at_once=tokens_at_once)
    if in_one_pass:
        score_in_one_pass(scorer)

    def scored(start: int) -> Tensor:
        part = groups[start : start + batch]
        bar.update(len(part) * process_count())
        return scorer(**collate_groups(part, model.device)).cpu()

    with progress_bar(len(groups), description, "prompt") as bar, torch.inference_mode():
        return torch.cat(shared_out(range(0, len(groups), batch), scored))
