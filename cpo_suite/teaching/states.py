"""A dozen states of an interactive piece as one HTML fragment that needs neither kernel nor script.

A row of radio buttons chooses which state is seen, by a style sheet that the fragment holds. What
is left of it where:

* the site and any page that nbconvert makes, the report among them, with JavaScript on or off, and
  a trusted notebook in JupyterLab: all of it, from the keyboard too, on a phone in several lines;
* GitHub's view of a notebook, and an untrusted notebook in JupyterLab: their sanitisers take style
  sheets away, and GitHub's also ids and radio buttons. Nothing is then hidden: all states stand
  one below the other, in their order, each under its label. GitHub documents no list of what it
  removes, and may drop pictures that have no address of their own; so a state says its numbers in
  text as well, in a table or in the picture's description.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

from markupsafe import Markup
from matplotlib.figure import Figure

from cpo_suite.teaching.markup import inline_picture

_numbers = itertools.count(1)  # of the fragments made in this process

# Radio buttons are out of sight but not out of reach, and their labels look like buttons. What is
# of the class `unstyled` is for a page without this style sheet. No colour of the page's is assumed
# but its text's: it may be dark. On a phone a wide picture or table is scrolled in its place rather
# than made too small to read.
_STYLE = Markup("""\
#{name} fieldset {{ border: 0; margin: 0; padding: 0; min-width: 0; position: relative }}
#{name} legend {{ padding: 0; margin-bottom: .4em }}
#{name} input {{ position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0 }}
#{name} label {{ display: inline-block; margin: 0 .3em .4em 0; padding: .3em .7em; cursor: pointer;
  border: 1px solid; border-radius: 1em; font-size: .85em; line-height: 1.3 }}
#{name} input:checked + label {{ background: #0072b2; border-color: #0072b2; color: #fff }}
#{name} input:focus-visible + label {{ outline: 3px solid #e69f00; outline-offset: 1px }}
#{name} .unstyled, #{name} .state {{ display: none }}
#{name} .state {{ overflow-x: auto }}
@media (max-width: 600px) {{
  #{name} .state img {{ min-width: calc(0.7 * var(--width, 0px)) }}
  #{name} .state td > span {{ display: inline-block; min-width: 12em }}
}}
""")
_SHOWN = Markup("#{name}-{at}:checked ~ #{name}-state-{at} {{ display: block }}\n")
_BUTTON = Markup(
    "<input type='radio' name='{name}' id='{name}-{at}'{checked}><label for='{name}-{at}'>{label}"
    "<span class='unstyled'>; </span></label>\n"
)
_STATE = Markup(
    "<div class='state' id='{name}-state-{at}' role='group' aria-label='{label}'>"
    "<p class='unstyled'><b>{label}</b></p>{body}</div>\n"
)


def states_page(title: str, states: Iterable[tuple[str, Markup | Figure]]) -> Markup:
    """All states of a piece, the first one chosen.

    Args:
        title: above the radio buttons, what they choose.
        states: a label and a body each; a figure's label is also its description.

    Raises:
        ValueError: no state, or two with one label, which no reader could tell apart.
    """
    bodies = [
        (label, inline_picture(body, label) if isinstance(body, Figure) else body)
        for label, body in states
    ]
    labels = [label for label, _ in bodies]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"states need labels that differ, and there are {labels}")
    # By content and by number: other than in any piece of this page, from one process or several,
    # and the same when the notebook is run again.
    content = hashlib.sha256(repr((title, bodies)).encode()).hexdigest()[:8]
    name = f"states-{content}-{next(_numbers)}"
    style, buttons, shown = _STYLE.format(name=name), Markup(""), Markup("")
    for at, (label, body) in enumerate(bodies, 1):
        style += _SHOWN.format(name=name, at=at)
        checked = Markup(" checked") if at == 1 else ""
        buttons += _BUTTON.format(name=name, at=at, label=label, checked=checked)
        shown += _STATE.format(name=name, at=at, label=label, body=body)
    return Markup(
        "<div id='{}'>\n<style>\n{}</style>\n<fieldset>\n<legend>{}</legend>\n{}{}"
        "</fieldset>\n</div>"
    ).format(name, style, title, buttons, shown)
