"""Figures inside a page: what interactive pieces and live curves show in a notebook."""

from __future__ import annotations

import base64
import html
import io

from matplotlib.figure import Figure

from cpo_suite.report.plots import style


def inline_picture(figure: Figure, description: str, dots_per_inch: int = 110) -> str:
    """The figure as an `<img>` that needs no file; `description` is its alternative text.

    `figure` is best made with `matplotlib.figure.Figure` itself: those of pyplot are shown a second
    time at the end of a notebook's cell.
    """
    picture = io.BytesIO()
    with style():
        figure.savefig(picture, format="png", dpi=dots_per_inch, metadata={"Software": None})
    data = base64.b64encode(picture.getvalue()).decode()
    text = html.escape(description)
    # White behind it: axes and labels are black, and a page may be dark.
    look = "max-width:100%;height:auto;background:#fff"
    return f"<img src='data:image/png;base64,{data}' alt='{text}' style='{look}'>"
