"""Training curves, redrawn in place in a notebook while a training runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Self

from IPython.core.getipython import get_ipython
from IPython.display import HTML, DisplayHandle, display
from markupsafe import Markup

from cpo import training
from cpo_suite.report.plots import training_curves
from cpo_suite.teaching.markup import inline_picture

Log = Sequence[Mapping[str, float]]  # a dict for each step, and one without a loss at the end


class LiveCurves:
    """Every training within `with LiveCurves():` draws its curves into one display.

    While it runs the display is redrawn every `seconds` at most, and never for more than a
    twentieth of the time; where nobody looks on, as in a notebook that the runner executes, it is
    drawn once, at the end. It stays as one picture in the saved notebook. Without a notebook
    nothing is shown. Trainings in other processes are not seen.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.trainings: dict[str, tuple[int, Log]] = {}  # planned steps, and the log so far
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
            print("No training ran here: what this cell builds is cached.")

    def watch(self, description: str, steps: int, log: Log) -> None:
        """Called at each training step: its name, number of steps and log so far."""
        if all(log is not seen for _, seen in self.trainings.values()):
            name = description.removeprefix("training ")
            again = (f"{name} ({number})" for number in itertools.count(2))
            names = itertools.chain([name], again)
            self.trainings[next(free for free in names if free not in self.trainings)] = steps, log
        began = time.monotonic()
        if began >= self._due and not os.environ.get("CPO_PLAIN_PROGRESS"):
            self._draw()
            ended = time.monotonic()
            self._due = ended + max(self.seconds, 20 * (ended - began))

    def _draw(self, finished: bool = False) -> None:
        """Redraw the curves so far, in place."""
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


def curves_page(trainings: Mapping[str, tuple[int, Log]], finished: bool = False) -> Markup:
    """The curves of trainings, and in a line how far the last one has come.

    Args:
        trainings: planned steps and log of each, by name.
    """
    words = []
    for name, (steps, log) in trainings.items():
        last = [entry for entry in log if "loss" in entry][-1]
        words.append(f"{name}: step {last['step']:.0f} of {steps}, loss {last['loss']:.3f}")
    figure = training_curves({name: log for name, (_, log) in trainings.items()})
    picture = inline_picture(figure, f"Training curves. {'; '.join(words)}.")
    return picture if finished else picture + Markup("<p>{}</p>").format(words[-1])
