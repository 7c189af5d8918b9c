"""Exposure bias of the rows: the gap by sentence, its growth, and what was predicted of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cpo.data import Task
from cpo.evaluation.exposure_bias import (
    LEAST_EXAMPLES,
    SentenceGrades,
    exposure_gaps,
    gap_difference,
    gap_growth,
    mean_gap,
)
from cpo.evaluation.statistics import Estimate, MetricError
from cpo_suite.paper import EXPOSURE_ROWS
from cpo_suite.report import plots
from cpo_suite.report.names import row_name
from cpo_suite.suite import Suite

EXPOSURE_COLUMNS = [
    "task", "row", "n", "true", "own", "gap", "low", "high", "examples", "true_missing",
    "own_missing",
]  # fmt: skip
GROWTH_COLUMNS = ["row", "measure", "value", "low", "high", "predicted", "outcome"]


def exposure_rows(suite: Suite, task: Task) -> list[str]:
    """References, then rows, of a task whose exposure bias is measured; none without the oracle."""
    if suite.profile.judge.kind != "oracle":
        return []
    rows = [row for row in suite.profile.trained_rows if row.id in EXPOSURE_ROWS]
    rows = [row for row in rows if row.task == task]
    return [*dict.fromkeys(f"{row.reference}/{row.model}" for row in rows), *(r.id for r in rows)]


def exposure_grades(suite: Suite, task: Task) -> dict[str, SentenceGrades]:
    """The grades of `exposure_rows` over all training seeds, by row."""
    seeds = range(suite.profile.seeds)
    return {
        row_id: SentenceGrades.joined([suite.exposure_bias(row_id, seed) for seed in seeds])
        for row_id in exposure_rows(suite, task)
    }


def exposure_frame(
    grades: Mapping[str, SentenceGrades], task: Task, least: int = LEAST_EXAMPLES
) -> pd.DataFrame:
    """The gap of each row at every n with at least `least` examples, one line each."""
    records: list[dict[str, Any]] = []
    for row_id, of_row in grades.items():
        for one in exposure_gaps(of_row, least):
            gap = {"gap": one.gap.value, "low": one.gap.low, "high": one.gap.high}
            records.append(vars(one) | {"task": task, "row": row_id, "examples": one.gap.n} | gap)
    return pd.DataFrame(records, columns=EXPOSURE_COLUMNS)


def growth_frame(grades: Mapping[str, SentenceGrades], least: int = LEAST_EXAMPLES) -> pd.DataFrame:
    """Mean gap and growth of each row, and its mean gap minus that of continued MLE, beside what
    was predicted.

    Maximum likelihood is predicted to have a gap, and a growing one (Arora et al. 2022); rows that
    train on other sequences than the recorded ones, to have a smaller gap. An outcome is decided
    where the interval leaves out 0. Measures without enough examples are left out.
    """
    mle = next((name for name in grades if "/MLE" in name), None)
    records = []
    for row_id, of_row in grades.items():
        likelihood = row_id == mle or row_id not in EXPOSURE_ROWS  # the reference
        measures = [
            ("mean_gap", partial(mean_gap, of_row), "> 0" if likelihood else ""),
            ("growth", partial(gap_growth, of_row, least), "> 0" if likelihood else ""),
        ]
        if mle is not None and not likelihood:
            compared = partial(gap_difference, of_row, grades[mle])
            measures.append(("mean_gap_minus_mle", compared, "< 0"))
        for name, measure, predicted in measures:
            try:
                one = measure()
            except MetricError:
                continue
            outcome = _outcome(one, predicted)
            records.append((row_id, name, one.value, one.low, one.high, predicted, outcome))
    return pd.DataFrame(records, columns=GROWTH_COLUMNS)


def _outcome(estimate: Estimate, predicted: str) -> str:
    if not predicted:
        return ""
    if estimate.low <= 0 <= estimate.high:
        return "undecided"
    above = estimate.low > 0
    return "as predicted" if above == (predicted == "> 0") else "the other way"


def exposure_in_words(growth: pd.DataFrame) -> str:
    """The finding, then each row's numbers: what `growth_frame` holds, as sentences."""
    if growth.empty:
        return "Too few texts of two sentences: exposure bias was not measured."
    outcomes = Counter(growth["outcome"][growth["outcome"] != ""])
    counts = ", ".join(
        f"{outcomes[name]} {name}" for name in ("as predicted", "the other way", "undecided")
    )
    return "\n".join([f"Of {outcomes.total()} predictions: {counts}.", *_sentences(growth)])


def _sentences(growth: pd.DataFrame) -> Iterator[str]:
    words = {
        "mean_gap": "mean gap",
        "growth": "growth per sentence",
        "mean_gap_minus_mle": "mean gap minus continued MLE's",
    }
    for row_id, lines in growth.groupby("row", sort=False):
        parts: Any = lines.itertuples()
        yield f"{row_name(str(row_id))}: " + "; ".join(
            f"{words[one.measure]} {one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
            for one in parts
        )


def exposure_figure(frame: pd.DataFrame) -> Figure:
    """The gap over n, a line for each row, with 95 % intervals; `frame` is `exposure_frame`'s."""
    rows = list(dict.fromkeys(frame["row"]))
    with plots.style():
        figure, axes = plots.plt.subplots(figsize=(plots.PAGE, 2.4))
        for place, row_id in enumerate(rows):
            line = frame[frame["row"] == row_id]
            # Side by side, so that intervals do not hide each other.
            x = line["n"] + 0.08 * (place - (len(rows) - 1) / 2)
            spread = [line["gap"] - line["low"], line["high"] - line["gap"]]
            look = plots.WHISKERS | {"fmt": "o-", "markersize": 3, "label": row_name(row_id)}
            axes.errorbar(x, line["gap"], spread, **look)
        axes.axhline(0, color=plots.BLACK, lw=0.8)
        axes.set_xticks(sorted(set(frame["n"])))
        axes.set_xlabel("sentence n")
        axes.set_ylabel("exposure gap (grade)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    return figure
