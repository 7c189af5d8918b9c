"""Gradients as table, figure and words: predictions beside what was measured."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from cpo.evaluation.statistics import Estimate
from cpo_suite.artifacts import MeasuredGradients
from cpo_suite.report import plots
from cpo_suite.report.gradients import (
    COLUMNS,
    findings,
    gradients_figure,
    gradients_frame,
    outcome,
)

matplotlib.use("agg")


def estimate(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half, 512)


def measured(untruncated: float = 1.0) -> MeasuredGradients:
    measures = {
        "MLE": {"common": estimate(0.05)},
        "AN": {"cosine": estimate(0.98), "negative": estimate(0.05), "common": estimate(0.2)},
        "BN": {"cosine": estimate(0.1), "negative": estimate(5.0), "common": estimate(0.9)},
        "AN untruncated": {
            "cosine": estimate(untruncated),
            "length": estimate(0.9),
            "negative": estimate(0.0),
            "common": estimate(0.1),
        },
    }
    return MeasuredGradients(measures, {"AN": 0.9, "BN": 0.75, "AN untruncated": 11 / 12})


def test_the_frame_has_the_predictions_beside_the_values():
    frame = gradients_frame(measured())
    assert list(frame.columns) == COLUMNS
    assert list(dict.fromkeys(frame["kind"])) == ["MLE", "AN untruncated", "AN", "BN"]
    by_line = frame.set_index(["kind", "measure"])
    predicted = by_line["predicted"]
    own = predicted["AN untruncated"]
    assert (own["cosine"], own["length"], own["negative"]) == ("1", "0.917", "0")
    assert predicted["AN", "cosine"] == "" and predicted["AN", "negative"] == "> 0"
    assert predicted["BN", "cosine"] == "< 1" and predicted["MLE", "common"] == ""
    line = by_line.loc[("BN", "negative")]
    assert (line["value"], line["low"], line["high"]) == pytest.approx((5.0, 4.9, 5.1))


@pytest.mark.parametrize(
    ("predicted", "low", "high", "expected"),
    [
        ("1", 0.9, 1.1, "as predicted"),
        ("1", 0.8, 0.9, "contradicted"),
        ("> 0", 0.1, 0.2, "as predicted"),
        ("> 0", 0.0, 0.2, "undecided"),
        ("> 0", -0.2, -0.1, "contradicted"),
        ("< 1", 0.1, 0.2, "as predicted"),
        ("< 1", 0.9, 1.1, "undecided"),
        ("< 1", 1.1, 1.2, "contradicted"),
        ("1", math.nan, math.nan, "undecided"),
        ("", 0.1, 0.2, ""),
    ],
)
def test_what_becomes_of_a_prediction(predicted, low, high, expected):
    frame = pd.DataFrame([("AN", "cosine", predicted, 0.5, low, high)], columns=COLUMNS)
    assert outcome(next(frame.itertuples())) == expected


def test_the_words_follow_the_numbers():
    said = findings(gradients_frame(measured()))
    counted, longest, converged, common = said
    # As predicted: three of AN untruncated (1, 0.875 and 0 lie inside), BN's cosine and negative
    # part (wholly on their side). AN's negative part, 0.05 +- 0.1, is not shown to be above 0.
    assert counted == "Of the predictions 5 came out, 0 contradicted, 1 undecided."
    assert "that of BN: 5.0 times MLE's" in longest
    assert "no part in common with other prompts" in converged
    assert "is 0.90 for BN, and 0.05 for MLE" in common  # AN's 0.2 is below a half
    other = findings(gradients_frame(measured(untruncated=0.5)))
    assert "Contradicted: AN untruncated cosine 0.500 [0.400, 0.600] (1)." in other


@pytest.mark.parametrize(("cosine", "common", "said"), [(0.3, 0.9, True), (0.95, 0.9, False)])
def test_what_is_new_in_ranking_is_said_only_where_it_was_measured(cosine, common, said):
    ranked = {"cosine": estimate(cosine), "negative": estimate(6.0), "common": estimate(common)}
    measures = measured().measures | {"ANR": ranked}
    lines = findings(gradients_frame(MeasuredGradients(measures, measured().truth_weights)))
    assert (
        any(line.startswith("With ranking the gradient of AN is only partly") for line in lines)
        is said
    )


def test_the_figure_draws_values_and_predictions(tmp_path: Path):
    figure = gradients_figure(gradients_frame(measured()))
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["AN untruncated", "AN", "BN"]
    for axes, values in ((left, [1.0, 0.98, 0.1]), (right, [0.0, 0.05, 5.0])):
        (points,) = axes.containers
        assert list(points.lines[0].get_xdata()) == values
        assert list(points.lines[0].get_ydata()) == [0, 1, 2]
    marks = {
        (axes, one.get_label()): one.get_offsets().tolist()
        for axes in (left, right)
        for one in axes.collections
    }
    assert marks[left, "predicted"] == [[1, 0]] and marks[left, "ruled out"] == [[1, 2]]
    assert marks[right, "predicted"] == [[0, 0]]
    assert marks[right, "ruled out"] == [[0, 1], [0, 2]]
    plots.save(figure, tmp_path / "gradients", "Gradients.")
    assert (tmp_path / "gradients.png").stat().st_size and (tmp_path / "gradients.pdf").exists()


def test_nothing_measured_is_an_empty_frame_and_a_figure_that_says_so(tmp_path: Path):
    frame = gradients_frame(None)
    assert frame.empty and list(frame.columns) == COLUMNS and findings(frame) == []
    figure = gradients_figure(frame)
    assert all(axes.texts[0].get_text().startswith("no row") for axes in figure.axes)
    plots.save(figure, tmp_path / "gradients", "Nothing.")
