"""Training curves while a training runs: one picture in a notebook, redrawn in its place."""

from __future__ import annotations

import contextlib
import html
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure

from cpo import training
from cpo_suite.report.figures import COLOURS, PAGE, style
from cpo_suite.teaching.pictures import inline_picture

Log = Sequence[Mapping[str, float]]
Values = npt.NDArray[np.float64]

PANELS = {
    "loss": "loss",
    "margin": "margin: reward of y₁ − negatives",
    "accuracy": "share with y₁ on top",
}


@dataclass(frozen=True)
class Seen:
    """A training that was watched: its name in the legend, its planned steps, its log so far."""

    description: str
    name: str
    steps: int
    log: Log

    def curve(self, column: str) -> tuple[Values, Values]:
        """Steps, and the values logged at them."""
        points = [(one["step"], one[column]) for one in self.log if "loss" in one and column in one]
        table = np.array(points, dtype=float).reshape(-1, 2)
        return table[:, 0], table[:, 1]


class LiveCurves(AbstractContextManager["LiveCurves"]):
    """Every training within `with LiveCurves():` draws its curves into one display.

    While it runs the display is redrawn every `seconds` at most, and never for more than a
    twentieth of the time; where nobody looks on, as in a notebook that the runner executes, it is
    drawn once, at the end. It stays as one picture in the saved notebook. Without a notebook
    nothing is shown. Trainings in other processes are not seen.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.seen: list[Seen] = []
        self.pictures = 0
        self._display: Any = None
        self._due = 0.0

    def __enter__(self) -> Self:
        training.WATCHERS.append(self.watch)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):  # not there any more after a fault in drawing
            training.WATCHERS.remove(self.watch)
        if self.seen:
            self.draw(finished=True)
        elif in_notebook():
            print("No training ran here: what this cell makes was made already.")

    def watch(self, description: str, steps: int, log: Log) -> None:
        """Told by a training of each step: what it is, how many steps it has, its log so far."""
        if not self.seen or self.seen[-1].log is not log:
            same = sum(one.description == description for one in self.seen)
            name = f"{description} ({same + 1})" if same else description
            self.seen.append(Seen(description, name.removeprefix("training "), steps, log))
        now = time.monotonic()
        if now >= self._due and not os.environ.get("CPO_PLAIN_PROGRESS"):
            self.draw()
            spent = time.monotonic() - now
            self._due = time.monotonic() + max(self.seconds, 20 * spent)

    def draw(self, finished: bool = False) -> None:
        """Draw what was seen so far in the place of what was drawn before."""
        if not in_notebook():
            return
        page = HTML(curves_page(self.seen, finished))
        self.pictures += 1
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)


def in_notebook() -> bool:
    """Whether this runs in a kernel, rather than in a terminal or a script."""
    return getattr(get_ipython(), "kernel", None) is not None


def curves_page(seen: Sequence[Seen], finished: bool = False) -> str:
    """The curves of trainings, and in a line how far the last one has come."""
    words = [
        f"{one.name}: step {one.curve('loss')[0][-1]:.0f} of {one.steps}, "
        f"loss {one.curve('loss')[1][-1]:.3f}"
        for one in seen
    ]
    picture = inline_picture(curves_figure(seen), f"Training curves. {'; '.join(words)}.")
    return picture if finished else f"{picture}<p>{html.escape(words[-1])}</p>"


def curves_figure(seen: Sequence[Seen]) -> Figure:
    """Loss, and for contrasts margin and accuracy, by step: a line for each training.

    Thin lines are steps, thick ones a running mean over a twentieth of the planned steps.
    """
    titles = {
        column: title
        for column, title in PANELS.items()
        if any(len(one.curve(column)[0]) for one in seen)
    }
    with style():
        figure = Figure(figsize=(PAGE, 2.3))
        grid = figure.subplots(1, len(titles), squeeze=False)[0]
        for axes, (column, title) in zip(grid, titles.items(), strict=True):
            for index, one in enumerate(seen):
                steps, values = one.curve(column)
                if not len(steps):
                    continue
                colour = COLOURS[index % len(COLOURS)]
                dashes = ("-", "--", ":")[index // len(COLOURS) % 3]
                mean = _running_mean(values, math.ceil(one.steps / 20))
                axes.plot(steps, values, color=colour, alpha=0.25, lw=0.6)
                axes.plot(steps, mean, dashes, color=colour, label=one.name)
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
            axes.margins(x=0.02)
        lines, labels = grid[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=4)
    return figure


def _running_mean(values: Values, window: int) -> Values:
    """The mean of up to `window` values that end at each."""
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
