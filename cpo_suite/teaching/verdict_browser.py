"""Verdicts one at a time: the judge's prompt, order, reply and reasons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from markupsafe import Markup

from cpo.evaluation.judging import Judged, Verdicts
from cpo_suite.teaching.markup import markup_table, text_of
from cpo_suite.teaching.piece import Piece

# (prompt, response) -> what a grade is made of, by name; the oracle's parts.
Parts = Callable[[Judged, str], Mapping[str, float]]

OUTCOMES = ("all", "won", "tied", "lost", "split", "invalid")
STORED = 12  # pairs on a page without a kernel
VERDICT_WORDS = {"A": "A is better", "B": "B is better", "tie": "a tie", "invalid": "invalid"}


def judgements(
    verdicts: Verdicts, examples: Sequence[Judged], responses: Sequence[str]
) -> pd.DataFrame:
    """The pairs behind verdicts, in their order, numbered from 1 in the column `number`.

    `A` and `B` are the texts as the judge saw them; `exchanged` is its verdict with the sides
    exchanged, empty where only one order was judged. `outcome` is one of `OUTCOMES`, for the model:
    "split" where the two orders contradict each other. `category` is "" where the data have none.

    Raises:
        ValueError: other prompts than the verdicts', or not a response to each.
    """
    ids = tuple(example.id for example in examples)
    if verdicts.ids != ids or len(responses) != len(ids):
        raise ValueError(
            f"{len(verdicts)} verdicts, {len(ids)} prompts and {len(responses)} responses do "
            "not belong together: give the prompts that were judged, in their order"
        )
    recorded = [example.continuation for example in examples]
    points, first = verdicts.points, np.array(verdicts.verdicts)
    model_is_a = np.array(verdicts.model_sides) == "A"
    split = (points == 0.5) & np.isin(first, ["A", "B"])
    kinds = [np.isnan(points), split, points == 1, points == 0.5, points == 0]
    return pd.DataFrame({
        "number": range(1, len(ids) + 1),
        "example": examples,
        "category": [str(getattr(example, "category", "") or "") for example in examples],
        "model_side": verdicts.model_sides,
        "A": np.where(model_is_a, responses, recorded),
        "B": np.where(model_is_a, recorded, responses),
        "verdict": first,
        "exchanged": verdicts.exchanged or None,
        "points": points,
        "outcome": np.select(kinds, ["invalid", "split", "won", "tied", "lost"], "split"),
    })  # fmt: skip


def verdict_browser(pairs: Mapping[str, pd.DataFrame], parts: Parts | None = None) -> Piece:
    """The judged pairs of one model after the other, filtered by outcome and by category.

    Args:
        pairs: for each name of a model its `judgements`.
        parts: what a grade is made of, shown beside each answer.
    """
    categories = set(pd.concat(list(pairs.values()))["category"]) - {""}
    options = {"model": [*pairs], "outcome": OUTCOMES, "category": ["all", *sorted(categories)]}
    filters = {name: ipywidgets.Dropdown(options=options[name]) for name in options}
    for name, label in zip(filters, ("model", "for the model", "category"), strict=True):
        filters[name].description = label
    position = ipywidgets.IntSlider(1, min=1, max=1, description="pair")

    def chosen(model: str, **wanted: str) -> pd.DataFrame:
        left = pairs[model]
        for column, value in wanted.items():
            left = left if value == "all" else left[left[column] == value]
        return left

    def count_again(_: object = None) -> None:
        values = {name: control.value for name, control in filters.items()}
        position.value, position.max = 1, max(1, len(chosen(**values)))

    def draw(pair: int, **values: str) -> Markup:
        left = chosen(**values)
        if left.empty:
            return Markup("<p>No pair is left by this filter.</p>")
        return judgement_page(left.iloc[pair - 1], f"Pair {pair} of {len(left)}", parts)

    count_again()
    for control in filters.values():
        control.observe(count_again, "value")
    return Piece("Verdict browser", draw, states_of(pairs), **filters, pair=position)


def states_of(pairs: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """A dozen states: of each model the first pair of each outcome, then the second, and so on."""
    kinds = [
        [
            (f"{model}, {outcome} {pair}", {"model": model, "outcome": outcome, "pair": pair})
            for pair in range(1, 1 + min(STORED, (judged["outcome"] == outcome).sum()))
        ]
        for model, judged in pairs.items()
        for outcome in OUTCOMES[1:]
    ]
    in_turn = [one for turn in itertools.zip_longest(*kinds) for one in turn if one]
    return {label: {"category": "all", **settings} for label, settings in in_turn[:STORED]}


def judgement_page(pair: Any, title: str, parts: Parts | None = None) -> Markup:
    """Order, verdict and prompt of a pair, a row of `judgements`, and the answers with what their
    grades are made of."""
    verdict = VERDICT_WORDS[pair.verdict]
    if pd.notna(pair.exchanged):
        verdict += f"; with the sides exchanged, {VERDICT_WORDS[pair.exchanged]}"
    points = f", {pair.points:g} point(s)" if pd.notna(pair.points) else ""
    rows, grades = [], dict[str, float]()
    for side in ("A", "B"):
        whose = "the model's" if side == pair.model_side else "recorded"
        better = ", better" if pair.verdict == side else ""
        grades = dict(parts(pair.example, pair[side])) if parts else {}
        numbers = map("{:.2f}".format, grades.values())
        rows.append([f"{side} ({whose}{better})", text_of(pair[side].strip()), *numbers])
    header = ["", "answer", *(name.replace("_", " ") for name in grades)]
    return Markup(
        "<p><b>{}</b>: prompt {}, {}, {}<br>"
        "<b>Order</b>: the model's is {}, the recorded one {} (the judge does not know)<br>"
        "<b>Verdict</b>: {}. For the model: {}{}</p><p><b>Prompt.</b> {}</p>{}"
    ).format(
        title, pair.number, pair.example.id, pair.category, pair.model_side,
        "B" if pair.model_side == "A" else "A", verdict, pair.outcome, points,
        text_of(pair.example.prefix.strip()), markup_table(header, rows, row_names=True),
    )  # fmt: skip
