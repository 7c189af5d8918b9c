"""Parallel scheduled sampling (Duckworth et al. 2019), the paper's baseline PSS."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpo.scoring import GroupScorer


class ScheduledSamplingScorer(GroupScorer):
    """Scores ground truths on inputs that are partly the model's own samples.

    The first of `passes` passes sees the ground truth. Each pass samples a token for every
    continuation position and puts it into the next pass's input with `probability`, drawn
    independently per position. From pass n on, the first n positions stay fixed, as the tokens that
    they condition on no longer change. The last input is scored against the ground truth. Neither
    samples nor sampling passes carry gradients.

    Only continuation tokens are replaced, and only in training mode: in evaluation mode, or at
    probability 0, this equals `GroupScorer`. Draws use torch's global generator, whose state is
    part of the trainer's checkpoints.
    """

    def __init__(
        self, model: nn.Module, precision: str = "fp32", probability: float = 0.5, passes: int = 3
    ) -> None:
        super().__init__(model, precision)
        self.probability = probability
        self.passes = passes

    def forward(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
    ) -> Tensor:
        """Summed ground-truth token log-probabilities given the mixed inputs, `[B, K]`."""
        gold, mask = continuation_ids, continuation_mask
        inputs = gold
        with torch.no_grad():
            for number in range(self.passes if self.training else 0):
                logits = self.next_token_logits(prefix_ids, prefix_mask, inputs, mask)
                inputs = self._mixed(inputs, gold, mask, logits, number)
        return self.token_logps(prefix_ids, prefix_mask, gold, mask, inputs).sum(-1)

    def _mixed(
        self, inputs: Tensor, gold: Tensor, mask: Tensor, logits: Tensor, number: int
    ) -> Tensor:
        """The next pass's input: `where(rand < p, sampled, gold)` from position `number` on."""
        sampled = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        sampled = torch.zeros_like(gold).masked_scatter(mask, sampled)
        chosen = torch.rand(gold.shape, device=gold.device) < self.probability
        mixed = torch.where(chosen & mask, sampled, gold)
        settled = torch.arange(gold.shape[-1], device=gold.device) < number
        return torch.where(settled, inputs, mixed)
