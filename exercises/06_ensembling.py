"""Exercises of notebook 06: the lowest point of the line, numbering of units, an honest alpha."""

# %% exercise: The bottom of the valley | easy | 15 minutes
# Where both updates are small the held-out loss along the line between the ends is nearly a
# parabola in $\alpha$ (its Taylor series, cut after the square). So three models are enough to
# guess its lowest point: both ends and the middle.
#
# Write the $\alpha$ at which the parabola through these three losses is lowest. It may lie beyond
# the ends. If there is no lowest point, because the three lie on a straight line or on a hill,
# raise a `ValueError`.


# %% stub
def bottom(at_0: float, at_half: float, at_1: float) -> float:
    """The alpha where the parabola through the losses at alpha = 0, 1/2 and 1 is lowest.

    Raises:
        ValueError: the parabola has no lowest point.
    """
    # solution
    # a + slope alpha + bend alpha^2 through the three points.
    slope = 4 * at_half - 3 * at_0 - at_1
    bend = 2 * (at_0 + at_1 - 2 * at_half)
    if bend <= 0:
        raise ValueError("a line or a hill between the ends has no lowest point")
    return -slope / (2 * bend)
    # end of solution


# %% check
import math

import torch

# (alpha - 0.3)^2 is 0.09, 0.04, 0.49 at 0, 1/2, 1. (alpha + 0.2)^2 is 0.04, 0.49, 1.44.
assert math.isclose(bottom(0.09, 0.04, 0.49), 0.3), "(alpha - 0.3)^2 is lowest at 0.3"
assert math.isclose(bottom(0.04, 0.49, 1.44), -0.2), "(alpha + 0.2)^2 is lowest beyond the end"
for name, losses in {"a hill": (1.0, 2.0, 1.0), "a flat line": (1.0, 1.0, 1.0)}.items():
    try:
        found = bottom(*losses)
    except ValueError:
        continue
    raise AssertionError(f"{name} has no lowest point, but you found one at {found}")

# A loss that is a parabola in earnest: least squares, on the line between two sets of weights.
torch.manual_seed(0)
inputs, targets = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
theta_mle, theta_cpo = torch.randn(2, 4, dtype=torch.float64)


def squared_error(alpha):
    theta = alpha * theta_mle + (1 - alpha) * theta_cpo
    return float((inputs @ theta - targets).square().mean())


best = bottom(squared_error(0), squared_error(0.5), squared_error(1))
around = min(squared_error(best + step / 100) for step in range(-300, 301))
assert squared_error(best) <= around + 1e-12, "some alpha near yours has a lower loss"

# %% note
# For a network this is a guess, good while the updates are small. Try it on the held-out losses of
# table 2 above, at $\alpha = 0$, $0.5$ and $1$. It says where the *loss* is lowest, which need
# not be where answers are best.

# %% exercise: The same network, ruined by averaging | medium | 20 minutes
# Averaging works here because both ends come from one reference. To see what else can happen, make
# a network that computes *exactly the same* as another, and whose average with it computes
# something else: number the units of the hidden layer in another order.

# %% stub
import torch
from torch import Tensor


def renumbered(state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The state dict of the same function, with hidden unit `order[i]` in the place i.

    `state` is that of nn.Sequential(nn.Linear(I, H), nn.Tanh(), nn.Linear(H, O)): "0.weight"
    [H, I], "0.bias" [H], "2.weight" [O, H] and "2.bias" [O]. `order` is [H].
    """
    # solution
    return {
        "0.weight": state["0.weight"][order],
        "0.bias": state["0.bias"][order],
        "2.weight": state["2.weight"][:, order],  # what a unit is multiplied by moves with it
        "2.bias": state["2.bias"],
    }
    # end of solution


# %% check
import copy

from cpo.ensembling import interpolate

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
order = torch.arange(16).roll(1)  # every unit gets another place
twin, neighbour = copy.deepcopy(network), copy.deepcopy(network)
twin.load_state_dict(renumbered(network.state_dict(), order))
samples = torch.randn(500, 4)


def outputs(of):
    with torch.no_grad():
        return of(samples)


unit = network[0].weight[order[0]]
assert torch.equal(twin[0].weight[0], unit), "unit order[0] is to stand in the place 0"
assert torch.allclose(outputs(twin), outputs(network), atol=1e-5), (
    "the twin has to compute the same: which other weights belong to a hidden unit?"
)


def far(of):
    """How far from the network's outputs, as a share of their variance."""
    return float((outputs(of) - outputs(network)).square().mean() / outputs(network).var())


# The middle between the network and its twin, and between it and a small update of it.
with torch.no_grad():
    for weights in neighbour.parameters():
        weights.add_(0.02 * torch.randn_like(weights))
ruined = far(interpolate(network, copy.deepcopy(twin), 0.5))
sound = far(interpolate(network, copy.deepcopy(neighbour), 0.5))
print(f"middle of the same network twice: {ruined:.3f}; of it and a small update: {sound:.4f}")
assert ruined > 20 * sound

# %% note
# A transformer has such symmetries in every layer: hidden units and attention heads can be numbered
# anew. Two trainings from different random starts number them differently, and their average mixes
# units that have nothing to do with each other. A few steps at a low rate from *one* reference
# leave the numbering alone.

# %% exercise: An honest alpha | medium | 20 minutes
# The best of five values of $\alpha$ on the test prompts is too good to be true. How much too good?
# Write both ways of reporting an ensemble: choose on validation prompts and report the test
# prompts, or choose and report on the test prompts.

# %% stub
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def report(validation: Array, test: Array) -> tuple[int, float, float]:
    """The row that validation prompts choose, its win rate on test prompts, and the best of any.

    `validation` [A, n] and `test` [A, m] are points of A values of alpha. Of rows that are equal on
    the validation prompts the first is chosen.
    """
    # solution
    chosen = int(validation.mean(-1).argmax())
    return chosen, float(test[chosen].mean()), float(test.mean(-1).max())
    # end of solution


# %% check
# Validation: 1/2, 1, 1, so the second row (the first of two equal ones). Test: 1/4, 1/2, 3/4.
validation = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
test = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
found = report(validation, test)
assert found == (1, 0.5, 0.75), f"row 1 of 0, 1, 2 is chosen: (1, 0.5, 0.75), not {found}"

# Five ensembles that are all worth exactly one half, on 200 prompts of each kind, 1,000 times.
random = np.random.default_rng(0)
honest, best = np.array([
    report(*(random.random((2, 5, 200)) < 0.5).astype(float))[1:] for _ in range(1000)
]).mean(0)  # fmt: skip
print(f"chosen on validation prompts: {honest:.3f}; best on the test prompts: {best:.3f}")
# The largest of 5 standard normals is 1.163 on average; here times sqrt(0.25 / 200) = 0.0354.
assert abs(honest - 0.5) < 0.005, "what validation prompts chose has no luck on test prompts"
assert abs(best - (0.5 + 1.163 * 0.0354)) < 0.005, "the best of five is about 4 points too good"

# %% note
# Four points for nothing, more than most differences of the tables. Real ensembles with
# neighbouring $\alpha$ win and lose on the same prompts, so their bias is smaller; it is never
# negative. In the suite, `suite.verdicts(row, split="validation")` has the points to choose on.
