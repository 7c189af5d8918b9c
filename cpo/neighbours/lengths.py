"""Objectives of per-token log-probabilities, without a reference.

`policy_logps` and `mask` are as for `losses.cpo_loss`, as are the scalar returned and the errors
raised, besides one for a usable continuation without tokens; `reference_logps` is not used, and all
objectives share their first four arguments. `lengths` `[B, K]` are the continuations' tokens;
l_j = log pi_theta(y_j | x) / |y_j|.

ORPO, BRIO and RRHF are sums of the ground truth's likelihood and a contrast. They are whole here:
`-l_1`, the mean over a row's tokens, and `beta` times the contrast. With `mle_weight` of the
training instead, which averages over the batch's tokens, set `likelihood_weight` to 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cpo.neighbours.groups import masked_rewards, mean_over_negatives, mean_token_logps


def simpo_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    lengths: Tensor,
    margin: float = 0.5,
) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, equation 6):
    -mean_j log sigmoid(beta l_1 - beta l_j - gamma).

    Args:
        beta: 2 or 2.5 in the paper.
        margin: gamma, the target margin; 0.5 as in TRL, 0.3 to 1.6 in the paper.
    """
    _, usable = masked_rewards(policy_logps, None, beta, mask)
    per_token = mean_token_logps(policy_logps, lengths, usable)
    gaps = beta * (per_token[:, :1] - per_token[:, 1:]) - margin
    return mean_over_negatives(-F.logsigmoid(gaps), usable).mean()


def orpo_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    lengths: Tensor,
    likelihood_weight: float = 1.0,
) -> Tensor:
    """ORPO (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7):
    -l_1 - beta mean_j log sigmoid(log odds_1 - log odds_j), odds = p / (1 - p) with p = exp(l).

    Args:
        beta: lambda of the paper, 0.1 there.
        likelihood_weight: factor of -l_1.
    """
    _, usable = masked_rewards(policy_logps, None, beta, mask)
    per_token = mean_token_logps(policy_logps, lengths, usable)
    # Certainty has infinite odds: the clamp keeps what rounds to it finite.
    per_token = per_token.clamp(max=-torch.finfo(per_token.dtype).eps)
    log_odds = per_token - (-per_token.expm1()).log()
    contrast = mean_over_negatives(-F.logsigmoid(log_odds[:, :1] - log_odds[:, 1:]), usable)
    return (beta * contrast - likelihood_weight * per_token[:, 0]).mean()


def brio_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    lengths: Tensor,
    margin: float = 0.001,
    exponent: float = 2.0,
    likelihood_weight: float = 1.0,
) -> Tensor:
    """BRIO (Liu et al. 2022, arXiv 2203.16804), columns best first:
    -l_1 + beta sum_{i<j} max(0, f_j - f_i + (j - i) margin), with
    f_j = log pi_theta(y_j | x) / |y_j|^exponent.

    i and j count usable columns. The sum is the paper's; its authors' code averages pairs of equal
    distance j - i, and smooths the labels of the likelihood, which this does not.

    Args:
        policy_logps: the columns in the order tau, best first.
        beta: gamma of the paper, 100 there.
        margin, exponent: lambda and alpha of the paper, its values for CNN/DailyMail.
        likelihood_weight: factor of -l_1.
    """
    _, usable = masked_rewards(policy_logps, None, beta, mask)
    place = usable.cumsum(-1).to(policy_logps.dtype)
    wanted = margin * (place[:, None, :] - place[:, :, None])  # (j - i) margin at [i, j]
    scored = mean_token_logps(policy_logps, lengths, usable, exponent)
    contrast = _sum_over_ranked_pairs(scored, usable, wanted)
    per_token = mean_token_logps(policy_logps, lengths, usable)
    return (beta * contrast - likelihood_weight * per_token[:, 0]).mean()


def rrhf_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    lengths: Tensor,
    likelihood_weight: float = 1.0,
) -> Tensor:
    """RRHF (Yuan et al. 2023, arXiv 2304.05302), columns best first:
    -l_1 + beta sum_{i<j} max(0, l_j - l_i).

    Args:
        policy_logps: the columns in the order tau, best first.
        beta: weight of the ranking; 1 in the paper, which sums the likelihood over tokens, where
            its authors' code takes their mean.
        likelihood_weight: factor of -l_1.
    """
    _, usable = masked_rewards(policy_logps, None, beta, mask)
    per_token = mean_token_logps(policy_logps, lengths, usable)
    contrast = _sum_over_ranked_pairs(per_token, usable, torch.zeros_like(per_token)[:, None])
    return (beta * contrast - likelihood_weight * per_token[:, 0]).mean()


def _sum_over_ranked_pairs(values: Tensor, usable: Tensor, wanted: Tensor) -> Tensor:
    """sum_{i<j} max(0, values_j - values_i + wanted_ij) over usable columns, best first; `[B]`."""
    pairs = (usable[:, :, None] & usable[:, None, :]).triu(1)
    short = F.relu(values[:, None, :] - values[:, :, None] + wanted)
    return short.masked_fill(~pairs, 0.0).sum((-2, -1))
