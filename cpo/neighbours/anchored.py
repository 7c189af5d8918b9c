"""Objectives that look at each reward by itself, with 0, the reference, as the anchor.

`policy_logps`, `reference_logps`, `beta` and `mask` are as for `losses.cpo_loss`, as are the scalar
returned and the errors raised; r_j is the implicit reward beta * log(pi_theta / pi_ref) of
continuation j, and mean_j runs over the usable negatives. Unlike differences of rewards, these tell
a policy that makes the ground truth more probable from one that makes it less so.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cpo.neighbours.groups import masked_rewards, mean_over_negatives


def nca_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """NCA (Chen et al. 2024, arXiv 2402.05369) with all reward on the ground truth:
    -log sigmoid(r_1) - (1 / K) sum_k log sigmoid(-r_k), the sum over all K usable continuations,
    the ground truth among them; 2 ln 2 if policy equals reference.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    as_noise = F.logsigmoid(-rewards).masked_fill(~usable, 0.0).sum(-1) / usable.sum(-1)
    return -(F.logsigmoid(rewards[:, 0]) + as_noise).mean()


def bco_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    shift: float = 0.0,
) -> Tensor:
    """BCO (Jung et al. 2024, arXiv 2404.04656), a classifier whose logit is the reward:
    -log sigmoid(r_1 - delta) - mean_j log sigmoid(delta - r_j); 2 ln 2 if policy equals reference.

    Args:
        shift: delta. The paper lets it follow a running mean of the rewards, which would make a
            row's loss depend on other rows; here it is a constant, 0 as in TRL's `bco_pair`.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    rejected = mean_over_negatives(F.logsigmoid(shift - rewards[:, 1:]), usable)
    return -(F.logsigmoid(rewards[:, 0] - shift) + rejected).mean()


def apo_zero_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7), for ground truths better
    than what the model writes: 1 - sigmoid(r_1) + mean_j sigmoid(r_j); 1 if policy equals
    reference.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    rejected = mean_over_negatives(rewards[:, 1:].sigmoid(), usable)
    return ((-rewards[:, 0]).sigmoid() + rejected).mean()


def apo_down_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """APO-down (arXiv 2408.06266, equation 8), for ground truths worse than what the model writes:
    it lowers all, the negatives more; sigmoid(r_1) + mean_j [1 - sigmoid(r_1 - r_j)]; 1 if policy
    equals reference.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    compared = mean_over_negatives((rewards[:, 1:] - rewards[:, :1]).sigmoid(), usable)
    return (rewards[:, 0].sigmoid() + compared).mean()


def sppo_hard_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor | None = None
) -> Tensor:
    """SPPO (Wu et al. 2024, arXiv 2405.00675, equation 4.7) where the ground truth always wins, a
    regression of each log-ratio h_j = r_j / beta: (h_1 - 1 / (2 beta))^2 + mean_j (h_j + 1 / (2
    beta))^2, with 1 / beta for the paper's eta; 1 / (2 beta^2) if policy equals reference.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    log_ratios, target = rewards / beta, 1 / (2 * beta)
    rejected = mean_over_negatives((log_ratios[:, 1:] + target).square(), usable)
    return ((log_ratios[:, 0] - target).square() + rejected).mean()


def dpop_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    beta: float,
    mask: Tensor | None = None,
    *,
    penalty: float = 50.0,
) -> Tensor:
    """DPO-Positive (Pal et al. 2024, arXiv 2402.13228), pairwise DPO with a penalty on a
    ground truth that is less probable than under the reference:
    -mean_j log sigmoid(r_1 - r_j - lambda max(0, -r_1)); ln 2 if policy equals reference.

    Args:
        penalty: lambda, 50 in the paper.
    """
    rewards, usable = masked_rewards(policy_logps, reference_logps, beta, mask)
    chosen = rewards[:, :1] - penalty * F.relu(-rewards[:, :1])
    return mean_over_negatives(-F.logsigmoid(chosen - rewards[:, 1:]), usable).mean()
