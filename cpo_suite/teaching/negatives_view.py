"""Candidates of one prefix, best first, coloured token by token: what changed, what surprises."""

from __future__ import annotations

import difflib
import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

CHANGED, SURPRISE = "what changed", "reference log-probability"

# From here on a token is as dark as it gets, in nats; below, in this many shades.
DARKEST, SHADES = 8.0, 4

_CELL = "text-align:left;vertical-align:top"
_TEXT = f"{_CELL};white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Candidate:
    """A continuation as it is shown: `ids`, the text of each in `tokens`, each one's
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


def candidates_page(prefix: str, candidates: Sequence[tuple[int, Candidate]], colour: str) -> str:
    """A prefix and its candidates as an HTML table; all texts are escaped.

    Args:
        prefix: shown above.
        candidates: each with its rank, the ground truth first.
        colour: `CHANGED` or `SURPRISE`.
    """
    truth = candidates[0][1]
    legend = {
        CHANGED: "<mark>New</mark> against the ground truth, and <del>gone</del> from it.",
        SURPRISE: "The darker, the less the reference expected it: "
        + " ".join(
            _shaded(f"&nbsp;{label}&nbsp;", shade) for shade, label in enumerate(_shade_labels())
        )
        + " nats. <u>Underlined</u>: new against the ground truth.",
    }[colour]
    names = ("rank", "kind", "similarity", "log-probability", "least expected", "text")
    head = "".join(f"<th scope='col' style='{_CELL}'>{name}</th>" for name in names)
    rows = "".join(_row(rank, one, truth, colour) for rank, one in candidates)
    return (
        f"<p style='white-space:pre-wrap'><b>Prefix.</b> {html.escape(prefix)}</p>"
        f"<p>{legend}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(rank: int, one: Candidate, truth: Candidate, colour: str) -> str:
    if one is truth:
        text = _plain(one) if colour == CHANGED else _surprises(one, [False] * len(one.ids))
    elif colour == CHANGED:
        text = _difference(truth, one)
    else:
        text = _surprises(one, new_tokens(truth, one))
    total = sum(one.logps)
    least = min(range(len(one.logps)), key=one.logps.__getitem__, default=None)
    worst = "" if least is None else f"{one.tokens[least].strip()!r} {one.logps[least]:.1f}"
    cells = [
        str(rank), one.kind, f"{one.similarity:.3f}",
        f"{total:.1f}; {total / max(1, len(one.logps)):.2f} a token", worst,
    ]  # fmt: skip
    plain = "".join(f"<td style='{_CELL}'>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr>{plain}<td style='{_TEXT}'>{text}</td></tr>"


def new_tokens(truth: Candidate, one: Candidate) -> list[bool]:
    """For each token of a candidate, whether it is new against the ground truth."""
    new = [True] * len(one.ids)
    for block in _matcher(truth, one).get_matching_blocks():
        new[block.b : block.b + block.size] = [False] * block.size
    return new


def shade_of(logp: float) -> int:
    """0 for what was expected, up to `SHADES` for what surprises by `DARKEST` nats or more."""
    return min(SHADES, int(-logp / DARKEST * SHADES))


def _matcher(truth: Candidate, one: Candidate) -> difflib.SequenceMatcher[int]:
    return difflib.SequenceMatcher(None, list(truth.ids), list(one.ids), autojunk=False)


def _plain(one: Candidate) -> str:
    return html.escape("".join(one.tokens))


def _difference(truth: Candidate, one: Candidate) -> str:
    """What is new marked and, if half of the text is the ground truth's, what is gone struck
    out."""
    alike = 2 * sum(new_tokens(truth, one)) <= len(one.ids)
    parts = []
    for tag, a, b, c, d in _matcher(truth, one).get_opcodes():
        gone, here = (
            html.escape("".join(tokens)) for tokens in (truth.tokens[a:b], one.tokens[c:d])
        )
        if tag == "equal":
            parts.append(here)
            continue
        parts.append(f"<del>{gone}</del>" * (alike and bool(gone)))
        parts.append(f"<mark>{here}</mark>" * bool(here))
    return "".join(parts)


def _surprises(one: Candidate, new: Sequence[bool]) -> str:
    """Neighbours of one look share a tag."""
    looks = [(shade_of(logp), is_new) for logp, is_new in zip(one.logps, new, strict=True)]
    parts = []
    for (shade, is_new), group in itertools.groupby(
        zip(looks, one.tokens, strict=True), key=lambda pair: pair[0]
    ):
        text = html.escape("".join(token for _, token in group))
        parts.append(_shaded(f"<u>{text}</u>" if is_new else text, shade))
    return "".join(parts)


def _shaded(markup: str, shade: int) -> str:
    if shade == 0:
        return markup
    # Orange over white, black upon it: readable on a light page and on a dark one.
    mix = [round(255 + (full - 255) * shade / SHADES) for full in (230, 159, 0)]
    look = "background:rgb({},{},{});color:#000".format(*mix)
    return f"<span style='{look}'>{markup}</span>"


def _shade_labels() -> list[str]:
    ends = [f"{DARKEST * shade / SHADES:g}" for shade in range(SHADES + 1)]
    return [
        f"to {ends[1]}",
        *(f"{a} to {b}" for a, b in itertools.pairwise(ends[1:])),
        f"{ends[-1]} and more",
    ]
