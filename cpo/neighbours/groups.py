"""What the objectives share: rewards without their masked columns, and means over negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from cpo.losses import checked_mask, implicit_rewards


def masked_rewards(
    policy_logps: Tensor, reference_logps: Tensor | None, beta: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The implicit rewards r_j, 0 in masked columns, and the mask of usable columns; `[B, K]`.

    Without reference_logps, r_j = beta log pi_theta(y_j | x).

    Raises:
        ValueError: as `losses.cpo_loss`.
    """
    if reference_logps is None:
        reference_logps = torch.zeros_like(policy_logps)
    rewards = implicit_rewards(policy_logps, reference_logps, beta)
    usable = checked_mask(rewards, mask)
    return rewards.masked_fill(~usable, 0.0), usable


def mean_over_negatives(values: Tensor, usable: Tensor) -> Tensor:
    """Means `[B]` of `[B, K - 1]` values over the usable negatives of each row; 0 without any."""
    negatives = usable[:, 1:]
    return values.masked_fill(~negatives, 0.0).sum(-1) / negatives.sum(-1).clamp(min=1)


def margins(
    policy_logps: Tensor, reference_logps: Tensor | None, beta: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """r_1 - r_j of every negative, `[B, K - 1]`, and the mask of usable columns, `[B, K]`."""
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    return rewards[:, :1] - rewards[:, 1:], usable


def mean_token_logps(
    policy_logps: Tensor, lengths: Tensor, usable: Tensor, exponent: float = 1.0
) -> Tensor:
    """log pi_theta(y_j | x) / |y_j| ** exponent, `[B, K]`, 0 in masked columns.

    Raises:
        ValueError: lengths of another shape, or a usable continuation without tokens.
    """
    if lengths.shape != policy_logps.shape:
        shapes = f"{tuple(policy_logps.shape)}, not {tuple(lengths.shape)}"
        raise ValueError(f"lengths must be of the shape of policy_logps, {shapes}")
    if (lengths[usable] < 1).any():
        raise ValueError("a usable continuation has no tokens: mask it")
    divisors = lengths.masked_fill(~usable, 1).to(policy_logps.dtype) ** exponent
    return policy_logps.masked_fill(~usable, 0.0) / divisors


def masked_scores(scores: Tensor, usable: Tensor, dtype: torch.dtype) -> Tensor:
    """The scores in `dtype`, without gradient, 0 in masked columns; `[B, K]`.

    Raises:
        ValueError: scores of another shape.
    """
    if scores.shape != usable.shape:
        shapes = f"{tuple(usable.shape)}, not {tuple(scores.shape)}"
        raise ValueError(f"scores must be of the shape of policy_logps, {shapes}")
    return scores.detach().to(dtype).masked_fill(~usable, 0.0)
