"""An interactive piece of a notebook: controls, and a picture that follows them.

The controls are ipywidgets' own, so that all of them work from the keyboard, in the order in which
they are shown. The picture is not a widget but a plain output of the cell, replaced in its place.

Where nobody looks on, as in a notebook that the runner executes, a piece is stored as about a dozen
of its states instead, which need no kernel: see `states`. In a notebook that a person ran and saved
the picture stands as it was last drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets
from IPython.display import HTML, DisplayHandle, display
from markupsafe import Markup

from cpo_suite.teaching.states import states_page

# Values of controls, by their names; a control that is not named stays as it is.
Settings = Mapping[str, Any]


class Piece:
    """Controls, and what `draw` makes of their values; shown by standing last in a cell.

    Args:
        title: what the controls are for, said where they cannot be shown.
        draw: from the controls' values to HTML.
        states: those to store, by label, the first one to be seen first; none: the picture alone.
        controls: by the names under which `draw` takes their values, in the order of the keyboard.
    """

    def __init__(
        self,
        title: str,
        draw: Callable[..., Markup],
        states: Mapping[str, Settings] | None = None,
        **controls: Any,
    ) -> None:
        self.title = title
        self.draw = draw
        self.states = dict(states or {})
        self.controls = controls
        self.box = ipywidgets.VBox(list(controls.values()))
        self._display: DisplayHandle | None = None
        self._setting = False
        for control in controls.values():
            control.layout.width, control.style.description_width = "34em", "9em"
            control.observe(self._redraw, "value")
        self._redraw()

    def move(self, settings: Settings) -> None:
        """Move several controls, in the order given, and draw once."""
        self._setting = True
        try:
            for name, value in settings.items():
                self.controls[name].value = value
        finally:
            self._setting = False
        self._redraw()

    def stored(self) -> Markup:
        """The states as a page without a kernel shows them; the controls stay where they are.

        Each state starts from the controls as they are now.
        """
        now = {name: control.value for name, control in self.controls.items()}
        pictures = []
        try:
            for label, settings in self.states.items():
                self.move({**now, **settings})
                pictures.append((label, self.picture))
        finally:
            self.move(now)
        return states_page(f"{self.title}: some of its states", pictures)

    def _redraw(self, _: object = None) -> None:
        """Draw the picture, and below it what it was made of, for whom there are no controls."""
        if self._setting:
            return
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
        """The controls, replaced by a text on a page without a kernel, and the picture; or what is
        stored."""
        if self.states and os.environ.get("CPO_PLAIN_PROGRESS"):
            display(HTML(self.stored()))
            return
        words = f"{self.title}: its controls need a running notebook."
        in_their_place = {"text/html": f"<p><em>{words}</em></p>", "text/plain": words}
        display(self.box._repr_mimebundle_() | in_their_place, raw=True)
        self._display = self._display or DisplayHandle()
        self._display.display(HTML(self.picture))
