"""HTML of which the interactive pieces are made: texts, tables and pictures.

Text from data is escaped by `markupsafe`; only what is `Markup` already stands as it is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from cpo_suite.report.plots import style

COLOURS_OF_A_PICTURE = 64  # shades at the edges of letters and lines among them


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
    drawn, stored = io.BytesIO(), io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=110)
    # A page may hold a dozen of them, and a palette takes a third of the room.
    picture = Image.open(drawn).convert("RGB").quantize(COLOURS_OF_A_PICTURE)
    picture.save(stored, format="PNG", optimize=True)
    data = base64.b64encode(stored.getvalue()).decode()
    # White behind it: axes and labels are black, and a page may be dark. The width is for the style
    # sheet of `states`.
    look = f"max-width:100%;height:auto;background:#fff;--width:{picture.width}px"
    return Markup("<img src='data:image/png;base64,{}' alt='{}' style='{}'>").format(
        data, description, look
    )
