"""Interactive pieces of the notebooks: controls, and a picture that follows them.

The controls are ipywidgets' own, so that all of them work from the keyboard, in the order in which
they are shown. The picture is not a widget but a plain output of the cell, replaced in its place:
it is there without a kernel, too, in a saved notebook, an exported page or a book, as it was last
drawn. What a piece draws comes from the `_view` files, which know nothing of widgets.
"""

from __future__ import annotations

import html
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
from IPython.display import HTML, display, update_display

from cpo_suite.teaching import ensemble_view, loss_view, negatives_view, verdict_view

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# Of every control: wide enough for its description, and all alike.
_LOOK: dict[str, Any] = {"style": {"description_width": "9em"}, "layout": {"width": "34em"}}


class Piece:
    """Controls, and what `draw` makes of their values; shown by standing last in a cell.

    Args:
        title: what the controls are for, said where they cannot be shown.
        controls: by the names under which `draw` takes their values, in the order of the keyboard.
        draw: from the values to HTML. Texts from data must be escaped in it.
    """

    def __init__(self, title: str, controls: Mapping[str, Any], draw: Callable[..., str]) -> None:
        self.title = title
        self.controls = dict(controls)
        self.draw = draw
        self.box = ipywidgets.VBox(list(self.controls.values()))
        self.picture = self._drawn()
        self._display_id = uuid.uuid4().hex
        self._shown = False
        for control in self.controls.values():
            control.observe(self._redraw, "value")

    @property
    def values(self) -> dict[str, Any]:
        """What the controls are set to."""
        return {name: control.value for name, control in self.controls.items()}

    def bundle(self) -> dict[str, Any]:
        """The controls as an output: widgets for a page with a kernel, words for all others."""
        words = f"{self.title}: its controls need a running notebook."
        model = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {
            WIDGET_VIEW: model,
            "text/html": f"<p><em>{html.escape(words)}</em></p>",
            "text/plain": words,
        }

    def _drawn(self) -> str:
        """What `draw` makes, and below it what it was made of, for whom there are no controls."""
        settings = "; ".join(
            f"{control.description}: {_label(control)}"
            for control in self.controls.values()
            if control.layout.display != "none"
        )
        return f"{self.draw(**self.values)}<p><small>{html.escape(settings)}</small></p>"

    def _ipython_display_(self) -> None:
        display(self.bundle(), raw=True)
        display(HTML(self.picture), display_id=self._display_id)
        self._shown = True

    def _redraw(self, _: object) -> None:
        picture = self._drawn()
        if picture == self.picture:
            return
        self.picture = picture
        if self._shown:
            update_display(HTML(picture), display_id=self._display_id)


def loss_explorer(log_ratios: Sequence[float] = (0.3, 0.6, 0.0, -0.6), beta: float = 1.0) -> Piece:
    """Sliders for the log-ratios of 2 to 6 candidates and for beta, and eq. 1 or 2 of them.

    Args:
        log_ratios: log pi_theta - log pi_ref of the candidates to begin with, the ground truth
            first; 2 to 6 of them.
        beta: to begin with.

    Raises:
        ValueError: fewer than 2 or more than 6 candidates.
    """
    most = 6
    if not 2 <= len(log_ratios) <= most:
        raise ValueError(f"the explorer has 2 to {most} candidates, not {len(log_ratios)}")
    given = [*log_ratios, *[0.0] * (most - len(log_ratios))]
    size = ipywidgets.IntSlider(
        len(log_ratios), min=2, max=most, description="candidates K", **_LOOK
    )
    betas = sorted({0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, beta})
    controls: dict[str, Any] = {
        "size": size,
        "beta": ipywidgets.SelectionSlider(
            options=[(f"{one:g}", one) for one in betas], value=beta, description="beta", **_LOOK
        ),
        "ranked": ipywidgets.Checkbox(
            False, description="ranking (y1 best, then y2, y3, ...)", indent=True, **_LOOK
        ),
    }
    for number, value in enumerate(given, 1):
        controls[f"y{number}"] = ipywidgets.FloatSlider(
            value, min=-3.0, max=3.0, step=0.1, description=f"log-ratio of y{number}", **_LOOK
        )

    def show_those_in_use(_: object = None) -> None:
        for number in range(1, most + 1):
            layout = controls[f"y{number}"].layout
            layout.display = None if number <= size.value else "none"

    def draw(size: int, beta: float, ranked: bool, **values: float) -> str:
        return loss_view.loss_page(list(values.values())[:size], beta, ranked)

    show_those_in_use()
    size.observe(show_those_in_use, "value")
    return Piece("Loss explorer", controls, draw)


def negative_viewer(
    prompts: Sequence[tuple[str, Sequence[negatives_view.Candidate]]],
) -> Piece:
    """Candidates of the prompt that is picked, best first, coloured token by token.

    Args:
        prompts: each prefix with its candidates, the ground truth first, the others in the order
            tau.
    """
    labels = [(f"{row + 1}: {_short(text)}", row) for row, (text, _) in enumerate(prompts)]
    colours = [negatives_view.CHANGED, negatives_view.SURPRISE]
    kinds = list(dict.fromkeys(one.kind for _, group in prompts for one in group[1:]))
    controls = {
        "prompt": ipywidgets.Dropdown(options=labels, description="prompt", **_LOOK),
        "kind": ipywidgets.Dropdown(options=["all", *kinds], description="kind", **_LOOK),
        "colour": ipywidgets.Dropdown(options=colours, description="colours show", **_LOOK),
    }

    def draw(prompt: int, kind: str, colour: str) -> str:
        prefix, (truth, *others) = prompts[prompt]
        chosen = [(place, one) for place, one in enumerate(others, 2) if kind in ("all", one.kind)]
        return negatives_view.candidates_page(prefix, [(1, truth), *chosen], colour)

    return Piece("Negative viewer", controls, draw)


def ensemble_slider(given: ensemble_view.EnsembleAnswers) -> Piece:
    """What the ensemble at the chosen alpha answers, between its ends, with all scores."""
    middle = given.alphas[len(given.alphas) // 2]
    controls = {
        "alpha": ipywidgets.SelectionSlider(
            options=[(f"{alpha:g}", alpha) for alpha in given.alphas],
            value=middle,
            description="alpha",
            **_LOOK,
        ),
        "prompt": ipywidgets.IntSlider(
            1, min=1, max=len(given.prompts), description="prompt", **_LOOK
        ),
    }

    def draw(alpha: float, prompt: int) -> str:
        return ensemble_view.ensemble_page(given, alpha, prompt - 1)

    return Piece("Ensemble slider", controls, draw)


def verdict_browser(
    found: Mapping[str, Sequence[verdict_view.Judgement]],
    parts: verdict_view.Parts | None = None,
) -> Piece:
    """The judged pairs of one model after the other, filtered by outcome and by category.

    Args:
        found: for each name of a model its pairs.
        parts: what a grade is made of, shown beside each answer.
    """
    categories = {verdict_view.category_of(one) for group in found.values() for one in group}
    pair = ipywidgets.IntSlider(1, min=1, max=1, description="pair", **_LOOK)
    controls = {
        "model": ipywidgets.Dropdown(options=list(found), description="model", **_LOOK),
        "outcome": ipywidgets.Dropdown(
            options=verdict_view.OUTCOMES, description="for the model", **_LOOK
        ),
        "category": ipywidgets.Dropdown(
            options=["all", *sorted(categories - {""})], description="category", **_LOOK
        ),
        "pair": pair,
    }

    def left(model: str, outcome: str, category: str) -> list[verdict_view.Judgement]:
        return verdict_view.having(found[model], outcome, category)

    def count_again(_: object = None) -> None:
        filters = {name: one.value for name, one in controls.items() if one is not pair}
        pair.value, pair.max = 1, max(1, len(left(**filters)))

    def draw(model: str, outcome: str, category: str, pair: int) -> str:
        return verdict_view.judgement_page(left(model, outcome, category), pair, parts)

    count_again()
    for control in controls.values():
        if control is not pair:
            control.observe(count_again, "value")
    return Piece("Verdict browser", controls, draw)


def _label(control: Any) -> str:
    """The value as its control shows it."""
    label = getattr(control, "label", None)
    if isinstance(control.value, bool):
        return "on" if control.value else "off"
    if isinstance(control.value, float) and label is None:
        return format(control.value, control.readout_format)
    return str(label if label is not None else control.value)


def _short(prompt: str, length: int = 60) -> str:
    """The beginning of a prompt, without the headings of its template."""
    lines = [line for line in prompt.splitlines() if not line.startswith("#")]
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= length else text[: length - 3] + "..."
