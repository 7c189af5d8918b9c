"""The objectives, as pure functions of sequence log-probabilities.

CPO trains a model to tell the ground truth from synthetic negatives better than its reference does:
a softmax over K continuations of one prefix, each scored by beta times its log-ratio.
Feng et al. 2025, arXiv 2502.16433; equation numbers are the paper's.

Every log-probability is a *sum* over the continuation's tokens, including EOS if present.
All tensors are `[B, K]`: B prefixes, K continuations, column 0 the ground truth (or, for the ranked
loss, the best first). Computation is in the dtype of the inputs. Values in a masked column, even
-inf or NaN, affect neither loss nor gradient; in a usable column they propagate to the loss. This
file needs only torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cpo_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """CPO, equation 1: the ground truth against its negatives.

    Args:
        policy_logps: `[B, K]` float, log pi_theta(y_j | x), column 0 the ground truth.
        reference_logps: `[B, K]` float, log pi_ref(y_j | x), same order; detached.
        beta: scale of the log-ratios, 5 in the paper.
        mask: `[B, K]` bool, True where a candidate is usable, as column 0 must be. None: all are.

    Returns:
        Scalar, the mean over the batch; ln K if policy equals reference and nothing is masked.

    Raises:
        ValueError: shapes differ, a row has no usable ground truth, or beta is not positive.
    """
    rewards = implicit_rewards(policy_logps, reference_logps, beta)
    usable = checked_mask(rewards, mask)
    log_sums = rewards.masked_fill(~usable, float("-inf")).logsumexp(-1)
    return -(rewards[:, 0] - log_sums).mean()  # eq. 1: log softmax of the ground truth's reward


def ranked_cpo_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """CPO with ranking, equation 2: the likelihood of the whole order, best first.

    The paper prints eq. 2 with the denominator outside the product; this is the Plackett-Luce form
    of its eq. 6.

    Args:
        policy_logps, reference_logps, beta: as for `cpo_loss`, the columns in the order tau, best
        first.
        mask: `[B, K]` bool; a masked column has no factor and enters no denominator.

    Returns:
        Scalar, the mean over the batch; ln K! if policy equals reference and nothing is masked.

    Raises:
        ValueError: as `cpo_loss`.
    """
    rewards = implicit_rewards(policy_logps, reference_logps, beta)
    usable = checked_mask(rewards, mask)
    # Not -inf: a tail may hold only masked columns, and -inf - (-inf) is NaN.
    rewards = rewards.masked_fill(~usable, torch.finfo(rewards.dtype).min / 4)
    # logsumexp over j >= k for every k at once: a running logsumexp from the last column.
    log_tail_sums = rewards.flip(-1).logcumsumexp(-1).flip(-1)
    log_factors = (rewards - log_tail_sums).masked_fill(~usable, 0.0)
    return -log_factors.sum(-1).mean()  # eq. 2, as in eq. 6


def dpo_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """DPO, equation 5: column 0 chosen, column 1 rejected. It equals `cpo_loss` at K = 2.

    Args:
        policy_logps, reference_logps: `[B, 2]` float.
        beta, mask: as for `cpo_loss`; a row whose rejected response is masked contributes 0.

    Returns:
        Scalar, the mean over the batch; ln 2 if policy equals reference.

    Raises:
        ValueError: as `cpo_loss`, or K is not 2.
    """
    if policy_logps.shape[-1] != 2:
        raise ValueError(f"DPO compares two responses, not {policy_logps.shape[-1]}; use cpo_loss")
    chosen, rejected = implicit_rewards(policy_logps, reference_logps, beta).unbind(-1)
    usable = checked_mask(policy_logps, mask)[:, 1]
    # Mask before the sigmoid too: its gradient at -inf or NaN is NaN, and so is 0 times that.
    margins = (chosen - rejected).masked_fill(~usable, 0.0)
    return -F.logsigmoid(margins).masked_fill(~usable, 0.0).mean()  # eq. 5


def ranking_nce_loss(policy_logps: Tensor, beta: float, mask: Tensor | None = None) -> Tensor:
    """Ranking NCE (appendix A.5; Ma and Collins 2018): equation 1 without a reference.

    Args:
        policy_logps: `[B, K]` float, column 0 the ground truth.
        beta, mask: as for `cpo_loss`.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        ValueError: as `cpo_loss`.
    """
    # eq. 1 with r_j = beta log pi_theta(y_j | x)
    return cpo_loss(policy_logps, torch.zeros_like(policy_logps), beta, mask)


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """r_j = beta * (log pi_theta(y_j|x) - log pi_ref(y_j|x)), `[B, K]`: equation 10 without its
    constant.

    Raises:
        ValueError: shapes differ or are not `[B, K]`, or beta is not positive.
    """
    if policy_logps.shape != reference_logps.shape or policy_logps.dim() != 2:
        shapes = f"{tuple(policy_logps.shape)} and {tuple(reference_logps.shape)}"
        raise ValueError(f"policy and reference_logps need the same shape [B, K], not {shapes}")
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    return beta * (policy_logps - reference_logps.detach())


def checked_mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The mask of usable columns, all of them by default, in the shape `[B, K]` of `scores`.

    Raises:
        ValueError: another shape or type, or a row has no usable ground truth.
    """
    if mask is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        actual = f"{mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"mask must be bool of shape {tuple(scores.shape)}, not {actual}")
    if not mask[:, 0].all():
        raise ValueError("column 0, the ground truth, is masked in some row; drop such rows")
    return mask
