"""Verdicts one at a time: what the judge was shown, in which order, what it said, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
from markupsafe import Markup

from cpo.evaluation.judging import Judged, Side, Verdicts
from cpo_suite.teaching.piece import Piece, table, text_of

# (prompt, response) -> what a grade is made of, by name; the oracle's parts.
Parts = Callable[[Judged, str], Mapping[str, float]]

OUTCOMES = ("all", "won", "tied", "lost", "split", "invalid")
VERDICTS = {"A": "A is better", "B": "B is better", "tie": "a tie", "invalid": "invalid"}


@dataclass(frozen=True)
class Judgement:
    """One pair, and what the judge said of it: `exchanged` with the sides exchanged, None where
    only one order was judged. `number` counts the prompts from 1."""

    number: int
    example: Judged
    response: str
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

    @property
    def category(self) -> str:
        """The category of the prompt; "" where the data have none."""
        return str(getattr(self.example, "category", "") or "")

    @property
    def answers(self) -> dict[str, str]:
        """The texts as the judge saw them, A first."""
        texts = [self.response, self.example.continuation]
        return dict(zip("AB", texts if self.model_side == "A" else texts[::-1], strict=True))


def judgements(
    verdicts: Verdicts, examples: Sequence[Judged], responses: Sequence[str]
) -> list[Judgement]:
    """The pairs behind verdicts, in their order.

    Raises:
        ValueError: other prompts than the verdicts', or not a response to each.
    """
    ids = tuple(example.id for example in examples)
    if verdicts.ids != ids or len(responses) != len(ids):
        raise ValueError(
            f"{len(verdicts)} verdicts, {len(ids)} prompts and {len(responses)} responses do "
            "not belong together: give the prompts that were judged, in their order"
        )
    exchanged = verdicts.exchanged or [None] * len(ids)
    judged = verdicts.model_sides, verdicts.verdicts, exchanged, verdicts.points.tolist()
    rows = zip(examples, responses, *judged, strict=True)
    return [Judgement(number, *row) for number, row in enumerate(rows, 1)]


def verdict_browser(pairs: Mapping[str, Sequence[Judgement]], parts: Parts | None = None) -> Piece:
    """The judged pairs of one model after the other, filtered by outcome and by category.

    Args:
        pairs: for each name of a model its pairs.
        parts: what a grade is made of, shown beside each answer.
    """
    categories = {pair.category for group in pairs.values() for pair in group} - {""}
    options = {"model": [*pairs], "outcome": OUTCOMES, "category": ["all", *sorted(categories)]}
    filters = {name: ipywidgets.Dropdown(options=options[name]) for name in options}
    for name, label in zip(filters, ("model", "for the model", "category"), strict=True):
        filters[name].description = label
    position = ipywidgets.IntSlider(1, min=1, max=1, description="pair")

    def chosen(model: str, outcome: str, category: str) -> list[Judgement]:
        return [
            pair
            for pair in pairs[model]
            if outcome in ("all", pair.outcome) and category in ("all", pair.category)
        ]

    def count_again(_: object = None) -> None:
        values = {name: control.value for name, control in filters.items()}
        position.value, position.max = 1, max(1, len(chosen(**values)))

    def draw(pair: int, **values: str) -> Markup:
        left = chosen(**values)
        if not left:
            return Markup("<p>No pair is left by this filter.</p>")
        return judgement_page(left[pair - 1], f"Pair {pair} of {len(left)}", parts)

    count_again()
    for control in filters.values():
        control.observe(count_again, "value")
    return Piece("Verdict browser", draw, **filters, pair=position)


def judgement_page(pair: Judgement, title: str, parts: Parts | None = None) -> Markup:
    """Order, verdict and prompt of a pair, and the answers with what their grades are made of."""
    verdict = VERDICTS[pair.verdict]
    if pair.exchanged is not None:
        verdict += f"; with the sides exchanged, {VERDICTS[pair.exchanged]}"
    points = "" if math.isnan(pair.points) else f", {pair.points:g} point(s)"
    rows, grades = [], dict[str, float]()
    for side, text in pair.answers.items():
        whose = "the model's" if side == pair.model_side else "recorded"
        better = ", better" if pair.verdict == side else ""
        grades = dict(parts(pair.example, text)) if parts else {}
        numbers = map("{:.2f}".format, grades.values())
        rows.append([f"{side} ({whose}{better})", text_of(text.strip()), *numbers])
    header = ["", "answer", *(name.replace("_", " ") for name in grades)]
    return Markup(
        "<p><b>{}</b>: prompt {}, {}, {}<br>"
        "<b>Order</b>: the model's is {}, the recorded one {} (the judge does not know)<br>"
        "<b>Verdict</b>: {}. For the model: {}{}</p><p><b>Prompt.</b> {}</p>{}"
    ).format(
        title, pair.number, pair.example.id, pair.category, pair.model_side,
        "B" if pair.model_side == "A" else "A", verdict, pair.outcome, points,
        text_of(pair.example.prefix.strip()), table(header, rows, row_names=True),
    )  # fmt: skip
