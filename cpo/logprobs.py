"""From a model and groups of continuations to log-probabilities `[B, K]`: the one scoring path.

Reference and policy are scored by the same module, path, precision and shapes, so that the first
training step starts at ln K exactly. `GroupScorer` is the module that a trainer wraps: groups in,
`[B, K]` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Continuation positions whose logits exist at one time; 4,096 x 50,257 in fp32 are 0.8 GB.
HEAD_CHUNK = 4096


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

    Args:
        model: a transformers causal language model with fp32 weights.
        precision: "bf16" runs the transformer under autocast; the vocabulary head, its softmax and
        all
            sums stay in fp32 either way, unless `fp32_head` is False.
        fp32_head: False lets autocast have the head too: several times faster on a processor, good
            enough for pretraining, too coarse for log-ratios.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32", fp32_head: bool = True) -> None:
        super().__init__()
        self.model: Any = model
        self.precision = precision
        self.fp32_head = fp32_head
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
        token_logps, _ = self.token_logps(
            prefix_ids, prefix_mask, continuation_ids, continuation_mask
        )
        return token_logps.sum(-1)

    def token_logps(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
        eos_token_id: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability of every continuation token, `[B, K, L]`, fp32, 0 on padding.

        With `eos_token_id`, also that of EOS at every one of these positions, `[B, K, L]`: what a
        truncation just before it would cost.
        """
        batch, k, width = continuation_ids.shape
        hidden = self._hidden_before_tokens(
            prefix_ids, prefix_mask, continuation_ids, continuation_mask
        )
        targets = continuation_ids[continuation_mask]
        also = [] if eos_token_id is None else [torch.full_like(targets, eos_token_id)]
        columns = self._head_logps(hidden, torch.stack([targets, *also], -1))
        spread = columns.new_zeros(batch, k, width, columns.shape[-1])
        spread[continuation_mask] = columns
        return spread[..., 0], (None if eos_token_id is None else spread[..., 1])

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
        return self._logits(
            self._hidden_before_tokens(prefix_ids, prefix_mask, continuation_ids, continuation_mask)
        )

    def _hidden_before_tokens(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
    ) -> Tensor:
        """Last hidden state at the position before each continuation token, `[N, H]`."""
        k = continuation_ids.shape[1]
        # Plain repetition: every continuation carries its own copy of the prefix.
        ids = torch.cat([prefix_ids.repeat_interleave(k, 0), continuation_ids.flatten(0, 1)], -1)
        is_continuation = torch.cat(
            [
                torch.zeros_like(prefix_mask).repeat_interleave(k, 0),
                continuation_mask.flatten(0, 1),
            ],
            -1,
        )
        # Rotate the left padding of each row to its right end. A causal model never looks right, so
        # no attention mask and no position ids are needed, for any architecture.
        offsets = (~prefix_mask).sum(-1).repeat_interleave(k, 0)
        total = int((prefix_mask.sum(-1) + continuation_mask.sum(-1).amax(-1)).amax())
        order = (torch.arange(total, device=ids.device) + offsets[:, None]).clamp_(
            max=ids.shape[1] - 1
        )
        wrapped = torch.arange(total, device=ids.device) + offsets[:, None] >= ids.shape[1]
        ids = ids.gather(1, order)
        is_continuation = is_continuation.gather(1, order) & ~wrapped
        device = ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # The state at t predicts token t + 1; a prefix is never empty, so there always is one
        # before.
        return hidden[:, :-1][is_continuation[:, 1:]]

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        half = self.precision == "bf16" and not self.fp32_head
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=half):
            return head(hidden.to(head.weight.dtype)).float() if not half else head(hidden).float()

    def _head_logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log-softmax of the logits at `targets` `[N, C]`, fp32, in chunks recomputed in
        backward."""

        def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
            logits = self._logits(hidden)
            if targets.shape[-1] == 1:  # one fused kernel, several times faster in backward
                return -F.cross_entropy(logits, targets[:, 0], reduction="none")[:, None]
            return logits.gather(-1, targets) - logits.logsumexp(-1, keepdim=True)

        chunks = zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True)
        if len(hidden) <= HEAD_CHUNK or not torch.is_grad_enabled():
            return torch.cat([chunk_logps(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(chunk_logps, *chunk, use_reentrant=False) for chunk in chunks])


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0: it would make policy and reference differ at step 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention implementations read their rate from the module, not from an nn.Dropout.
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
