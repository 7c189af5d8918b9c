"""Candidates of one prefix, best first, coloured token by token: what changed, what surprises."""

from __future__ import annotations

import difflib
import itertools
import operator
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
from markupsafe import Markup, escape

from cpo_suite.teaching.markup import markup_table, text_of
from cpo_suite.teaching.piece import Piece

# From here on a token is as dark as it gets, in nats; below, in this many shades.
DARKEST, SHADES = 8.0, 4

CHANGED, SURPRISE = "what changed", "reference log-probability"
LEGENDS = {
    CHANGED: Markup("<mark>New</mark> against the ground truth, and <del>gone</del> from it."),
    SURPRISE: Markup(
        "The darker, the less the reference expected it: from {:g} nats on, and darkest from {:g}. "
        "<u>Underlined</u>: new against the ground truth."
    ).format(DARKEST / SHADES, DARKEST),
}
STORED_PROMPTS = 6  # the first ones, each in both colours
COLUMNS = ("rank", "kind", "similarity", "log-probability", "least expected", "text")


@dataclass(frozen=True)
class Candidate:
    """A displayed continuation: `ids`, the text of each in `tokens`, each one's
    log-probability under the reference in `logps`, and the cosine to the ground truth."""

    kind: str
    ids: Sequence[int]
    tokens: Sequence[str]
    logps: Sequence[float]
    similarity: float

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.tokens) == len(self.logps):
            raise ValueError(
                f"{self.kind}: {len(self.ids)} ids, {len(self.tokens)} tokens and "
                f"{len(self.logps)} log-probabilities; there must be as many of each"
            )


def negative_viewer(prompts: Sequence[tuple[str, Sequence[Candidate]]]) -> Piece:
    """Candidates of the prompt that is picked, best first, coloured token by token.

    Args:
        prompts: each prefix with its candidates, the ground truth first, the others in the order
            tau.
    """
    prefixes = [(f"{row}: {_beginning(text)}", row - 1) for row, (text, _) in enumerate(prompts, 1)]
    states = {
        f"prompt {row + 1}, {colour}": {"prompt": row, "kind": "all", "colour": colour}
        for row in range(min(STORED_PROMPTS, len(prompts)))
        for colour in LEGENDS
    }
    kinds = dict.fromkeys(negative.kind for _, group in prompts for negative in group[1:])
    return Piece(
        "Negative viewer",
        lambda prompt, kind, colour: candidates_page(*prompts[prompt], kind, colour),
        states,
        prompt=ipywidgets.Dropdown(options=prefixes, description="prompt"),
        kind=ipywidgets.Dropdown(options=["all", *kinds], description="kind"),
        colour=ipywidgets.Dropdown(options=[*LEGENDS], description="colours show"),
    )


def candidates_page(prefix: str, candidates: Sequence[Candidate], kind: str, colour: str) -> Markup:
    """A prefix and its candidates as an HTML table.

    Args:
        prefix: shown above.
        candidates: best first, that is the ground truth, and then by rank.
        kind: of the negatives to show, or "all".
        colour: `CHANGED` or `SURPRISE`.
    """
    rows = []
    for rank, candidate in enumerate(candidates, 1):
        if rank > 1 and kind not in ("all", candidate.kind):
            continue
        total, length = sum(candidate.logps), len(candidate.logps)
        tokens = zip(candidate.logps, candidate.tokens, strict=True)
        logp, token = min(tokens, key=operator.itemgetter(0), default=(0.0, ""))
        row = [rank, candidate.kind, f"{candidate.similarity:.3f}"]
        row.append(f"{total:.1f}; {total / max(1, length):.2f} a token")
        row.append(f"{token.strip()!r} {logp:.1f}" if length else "")
        rows.append([*row, text_of(_coloured(candidates[0], candidate, colour))])
    return Markup("<p><b>Prefix.</b> {}</p><p>{}</p>{}").format(
        text_of(prefix), LEGENDS[colour], markup_table(COLUMNS, rows)
    )


def _coloured(truth: Candidate, candidate: Candidate, colour: str) -> Markup:
    """The candidate's text, with what is new against the ground truth marked or underlined.

    For `CHANGED`, what is gone is struck out as well, if half of the text is the ground truth's;
    for `SURPRISE`, tokens are shaded, and neighbours of one shade share a tag.
    """
    new = Markup("<mark>{}</mark>" if colour == CHANGED else "<u>{}</u>")
    matcher = difflib.SequenceMatcher(None, list(truth.ids), list(candidate.ids), autojunk=False)
    alike = 2 * sum(block.size for block in matcher.get_matching_blocks()) >= len(candidate.ids)
    page = Markup("")
    for tag, a, b, c, d in matcher.get_opcodes():
        if colour == CHANGED and alike and tag in ("delete", "replace"):
            page += Markup("<del>{}</del>").format("".join(truth.tokens[a:b]))
        for shade, group in itertools.groupby(
            range(c, d), lambda i: shade_of(candidate.logps[i]) if colour == SURPRISE else 0
        ):
            text = "".join(candidate.tokens[i] for i in group)
            page += _shaded(escape(text) if tag == "equal" else new.format(text), shade)
    return page


def shade_of(logp: float) -> int:
    """A shade from 0, expected, to `SHADES`, a surprisal of `DARKEST` nats or more."""
    return min(SHADES, int(-logp / DARKEST * SHADES))


def _shaded(text: Markup, shade: int) -> Markup:
    if shade == 0:
        return text
    # Orange over white, black upon it: readable on a light page and on a dark one.
    red, green, blue = (round(255 + (full - 255) * shade / SHADES) for full in (230, 159, 0))
    look = f"background:rgb({red},{green},{blue});color:#000"
    return Markup("<span style='{}'>{}</span>").format(look, text)


def _beginning(prompt: str) -> str:
    """The beginning of a prompt in a line, without the headings of its template."""
    lines = [line for line in prompt.splitlines() if not line.startswith("#")]
    return textwrap.shorten(" ".join(lines), 60, placeholder="...")
