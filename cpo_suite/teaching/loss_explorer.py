"""The loss of one row of candidates, with each one's softmax weight and push."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import pandas as pd
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cpo.losses import cpo_loss, ranked_cpo_loss
from cpo_suite.report.plots import BLUE, PAGE, VERMILION, style
from cpo_suite.teaching.markup import inline_picture
from cpo_suite.teaching.piece import Piece

MOST = 6  # candidates
BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

# Title and number format of each panel of the figure.
BAR_PANELS = {
    "reward": ("reward r = beta x log-ratio", "{:+.3f}"),
    "weight": ("weight: softmax of the rewards", "{:.3f}"),
    "push": ("push on the log-probability", "{:+.3f}"),
}


def loss_explorer(log_ratios: Sequence[float] = (0.3, 0.6, 0.0, -0.6), beta: float = 1.0) -> Piece:
    """Sliders for the log-ratios of 2 to 6 candidates and for beta, and eq. 1 or 2 of them.

    Args:
        log_ratios: log pi_theta - log pi_ref of the candidates to begin with, the ground truth
            first; 2 to 6 of them.
        beta: to begin with.

    Raises:
        ValueError: fewer than 2 or more than 6 candidates.
    """
    if not 2 <= len(log_ratios) <= MOST:
        raise ValueError(f"the explorer has 2 to {MOST} candidates, not {len(log_ratios)}")
    size = ipywidgets.IntSlider(len(log_ratios), min=2, max=MOST, description="candidates K")
    betas = [(f"{value:g}", value) for value in sorted({*BETAS, beta})]
    values = [*log_ratios, *[0.0] * (MOST - len(log_ratios))]
    return Piece(
        "Loss explorer",
        lambda size, beta, ranked, **values: loss_page(list(values.values())[:size], beta, ranked),
        states_of(log_ratios, beta),
        size=size,
        beta=ipywidgets.SelectionSlider(options=betas, value=beta, description="beta"),
        ranked=ipywidgets.Checkbox(False, description="ranking (y1 best, then y2, y3, ...)"),
        **{f"y{number}": _slider(number, value, size) for number, value in enumerate(values, 1)},
    )


def states_of(log_ratios: Sequence[float], beta: float) -> dict[str, Mapping[str, Any]]:
    """A dozen states of the explorer: as it begins, and what the notebook asks to find out."""
    start = {f"y{number}": value for number, value in enumerate(log_ratios, 1)}
    level = dict.fromkeys(start, 0.0)
    leads, trails = level | {"y1": 0.6}, level | {"y2": 0.6}
    one, other = [value for value in (0.1, 5.0, 1.0) if value != beta][:2]
    return {
        f"at first, beta {beta:g}": start,
        f"the same, beta {one:g}": start | {"beta": one},
        f"the same, beta {other:g}": start | {"beta": other},
        "the same, ranked": start | {"ranked": True},
        "the same, y3 lowered to -3": start | {"y3": -3.0, "size": max(3, len(start))},
        "all at 0": level,
        "all at 0, ranked": level | {"ranked": True},
        "all at 0, two candidates": level | {"size": 2},
        "y1 leads by 0.6, beta 0.5": leads | {"beta": 0.5},
        "y1 leads by 0.6, beta 2": leads | {"beta": 2.0},
        "y1 leads by 0.6, beta 10": leads | {"beta": 10.0},
        "y2 leads by 0.6, beta 10": trails | {"beta": 10.0},
    }


def _slider(number: int, log_ratio: float, size: ipywidgets.IntSlider) -> ipywidgets.FloatSlider:
    """For the log-ratio of a candidate; hidden where there are fewer candidates."""
    slider = ipywidgets.FloatSlider(log_ratio, min=-3.0, max=3.0, step=0.1)
    slider.description = f"log-ratio of y{number}"
    display = (slider.layout, "display")
    ipywidgets.dlink((size, "value"), display, lambda k: None if number <= k else "none")
    return slider


def loss_parts(
    log_ratios: Sequence[float], beta: float, ranked: bool
) -> tuple[float, pd.DataFrame]:
    """The loss of one prefix, with the terms of each of its K candidates.

    Args:
        log_ratios: log pi_theta - log pi_ref of each candidate in nats, `[K]`, the ground truth
            first and, where ranked, the others by falling rank.
        beta: of eq. 1.
        ranked: eq. 2 instead of eq. 1.

    Returns:
        The loss; and a row for each candidate: its `reward`, beta times the log-ratio; its
        `weight` in their softmax; and `push`, minus the gradient on log pi_theta, which is what a
        small step of training does to it, up or down.

    Raises:
        ValueError: beta is not positive.
    """
    policy = torch.tensor([list(log_ratios)], dtype=torch.float64, requires_grad=True)
    loss = (ranked_cpo_loss if ranked else cpo_loss)(policy, torch.zeros_like(policy), beta)
    (gradient,) = torch.autograd.grad(loss, policy)
    rewards = beta * policy.detach()[0]
    parts = {"reward": rewards, "weight": rewards.softmax(-1), "push": -gradient[0]}
    names = ["y1, ground truth", *(f"y{number}" for number in range(2, len(log_ratios) + 1))]
    return loss.item(), pd.DataFrame({name: parts[name].tolist() for name in BAR_PANELS}, names)


def loss_page(log_ratios: Sequence[float], beta: float, ranked: bool) -> Markup:
    """The loss in a line, beside it what it is where policy and reference agree; and bars for each
    candidate."""
    loss, parts = loss_parts(log_ratios, beta, ranked)
    k = len(log_ratios)
    which, start, at_start = (
        ("eq. 2, ranked", "ln K!", math.lgamma(k + 1)) if ranked else ("eq. 1", "ln K", math.log(k))
    )
    words = f"Loss {loss:.3f}, at the start {at_start:.3f}. " + "; ".join(
        f"{name}: reward {reward:+.2f}, weight {weight:.2f}, pushed {push:+.2f}"
        for name, reward, weight, push in parts.itertuples()
    )
    return Markup("<p><b>Loss {:.3f}</b> ({}; at the start {} = {:.3f})</p>{}").format(
        loss, which, start, at_start, inline_picture(loss_figure(parts), f"{words}.")
    )


def loss_figure(parts: pd.DataFrame) -> Figure:
    """Three panels of bars, a line for each candidate: reward, weight, push."""
    with style():
        figure = Figure(figsize=(PAGE, 0.7 + 0.25 * len(parts)))
        grid = figure.subplots(1, 3, sharey=True)
        for axes, (column, (title, number)) in zip(grid, BAR_PANELS.items(), strict=True):
            values = parts[column]
            colours = [BLUE] + [VERMILION] * (len(values) - 1)
            bars = axes.barh(parts.index, values, height=0.62, color=colours)
            axes.bar_label(bars, fmt=number, padding=3, fontsize=7)
            # Room for numbers and their signs, and a width that does not collapse where all are 0.
            reach = 2.0 * max(0.1, values.abs().max())
            axes.set_xlim(-reach if values.min() < 0 else 0, reach)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.axvline(0, color="#555555", lw=0.8)
            axes.set_title(title, loc="left")
            axes.grid(axis="y", visible=False)
        grid[1].set(xlim=(0, 1.35), xticks=[0, 0.5, 1])
        grid[0].invert_yaxis()
    return figure
