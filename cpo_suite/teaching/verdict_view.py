"""Verdicts one at a time: what the judge was shown, in which order, what it said, and why."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cpo.evaluation.judging import Judged, Side, Verdicts

# (prompt, response) -> what a grade is made of, by name; the oracle's parts.
Parts = Callable[[Judged, str], Mapping[str, float]]

OUTCOMES = ("all", "won", "tied", "lost", "split", "invalid")


@dataclass(frozen=True)
class Judgement:
    """One pair as the judge was shown it, and what it said: `exchanged` with the sides exchanged,
    None where only one order was judged."""

    number: int
    example: Judged
    response_a: str
    response_b: str
    model_side: Side
    verdict: str
    exchanged: str | None
    points: float

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`, for the model; "split" where the two orders contradict each other."""
        if math.isnan(self.points):
            return "invalid"
        if self.points == 0.5 and self.verdict in ("A", "B"):
            return "split"
        return {1.0: "won", 0.5: "tied", 0.0: "lost"}.get(self.points, "split")


def judgements(
    verdicts: Verdicts, examples: Sequence[Judged], responses: Sequence[str]
) -> list[Judgement]:
    """The pairs behind verdicts, in their order.

    Raises:
        ValueError: other prompts than the verdicts', or not a response to each.
    """
    if verdicts.ids != tuple(one.id for one in examples) or len(responses) != len(examples):
        raise ValueError(
            f"{len(verdicts)} verdicts, {len(examples)} prompts and {len(responses)} responses do "
            "not belong together: give the prompts that were judged, in their order"
        )
    found = []
    for row, (example, response) in enumerate(zip(examples, responses, strict=True)):
        side = verdicts.model_sides[row]
        shown = (response, example.continuation)
        exchanged = verdicts.exchanged[row] if verdicts.exchanged else None
        found.append(
            Judgement(
                row + 1, example, *(shown if side == "A" else shown[::-1]), side,
                verdicts.verdicts[row], exchanged, float(verdicts.points[row]),
            )
        )  # fmt: skip
    return found


def having(found: Sequence[Judgement], outcome: str, category: str = "all") -> list[Judgement]:
    """Those of an outcome, and of a category of prompts; "all" leaves nothing out.

    Raises:
        ValueError: no such outcome.
    """
    if outcome not in OUTCOMES:
        raise ValueError(f"no outcome {outcome!r}; there are {', '.join(OUTCOMES)}")
    return [
        one
        for one in found
        if outcome in ("all", one.outcome) and category in ("all", category_of(one))
    ]


def category_of(one: Judgement) -> str:
    """The category of the prompt; "" where the data have none."""
    return str(getattr(one.example, "category", "") or "")


def judgement_page(found: Sequence[Judgement], position: int, parts: Parts | None = None) -> str:
    """The pair at a position of those found, from 1, as HTML; all texts are escaped.

    A position beyond the last shows the last.
    """
    if not found:
        return "<p>No pair is left by this filter.</p>"
    position = min(max(1, position), len(found))
    one = found[position - 1]
    other = "B" if one.model_side == "A" else "A"
    said = {"A": "A is better", "B": "B is better", "tie": "a tie", "invalid": "invalid"}
    lines = [
        f"<b>Pair {position} of {len(found)}</b>: prompt {one.number}, "
        f"{html.escape(one.example.id)}, {html.escape(category_of(one))}",
        f"<b>Order</b>: the model's is {one.model_side}, the recorded one {other} "
        "(the judge does not know)",
        f"<b>Verdict</b>: {said.get(one.verdict, html.escape(one.verdict))}"
        + (
            f"; with the sides exchanged, {said.get(one.exchanged, html.escape(one.exchanged))}"
            if one.exchanged is not None
            else ""
        )
        + f". For the model: {one.outcome}"
        + ("" if math.isnan(one.points) else f", {one.points:g} point(s)"),
    ]
    return (
        f"<p>{'<br>'.join(lines)}</p>"
        f"<p style='white-space:pre-wrap'><b>Prompt.</b> {html.escape(one.example.prefix.strip())}"
        f"</p>{_answers(one, parts)}"
    )


def _answers(one: Judgement, parts: Parts | None) -> str:
    shown = {"A": one.response_a, "B": one.response_b}
    graded = {side: parts(one.example, text) if parts else {} for side, text in shown.items()}
    names = list(graded["A"])
    head = "".join(
        f"<th scope='col' style='text-align:left'>{html.escape(name.replace('_', ' '))}</th>"
        for name in ("", "answer", *names)
    )
    lines = []
    for side, text in shown.items():
        whose = "the model's" if side == one.model_side else "recorded"
        better = ", better" if one.verdict == side else ""
        grades = "".join(f"<td>{graded[side][name]:.2f}</td>" for name in names)
        lines.append(
            f"<tr><th scope='row' style='text-align:left'>{side} ({whose}{better})</th>"
            "<td style='text-align:left;white-space:pre-wrap'>"
            f"{html.escape(text.strip()) or '(empty)'}</td>{grades}</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
