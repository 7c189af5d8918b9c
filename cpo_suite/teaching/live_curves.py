"""Training curves while a training runs: one picture in a notebook, redrawn in its place."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import HTML, DisplayHandle, display
from markupsafe import Markup
from matplotlib.figure import Figure

from cpo import training
from cpo_suite.report.figures import COLOURS, PAGE, style
from cpo_suite.teaching.pages import inline_picture

PANELS = {
    "loss": "loss",
    "margin": "margin: reward of y₁ − negatives",
    "accuracy": "share with y₁ on top",
}


@dataclass(frozen=True)
class WatchedTraining:
    """A training: its name in the legend, its planned steps, its log so far, a dict a step."""

    description: str
    name: str
    steps: int
    log: Sequence[Mapping[str, float]]

    def curve(self, column: str) -> pd.Series[float]:
        """What was logged in a column of `PANELS`, by step."""
        steps = [entry for entry in self.log if "loss" in entry and column in entry]
        return pd.Series({entry["step"]: entry[column] for entry in steps}, dtype=float)


class LiveCurves:
    """Every training within `with LiveCurves():` draws its curves into one display.

    While it runs the display is redrawn every `seconds` at most, and never for more than a
    twentieth of the time; where nobody looks on, as in a notebook that the runner executes, it is
    drawn once, at the end. It stays as one picture in the saved notebook. Without a notebook
    nothing is shown. Trainings in other processes are not seen.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.trainings: list[WatchedTraining] = []
        self._display: DisplayHandle | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        training.WATCHERS.append(self.watch)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):  # not there any more after a fault in drawing
            training.WATCHERS.remove(self.watch)
        if self.trainings:
            self._draw(finished=True)
        elif in_notebook():
            print("No training ran here: what this cell makes was made already.")

    def watch(self, description: str, steps: int, log: Sequence[Mapping[str, float]]) -> None:
        """Told by a training of each step: what it is, how many steps it has, its log so far."""
        if not self.trainings or self.trainings[-1].log is not log:
            name = description.removeprefix("training ")
            if same := sum(other.description == description for other in self.trainings):
                name = f"{name} ({same + 1})"
            self.trainings.append(WatchedTraining(description, name, steps, log))
        began = time.monotonic()
        if began >= self._due and not os.environ.get("CPO_PLAIN_PROGRESS"):
            self._draw()
            ended = time.monotonic()
            self._due = ended + max(self.seconds, 20 * (ended - began))

    def _draw(self, finished: bool = False) -> None:
        """Draw the curves so far in the place of what was drawn before."""
        if not in_notebook():
            return
        page = HTML(curves_page(self.trainings, finished))
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)


def in_notebook() -> bool:
    """Whether this runs in a kernel, rather than in a terminal or a script."""
    return getattr(get_ipython(), "kernel", None) is not None


def curves_page(trainings: Sequence[WatchedTraining], finished: bool = False) -> Markup:
    """The curves of trainings, and in a line how far the last one has come."""
    words = []
    for watched in trainings:
        loss = watched.curve("loss")
        step = f"step {loss.index[-1]:.0f} of {watched.steps}"
        words.append(f"{watched.name}: {step}, loss {loss.iloc[-1]:.3f}")
    picture = inline_picture(curves_figure(trainings), f"Training curves. {'; '.join(words)}.")
    return picture if finished else picture + Markup("<p>{}</p>").format(words[-1])


def curves_figure(trainings: Sequence[WatchedTraining]) -> Figure:
    """Loss, and for contrasts margin and accuracy, by step: a line for each training.

    Thin lines are steps, thick ones a running mean over a twentieth of the planned steps.
    """
    columns = [name for name in PANELS if any(len(watched.curve(name)) for watched in trainings)]
    with style():
        figure = Figure(figsize=(PAGE, 2.3))
        grid = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(grid, columns, strict=True):
            for index, watched in enumerate(trainings):
                curve = watched.curve(column)
                mean = curve.rolling(math.ceil(watched.steps / 20), min_periods=1).mean()
                colour = COLOURS[index % len(COLOURS)]
                dashes = ("-", "--", ":")[index // len(COLOURS) % 3]
                axes.plot(curve, color=colour, alpha=0.25, lw=0.6)
                axes.plot(mean, dashes, color=colour, label=watched.name)
            axes.set_title(PANELS[column], loc="left")
            axes.set_xlabel("step")
            axes.margins(x=0.02)
        lines, labels = grid[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=4)
    return figure
