"""Objectives of differences between rewards: a constant added to a row's rewards changes nothing.

`policy_logps`, `reference_logps`, `beta` and `mask` are as for `losses.cpo_loss`, as are the scalar
returned and the errors raised; r_j is the implicit reward beta * log(pi_theta / pi_ref) of
continuation j, and m_j = r_1 - r_j the margin of the ground truth over negative j.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from cpo.losses import cpo_loss
from cpo.neighbours.groups import margins, mean_over_negatives


def pairwise_dpo_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, equation 7), each negative in a pair of its own:
    -mean_j log sigmoid(m_j); ln 2 if policy equals reference.
    """
    gaps, usable = margins(policy_logps, reference_logps, beta, mask)
    return mean_over_negatives(-F.logsigmoid(gaps), usable).mean()


def spin_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """SPIN (Chen et al. 2024, arXiv 2401.01335, equation 4.7) with its logistic link:
    mean_j log(1 + exp(-m_j)).

    This is `pairwise_dpo_loss`. SPIN differs in its data: all negatives are the model's own, and
    each iteration draws them anew from a reference that is the last iteration's policy.
    """
    return pairwise_dpo_loss(policy_logps, reference_logps, beta, mask)


def spin_hinge_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """SPIN with its hinge link: mean_j max(0, 1 - m_j); 1 if policy equals reference.

    In a pair, also the normalised hinge of RSO (Liu et al. 2023, arXiv 2309.06657) and the loss
    that TRL calls `hinge`.
    """
    gaps, usable = margins(policy_logps, reference_logps, beta, mask)
    return mean_over_negatives(F.relu(1.0 - gaps), usable).mean()


def slic_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    margin: float = 1.0,
) -> Tensor:
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425), its rank calibration:
    mean_j max(0, margin - beta (log pi_theta(y_1|x) - log pi_theta(y_j|x))).

    Its regulariser, the likelihood of a recorded response, is left to `mle_weight` of the training.

    Args:
        reference_logps: not used; all objectives share their first four arguments.
        margin: delta of the paper, in units of beta times log-probabilities.
    """
    gaps, usable = margins(policy_logps, None, beta, mask)
    return mean_over_negatives(F.relu(margin - gaps), usable).mean()


def ipo_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """IPO (Azar et al. 2023, arXiv 2310.12036, equation 17): mean_j (m_j / beta - 1 / (2 beta))^2,
    a regression of the difference in log-ratios, with beta for the paper's tau; 1 / (4 beta^2) if
    policy equals reference.

    Log-ratios are sums over tokens, as in the paper; TRL divides each by its length.
    """
    gaps, usable = margins(policy_logps, reference_logps, beta, mask)
    return mean_over_negatives((gaps / beta - 1 / (2 * beta)).square(), usable).mean()


def robust_dpo_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    flip_rate: float = 0.1,
) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409), unbiased if a share epsilon of the
    pairs is labelled the wrong way round:
    -mean_j [(1 - epsilon) log sigmoid(m_j) - epsilon log sigmoid(-m_j)] / (1 - 2 epsilon).

    Args:
        flip_rate: epsilon, which the paper takes as known; 0 is `pairwise_dpo_loss`.

    Raises:
        ValueError: also if flip_rate is not in [0, 0.5).
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate must be in [0, 0.5), not {flip_rate}")
    gaps, usable = margins(policy_logps, reference_logps, beta, mask)
    values = flip_rate * F.logsigmoid(-gaps) - (1 - flip_rate) * F.logsigmoid(gaps)
    return mean_over_negatives(values, usable).mean() / (1 - 2 * flip_rate)


def exo_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    label_smoothing: float = 1e-3,
) -> Tensor:
    """EXO for preferences (Ji et al. 2024, arXiv 2402.00856, equation 16): the reverse KL
    divergence from the policy's choice in a pair, q_j = sigmoid(m_j), to a label p = 1 - epsilon;
    mean_j [q_j log(q_j / p) + (1 - q_j) log((1 - q_j) / (1 - p))].

    Args:
        label_smoothing: epsilon; 0.001 as the paper recommends.

    Raises:
        ValueError: also if label_smoothing is not in (0, 0.5).
    """
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in (0, 0.5), not {label_smoothing}")
    gaps, usable = margins(policy_logps, reference_logps, beta, mask)
    chosen = gaps.sigmoid() * (F.logsigmoid(gaps) - math.log1p(-label_smoothing))
    rejected = (-gaps).sigmoid() * (F.logsigmoid(-gaps) - math.log(label_smoothing))
    return mean_over_negatives(chosen + rejected, usable).mean()


def info_nca_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """InfoNCA (Chen et al. 2024, arXiv 2402.05369) with all reward on the ground truth, which is
    `losses.cpo_loss`: -log softmax(r)_1. `soft_info_nca_loss` spreads the reward by scores."""
    return cpo_loss(policy_logps, reference_logps, beta, mask)
