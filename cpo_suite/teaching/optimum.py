"""Where equation 1 takes a policy that may be any distribution: a world of six answers, exactly.

Every draw of K candidates is enumerated, so that the expectation of equation 1 is a finite sum. It
depends on the rewards r = beta log(pi / pi_ref) alone, is convex in them, and holds no beta: one
minimisation serves every beta, and the policy is pi_ref exp(r / beta), normalised.

By hand, with p the data and A what negatives are drawn from (notebook 00, section 9):

* A the same for every ground truth, draws independent: r = log(p / A), whatever K is;
* a repeated negative drawn again, as trainings do, and K = 2: r = log(p / (A (1 - A)));
* the same, and K as large as the world: r = log p, whatever A is.

What equation 1 leaves open, such as the lengths where only texts of one length compete, stays where
gradient descent from the reference leaves it: at rewards whose sum has not changed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cpo_suite.report.plots import BLUE, style
from cpo_suite.teaching.markup import inline_picture, markup_table
from cpo_suite.teaching.piece import Piece

Array = NDArray[np.float64]

# Answers to "What is the capital of France?". People say it whole or short, and err now and then;
# the reference errs more often, and stops too early.
ANSWERS = ("It is Paris", "Paris", "It is Rome", "Rome", "It is", "It")
DATA = np.array([0.48, 0.32, 0.06, 0.04, 0.06, 0.04])
REFERENCE = np.array([0.25, 0.15, 0.20, 0.12, 0.18, 0.10])
SWAPPED = [2, 3, 0, 1, 4, 5]  # with Rome for Paris, and Paris for Rome: the answers on Italy
CUTS = {0: (4, 5), 2: (4, 5), 4: (5,)}  # truncations of an answer

BETAS = (0.5, 1.0, 2.0, 5.0, 10.0)
KINDS = {
    "AN": "AN: the reference's own",
    "BN": "BN: of other prompts",
    "MN": "MN: a word replaced",
    "TN": "TN: truncated",
    "all": "AN, BN, MN, TN alike",
}
MEANING = {
    "AN": "What people say more often than the reference is raised, what they say less, lowered.",
    "BN": "What fits this prompt better than the other is raised: Paris against Rome. Cuts are as "
    "frequent under both prompts, and lie between, good or not.",
    "MN": "An answer meets only the same one with the other city: Paris is raised against Rome, "
    "and nothing is learnt of cuts or of lengths.",
    "TN": "There is no optimum: of a text and its cuts the text is always the truth, so the loss "
    "falls for ever while long answers rise, right or wrong. Drawn where less than a tenth of it "
    "is left.",
    "all": "Each kind adds what it compares: AN what people say, BN and MN the city, TN the end.",
}
REST = 0.1  # of the first loss: where it falls for ever, the drawing stops here


@dataclass(frozen=True)
class Optimum:
    """Rewards r `[answers]` that minimise the expectation of equation 1, and its value before and
    there; without a minimum (not `exists`), some at which less than a tenth of it is left."""

    rewards: Array
    first_loss: float
    loss: float
    exists: bool

    def policy(self, beta: float) -> Array:
        """The policy with these rewards, `[answers]`."""
        unnormalised = REFERENCE * np.exp(self.rewards / beta)
        return unnormalised / unnormalised.sum()


# --- Equation 1, enumerated -----------------------------------------------------------------------


def noise(kind: str) -> Array:
    """A(y | y_1) as `[y_1, y]`; a row of zeros where the ground truth has no such negative.

    "all" draws from the four kinds alike, as far as the ground truth has them.
    """
    table = np.zeros((len(ANSWERS), len(ANSWERS)))
    if kind == "AN":
        table[:] = REFERENCE
    elif kind == "BN":  # of a batch in which every second prompt is on Italy
        table[:] = (DATA + DATA[SWAPPED]) / 2
    elif kind == "MN":
        table[[0, 1, 2, 3], SWAPPED[:4]] = 1
    elif kind == "TN":
        for truth, cuts in CUTS.items():
            table[truth, cuts] = 1 / len(cuts)
    else:
        table = sum(map(noise, ("AN", "BN", "MN", "TN")), start=table)
        table /= table.sum(1, keepdims=True)
    return table


def candidate_sets(table: Array, size: int, again: bool) -> tuple[Array, Array]:
    """All draws of a ground truth and `size` - 1 negatives.

    Args:
        table: A(y | y_1) as `[y_1, y]`.
        again: a negative that is a candidate already is drawn again; when no other is left, the
            set stays smaller.

    Returns:
        The probability of each, `[n]`; and which answer each candidate is, one-hot, the ground
        truth first, `[n, size, answers]`: a candidate that is missing is 0 throughout.
    """
    sets: list[tuple[float, tuple[int, ...]]] = [(p, (at,)) for at, p in enumerate(DATA)]
    for _ in range(size - 1):
        longer = []
        for probability, chosen in sets:
            left = table[chosen[0]].copy()
            if again:
                left[list(chosen)] = 0
            total = left.sum()
            for at in np.flatnonzero(left):
                longer.append((probability * left[at] / total, (*chosen, int(at))))
            if total == 0:
                longer.append((probability, chosen))
        sets = longer
    candidates = np.zeros((len(sets), size, len(ANSWERS)))
    for row, (_, chosen) in enumerate(sets):
        candidates[row, range(len(chosen)), chosen] = 1
    return np.array([probability for probability, _ in sets]), candidates


def expectation(
    rewards: Array, probability: Array, candidates: Array
) -> tuple[float, Array, Array]:
    """The expectation of equation 1, its gradient and its Hessian by the rewards."""
    present = candidates.any(-1)
    r = np.where(present, candidates @ rewards, -np.inf)
    weights = np.exp(r - r.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    loss = -probability @ np.log(weights[:, 0])
    mean = np.einsum("nk,nks->ns", weights, candidates)  # of each answer, in the softmax
    gradient = probability @ (mean - candidates[:, 0])
    second = np.diag(probability @ mean) - np.einsum("n,ns,nt->st", probability, mean, mean)
    return float(loss), gradient, second


@functools.cache
def optimum(kind: str, size: int, again: bool = False) -> Optimum:
    """The minimum of equation 1 for K = `size`, by Newton's method from the reference."""
    draws = candidate_sets(noise(kind), size, again)
    rewards = np.zeros(len(ANSWERS))
    first_loss = expectation(rewards, *draws)[0]
    for _ in range(200):
        loss, gradient, second = expectation(rewards, *draws)
        if np.abs(gradient).max() < 1e-13 or loss <= REST * first_loss:
            break
        # The pseudo-inverse leaves alone what the loss does not depend on. A step is kept short:
        # far from the minimum the quadratic is no guide.
        step = np.linalg.pinv(second, rcond=1e-9, hermitian=True) @ gradient
        rewards -= step * min(1.0, 0.5 / float(np.linalg.norm(step)))
    return Optimum(rewards, first_loss, loss, loss > REST * first_loss)


# --- The piece ------------------------------------------------------------------------------------


def optimum_explorer() -> Piece:
    """Controls for the kind of negative, K, beta and repeated draws; and where the policy goes."""
    betas = [(f"{value:g}", value) for value in BETAS]
    return Piece(
        "Optimum explorer",
        optimum_page,
        {
            label: dict(zip(("kind", "beta", "size", "again"), settings, strict=True))
            for label, settings in STATES.items()
        },
        kind=ipywidgets.Dropdown(
            options=[(words, kind) for kind, words in KINDS.items()], description="negatives"
        ),
        beta=ipywidgets.SelectionSlider(options=betas, value=1.0, description="beta"),
        size=ipywidgets.IntSlider(3, min=2, max=len(ANSWERS), description="candidates K"),
        again=ipywidgets.Checkbox(False, description="repeated negatives are drawn again"),
    )


# Kind, beta, K, and whether repeated negatives are drawn again.
STATES: dict[str, tuple[Any, ...]] = {
    "AN, beta 1": ("AN", 1.0, 3, False),
    "AN, beta 5": ("AN", 5.0, 3, False),
    "AN, beta 0.5": ("AN", 0.5, 3, False),
    "AN, beta 1, K = 6": ("AN", 1.0, 6, False),
    "AN, K = 2, drawn again": ("AN", 1.0, 2, True),
    "AN, K = 6, drawn again": ("AN", 1.0, 6, True),
    "BN, beta 1": ("BN", 1.0, 3, False),
    "MN, K = 2, beta 1": ("MN", 1.0, 2, False),
    "TN, beta 1": ("TN", 1.0, 3, False),
    "TN, beta 5": ("TN", 5.0, 3, False),
    "all four, beta 1": ("all", 1.0, 3, False),
    "all four, beta 5": ("all", 5.0, 3, False),
}


def optimum_page(kind: str, beta: float, size: int, again: bool) -> Markup:
    """The loss in a line, what it means, and the way of each answer's probability."""
    found = optimum(kind, size, again)
    policy = found.policy(beta)
    where = "at the optimum" if found.exists else "here"
    words = f"loss {found.first_loss:.3f} at the start, {found.loss:.3f} {where}"
    rows = [
        (answer, *map("{:.3f}".format, numbers))
        for answer, *numbers in zip(ANSWERS, REFERENCE, DATA, policy, strict=True)
    ]
    moves = "; ".join(f"{answer} from {start} to {end}" for answer, start, _, end in rows)
    return Markup("<p><b>{}; K = {}, beta = {:g}: {}.</b> {}</p>{}{}").format(
        KINDS[kind], size, beta, words, _meaning(kind, size, again),
        inline_picture(optimum_figure(policy), f"Where the policy goes: {moves}."),
        markup_table(["answer", "reference", "data", "policy"], rows, row_names=True),
    )  # fmt: skip


def _meaning(kind: str, size: int, again: bool) -> str:
    """What is seen, in sentences."""
    words = MEANING[kind]
    if kind in ("AN", "BN"):
        words += (
            " Drawing again moves the optimum, since an answer of a small world is often repeated; "
            "where texts are long it hardly does."
            if again
            else " K changes the loss, not the optimum."
        )
        if kind == "AN" and not again:
            words += " On the scale of log-probabilities it is 1/beta of the way to the data."
    if again and size == len(ANSWERS) and kind in ("AN", "BN", "all"):
        words += " All answers compete here, and the kind of negative makes no difference."
    return words


def optimum_figure(policy: Array) -> Figure:
    """A line for each answer: an arrow from the reference to the policy, and the data beside it."""
    with style():
        figure = Figure(figsize=(3.6, 2.2))
        axes = figure.subplots()
        lines = np.arange(len(ANSWERS))
        for line, start, end in zip(lines, REFERENCE, policy, strict=True):
            axes.annotate(
                "", (end, line), (start, line), arrowprops={"arrowstyle": "->", "color": BLUE}
            )
        axes.scatter(REFERENCE, lines, s=22, color="#999999", label="reference", zorder=3)
        axes.scatter(DATA, lines, s=40, facecolors="none", edgecolors="#000000", marker="D",
                     lw=0.8, label="data", zorder=3)  # fmt: skip
        axes.scatter(policy, lines, s=22, color=BLUE, label="policy", zorder=4)
        axes.set_yticks(lines, ANSWERS)
        axes.set(xlim=(-0.02, 1), xlabel="probability", ylim=(len(ANSWERS) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right")
    return figure
