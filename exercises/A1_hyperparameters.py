"""Exercises of appendix A1: the winner's rule and the edge of the grid, what beta does to AdamW."""

# %% exercise: Winners at the edge | easy | 15 minutes
# Choose each method's winner by the rule above: the best win rate; of equal ones the smaller rate,
# and then the smaller $\beta$. And say of each winner whether its rate is the smallest or the
# largest that was tried of its method, so that a wider grid might have found a better one.

# %% stub
import pandas as pd


def winners(trials: pd.DataFrame) -> pd.DataFrame:
    """Index: method. Columns: learning_rate, beta, win_rate, and at_edge (bool).

    `trials` has a line for each training: method, learning_rate, beta (NaN where a method has
    none) and win_rate, in any order.
    """
    # solution
    ordered = trials.sort_values(
        ["win_rate", "learning_rate", "beta"], ascending=[False, True, True]
    )
    best = ordered.drop_duplicates("method").set_index("method")
    tried = trials.groupby("method")["learning_rate"].agg(["min", "max"]).loc[best.index]
    at_low, at_high = (best["learning_rate"] == tried[end] for end in ("min", "max"))
    best["at_edge"] = at_low | at_high
    return best[["learning_rate", "beta", "win_rate", "at_edge"]]
    # end of solution


# %% check
import math

from cpo_suite.profile import ROOT

rows = [
    ("MLE", 1e-5, math.nan, 0.25), ("MLE", 1e-6, math.nan, 0.20), ("MLE", 1e-4, math.nan, 0.25),
    ("CPO", 1e-4, 0.2, 0.30), ("CPO", 1e-5, 1.0, 0.31), ("CPO", 1e-5, 0.2, 0.31),
    ("CPO", 1e-4, 1.0, 0.28),
]  # fmt: skip
made = pd.DataFrame(rows, columns=["method", "learning_rate", "beta", "win_rate"])
found = winners(made)
assert set(found.index) == {"MLE", "CPO"}, f"a line for each method, not {list(found.index)}"
assert found.loc["MLE", "learning_rate"] == 1e-5, "of equal ones the smaller rate"
assert not found.loc["MLE", "at_edge"], "1e-5 lies between 1e-6 and 1e-4"
cpo = found.loc["CPO"]
assert (cpo["learning_rate"], cpo["beta"]) == (1e-5, 0.2), "of equal rates the smaller beta"
assert cpo["at_edge"], "1e-5 is the smallest rate that CPO was given here"

# The search of the profile tiny, as it was recorded.
trials = pd.read_csv(ROOT / "figures" / "tiny" / "hyperparameters.csv")
found = winners(trials.sample(frac=1, random_state=0))
for method, line in found.iterrows():
    own = trials[trials["method"] == method]
    assert line["win_rate"] == own["win_rate"].max(), f"{method}: there is a better one"
    equal = own[own["win_rate"] == line["win_rate"]]
    assert line["learning_rate"] == equal["learning_rate"].min(), f"{method}: the smaller rate"
    edge = line["learning_rate"] in (own["learning_rate"].min(), own["learning_rate"].max())
    assert line["at_edge"] == edge, f"{method}: is {line['learning_rate']:g} at the edge?"
print(found)

# %% note
# A winner at the lower edge says: this method did best where it did least. Whether an even smaller
# rate is better cannot be told from this search; the intervals of its neighbours overlap as it is.

# %% exercise: What beta does to Adam | medium | 30 minutes
# The gradient of eq. 1 is $\beta\,(w_j - [j = 1])$ (notebook 00), so one might think that a larger
# $\beta$ is just a larger learning rate, and that a grid needs only one of the two. For plain
# gradient descent, at the first step, that is so. Adam divides the gradient by its own size.
#
# Write a training small enough to see it: the policy's three log-probabilities are themselves the
# parameters.

# %% stub
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

REFERENCE = torch.tensor([[-4.0, -3.0, -5.0]])  # log pi_ref(y_j | x), column 0 the ground truth


def trained(optimiser: Callable[..., Any], beta: float, rate: float, steps: int) -> Tensor:
    """Log-ratios [3], policy minus reference, after `steps` steps of eq. 1 from the reference.

    `optimiser` is a class such as torch.optim.SGD; the policy is a tensor [1, 3] that starts as
    REFERENCE.
    """
    # solution
    from cpo.losses import cpo_loss

    policy = REFERENCE.clone().requires_grad_()
    search = optimiser([policy], lr=rate)
    for _ in range(steps):
        search.zero_grad()
        cpo_loss(policy, REFERENCE, beta).backward()
        search.step()
    return (policy - REFERENCE).detach()[0]
    # end of solution


# %% check
from torch.optim import SGD, Adam

# At the start w_j = 1/3: SGD moves y_1 by rate * beta * 2/3, the others by -rate * beta / 3.
for beta in (0.2, 5.0):
    expected = 0.01 * beta * torch.tensor([2 / 3, -1 / 3, -1 / 3])
    found = trained(SGD, beta, rate=0.01, steps=1)
    assert torch.allclose(found, expected, atol=1e-6), f"SGD, beta {beta:g}: {found.tolist()}"
# Two steps are twice as much, nearly: the weights w_j have hardly changed.
found = trained(SGD, 0.2, rate=0.01, steps=2)
expected = 2 * 0.01 * 0.2 * torch.tensor([2 / 3, -1 / 3, -1 / 3])
assert torch.allclose(found, expected, rtol=0.01), "every step uses its own gradient alone"
# Adam's first step is rate * sign(gradient), whatever beta.
for beta in (0.2, 5.0):
    found = trained(Adam, beta, rate=0.01, steps=1)
    assert torch.allclose(found, torch.tensor([0.01, -0.01, -0.01]), atol=1e-5), (
        f"Adam, beta {beta:g}: {found.tolist()}"
    )
# Later it matters: a large beta lets go once y_1 leads by a few times 1 / beta nats.
leads = {}
for beta in (0.2, 1.0, 5.0):
    found = trained(Adam, beta, rate=0.05, steps=100)
    leads[beta] = float(found[0] - found[1])
    print(f"Adam, beta {beta:g}: y_1 leads by {leads[beta]:.2f} nats after 100 steps")
assert leads[0.2] > leads[1.0] > leads[5.0] > 0, f"a larger beta, a shorter leash: {leads}"

# %% note
# With Adam $\beta$ is not the strength of the push but the length of the leash: it says at which
# lead the push ends. The rate says how fast the policy gets there. Neither does the other's work,
# so the grid has both.
