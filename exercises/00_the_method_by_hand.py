"""Exercises of notebook 00."""

# %% exercise: The best policy | easy | 5 minutes
# Write eq. 8: the policy that wins most of eq. 7, for one prefix whose continuations are all
# listed. The check does not know eq. 8. It tries other policies, and asks whether one of them is
# better by eq. 7.

# %% stub
import torch


def best_policy(reference: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The optimum of eq. 7, [Y], from the reference's probabilities [Y] and rewards [Y]."""
    # solution
    unnormalised = reference * torch.exp(reward / beta)
    return unnormalised / unnormalised.sum()
    # end of solution


# %% check
reference, reward = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 2.0])
for beta in (0.5, 2.0):
    best = best_policy(reference, reward, beta)
    assert abs(float(best.sum()) - 1) < 1e-5, "probabilities add up to 1: divide by Z"
    others = torch.cat([best[None], torch.softmax(best.log() + torch.randn(500, 3) / 2, -1)])
    distance = (others * (others / reference).log()).sum(-1)  # the KL divergence of eq. 7
    worth = (others * reward).sum(-1) - beta * distance
    assert worth[0] >= worth.max() - 1e-5, f"beta {beta}: another policy is worth more by eq. 7"
assert torch.allclose(best_policy(reference, reward, 1e4), reference, atol=1e-3), (
    "with a large beta leaving the reference costs more than any reward brings"
)

# %% note
# A small $\beta$ makes the reward count for more, and the policy goes further from the reference.

# %% exercise: The same text twice | easy | 5 minutes
# Of $K$ candidates, `copies` columns hold one and the same negative. With how much strength does
# eq. 1 push *down* that text's log-probability at the very start, when policy and reference are
# equal? (Each column adds its own push, section 8.) The answer says why this project draws a
# duplicate again.


# %% stub
def push_down(candidates: int, copies: int, beta: float) -> float:
    """Derivative of eq. 1 by the log-probability of a negative that stands in `copies` columns."""
    # solution
    return beta * copies / candidates
    # end of solution


# %% check
import torch

from cpo.losses import cpo_loss

for candidates, copies, beta in ((4, 1, 5.0), (4, 2, 5.0), (12, 3, 0.5)):
    # One number for the repeated text, copied into its columns behind y_1's: autograd adds up.
    repeated = torch.zeros(1, requires_grad=True)
    once = torch.zeros(candidates - copies)
    cpo_loss(
        torch.cat([once, repeated.repeat(copies)])[None], torch.zeros(1, candidates), beta
    ).backward()
    expected = repeated.grad.item()
    found = push_down(candidates, copies, beta)
    assert abs(found - expected) < 1e-6, (
        f"K = {candidates}, {copies} of them equal, beta {beta}: autograd says {expected:.4f}, "
        f"not {found:.4f}"
    )

# %% note
# All $r_j$ are 0, every column weighs $1/K$, and `copies` columns push together. Nothing says
# that the repeated text is that much worse than the others; it only was drawn more often.

# %% exercise: The push of a whole order | medium | 15 minutes
# Derive the gradient of eq. 2 for one prefix: what is
# $\partial \mathcal{L} / \partial \log \pi_\theta(y_{\tau(k)}|x)$? Start from "ranked CPO is a
# nest of eq. 1" (section 6) and add up what section 8 says of each. Write it without autograd;
# the check has autograd.

# %% stub
import torch


def ranked_gradient(rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """Gradient [K] of eq. 2 by the policy's log-probabilities, from rewards [K], best first."""
    # solution
    gradient = torch.zeros_like(rewards)
    for k in range(len(rewards)):
        gradient[k:] += beta * rewards[k:].softmax(-1)  # all who are left compete
        gradient[k] -= beta  # the best of them should win
    return gradient
    # end of solution


# %% check
from cpo.losses import ranked_cpo_loss

# At the start, K = 4: each who competes weighs 1/4, then 1/3, 1/2, 1; the winner gets -1.
start = ranked_gradient(torch.zeros(4), 1.0)
by_hand = torch.tensor(
    [-3 / 4, 1 / 4 - 2 / 3, 1 / 4 + 1 / 3 - 1 / 2, 1 / 4 + 1 / 3 + 1 / 2 + 1 - 1]
)
assert torch.allclose(start, by_hand, atol=1e-6), f"at the start: {by_hand}, not {start}"
for beta in (0.5, 5.0):
    log_ratios = torch.randn(6, requires_grad=True)
    ranked_cpo_loss(log_ratios[None], torch.zeros(1, 6), beta).backward()
    found = ranked_gradient(beta * log_ratios.detach(), beta)
    assert torch.allclose(found, log_ratios.grad, atol=1e-5), f"beta {beta}: autograd differs"

# %% note
# At the start the second of four is pushed *up* ($-5/12$) although it is a negative: it loses one
# comparison and should win the next. Under eq. 2 a good order matters, since part of the
# negatives are treated as answers to learn from.

# %% exercise: What batch negatives reward | hard | 30 minutes
# Batch negatives are continuations of *other* prefixes:
# $A(y) = \sum_x p(x)\, p_{\text{data}}(y|x)$, the same for every prefix. By section 9, which
# policy minimises eq. 1? Write it for several prefixes at once. The check computes eq. 1 exactly,
# for $K = 2$, and asks whether the gradient at your policy is zero.

# %% stub
import torch


def optimum_of_batch_negatives(
    reference: torch.Tensor, data: torch.Tensor, prior: torch.Tensor, beta: float
) -> torch.Tensor:
    """The policy [X, Y] that minimises eq. 1, from pi_ref [X, Y], p_data [X, Y] and p(x) [X]."""
    # solution
    noise = prior @ data  # A(y), [Y]
    unnormalised = reference * (data / noise) ** (1 / beta)
    return unnormalised / unnormalised.sum(-1, keepdim=True)
    # end of solution


# %% check
# Two prefixes, four sequences: the third is as probable under one prefix as the other.
data = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.1, 0.5, 0.3, 0.1]])
reference, prior = torch.full((2, 4), 0.25), torch.tensor([0.5, 0.5])
for beta in (0.5, 1.0, 5.0):
    policy = optimum_of_batch_negatives(reference, data, prior, beta)
    assert policy.shape == (2, 4), "one distribution over the sequences for each prefix"
    assert torch.allclose(policy.sum(-1), torch.ones(2)), "each row of the policy adds up to 1"
    logits = policy.log().requires_grad_()
    rewards = beta * (logits.log_softmax(-1) - reference.log())
    lead = rewards[:, :, None] - rewards[:, None, :]  # of y_1 over y_2
    drawn = data[:, :, None] * (prior @ data)[None, None, :]  # how often this pair is drawn
    loss = -(prior[:, None, None] * drawn * torch.nn.functional.logsigmoid(lead)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-5, f"beta {beta}: not the lowest eq. 1"

# %% note
# At $\beta = 1$ and from a uniform reference $\log \pi^*(y|x)$ is $\log p(y|x) - \log p(y)$, up
# to a constant: the third sequence, as probable under one prefix as under the other, gets 0, and
# so does the last, which is rare under both. Being relevant is rewarded; being well written is
# not, and a relevant sequence full of errors is punished only as far as the data avoid it.
