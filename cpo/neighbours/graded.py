"""Objectives of graded continuations: `scores` `[B, K]` say how good each is.

`policy_logps`, `reference_logps`, `beta` and `mask` are as for `losses.cpo_loss`, as are the scalar
returned and the errors raised; r_j is the implicit reward beta * log(pi_theta / pi_ref) of
continuation j, and s_j its score: in training, its similarity to the ground truth, which the order
tau is taken from, 1 for the ground truth itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cpo.neighbours.groups import masked_rewards, masked_scores


def expected_risk_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    scores: Tensor,
) -> Tensor:
    """Minimum risk training (Shen et al. 2015, arXiv 1512.02433; beside other sequence losses,
    Edunov et al. 2018, arXiv 1711.04956): sum_j Q_j (1 - s_j), the expected risk under Q_j
    proportional to pi_theta(y_j | x) ** beta over the continuations at hand.

    Args:
        reference_logps: not used; all objectives share their first four arguments.
        beta: sharpness alpha of Q, 0.005 in the paper.
        scores: 1 - s_j is the risk.
    """
    scaled, usable = masked_rewards(policy_logps, None, beta, mask)
    risks = 1 - masked_scores(scores, usable, scaled.dtype)
    choice = scaled.masked_fill(~usable, float("-inf")).softmax(-1)
    return (choice * risks).sum(-1).mean()


def soft_info_nca_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    scores: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """InfoNCA (Chen et al. 2024, arXiv 2402.05369): a cross-entropy with soft labels,
    -sum_j softmax(s / alpha)_j log softmax(r)_j; ln K if policy equals reference and nothing is
    masked.

    Args:
        temperature: alpha. The paper's belongs to grades of its own; 0.1 is chosen for cosines. As
            it falls to 0, all reward goes to the best score, and the loss to `info_nca_loss`.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    grades = masked_scores(scores, usable, rewards.dtype) / temperature
    labels = grades.masked_fill(~usable, float("-inf")).softmax(-1)
    log_choice = rewards.masked_fill(~usable, float("-inf")).log_softmax(-1)
    # A masked column's -inf times its label 0 would be NaN.
    return -(labels * log_choice.masked_fill(~usable, 0.0)).sum(-1).mean()


def lipo_lambda_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    scores: Tensor,
) -> Tensor:
    """LiPO-lambda (Liu et al. 2024, arXiv 2402.01878, equation 8), pairwise DPO over all pairs of
    unequal scores, weighted by what exchanging the two would cost in DCG:
    sum_{s_i > s_j} |G_i - G_j| |1 / D_i - 1 / D_j| log(1 + exp(r_j - r_i)), G = 2^s - 1 and
    D = log(1 + the place of a continuation in the order of rewards, from 1).

    Equal rewards, as at the start, take places in the order of the columns. The weights take no
    gradient.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    grades = masked_scores(scores, usable, rewards.dtype)
    best_first = rewards.detach().masked_fill(~usable, float("-inf"))
    place = best_first.argsort(dim=-1, descending=True, stable=True).argsort(-1) + 1
    gain, discount = 2.0**grades - 1, 1 / (1 + place).to(rewards.dtype).log()
    weights = _differences(gain).abs() * _differences(discount).abs()
    pairs = usable[:, :, None] & usable[:, None, :] & (_differences(grades) > 0)
    values = -weights * F.logsigmoid(_differences(rewards))
    return values.masked_fill(~pairs, 0.0).sum((-2, -1)).mean()


def swepo_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    scores: Tensor,
    weight: float = 1.0,
) -> Tensor:
    """SWEPO (Gupta et al. 2024, arXiv 2412.04628): the continuations that score above their row's
    mean against all, each weighted by its distance d_j = |s_j - mean(s)| from that mean:
    -log [sum_above exp(r_j + alpha d_j) / sum_all exp(r_j + alpha d_j)].

    The ground truth always counts as above, also where all scores are equal.

    Args:
        weight: alpha, how much distance counts.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    grades = masked_scores(scores, usable, rewards.dtype)
    mean = grades.sum(-1, keepdim=True) / usable.sum(-1, keepdim=True)
    above = (grades > mean) & usable
    above[:, 0] = True
    weighted = rewards + weight * (grades - mean).abs()
    accepted = weighted.masked_fill(~above, float("-inf")).logsumexp(-1)
    return (weighted.masked_fill(~usable, float("-inf")).logsumexp(-1) - accepted).mean()


def _differences(values: Tensor) -> Tensor:
    """values_i - values_j of every pair at [i, j], `[B, K, K]`."""
    return values[:, :, None] - values[:, None, :]
