"""An interactive piece of a notebook, controls and a picture that follows them; and its HTML.

The controls are ipywidgets' own, so that all of them work from the keyboard, in the order in which
they are shown. The picture is not a widget but a plain output of the cell, replaced in its place:
it is there without a kernel, too, in a saved notebook, an exported page or a book, as it was last
drawn. Text from data is escaped by `markupsafe`; only what is `Markup` already stands as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets
from IPython.core.pylabtools import print_figure
from IPython.display import HTML, DisplayHandle, display
from markupsafe import Markup
from matplotlib.figure import Figure

from cpo_suite.report.plots import style


class Piece:
    """Controls, and what `draw` makes of their values; shown by standing last in a cell.

    Args:
        title: what the controls are for, said where they cannot be shown.
        draw: from the controls' values to HTML.
        controls: by the names under which `draw` takes their values, in the order of the keyboard.
    """

    def __init__(self, title: str, draw: Callable[..., Markup], **controls: Any) -> None:
        self.title = title
        self.draw = draw
        self.controls = controls
        self.box = ipywidgets.VBox(list(controls.values()))
        self._display: DisplayHandle | None = None
        for control in controls.values():
            control.layout.width, control.style.description_width = "34em", "9em"
            control.observe(self._redraw, "value")
        self._redraw()

    def _redraw(self, _: object = None) -> None:
        """Draw the picture, and below it what it was made of, for whom there are no controls."""
        settings = []
        for control in self.controls.values():
            if control.layout.display != "none":
                label = getattr(control, "label", control.value)
                number = f"{label:.2f}" if isinstance(label, float) else label
                settings.append(f"{control.description}: {number}")
        values = {name: control.value for name, control in self.controls.items()}
        below = Markup("<p><small>{}</small></p>").format("; ".join(settings))
        self.picture = self.draw(**values) + below
        if self._display:
            self._display.update(HTML(self.picture))

    def _ipython_display_(self) -> None:
        """The controls, replaced by a text on a page without a kernel; then the picture."""
        words = f"{self.title}: its controls need a running notebook."
        in_their_place = {"text/html": f"<p><em>{words}</em></p>", "text/plain": words}
        display(self.box._repr_mimebundle_() | in_their_place, raw=True)
        self._display = self._display or DisplayHandle()
        self._display.display(HTML(self.picture))


# --- HTML -----------------------------------------------------------------------------------------


def text_of(text: str) -> Markup:
    """A text with its line breaks and spaces; "(empty)" for an empty one."""
    look = "white-space:pre-wrap;overflow-wrap:anywhere"
    return Markup("<span style='{}'>{}</span>").format(look, text or "(empty)")


def markup_table(
    header: Iterable[object], rows: Iterable[Sequence[object]], row_names: bool = False
) -> Markup:
    """An HTML table; with `row_names` the first cell of each row is its name."""

    def cells(tag: str, contents: Iterable[object]) -> Markup:
        look = "text-align:left;vertical-align:top"
        template = Markup(f"<{tag} style='{look}'>{{}}</{tag[:2]}>")
        return Markup("").join(template.format(content) for content in contents)

    names = 1 if row_names else 0
    lines = [cells("th scope='row'", row[:names]) + cells("td", row[names:]) for row in rows]
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        cells("th scope='col'", header),
        Markup("").join(Markup(f"<tr>{line}</tr>") for line in lines),
    )


def inline_picture(figure: Figure, description: str) -> Markup:
    """The figure as an `<img>` that needs no file; `description` is its alternative text.

    `figure` is best made with `matplotlib.figure.Figure` itself: those of pyplot are shown a second
    time at the end of a notebook's cell.
    """
    with style():
        data = print_figure(
            figure, bbox_inches=None, base64=True, dpi=110, metadata={"Software": None}
        )
    # White behind it: axes and labels are black, and a page may be dark.
    look = "max-width:100%;height:auto;background:#fff"
    return Markup("<img src='data:image/png;base64,{}' alt='{}' style='{}'>").format(
        data, description, look
    )
