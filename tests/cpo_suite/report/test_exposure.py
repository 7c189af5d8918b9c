"""Exposure bias in the report: the table, the figure, and predictions beside measurements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest

from cpo.evaluation.exposure_bias import SentenceGrades
from cpo_suite.profile import load_profile
from cpo_suite.report import exposure
from cpo_suite.report.names import row_name

matplotlib.use("agg")


def grades(level: float, slope: float, seed: int, examples: int = 200) -> SentenceGrades:
    """Gaps of `level + slope (n - 2)` from n = 2 on, with noise of every gap's own."""
    random = np.random.default_rng(seed)
    n = np.arange(1, 5)
    gaps = np.where(n > 1, level + slope * (n - 2) + random.normal(0, 0.05, (examples, 4)), 0.0)
    own = np.full((examples, 4), 0.5)
    return SentenceGrades(tuple(range(examples)), own + gaps, own, np.ones((examples, 4), bool))


@pytest.fixture(scope="module")
def measured() -> dict[str, SentenceGrades]:
    return {
        "reference/llama": grades(0.0, 0.0, 0),
        "t2/MLE1": grades(0.1, 0.05, 1),
        "t2/ANR": grades(0.05, 0.05, 2),
        "t2/PSS": grades(0.2, 0.0, 3),
    }


def outcome(frame: Any, row: str, measure: str) -> str:
    [found] = frame[(frame["row"] == row) & (frame["measure"] == measure)]["outcome"]
    return str(found)


def test_predictions_stand_beside_what_was_measured(measured):
    frame = exposure.growth_frame(measured)
    assert outcome(frame, "t2/MLE1", "mean_gap") == "as predicted"
    assert outcome(frame, "t2/MLE1", "growth") == "as predicted"
    assert outcome(frame, "t2/ANR", "mean_gap_minus_mle") == "as predicted"
    assert outcome(frame, "t2/PSS", "mean_gap_minus_mle") == "the other way"
    assert outcome(frame, "reference/llama", "mean_gap") == "undecided"
    assert outcome(frame, "t2/ANR", "growth") == ""  # nothing was predicted of it
    # 0.1 and 0.05 a sentence at n = 2, 3, 4: 0.15 on average.
    values = frame.set_index(["row", "measure"])["value"]
    assert values["t2/MLE1", "mean_gap"] == pytest.approx(0.15, abs=0.01)
    assert values["t2/MLE1", "growth"] == pytest.approx(0.05, abs=0.01)
    assert values["t2/ANR", "mean_gap_minus_mle"] == pytest.approx(-0.05, abs=0.01)
    words = exposure.exposure_in_words(frame)
    assert words.startswith("Of 6 predictions: 3 as predicted, 1 the other way, 2 undecided.")
    assert "Llama, MLE1: mean gap +0.1" in words


def test_the_table_has_a_line_for_each_row_and_sentence(measured):
    frame = exposure.exposure_frame(measured, "instructions")
    assert list(frame) == exposure.EXPOSURE_COLUMNS
    assert len(frame) == 4 * 4 and set(frame["task"]) == {"instructions"}
    first = frame[frame["n"] == 1]
    assert (first[["gap", "low", "high"]] == 0).all().all()
    assert (frame["gap"] - (frame["true"] - frame["own"])).abs().max() < 1e-9
    assert (frame["examples"] == 200).all()
    few = {name: grades(0.1, 0.0, 0, examples=20) for name in measured}
    assert exposure.exposure_frame(few, "articles").empty
    assert list(exposure.exposure_frame({}, "articles")) == exposure.EXPOSURE_COLUMNS


def test_without_examples_it_says_so():
    assert "not measured" in exposure.exposure_in_words(exposure.growth_frame({}))


def test_the_figure_draws_every_gap(measured):
    frame = exposure.exposure_frame(measured, "instructions")
    [axes] = exposure.exposure_figure(frame).axes
    assert axes.get_legend_handles_labels()[1] == [row_name(row) for row in measured]
    drawn = axes.containers[1].lines[0]
    x, y = (np.asarray(data, dtype=float) for data in drawn.get_data())
    np.testing.assert_allclose(y, frame[frame["row"] == "t2/MLE1"]["gap"])
    assert np.round(x).tolist() == [1, 2, 3, 4]


def test_rows_come_after_their_references_and_need_the_oracle():
    def rows(*overrides: str) -> list[str]:
        suite: Any = SimpleNamespace(profile=load_profile("tiny", overrides))
        return exposure.exposure_rows(suite, "articles")

    assert rows() == ["articles_reference/llama", "t3/MLE", "t3/BNR/0"]
    assert rows("judge={kind: longest}") == []


def test_seeds_are_rows_of_the_same_examples(measured):
    asked = []

    def of_seed(row_id: str, seed: int) -> SentenceGrades:
        asked.append((row_id, seed))
        return measured["t2/MLE1"]

    profile = load_profile("tiny", ["seeds=2", "rows=[t2/MLE1]", "claims={}"])
    suite: Any = SimpleNamespace(profile=profile, exposure_bias=of_seed)
    found = exposure.exposure_grades(suite, "instructions")
    assert asked == [("reference/llama", 0), ("reference/llama", 1), ("t2/MLE1", 0), ("t2/MLE1", 1)]
    assert found["t2/MLE1"].true.shape == (400, 4)
