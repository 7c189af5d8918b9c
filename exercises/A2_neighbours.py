"""Exercises of appendix A2: when an objective lets go, and what each is at the start."""

# %% exercise: When an objective lets go | easy | 15 minutes
# A prefix has its ground truth and one negative ($K = 2$), and the ground truth leads by `lead`
# nats: its log-ratio is `lead`, the negative's 0. How hard does an objective still push the ground
# truth up? Write the push, minus the derivative of the loss with respect to
# $\log \pi_\theta(y_1|x)$, for any function of `cpo.neighbours` that takes log-probabilities alone.

# %% stub
from collections.abc import Callable

import torch
from torch import Tensor


def push(objective: Callable[..., Tensor], lead: float, beta: float) -> float:
    """Minus d loss / d log pi(y_1 | x) where y_1 leads the one negative by `lead` nats."""
    # solution
    policy_logps = torch.tensor([[lead, 0.0]], dtype=torch.float64, requires_grad=True)
    objective(policy_logps, torch.zeros_like(policy_logps), beta).backward()
    return -float(policy_logps.grad[0, 0])
    # end of solution


# %% check
import math

from cpo.neighbours import ipo_loss, nca_loss, pairwise_dpo_loss, spin_hinge_loss

beta = 0.5
for lead in (-1.0, 0.0, 1.0, 6.0):
    # DPO's logistic link: beta * sigmoid(-beta * lead), always a little.
    expected = beta / (1 + math.exp(beta * lead))
    found = push(pairwise_dpo_loss, lead, beta)
    assert abs(found - expected) < 1e-6, f"DPO at {lead:g}: {expected:.3f}, not {found:.3f}"
# The hinge pushes with beta until the rewards differ by 1, that is at 1 / beta = 2 nats.
assert [round(push(spin_hinge_loss, lead, beta), 6) for lead in (0.0, 1.9, 2.1)] == [
    0.5,
    0.5,
    0,
]
# IPO wants a lead of 1 / (2 beta) = 1 nat, and pulls the ground truth back beyond it.
assert abs(push(ipo_loss, 1.0, beta)) < 1e-6 < push(ipo_loss, 0.5, beta)
assert push(ipo_loss, 2.0, beta) < 0
# NCA looks at y_1 itself: at the start beta (1/2 - 1/4), once for itself, once as noise.
assert abs(push(nca_loss, 0.0, beta) - beta / 4) < 1e-6
for name, objective in {
    "DPO": pairwise_dpo_loss,
    "hinge": spin_hinge_loss,
    "IPO": ipo_loss,
}.items():
    print(name, [round(push(objective, lead, beta), 3) for lead in (0.0, 1.0, 2.5, 5.0)])

# %% note
# The logistic function never quite lets go, the hinge lets go once the lead is 1 / beta, and the
# regression turns round at its target. So IPO bounds the lead, and the hinge stops adding to it;
# DPO leaves it to the number of steps.

# %% exercise: What each is at the start | medium | 20 minutes
# Every objective's gradient is a combination of the scores $s_j = \nabla \log \pi_\theta(y_j|x)$:
# $-\nabla \mathcal{L} = \sum_j A_j s_j$ (notebook 03, section 5). Write the weights $A_j$ where
# policy and reference are equal and all $K$ candidates are equally probable; objectives without a
# reference need the second condition. Then say which objectives are *contrasts*: the same number
# added to all log-probabilities of a row leaves their loss as it is. (The argument `scores` of a
# graded objective is something else: how good each candidate is.)

# %% stub
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def weights(objective: Callable[..., Tensor], k: int, beta: float, **extras: Any) -> Tensor:
    """A [k], minus the gradient by k equal log-probabilities, where policy equals reference."""
    # solution
    logps = torch.full((1, k), -8.0, dtype=torch.float64, requires_grad=True)
    objective(logps, logps.detach(), beta, **extras).backward()
    return -logps.grad[0]
    # end of solution


def is_contrast(objective: Callable[..., Tensor], **extras: Any) -> bool:
    """Whether one number added to all log-probabilities of a row of five leaves its loss."""
    # solution
    policy_logps = torch.tensor([[-6.0, -8.0, -7.0, -9.0, -5.0]], dtype=torch.float64)
    reference_logps = torch.full_like(policy_logps, -8.0)
    losses = [
        float(objective(policy_logps - shift, reference_logps, 0.5, **extras))
        for shift in (0.0, 2.0)
    ]
    return abs(losses[0] - losses[1]) < 1e-9
    # end of solution


# %% check
from cpo import neighbours
from cpo.losses import cpo_loss

eq_1 = weights(cpo_loss, 4, 2.0)
expected = 2.0 * torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64)
assert torch.allclose(eq_1, expected), f"beta ([j = 1] - 1/K), not {eq_1.tolist()}"
# In pairs: half of beta for the ground truth, and shared by the negatives.
found = weights(neighbours.pairwise_dpo_loss, 5, 2.0)
assert torch.allclose(found, torch.tensor([1.0, *[-0.25] * 4], dtype=torch.float64)), found
contrasts = (cpo_loss, neighbours.pairwise_dpo_loss, neighbours.exo_loss, neighbours.ipo_loss)
assert all(map(is_contrast, contrasts)), "these know differences alone"
assert not is_contrast(neighbours.nca_loss), "NCA knows where the reference is"
start = weights(neighbours.nca_loss, 4, 2.0)
assert torch.allclose(start, eq_1 / 2), "and starts with half of the weights of eq. 1"
lengths = torch.tensor([[4, 4, 4, 4, 4]])
assert is_contrast(neighbours.simpo_loss, lengths=lengths), "a difference per token"
assert not is_contrast(neighbours.rrhf_loss, lengths=lengths), "it carries a likelihood"
scores = torch.tensor([[1.0, 0.8, 0.6, 0.4, 0.2]])
risk = weights(neighbours.expected_risk_loss, 5, 0.5, scores=scores)
assert risk.argsort(descending=True).tolist() == [0, 1, 2, 3, 4], "the better, the higher"
print("expected risk:", [round(one, 3) for one in risk.tolist()])

# %% note
# The scores of the model's own samples have mean zero. With weights that are equal for all such
# negatives, only MLE is left. Weights that depend on how good a sample is give a policy gradient,
# REINFORCE, with $A_j$ as the *advantage*: how much better than average the sample is.
