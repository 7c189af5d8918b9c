"""LaTeX as MathML, which browsers render natively; also a Sphinx extension that does so.

Sphinx and Jupyter by default fetch MathJax from another host.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from typing import Any

# docutils knows \bigl( and \bigr), but not \big( and \big), whose side follows from what they size;
# and it leaves out the thin space that TeX sets between the name of a function and what is beside.
_REWRITTEN = [
    (re.compile(r"\\(big|Big|bigg|Bigg)(?=\s*(?:[(\[]|\\\{|\\langle))"), r"\\\1l"),
    (re.compile(r"\\(big|Big|bigg|Bigg)(?=\s*(?:[)\]]|\\\}|\\rangle))"), r"\\\1r"),
    (re.compile(r"\\dots(?![A-Za-z])"), r"\\ldots"),
    (re.compile(r"(\\(?:log|ln|exp))\s*\\!"), r"\1"),  # takes away a space that is not there
    (re.compile(r"(?<=[\w)}\]])\s*(\\(?:log|ln|exp)(?![A-Za-z]))"), r"\\,\1"),
    (re.compile(r"(\\(?:log|ln|exp)(?![A-Za-z]))(?!\s*(?:[(\[^_}&,.]|\\[bB]ig|\\left|\\,|$))"),
     r"\1\\,"),
]  # fmt: skip
_IN_MARKDOWN = re.compile(r"(\$\$?)([^$]+)\1")


def mathml(formula: str, block: bool = False) -> str:
    """LaTeX as MathML.

    Raises:
        ValueError: docutils' converter does not support the formula; the message names it.
    """
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml

    for pattern, known in _REWRITTEN:
        formula = pattern.sub(known, formula)
    try:
        return str(tex2mathml(formula, as_block=block))
    except MathError as error:
        raise ValueError(f"no MathML for the formula {formula!r}: {error}") from error


def with_mathml(markdown: str) -> str:
    """Markdown with its formulas, `$...$` and `$$...$$`, as MathML in one line each; those that
    cannot be drawn stay as they are."""

    def draw(match: re.Match[str]) -> str:
        with suppress(ValueError):
            return re.sub(r"\s*\n\s*", " ", mathml(match[2].strip(), match[1] == "$$"))
        return match[0]

    return _IN_MARKDOWN.sub(draw, markdown)


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls: registers the renderer `mathml`."""
    inline, block = (partial(_draw, block=block) for block in (False, True))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _draw(translator: Any, node: Any, block: bool) -> None:
    """Write a node; a formula that cannot be drawn is a warning, which stops the build."""
    from docutils.nodes import SkipNode
    from sphinx.util.logging import getLogger

    try:
        drawn = mathml(node.astext(), block)
    except ValueError as error:
        getLogger(__name__).warning("%s", error, location=node)
        raise SkipNode from error
    translator.body.append(f'<div class="math">{drawn}</div>\n' if block else drawn)
    raise SkipNode
