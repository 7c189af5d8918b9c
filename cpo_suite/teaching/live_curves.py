"""Training curves while a training runs: one picture in a notebook, redrawn in its place."""

from __future__ import annotations

import contextlib
import html
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from cpo import training
from cpo_suite.report.plots import training_curves
from cpo_suite.teaching.pictures import inline_picture

Log = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Seen:
    """A training that was watched: its name in the legend, its planned steps, its log so far."""

    description: str
    name: str
    steps: int
    log: Log

    @property
    def last(self) -> Mapping[str, float]:
        """What was logged at the last step."""
        return [line for line in self.log if "loss" in line][-1]


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
        f"{one.name}: step {one.last['step']:.0f} of {one.steps}, loss {one.last['loss']:.3f}"
        for one in seen
    ]
    curves = training_curves({one.name: one.log for one in seen})
    picture = inline_picture(curves, f"Training curves. {'; '.join(words)}.")
    return picture if finished else f"{picture}<p>{html.escape(words[-1])}</p>"
