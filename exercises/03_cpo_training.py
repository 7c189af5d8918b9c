"""Exercises of notebook 03."""

# %% exercise: When the push lets go | easy | 10 minutes
# The ground truth is ahead of $K - 1$ equal negatives by `lead` nats: its log-ratio minus theirs.
# At which lead has the push on it, $\beta\,(1 - w_1)$, fallen to *half* of $\beta$? A pencil is
# enough.

# %% stub
import math


def lead_at_half_push(candidates: int, beta: float) -> float:
    """The lead, in nats, at which the ground truth is pushed with half of beta."""
    # solution
    return math.log(candidates - 1) / beta
    # end of solution


# %% check
import torch

from cpo.losses import cpo_loss

for candidates, beta in ((2, 5.0), (5, 1.0), (12, 0.5), (12, 5.0)):
    log_ratios = torch.zeros(1, candidates)
    log_ratios[0, 0] = lead_at_half_push(candidates, beta)
    log_ratios.requires_grad_()
    cpo_loss(log_ratios, torch.zeros(1, candidates), beta).backward()
    push = -float(log_ratios.grad[0, 0])
    assert abs(push - beta / 2) < 1e-4, (
        f"K = {candidates}, beta {beta}: at your lead the push is {push:.3f}, not {beta / 2}"
    )

# %% note
# $w_1 = 1/2$ where $e^{\beta \cdot \text{lead}} = K - 1$. With $K = 2$ the push starts at half of
# $\beta$: there is nothing to let go. With $\beta = 5$ and $K = 12$ half a nat, on a whole
# sequence, brings the push from 4.6 to 2.5; one nat brings it to 0.35.

# %% exercise: What the curves show | medium | 15 minutes
# Write two of the curves: the **margin**, the reward of $y_1$ minus the mean reward of its usable
# negatives, and the **accuracy**, the share of prefixes whose $y_1$ has a higher reward than
# every usable negative. Both are means over the batch. Each prefix has at least one usable
# negative.

# %% stub
import torch


def margin_and_accuracy(rewards: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """From rewards [B, K], the ground truth in column 0, and mask [B, K], True where usable."""
    # solution
    negatives, usable = rewards[:, 1:], mask[:, 1:]
    mean = negatives.masked_fill(~usable, 0).sum(-1) / usable.sum(-1)
    best = negatives.masked_fill(~usable, -torch.inf).amax(-1)
    truth = rewards[:, 0]
    return float((truth - mean).mean()), float((truth > best).float().mean())
    # end of solution


# %% check
rewards = torch.tensor([[2.0, 1.0, -1.0], [0.5, 1.5, -1.5], [1.0, 0.0, 9.0], [0.0, 0.0, 0.0]])
mask = torch.ones(4, 3, dtype=torch.bool)
mask[2, 2] = False  # the 9 is an empty column's
margin, accuracy = margin_and_accuracy(rewards, mask)
# Margins 2 - 0, 0.5 - 0, 1 - 0, 0 - 0; ahead of all: yes, no, yes, no (a tie is not ahead).
assert abs(margin - 3.5 / 4) < 1e-5, f"by hand: (2 + 0.5 + 1 + 0) / 4 = 0.875, not {margin:.4f}"
assert abs(accuracy - 0.5) < 1e-5, f"by hand: the first and the third, 0.5, not {accuracy:.4f}"
lower = rewards - torch.randn(4, 1)
assert abs(margin_and_accuracy(lower, mask)[0] - margin) < 1e-4, (
    "a margin is a difference: the same number off a whole row changes nothing"
)

# %% note
# The second row has a margin above 0 and is wrong: a mean forgives one negative that is ahead.
# The last is what every training starts with.

# %% exercise: The columns, a few at a time | hard | 30 minutes
# The softmax couples the $K$ columns, so a loss cannot be cut by columns as a batch is cut into
# micro-batches. And yet all of them need not be in memory with their gradients at once: score
# everything *without* gradient, take $\partial \mathcal{L} / \partial \log \pi_\theta$ on that
# table, then score again, `chunk` columns at a time, and hand each chunk its share of that
# gradient.

# %% stub
from collections.abc import Callable

import torch


def backward_by_columns(
    score: Callable[[list[int]], torch.Tensor],
    loss: Callable[[torch.Tensor], torch.Tensor],
    candidates: int,
    chunk: int,
) -> float:
    """Leaves the gradients of loss(score(all columns)) in the model; returns the loss.

    `score(columns)` is [B, len(columns)]; `loss` takes the whole table [B, K].
    """
    # solution
    columns = list(range(candidates))
    chunks = [columns[start : start + chunk] for start in range(0, candidates, chunk)]
    with torch.no_grad():
        table = torch.cat([score(one) for one in chunks], -1)
    value = loss(table.requires_grad_())
    value.backward()
    for one in chunks:
        score(one).backward(table.grad[:, one])
    return value.item()
    # end of solution


# %% check
from cpo.losses import ranked_cpo_loss

features, reference = torch.randn(3, 6, 4), torch.randn(3, 6)  # B = 3 prefixes, K = 6
weights = torch.randn(4, requires_grad=True)
seen = []


def score(columns):
    if torch.is_grad_enabled():
        seen.append(len(columns))
    return (features[:, columns] @ weights).tanh()


def loss(table):
    return ranked_cpo_loss(table, reference, 2.0)


whole = loss(score(list(range(6))))
(expected,) = torch.autograd.grad(whole, weights)
for chunk in (1, 2, 4, 6):
    weights.grad = None
    seen.clear()
    value = backward_by_columns(score, loss, 6, chunk)
    assert abs(value - whole.item()) < 1e-4, f"chunks of {chunk}: the loss is {whole:.4f}"
    assert weights.grad is not None, "no gradient arrived in the model"
    assert seen and max(seen) <= chunk, f"{max(seen)} columns at once, not {chunk}"
    assert torch.allclose(weights.grad, expected, atol=1e-4), f"another gradient by {chunk}"

# %% note
# `backward(gradient)` on a tensor multiplies by that gradient from the left: the chain rule at
# the table. It costs one more forward pass, and is how a group of $K$ long continuations is
# trained where memory is short.
