"""One row of candidates taken apart: its loss, the softmax's weights, and the push on each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cpo.losses import cpo_loss, ranked_cpo_loss
from cpo_suite.report.plots import BLUE, PAGE, VERMILION, style
from cpo_suite.teaching.pictures import inline_picture


@dataclass(frozen=True)
class LossParts:
    """What eq. 1, or eq. 2 where ranked, makes of K candidates, the ground truth first.

    `rewards` are beta times the log-ratios; `weights` their softmax; `pushes` are minus the
    gradient on log pi_theta: what a small step of training does to each candidate, up or down.
    """

    loss: float
    start: float
    rewards: tuple[float, ...]
    weights: tuple[float, ...]
    pushes: tuple[float, ...]


def loss_parts(log_ratios: Sequence[float], beta: float, ranked: bool) -> LossParts:
    """Loss, weights and pushes of one prefix.

    Args:
        log_ratios: log pi_theta - log pi_ref of each candidate in nats, `[K]`, the ground truth
            first and, where ranked, the others by falling rank.
        beta: of eq. 1.
        ranked: eq. 2 instead of eq. 1.

    Raises:
        ValueError: beta is not positive.
    """
    policy = torch.tensor([list(log_ratios)], dtype=torch.float64, requires_grad=True)
    objective = ranked_cpo_loss if ranked else cpo_loss
    loss = objective(policy, torch.zeros_like(policy), beta)
    (gradient,) = torch.autograd.grad(loss, policy)
    rewards = beta * policy.detach()[0]
    k = len(log_ratios)
    return LossParts(
        loss.item(),
        math.lgamma(k + 1) if ranked else math.log(k),  # ln K! and ln K
        tuple(rewards.tolist()),
        tuple(rewards.softmax(-1).tolist()),
        tuple((-gradient[0]).tolist()),
    )


def in_words(parts: LossParts) -> str:
    """The picture as a sentence."""
    candidates = "; ".join(
        f"{name}: reward {reward:+.2f}, weight {weight:.2f}, pushed {push:+.2f}"
        for name, reward, weight, push in zip(
            _names(parts), parts.rewards, parts.weights, parts.pushes, strict=True
        )
    )
    return f"Loss {parts.loss:.3f}, at the start {parts.start:.3f}. {candidates}."


def loss_page(log_ratios: Sequence[float], beta: float, ranked: bool) -> str:
    """The parts as HTML: the loss in a line, and bars for each candidate."""
    parts = loss_parts(log_ratios, beta, ranked)
    which, start = ("eq. 2, ranked", "ln K!") if ranked else ("eq. 1", "ln K")
    return (
        f"<p><b>Loss {parts.loss:.3f}</b> ({which}; at the start {start} = {parts.start:.3f})</p>"
        + inline_picture(loss_figure(parts), in_words(parts))
    )


def loss_figure(parts: LossParts) -> Figure:
    """Three panels of bars, a line for each candidate: reward, weight, push."""
    places = range(len(parts.rewards))
    panels = {
        "reward r = beta x log-ratio": parts.rewards,
        "weight: softmax of the rewards": parts.weights,
        "push on the log-probability": parts.pushes,
    }
    with style():
        figure = Figure(figsize=(PAGE, 0.7 + 0.25 * len(places)))
        grid = figure.subplots(1, 3, sharey=True)
        _, weights, _ = grid
        for axes, (title, values) in zip(grid, panels.items(), strict=True):
            colours = [BLUE, *[VERMILION] * (len(values) - 1)]
            axes.barh(places, values, height=0.62, color=colours)
            # Room for numbers and their signs, and a width that does not collapse where all are 0.
            reach = 2.0 * max(0.1, *map(abs, values))
            axes.set_xlim(-reach if min(values) < 0 else 0, reach)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            for place, value in zip(places, values, strict=True):
                side = -1 if value < 0 else 1
                axes.annotate(
                    f"{value:.3f}" if axes is weights else f"{value:+.3f}",
                    (value, place), (3 * side, 0), textcoords="offset points", fontsize=7,
                    va="center", ha="left" if side > 0 else "right",
                )  # fmt: skip
            axes.axvline(0, color="#555555", lw=0.8)
            axes.set_title(title, loc="left")
            axes.grid(axis="y", visible=False)
        weights.set_xlim(0, 1.35)
        weights.set_xticks([0, 0.5, 1])
        grid[0].set_yticks(places, _names(parts))
        grid[0].invert_yaxis()
    return figure


def _names(parts: LossParts) -> list[str]:
    return ["y1, ground truth", *(f"y{number}" for number in range(2, len(parts.rewards) + 1))]
